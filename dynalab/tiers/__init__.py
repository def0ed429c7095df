"""Real memory for KV blocks: device, host and disk tiers, and the engine that moves bytes between them."""

from __future__ import annotations

from dynalab.tiers.device import DeviceTier
from dynalab.tiers.engine import PathStats, TransferEngine
from dynalab.tiers.host import HostTier
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.tier import BlockKeys, Capabilities, StorageTier, Tier
from dynalab.tiers.transfer import Transfer

__all__ = [
    "BlockKeys",
    "Capabilities",
    "DeviceTier",
    "HostTier",
    "MemoryTier",
    "PathStats",
    "StorageTier",
    "Tier",
    "Transfer",
    "TransferEngine",
]
