"""Bounded queues of ghosts: ids of blocks that left, remembered in case they are asked for again soon.

A policy that keeps one names its list (offset from the first sentinel) and two scalars: the members and the bound. A
ghost's STATE is ``IS_GHOST``. When a ghost is asked for, it is ``PROMISED`` a better place *before* the eviction that
makes room for it, which could otherwise push this very ghost out of its queue.
"""

from __future__ import annotations

from dynalab.kv.policies._layout import SENTINEL, STATE, jit
from dynalab.kv.policies._lists import pop_oldest, push, unlink

IS_GHOST, PROMISED = -1, -2


@jit
def forget_ghost(f, s, members, x):
    """Take ghost `x` out of its queue."""
    unlink(f, x)
    s[members] -= 1


@jit
def promise(f, s, members, x):
    """Note that block `x` is asked for, if it is a ghost."""
    if f[x, STATE] == IS_GHOST:
        forget_ghost(f, s, members, x)
        f[x, STATE] = PROMISED


@jit
def remember(f, s, queue, members, bound, x):
    """Make block `x`, just evicted, the newest ghost; the oldest is forgotten where the bound is reached."""
    if s[bound] == 0:
        return
    if s[members] >= s[bound]:
        pop_oldest(f, s[SENTINEL] + queue)
        s[members] -= 1
    push(f, s[SENTINEL] + queue, x)
    s[members] += 1
    f[x, STATE] = IS_GHOST
