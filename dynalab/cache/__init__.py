"""Metadata-only replay of KV caches: policies, capacity curves, tier stacks, wear and sizing."""

from __future__ import annotations

from dynalab.cache.replay import DEFINITIONS, infinite_hit_ratios, replay

__all__ = ["DEFINITIONS", "infinite_hit_ratios", "replay"]
