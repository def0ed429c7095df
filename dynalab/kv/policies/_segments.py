"""Segmented LRU lists, shared by SLRU and by the main part of W-TinyLFU.

Segment ``i`` is the list at sentinel ``SENTINEL + i``; ``s[N_SEGMENT + i]`` counts its members and ``s[MAX_SEGMENT +
i]`` bounds them. A block in segment ``i`` has STATE ``i + 1``.
"""

from __future__ import annotations

from dynalab.kv.policies._layout import FREE, SENTINEL, STATE, jit
from dynalab.kv.policies._lists import oldest, push, renew, unlink

N_SEGMENT = FREE
MAX_SEGMENT = FREE + 4
FREE_AFTER_SEGMENTS = FREE + 8


@jit
def _enter(f, s, segment, x):
    push(f, s[SENTINEL] + segment, x)
    s[N_SEGMENT + segment] += 1
    f[x, STATE] = segment + 1


@jit
def segment_leave(f, s, x):
    """Take block `x` off its segment."""
    unlink(f, x)
    s[N_SEGMENT + f[x, STATE] - 1] -= 1


@jit
def segment_insert(f, s, n_segments, x):
    """Put block `x` into the lowest segment that has room, else into the lowest."""
    target = 0
    for i in range(n_segments):
        if s[N_SEGMENT + i] < s[MAX_SEGMENT + i]:
            target = i
            break
    _enter(f, s, target, x)


@jit
def segment_hit(f, s, n_segments, x):
    """Promote block `x` by one segment; what overflows cools down by one, and so on.

    Returns True if a block was cooled down into segment 0.
    """
    segment = f[x, STATE] - 1
    if segment == n_segments - 1:
        renew(f, s[SENTINEL] + segment, x)
        return False
    segment_leave(f, s, x)
    segment += 1
    _enter(f, s, segment, x)
    while segment > 0 and s[N_SEGMENT + segment] > s[MAX_SEGMENT + segment]:
        cooled = oldest(f, s[SENTINEL] + segment)
        segment_leave(f, s, cooled)
        segment -= 1
        _enter(f, s, segment, cooled)
    return segment == 0


@jit
def segment_victim(f, s, n_segments):
    """Return the oldest block of the lowest segment that has any."""
    for i in range(n_segments):
        if s[N_SEGMENT + i] > 0:
            return oldest(f, s[SENTINEL] + i)
    return s[SENTINEL]
