"""KVBM's multi-LRU: four LRU lists, chosen by a TinyLFU count when a block is (re)inserted."""

from __future__ import annotations

import numpy as np

from dynalab.kv.policies._hash import mix64
from dynalab.kv.policies._layout import CAPACITY, FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import pop_lowest, push, unlink
from dynalab.kv.policies._registry import register
from dynalab.kv.policies.fifo import remove

_LEVELS = 4
_THRESHOLDS = (3, 8, 15)  # counts from which a block belongs to level 1, 2, 3
_SKETCH_SIZE = FREE  # increments since the last halving
_HASHES = 4
_AGE_FACTOR = 10  # the sketch is halved when it holds this many increments per block of capacity


def _table(capacity: int, n_blocks: int) -> int:
    # Words of sixteen 4-bit counters, one counter per entry here. A cache larger than the trace never evicts, so that
    # its sketch need not grow with it.
    return 16 * max(1, min(capacity, n_blocks) // 4)


@jit
def _counter(t, x, k):
    h = mix64(x, k + 1)
    word = np.int64(h % np.uint64(t.size // 16))
    return 16 * word + np.int64((h >> np.uint64(32)) & np.uint64(15))


@jit
def _count(s, t, x):
    """Add one use of block `x` to the sketch, and return the new estimate."""
    moved = False
    least = np.int64(15)
    for k in range(_HASHES):
        i = _counter(t, x, k)
        if t[i] < 15:
            t[i] += 1
            moved = True
    if moved:
        s[_SKETCH_SIZE] += 1
        if s[_SKETCH_SIZE] >= _AGE_FACTOR * s[CAPACITY]:
            odd = 0
            for i in range(t.size):
                odd += t[i] & 1
                t[i] >>= 1
            s[_SKETCH_SIZE] = max(0, s[_SKETCH_SIZE] // 2 - odd // 4)
    for k in range(_HASHES):
        least = min(least, t[_counter(t, x, k)])
    return least


@jit
def insert(f, s, t, x):
    count = _count(s, t, x)
    level = 0
    for threshold in _THRESHOLDS:
        if count >= threshold:
            level += 1
    push(f, s[SENTINEL] + level, x)
    f[x, STATE] = 1


@jit
def hit(f, s, t, x):
    unlink(f, x)
    insert(f, s, t, x)


@jit
def evict(f, s, t, x):
    return pop_lowest(f, s[SENTINEL])


register(
    "multilru",
    "KVBM multi-LRU",
    "four LRU lists by TinyLFU count (3, 8, 15) at insertion; the lowest list leaves first",
    "Dynamo kvbm-logical, MultiLRU inactive backend",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    lists=_LEVELS,
    table=_table,
    exact_ids=True,
)
