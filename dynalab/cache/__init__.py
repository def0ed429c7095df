"""Metadata-only replay of KV caches: policies, capacity curves, tier stacks, wear and sizing."""

from __future__ import annotations

from dynalab.cache.curve import knee, lru_curve, sampled_curve
from dynalab.cache.recommend import DEPLOYABLE, Recommendation, recommend
from dynalab.cache.replay import DEFINITIONS, infinite_hit_ratios, replay
from dynalab.cache.stack import MODES, TIERS, Tier
from dynalab.cache.tiers import replay_tiers
from dynalab.cache.ttft import break_even_tokens
from dynalab.cache.wear import Wear, wear

__all__ = [
    "DEFINITIONS",
    "DEPLOYABLE",
    "MODES",
    "TIERS",
    "Recommendation",
    "Tier",
    "Wear",
    "break_even_tokens",
    "infinite_hit_ratios",
    "knee",
    "lru_curve",
    "recommend",
    "replay",
    "replay_tiers",
    "sampled_curve",
    "wear",
]
