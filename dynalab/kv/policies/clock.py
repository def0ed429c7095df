"""CLOCK, as FIFO with reinsertion: a block used since the hand last passed gets a second round."""

from __future__ import annotations

from dynalab.kv.policies._layout import COUNT, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import oldest, pop_oldest, push, renew
from dynalab.kv.policies._registry import register
from dynalab.kv.policies.fifo import remove


@jit
def hit(f, s, t, x):
    f[x, COUNT] = 1


@jit
def evict(f, s, t, x):
    ring = s[SENTINEL]
    victim = oldest(f, ring)
    while f[victim, COUNT] > 0:
        f[victim, COUNT] = 0
        renew(f, ring, victim)
        victim = oldest(f, ring)
    return pop_oldest(f, ring)


@jit
def insert(f, s, t, x):
    push(f, s[SENTINEL], x)
    f[x, STATE] = 1
    f[x, COUNT] = 0


register(
    "clock",
    "CLOCK",
    "FIFO with one second chance for blocks used since the hand passed",
    "Corbato, A paging experiment with the Multics system, 1968",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
)
