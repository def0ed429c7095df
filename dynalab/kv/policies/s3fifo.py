"""S3-FIFO: a small queue filters one-time blocks, a main queue with 2-bit counters, and a ghost queue of ids."""

from __future__ import annotations

from dynalab.kv.policies._ghosts import IS_GHOST, PROMISED, forget_ghost, promise, remember
from dynalab.kv.policies._layout import CAPACITY, COUNT, FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import is_empty, oldest, pop_oldest, push, renew, unlink
from dynalab.kv.policies._registry import register

_SMALL, _MAIN, _GHOST = 0, 1, 2  # lists, as offsets from the first sentinel
_N_SMALL, _N_MAIN, _N_GHOST = FREE, FREE + 1, FREE + 2
_SMALL_SIZE, _MAIN_SIZE, _GHOST_SIZE, _HAS_EVICTED = FREE + 3, FREE + 4, FREE + 5, FREE + 6
_IN_SMALL, _IN_MAIN = 1, 2
_MOVE_TO_MAIN = 2  # uses in the small queue that earn a place in the main one


def init(f, s, t):
    s[_SMALL_SIZE] = max(1, int(s[CAPACITY] * 0.1))
    s[_MAIN_SIZE] = s[CAPACITY] - s[_SMALL_SIZE]
    s[_GHOST_SIZE] = int(s[CAPACITY] * 0.9)


@jit
def hit(f, s, t, x):
    f[x, COUNT] += 1


@jit
def _evict_main(f, s):
    main = s[SENTINEL] + _MAIN
    victim = oldest(f, main)
    while f[victim, COUNT] > 0:
        f[victim, COUNT] = min(f[victim, COUNT], 3) - 1
        renew(f, main, victim)
        victim = oldest(f, main)
    s[_N_MAIN] -= 1
    return pop_oldest(f, main)


@jit
def evict(f, s, t, x):
    promise(f, s, _N_GHOST, x)
    s[_HAS_EVICTED] = 1
    small = s[SENTINEL] + _SMALL
    if s[_N_MAIN] > s[_MAIN_SIZE]:
        return _evict_main(f, s)
    while not is_empty(f, small):
        victim = oldest(f, small)
        unlink(f, victim)
        s[_N_SMALL] -= 1
        if f[victim, COUNT] >= _MOVE_TO_MAIN:
            push(f, s[SENTINEL] + _MAIN, victim)
            s[_N_MAIN] += 1
            f[victim, STATE] = _IN_MAIN
            f[victim, COUNT] = 0
            continue
        f[victim, STATE] = 0
        remember(f, s, _GHOST, _N_GHOST, _GHOST_SIZE, victim)
        return victim
    return _evict_main(f, s)


@jit
def insert(f, s, t, x):
    promise(f, s, _N_GHOST, x)
    # Until the first eviction a full small queue spills into the main one.
    spill = s[_HAS_EVICTED] == 0 and s[_N_SMALL] >= s[_SMALL_SIZE]
    if f[x, STATE] == PROMISED or spill:
        push(f, s[SENTINEL] + _MAIN, x)
        s[_N_MAIN] += 1
        f[x, STATE] = _IN_MAIN
    else:
        push(f, s[SENTINEL] + _SMALL, x)
        s[_N_SMALL] += 1
        f[x, STATE] = _IN_SMALL
    f[x, COUNT] = 0


@jit
def remove(f, s, t, x):
    if f[x, STATE] == IS_GHOST:
        forget_ghost(f, s, _N_GHOST, x)
    elif f[x, STATE] == _IN_SMALL:
        unlink(f, x)
        s[_N_SMALL] -= 1
    elif f[x, STATE] == _IN_MAIN:
        unlink(f, x)
        s[_N_MAIN] -= 1


register(
    "s3fifo",
    "S3-FIFO",
    "10% small FIFO as a filter, main FIFO with reinsertion, ghost queue of 90%",
    "Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=3,
)
