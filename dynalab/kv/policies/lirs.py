"""LIRS: keep the blocks with the shortest distance between their last two uses."""

from __future__ import annotations

from dynalab.kv.policies._layout import CAPACITY, FREE, N_BLOCKS, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import is_empty, oldest, push, renew, unlink
from dynalab.kv.policies._registry import register

# A block can be on two lists at once, so it owns two rows: row x is its place in stack S, row x + N_BLOCKS its place in
# queue Q (resident HIR blocks) or in N (non-resident ones, in the order in which they lost their memory).
_S, _Q, _N = 0, 1, 2
_N_LIR, _N_Q, _N_S, _LIR_SIZE, _HIR_SIZE = FREE, FREE + 1, FREE + 2, FREE + 3, FREE + 4
_LIR, _HIR_IN_S, _HIR_ONLY_IN_Q, _NON_RESIDENT = 1, 2, 3, -1


def init(f, s, t):
    s[_HIR_SIZE] = max(1, int(s[CAPACITY] * 0.01))
    s[_LIR_SIZE] = s[CAPACITY] - s[_HIR_SIZE]


@jit
def _leave_s(f, s, x):
    unlink(f, x)
    s[_N_S] -= 1


@jit
def _enter_q(f, s, x):
    push(f, s[SENTINEL] + _Q, s[N_BLOCKS] + x)
    s[_N_Q] += 1


@jit
def _leave_q(f, s, x):
    unlink(f, s[N_BLOCKS] + x)
    s[_N_Q] -= 1


@jit
def _prune(f, s):
    """Take blocks off the bottom of S until a LIR block lies there."""
    while s[_N_S] > 0:
        x = oldest(f, s[SENTINEL] + _S)
        if f[x, STATE] == _LIR:
            return
        _leave_s(f, s, x)
        if f[x, STATE] == _NON_RESIDENT:
            unlink(f, s[N_BLOCKS] + x)
            f[x, STATE] = 0
        else:
            f[x, STATE] = _HIR_ONLY_IN_Q


@jit
def _limit_stack(f, s):
    """Forget the oldest non-resident blocks while S holds more than twice the capacity."""
    while s[_N_S] > 2 * s[CAPACITY] and not is_empty(f, s[SENTINEL] + _N):
        x = oldest(f, s[SENTINEL] + _N) - s[N_BLOCKS]
        unlink(f, s[N_BLOCKS] + x)
        _leave_s(f, s, x)
        f[x, STATE] = 0


@jit
def _top_of_s(f, s, x):
    """Put block `x` on top of S, wherever it was."""
    state = f[x, STATE]
    if state in (_LIR, _HIR_IN_S, _NON_RESIDENT):
        _leave_s(f, s, x)
    push(f, s[SENTINEL] + _S, x)
    s[_N_S] += 1


@jit
def _demote_bottom(f, s):
    """Turn the LIR block at the bottom of S into a resident HIR block."""
    _prune(f, s)
    bottom = oldest(f, s[SENTINEL] + _S)
    _leave_s(f, s, bottom)
    s[_N_LIR] -= 1
    f[bottom, STATE] = _HIR_ONLY_IN_Q
    _enter_q(f, s, bottom)


@jit
def _promote(f, s, x):
    """Make block `x` a LIR block on top of S; the LIR block at the bottom makes room by becoming resident HIR."""
    _top_of_s(f, s, x)
    if f[x, STATE] == _HIR_IN_S:
        _leave_q(f, s, x)
    elif f[x, STATE] == _NON_RESIDENT:
        unlink(f, s[N_BLOCKS] + x)
    f[x, STATE] = _LIR
    s[_N_LIR] += 1
    while s[_N_LIR] > s[_LIR_SIZE]:
        _demote_bottom(f, s)


@jit
def hit(f, s, t, x):
    if f[x, STATE] == _LIR:
        _top_of_s(f, s, x)
    elif f[x, STATE] == _HIR_IN_S:
        _promote(f, s, x)
    else:
        _top_of_s(f, s, x)
        f[x, STATE] = _HIR_IN_S
        renew(f, s[SENTINEL] + _Q, s[N_BLOCKS] + x)
    _prune(f, s)
    _limit_stack(f, s)


@jit
def evict(f, s, t, x):
    if s[_N_Q] == 0:
        # Only where several blocks leave before the first enters: then all that are left may be LIR blocks.
        _demote_bottom(f, s)
    victim = oldest(f, s[SENTINEL] + _Q) - s[N_BLOCKS]
    _leave_q(f, s, victim)
    if f[victim, STATE] == _HIR_IN_S:
        f[victim, STATE] = _NON_RESIDENT
        push(f, s[SENTINEL] + _N, s[N_BLOCKS] + victim)
    else:
        f[victim, STATE] = 0
    return victim


@jit
def insert(f, s, t, x):
    if f[x, STATE] == _NON_RESIDENT or s[_N_LIR] < s[_LIR_SIZE]:
        _promote(f, s, x)
    else:
        _top_of_s(f, s, x)
        f[x, STATE] = _HIR_IN_S
        _enter_q(f, s, x)
    _prune(f, s)
    _limit_stack(f, s)


@jit
def remove(f, s, t, x):
    state = f[x, STATE]
    if state in (_LIR, _HIR_IN_S, _NON_RESIDENT):
        _leave_s(f, s, x)
    if state == _LIR:
        s[_N_LIR] -= 1
    elif state == _NON_RESIDENT:
        unlink(f, s[N_BLOCKS] + x)
    else:
        _leave_q(f, s, x)
    _prune(f, s)


register(
    "lirs",
    "LIRS",
    "99% for blocks with a short distance between their last two uses, 1% for the rest; stack of twice the capacity",
    "Jiang and Zhang, LIRS: an efficient low inter-reference recency set replacement policy, SIGMETRICS 2002",
    hit=hit,
    evict=evict,
    insert=insert,
    remove=remove,
    init=init,
    lists=3,
    nodes_per_block=2,
)
