"""First in, first out: the oldest insertion leaves, use does not matter."""

from __future__ import annotations

from dynalab.kv.policies._layout import SENTINEL, STATE, jit
from dynalab.kv.policies._lists import pop_oldest, push, unlink
from dynalab.kv.policies._registry import register


@jit
def hit(f, s, t, x):
    pass


@jit
def evict(f, s, t, x):
    return pop_oldest(f, s[SENTINEL])


@jit
def insert(f, s, t, x):
    push(f, s[SENTINEL], x)
    f[x, STATE] = 1


@jit
def remove(f, s, t, x):
    unlink(f, x)


register(
    "fifo",
    "FIFO",
    "the oldest insertion leaves; use does not matter",
    "folklore",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
)
