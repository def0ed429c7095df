"""Belady's MIN: the block whose next use lies furthest ahead leaves. Needs the future: a bound, not a policy."""

from __future__ import annotations

from dynalab.kv.policies._heap import heap_pop, heap_remove, heap_set, heap_table
from dynalab.kv.policies._layout import NEXT_USE, STATE, jit
from dynalab.kv.policies._registry import register

_NEVER = 1 << 62


def _table(capacity: int, n_blocks: int) -> int:
    return heap_table(min(capacity, n_blocks))


@jit
def hit(f, s, t, x):
    when = f[x, NEXT_USE]
    heap_set(f, s, t, x, -when if when >= 0 else -_NEVER, x)


@jit
def insert(f, s, t, x):
    f[x, STATE] = 1
    hit(f, s, t, x)


@jit
def remove(f, s, t, x):
    heap_remove(f, s, t, x)


@jit
def evict(f, s, t, x):
    return heap_pop(f, s, t)


register(
    "belady",
    "Belady (offline bound)",
    "the block whose next use lies furthest ahead leaves; no online policy can hit more often",
    "Belady, A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    table=_table,
    needs=("next_use",),
    exact_ids=True,
)
