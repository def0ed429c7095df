"""W-TinyLFU: a 1% LRU window whose victims must beat the main cache's victim in a frequency sketch."""

from __future__ import annotations

import math

import numpy as np

from dynalab.kv.policies._hash import xxh64
from dynalab.kv.policies._layout import CAPACITY, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import oldest, push, renew, unlink
from dynalab.kv.policies._registry import register
from dynalab.kv.policies._segments import (
    FREE_AFTER_SEGMENTS,
    MAX_SEGMENT,
    N_SEGMENT,
    segment_hit,
    segment_insert,
    segment_leave,
    segment_victim,
)

_SEGMENTS = 2  # of the main cache: probation 20%, protected 80%
_WINDOW = 2  # list, as offset from the first sentinel
_IN_WINDOW = 8
_N_WINDOW, _MAIN_SIZE, _MAIN_HITS, _OWED = (
    FREE_AFTER_SEGMENTS,
    FREE_AFTER_SEGMENTS + 1,
    FREE_AFTER_SEGMENTS + 2,
    FREE_AFTER_SEGMENTS + 3,
)
_HASHES = 10
_LOW = np.uint64(0xFFFFFFFF)
_COUNTERS_PER_BLOCK = -math.log(0.001) / math.log(2) ** 2  # a Bloom filter of error 0.001
# libCacheSim's seeds and its ids counted from 1: the sketch is small enough for its collisions to matter (0.003).
_SEED_A, _SEED_B = 0x12345678, 0x12344321
_SAMPLE = 32  # the sketch is halved after this many main hits per block of main cache


def _main_size(capacity: int) -> int:
    return capacity - max(1, int(capacity * 0.01))


def _table(capacity: int, n_blocks: int) -> int:
    # A cache larger than the trace never asks its sketch, which then need not grow with it.
    return max(2 * _HASHES, math.ceil(_COUNTERS_PER_BLOCK * _main_size(min(capacity, max(n_blocks, 1)))))


def init(f, s, t):
    main = _main_size(int(s[CAPACITY]))
    s[_MAIN_SIZE] = main
    s[MAX_SEGMENT] = int(1 / 5 * main)
    s[MAX_SEGMENT + 1] = int(4 / 5 * main)


@jit
def _count(t, x):
    """Add one use of block `x` to the sketch."""
    a = np.uint32(xxh64(x + 1, _SEED_A) & _LOW)
    b = np.uint32(xxh64(x + 1, _SEED_B) & _LOW)
    for _ in range(_HASHES):
        t[np.int64(a) % t.size] += 1
        a = np.uint32(a + b)


@jit
def _estimate(t, x):
    """Return the sketch's estimate of the uses of block `x`."""
    a = np.uint32(xxh64(x + 1, _SEED_A) & _LOW)
    b = np.uint32(xxh64(x + 1, _SEED_B) & _LOW)
    least = t[np.int64(a) % t.size]
    for _ in range(_HASHES - 1):
        a = np.uint32(a + b)
        least = min(least, t[np.int64(a) % t.size])
    return least


@jit
def hit(f, s, t, x):
    if f[x, STATE] == _IN_WINDOW:
        renew(f, s[SENTINEL] + _WINDOW, x)
        return
    if segment_hit(f, s, _SEGMENTS, x) and s[N_SEGMENT] > s[MAX_SEGMENT] > 0:
        # libCacheSim evicts here, within the hit. A hit must not evict under our contract: the next miss pays.
        s[_OWED] = 1
    _count(t, x)
    s[_MAIN_HITS] += 1
    if s[_MAIN_HITS] >= _SAMPLE * s[_MAIN_SIZE]:
        s[_MAIN_HITS] = 0
        for i in range(t.size):
            t[i] >>= 1


@jit
def _leave_window(f, s, x):
    unlink(f, x)
    s[_N_WINDOW] -= 1


@jit
def evict(f, s, t, x):
    owed = s[_OWED] == 1 and s[N_SEGMENT] > s[MAX_SEGMENT]
    s[_OWED] = 0
    if owed:
        victim = oldest(f, s[SENTINEL])
        segment_leave(f, s, victim)
        f[victim, STATE] = 0
        return victim
    while s[_N_WINDOW] > 0 and s[_MAIN_SIZE] > 0:
        candidate = oldest(f, s[SENTINEL] + _WINDOW)
        _leave_window(f, s, candidate)
        if s[N_SEGMENT] + s[N_SEGMENT + 1] < s[_MAIN_SIZE]:
            segment_insert(f, s, _SEGMENTS, candidate)
            _count(t, candidate)
            continue
        victim = segment_victim(f, s, _SEGMENTS)
        if _estimate(t, candidate) > _estimate(t, victim):
            segment_leave(f, s, victim)
            segment_insert(f, s, _SEGMENTS, candidate)
        else:
            victim = candidate
        _count(t, candidate)
        f[victim, STATE] = 0
        return victim
    if s[_N_WINDOW] > 0:
        victim = oldest(f, s[SENTINEL] + _WINDOW)
        _leave_window(f, s, victim)
    else:
        victim = segment_victim(f, s, _SEGMENTS)
        segment_leave(f, s, victim)
    f[victim, STATE] = 0
    return victim


@jit
def insert(f, s, t, x):
    push(f, s[SENTINEL] + _WINDOW, x)
    s[_N_WINDOW] += 1
    f[x, STATE] = _IN_WINDOW
    _count(t, x)


@jit
def remove(f, s, t, x):
    if f[x, STATE] == _IN_WINDOW:
        _leave_window(f, s, x)
    else:
        segment_leave(f, s, x)


register(
    "wtinylfu",
    "W-TinyLFU",
    "a 1% LRU window; its victims enter the segmented main cache only if a sketch counts them more often",
    "Einziger et al., TinyLFU: a highly efficient cache admission policy, ACM TOS 13(4), 2017",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=3,
    table=_table,
    exact_ids=True,
)
