"""Least recently used."""

from __future__ import annotations

from dynalab.kv.policies._layout import SENTINEL, jit
from dynalab.kv.policies._lists import renew
from dynalab.kv.policies._registry import register
from dynalab.kv.policies.fifo import evict, insert, remove


@jit
def hit(f, s, t, x):
    renew(f, s[SENTINEL], x)


register(
    "lru",
    "LRU",
    "the block whose last use is longest ago leaves",
    "Mattson et al., IBM Systems Journal 9(2), 1970",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
)
