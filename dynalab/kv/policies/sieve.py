"""SIEVE: a hand sweeps from old to new over a list that hits never reorder."""

from __future__ import annotations

from dynalab.kv.policies._layout import COUNT, FREE, NEXT, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import oldest, push, unlink
from dynalab.kv.policies._registry import register

_HAND = FREE  # the block that the hand points at, or the sentinel: start from the oldest


def init(f, s, t):
    s[_HAND] = s[SENTINEL]


@jit
def hit(f, s, t, x):
    f[x, COUNT] = 1


@jit
def evict(f, s, t, x):
    queue = s[SENTINEL]
    victim = s[_HAND]
    if victim == queue:
        victim = oldest(f, queue)
    while f[victim, COUNT] > 0:
        f[victim, COUNT] = 0
        victim = f[victim, NEXT]
        if victim == queue:
            victim = oldest(f, queue)
    s[_HAND] = f[victim, NEXT]
    unlink(f, victim)
    f[victim, STATE] = 0
    return victim


@jit
def insert(f, s, t, x):
    push(f, s[SENTINEL], x)
    f[x, STATE] = 1
    f[x, COUNT] = 0


@jit
def remove(f, s, t, x):
    if s[_HAND] == x:
        s[_HAND] = f[x, NEXT]
    unlink(f, x)


register(
    "sieve",
    "SIEVE",
    "a hand sweeps from old to new and takes the first block not used since it last passed",
    "Zhang et al., SIEVE is simpler than LRU, NSDI 2024",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
)
