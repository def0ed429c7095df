"""Real memory for KV blocks: device, host and disk tiers, the engine that moves bytes between them, and their stack."""

from __future__ import annotations

from dynalab.tiers.aio import AsyncTierStack
from dynalab.tiers.config import StackConfig
from dynalab.tiers.device import DeviceTier
from dynalab.tiers.directory import Filter
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.engine import PathStats, TransferEngine
from dynalab.tiers.handles import Match, Onboarding, Prefetch
from dynalab.tiers.host import HostTier
from dynalab.tiers.leases import Blocks
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.stack import KvEvent, TierStack
from dynalab.tiers.tier import BlockKeys, Capabilities, StorageTier, Tier
from dynalab.tiers.transfer import Transfer

__all__ = [
    "AsyncTierStack",
    "BlockKeys",
    "Blocks",
    "Capabilities",
    "DeviceTier",
    "DiskTier",
    "Filter",
    "HostTier",
    "KvEvent",
    "Match",
    "MemoryTier",
    "Onboarding",
    "PathStats",
    "Prefetch",
    "StackConfig",
    "StorageTier",
    "Tier",
    "TierStack",
    "Transfer",
    "TransferEngine",
]
