"""Mooncake's length-aware cache: LFU that lets later blocks of a prompt go before earlier ones."""

from __future__ import annotations

from dynalab.kv.policies._heap import heap_pop, heap_remove, heap_set, heap_table
from dynalab.kv.policies._layout import FREE, POSITION, PREV, STATE, jit
from dynalab.kv.policies._registry import register

_USES = PREV  # column: uses since the block entered (this policy keeps no lists)
_TICK = FREE + 1
_POSITIONS = 1 << 32


def _table(capacity: int, n_blocks: int) -> int:
    return heap_table(min(capacity, n_blocks))


@jit
def hit(f, s, t, x):
    s[_TICK] += 1
    f[x, _USES] += 1
    heap_set(f, s, t, x, f[x, _USES] * _POSITIONS - f[x, POSITION], s[_TICK])


@jit
def insert(f, s, t, x):
    f[x, STATE] = 1
    f[x, _USES] = 0
    hit(f, s, t, x)


@jit
def remove(f, s, t, x):
    heap_remove(f, s, t, x)


@jit
def evict(f, s, t, x):
    return heap_pop(f, s, t)


register(
    "length_aware",
    "Mooncake length-aware",
    "fewest uses first, among them the block latest in its prompt, then the longest unused",
    "Qin et al., Mooncake, arXiv 2407.00079, Table 1 (LengthAwareCache)",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    table=_table,
    needs=("position",),
)
