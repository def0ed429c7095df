"""Replacement policies: one small file each, one registry, one set of flat arrays.

>>> from dynalab.kv.policies import POLICIES, PolicyState
>>> cache = PolicyState("lru", capacity=2, n_blocks=4)
>>> [cache.access(block) for block in (0, 1, 0, 2)]
[(False, -1), (False, -1), (True, -1), (False, 1)]
"""

from __future__ import annotations

# Importing a policy's file registers it; this order is the order of tables and figures.
from dynalab.kv.policies import (  # noqa: F401
    arc,
    belady,
    clock,
    fifo,
    length_aware,
    lfu,
    lineage,
    lirs,
    lru,
    multilru,
    priority,
    s3fifo,
    sieve,
    slru,
    two_q,
    wtinylfu,
)
from dynalab.kv.policies._registry import POLICIES, Policy, register
from dynalab.kv.policies.state import PolicyState, get_policy

#: The eleven policies of the general caching literature.
CLASSIC = ("fifo", "lru", "lfu", "clock", "sieve", "s3fifo", "arc", "2q", "slru", "wtinylfu", "lirs")
#: The policies of KV block managers.
KV_SPECIFIC = ("priority", "multilru", "lineage", "length_aware")

__all__ = ["CLASSIC", "KV_SPECIFIC", "POLICIES", "Policy", "PolicyState", "get_policy", "register"]
