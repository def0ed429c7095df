"""Least frequently used, with the blocks of one count in the order in which they reached it."""

from __future__ import annotations

from dynalab.kv.policies._layout import COUNT, FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import is_empty, oldest, push, unlink
from dynalab.kv.policies._registry import register

# Bucket b is the list at sentinel row SENTINEL + b and the triple t[3 b ...] = (count, previous bucket, next bucket).
# Bucket 0 holds no blocks: it closes the ring of buckets in rising order of count. f[x, COUNT] is the block's bucket.
_FREE_BUCKET = FREE


def _buckets(capacity: int, n_blocks: int) -> int:
    # Every bucket but the ring's holds a block, and one more is needed while a block moves on.
    return min(capacity, n_blocks) + 2


def _table(capacity: int, n_blocks: int) -> int:
    return 3 * _buckets(capacity, n_blocks)


def init(f, s, t):
    n = len(t) // 3
    t[0::3] = 0
    t[2::3] = range(1, n + 1)  # unused buckets are chained through "next"
    t[1] = t[2] = 0
    s[_FREE_BUCKET] = 1


@jit
def _bucket_after(s, t, b, count):
    """Return the bucket of `count` that follows bucket `b`, opening it where there is none."""
    following = t[3 * b + 2]
    if following != 0 and t[3 * following] == count:
        return following
    new = s[_FREE_BUCKET]
    s[_FREE_BUCKET] = t[3 * new + 2]
    t[3 * new] = count
    t[3 * new + 1] = b
    t[3 * new + 2] = following
    t[3 * b + 2] = new
    t[3 * following + 1] = new
    return new


@jit
def _leave(f, s, t, x):
    """Take block `x` out of its bucket, and close the bucket if it was the last."""
    b = f[x, COUNT]
    unlink(f, x)
    if is_empty(f, s[SENTINEL] + b):
        before = t[3 * b + 1]
        after = t[3 * b + 2]
        t[3 * before + 2] = after
        t[3 * after + 1] = before
        t[3 * b + 2] = s[_FREE_BUCKET]
        s[_FREE_BUCKET] = b


@jit
def hit(f, s, t, x):
    b = f[x, COUNT]
    target = _bucket_after(s, t, b, t[3 * b] + 1)
    _leave(f, s, t, x)
    push(f, s[SENTINEL] + target, x)
    f[x, COUNT] = target


@jit
def evict(f, s, t, x):
    victim = oldest(f, s[SENTINEL] + t[2])
    _leave(f, s, t, victim)
    f[victim, STATE] = 0
    return victim


@jit
def insert(f, s, t, x):
    first = _bucket_after(s, t, 0, 1)
    push(f, s[SENTINEL] + first, x)
    f[x, COUNT] = first
    f[x, STATE] = 1


@jit
def remove(f, s, t, x):
    _leave(f, s, t, x)


register(
    "lfu",
    "LFU",
    "the block with the fewest uses since it entered leaves, the longest at that count first",
    "Shah et al., An O(1) algorithm for implementing the LFU cache eviction scheme, 2010",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=_buckets,
    table=_table,
)
