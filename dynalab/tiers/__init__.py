"""Real memory for KV blocks: device, host and disk tiers, and the engine that moves bytes between them."""

from __future__ import annotations

from dynalab.tiers.tier import BlockKeys, Capabilities, StorageTier, Tier

__all__ = ["BlockKeys", "Capabilities", "StorageTier", "Tier"]
