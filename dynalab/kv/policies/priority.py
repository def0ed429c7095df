"""KVBM's inactive pool: lowest priority first, within one priority the longest returned."""

from __future__ import annotations

from dynalab.kv.policies._layout import PRIORITY, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import pop_lowest, push, renew
from dynalab.kv.policies._registry import register
from dynalab.kv.policies.fifo import remove

_LEVELS = 101  # priorities 0..100


@jit
def _level(f, s, x):
    return s[SENTINEL] + min(max(f[x, PRIORITY], 0), _LEVELS - 1)


@jit
def hit(f, s, t, x):
    renew(f, _level(f, s, x), x)


@jit
def evict(f, s, t, x):
    return pop_lowest(f, s[SENTINEL])


@jit
def insert(f, s, t, x):
    push(f, _level(f, s, x), x)
    f[x, STATE] = 1


register(
    "priority",
    "KVBM priority",
    "the lowest priority leaves first, the longest unused first within one priority",
    "Dynamo KV block manager, inactive pool ordered by (priority, returned tick)",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    lists=_LEVELS,
    needs=("priority",),
)
