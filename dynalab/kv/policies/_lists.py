"""Circular doubly linked lists threaded through the rows of ``f``.

A list is a sentinel row ``h``: ``f[h, NEXT]`` is its oldest member and ``f[h, PREV]`` its newest; an empty list
points to itself, which removes every special case.
"""

from __future__ import annotations

from dynalab.kv.policies._layout import NEXT, PREV, STATE, jit


@jit
def unlink(f, x):
    """Take row `x` out of the list that it is on."""
    p = f[x, PREV]
    n = f[x, NEXT]
    f[p, NEXT] = n
    f[n, PREV] = p


@jit
def push(f, h, x):
    """Put row `x` at the newest end of list `h`."""
    p = f[h, PREV]
    f[p, NEXT] = x
    f[x, PREV] = p
    f[x, NEXT] = h
    f[h, PREV] = x


@jit
def renew(f, h, x):
    """Move row `x` to the newest end of list `h`."""
    unlink(f, x)
    push(f, h, x)


@jit
def oldest(f, h):
    """Return the oldest member of list `h`, or `h` itself if the list is empty."""
    return f[h, NEXT]


@jit
def pop_oldest(f, h):
    """Take the oldest member off list `h`, which is not empty, set its STATE to unknown and return it."""
    x = oldest(f, h)
    unlink(f, x)
    f[x, STATE] = 0
    return x


@jit
def is_empty(f, h):
    """Tell whether list `h` has no member."""
    return f[h, NEXT] == h


@jit
def pop_lowest(f, h):
    """Take the oldest member off the first list from `h` upward that has any, as :func:`pop_oldest` does."""
    while is_empty(f, h):
        h += 1
    return pop_oldest(f, h)
