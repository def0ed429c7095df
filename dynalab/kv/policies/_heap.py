"""An indexed binary min-heap in ``t``, for the policies whose order is not a queue.

Entry ``i`` is the triple ``(t[3 i], t[3 i + 1], t[3 i + 2])`` = (first key, second key, block id); the smallest pair of
keys is at the root. ``f[x, COUNT]`` is the entry of block `x` plus one, 0 while it is not in the heap, so that a key
can be changed or an entry removed in O(log n). ``s[FREE]`` is the number of entries.
"""

from __future__ import annotations

from dynalab.kv.policies._layout import COUNT, FREE, STATE, jit


def heap_table(capacity: int) -> int:
    """Return the length of ``t`` that a heap of `capacity` entries needs."""
    return 3 * (capacity + 1)


@jit
def _before(a1, a2, b1, b2):
    return a1 < b1 or (a1 == b1 and a2 < b2)


@jit
def _place(f, t, i, k1, k2, x):
    t[3 * i] = k1
    t[3 * i + 1] = k2
    t[3 * i + 2] = x
    f[x, COUNT] = i + 1


@jit
def _settle(f, s, t, i, k1, k2, x):
    """Put the entry into the hole at `i`, moving others up or down until the order holds."""
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(k1, k2, t[3 * parent], t[3 * parent + 1]):
            break
        _place(f, t, i, t[3 * parent], t[3 * parent + 1], t[3 * parent + 2])
        i = parent
    n = s[FREE]
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and _before(t[3 * right], t[3 * right + 1], t[3 * child], t[3 * child + 1]):
            child = right
        if not _before(t[3 * child], t[3 * child + 1], k1, k2):
            break
        _place(f, t, i, t[3 * child], t[3 * child + 1], t[3 * child + 2])
        i = child
    _place(f, t, i, k1, k2, x)


@jit
def heap_set(f, s, t, x, k1, k2):
    """Give block `x` the keys (k1, k2), entering it if it is not in the heap."""
    if f[x, COUNT] == 0:
        s[FREE] += 1
        _settle(f, s, t, s[FREE] - 1, k1, k2, x)
    else:
        _settle(f, s, t, f[x, COUNT] - 1, k1, k2, x)


@jit
def heap_remove(f, s, t, x):
    """Take block `x` out of the heap; does nothing if it is not in it."""
    i = f[x, COUNT] - 1
    if i < 0:
        return
    f[x, COUNT] = 0
    s[FREE] -= 1
    n = s[FREE]
    if i < n:
        _settle(f, s, t, i, t[3 * n], t[3 * n + 1], t[3 * n + 2])


@jit
def heap_pop(f, s, t):
    """Take the block with the smallest keys out of the heap, which is not empty, and return it as unknown."""
    x = t[2]
    heap_remove(f, s, t, x)
    f[x, STATE] = 0
    return x
