"""Segmented LRU with four equal segments: each hit promotes a block by one."""

from __future__ import annotations

from dynalab.kv.policies._layout import CAPACITY, STATE, jit
from dynalab.kv.policies._registry import register
from dynalab.kv.policies._segments import MAX_SEGMENT, segment_hit, segment_insert, segment_leave, segment_victim

_SEGMENTS = 4


def init(f, s, t):
    s[MAX_SEGMENT : MAX_SEGMENT + _SEGMENTS] = s[CAPACITY] // _SEGMENTS


@jit
def hit(f, s, t, x):
    segment_hit(f, s, _SEGMENTS, x)


@jit
def evict(f, s, t, x):
    victim = segment_victim(f, s, _SEGMENTS)
    segment_leave(f, s, victim)
    f[victim, STATE] = 0
    return victim


@jit
def insert(f, s, t, x):
    segment_insert(f, s, _SEGMENTS, x)


@jit
def remove(f, s, t, x):
    segment_leave(f, s, x)


register(
    "slru",
    "SLRU",
    "four LRU segments; each hit promotes by one, overflow cools down by one",
    "Karedla et al., Caching strategies to improve disk system performance, IEEE Computer 27(3), 1994",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=_SEGMENTS,
)
