"""KVBM's lineage order: only blocks without resident children may leave, the oldest insertion first."""

from __future__ import annotations

from dynalab.kv.policies._heap import heap_pop, heap_remove, heap_set, heap_table
from dynalab.kv.policies._layout import FREE, N_BLOCKS, PARENT, PREV, STATE, jit
from dynalab.kv.policies._registry import register

_CHILDREN = PREV  # column: resident children of a block, itself resident or not (this policy keeps no lists)
_TICK = FREE + 1  # counter of insertions; s[FREE] is the heap's
_TICKS = FREE + 2  # where in t the tick of block 0 lies, after the heap of leaves


def _table(capacity: int, n_blocks: int) -> int:
    # Every block keeps its tick: a parent that becomes a leaf again competes with its old one.
    return heap_table(min(capacity, n_blocks)) + n_blocks


def init(f, s, t):
    s[_TICKS] = len(t) - s[N_BLOCKS]


@jit
def _adopt(f, s, t, x, change):
    """Tell the parent of `x` that it has gained (+1) or lost (-1) a resident child."""
    parent = f[x, PARENT]
    if parent < 0:
        return
    f[parent, _CHILDREN] += change
    if f[parent, STATE] > 0:
        if f[parent, _CHILDREN] == 0:
            heap_set(f, s, t, parent, t[s[_TICKS] + parent], 0)
        else:
            heap_remove(f, s, t, parent)


@jit
def _stamp(f, s, t, x):
    s[_TICK] += 1
    t[s[_TICKS] + x] = s[_TICK]
    if f[x, _CHILDREN] == 0:
        heap_set(f, s, t, x, s[_TICK], 0)


@jit
def hit(f, s, t, x):
    _stamp(f, s, t, x)


@jit
def insert(f, s, t, x):
    f[x, STATE] = 1
    _stamp(f, s, t, x)
    _adopt(f, s, t, x, 1)


@jit
def remove(f, s, t, x):
    heap_remove(f, s, t, x)
    f[x, STATE] = 0
    _adopt(f, s, t, x, -1)


@jit
def evict(f, s, t, x):
    victim = heap_pop(f, s, t)
    _adopt(f, s, t, victim, -1)
    return victim


register(
    "lineage",
    "KVBM lineage",
    "leaves first: a block leaves only when none of its continuations is held, oldest insertion first",
    "Dynamo kvbm-logical, Lineage inactive backend (its default)",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    table=_table,
    needs=("parent",),
)
