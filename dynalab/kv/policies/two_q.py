"""2Q: new blocks wait in a FIFO; only those asked for again after leaving it earn a place in the LRU list."""

from __future__ import annotations

from dynalab.kv.policies._ghosts import IS_GHOST, PROMISED, forget_ghost, promise, remember
from dynalab.kv.policies._layout import CAPACITY, FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import is_empty, pop_oldest, push, renew, unlink
from dynalab.kv.policies._registry import register

_AIN, _AOUT, _AM = 0, 1, 2  # lists, as offsets from the first sentinel
_N_AIN, _N_AOUT, _KIN, _KOUT = FREE, FREE + 1, FREE + 2, FREE + 3
_IN_AIN, _IN_AM = 1, 2


def init(f, s, t):
    s[_KIN] = int(s[CAPACITY] * 0.25)
    s[_KOUT] = int(s[CAPACITY] * 0.5)


@jit
def hit(f, s, t, x):
    if f[x, STATE] == _IN_AM:
        renew(f, s[SENTINEL] + _AM, x)


@jit
def evict(f, s, t, x):
    promise(f, s, _N_AOUT, x)
    am = s[SENTINEL] + _AM
    if s[_N_AIN] <= s[_KIN] and not is_empty(f, am):
        return pop_oldest(f, am)
    victim = pop_oldest(f, s[SENTINEL] + _AIN)
    s[_N_AIN] -= 1
    remember(f, s, _AOUT, _N_AOUT, _KOUT, victim)
    return victim


@jit
def insert(f, s, t, x):
    promise(f, s, _N_AOUT, x)
    if f[x, STATE] == PROMISED:
        push(f, s[SENTINEL] + _AM, x)
        f[x, STATE] = _IN_AM
    else:
        push(f, s[SENTINEL] + _AIN, x)
        s[_N_AIN] += 1
        f[x, STATE] = _IN_AIN


@jit
def remove(f, s, t, x):
    if f[x, STATE] == IS_GHOST:
        forget_ghost(f, s, _N_AOUT, x)
    elif f[x, STATE] > 0:
        unlink(f, x)
        if f[x, STATE] == _IN_AIN:
            s[_N_AIN] -= 1


register(
    "2q",
    "2Q",
    "a 25% FIFO for newcomers, an LRU list for blocks asked for again within its ghost queue",
    "Johnson and Shasha, 2Q: a low overhead high performance buffer management algorithm, VLDB 1994",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=3,
)
