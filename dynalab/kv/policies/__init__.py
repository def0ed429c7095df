"""Replacement policies: one small file each, one registry, one set of flat arrays.

>>> from dynalab.kv.policies import POLICIES, PolicyState
>>> cache = PolicyState("lru", capacity=2, n_blocks=4)
>>> [cache.access(block) for block in (0, 1, 0, 2)]
[(False, -1), (False, -1), (True, -1), (False, 1)]
"""

from __future__ import annotations

# Importing a policy's file registers it; this order is the order of tables and figures.
# isort: off
from dynalab.kv.policies import fifo  # noqa: F401
from dynalab.kv.policies import lru  # noqa: F401
from dynalab.kv.policies import lfu  # noqa: F401
from dynalab.kv.policies import clock  # noqa: F401
from dynalab.kv.policies import sieve  # noqa: F401
from dynalab.kv.policies import s3fifo  # noqa: F401
from dynalab.kv.policies import arc  # noqa: F401
from dynalab.kv.policies import two_q  # noqa: F401
from dynalab.kv.policies import slru  # noqa: F401
from dynalab.kv.policies import wtinylfu  # noqa: F401
from dynalab.kv.policies import lirs  # noqa: F401
from dynalab.kv.policies import priority  # noqa: F401
from dynalab.kv.policies import multilru  # noqa: F401
from dynalab.kv.policies import lineage  # noqa: F401
from dynalab.kv.policies import length_aware  # noqa: F401
from dynalab.kv.policies import belady  # noqa: F401

# isort: on
from dynalab.kv.policies._registry import POLICIES, Policy, register
from dynalab.kv.policies.state import PolicyState, get_policy

#: The eleven policies of the general caching literature.
CLASSIC = ("fifo", "lru", "lfu", "clock", "sieve", "s3fifo", "arc", "2q", "slru", "wtinylfu", "lirs")
#: The policies of KV block managers.
KV_SPECIFIC = ("priority", "multilru", "lineage", "length_aware")

__all__ = ["CLASSIC", "KV_SPECIFIC", "POLICIES", "Policy", "PolicyState", "get_policy", "register"]
