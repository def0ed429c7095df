"""ARC: two LRU lists (seen once, seen again) whose balance follows the hits among recently evicted blocks."""

from __future__ import annotations

import numpy as np

from dynalab.kv.policies._layout import CAPACITY, FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import oldest, push, unlink
from dynalab.kv.policies._registry import register

# Lists T1, T2 (resident), B1, B2 (ghosts): offsets from the first sentinel, and from the first size counter.
_T1, _T2, _B1, _B2 = 0, 1, 2, 3
_N = FREE  # s[_N + list] = members
_TARGET = FREE + 4  # p in the paper, the size that T1 should have: a real number, kept as the bits of a float64
_IN_T1, _IN_T2, _IN_B1, _IN_B2 = 1, 2, -1, -2


@jit
def _enter(f, s, which, x, state):
    push(f, s[SENTINEL] + which, x)
    s[_N + which] += 1
    f[x, STATE] = state


@jit
def _leave(f, s, x):
    state = f[x, STATE]
    which = state - 1 if state > 0 else 1 - state
    unlink(f, x)
    s[_N + which] -= 1


@jit
def _drop_oldest(f, s, which):
    x = oldest(f, s[SENTINEL] + which)
    _leave(f, s, x)
    f[x, STATE] = 0
    return x


@jit
def _target(s):
    return s.view(np.float64)[_TARGET]


@jit
def _set_target(s, p):
    s.view(np.float64)[_TARGET] = p


@jit
def _replace(f, s, incoming_in_b2):
    """REPLACE of the paper: demote the LRU block of T1 or T2 to a ghost."""
    n1 = s[_N + _T1]
    p = _target(s)
    if s[_N + _T2] == 0 or (n1 > 0 and (n1 > p or (n1 == p and incoming_in_b2))):
        victim = _drop_oldest(f, s, _T1)
        _enter(f, s, _B1, victim, _IN_B1)
    else:
        victim = _drop_oldest(f, s, _T2)
        _enter(f, s, _B2, victim, _IN_B2)
    return victim


@jit
def hit(f, s, t, x):
    _leave(f, s, x)
    _enter(f, s, _T2, x, _IN_T2)


@jit
def evict(f, s, t, x):
    c = s[CAPACITY]
    b1 = s[_N + _B1]
    b2 = s[_N + _B2]
    if f[x, STATE] == _IN_B1:
        _set_target(s, min(np.float64(c), _target(s) + max(b2 / b1, 1.0)))
        return _replace(f, s, False)
    if f[x, STATE] == _IN_B2:
        _set_target(s, max(0.0, _target(s) - max(b1 / b2, 1.0)))
        return _replace(f, s, True)
    l1 = s[_N + _T1] + b1
    if l1 >= c:
        if s[_N + _T1] >= c:
            return _drop_oldest(f, s, _T1)
        _drop_oldest(f, s, _B1)
    elif l1 + s[_N + _T2] + b2 >= 2 * c and b2 > 0:
        _drop_oldest(f, s, _B2)
    return _replace(f, s, False)


@jit
def insert(f, s, t, x):
    if f[x, STATE] < 0:
        _leave(f, s, x)
        _enter(f, s, _T2, x, _IN_T2)
    else:
        _enter(f, s, _T1, x, _IN_T1)


@jit
def remove(f, s, t, x):
    _leave(f, s, x)


register(
    "arc",
    "ARC",
    "recency and frequency lists, balanced by which of their ghosts are asked for",
    "Megiddo and Modha, ARC: a self-tuning, low overhead replacement cache, FAST 2003",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    lists=4,
)
