"""LRU stack distances in one pass (Mattson et al., 1970), counted with a Fenwick tree."""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def distance_histogram(ids, n_blocks):
    """Count the accesses at each LRU stack distance.

    The distance of an access is the number of distinct blocks used since the previous access to the same block, that
    block included: the access hits in every LRU cache of at least that many blocks. The tree marks, per point in time,
    whether the access made then is still the latest to its block; the distance is a count of marks.

    Parameters
    ----------
    ids : int32, shape (n_accesses,)
    n_blocks : int

    Returns
    -------
    histogram : int64, shape (n_blocks + 1,)
        ``histogram[d]`` accesses have distance `d`; entry 0 counts first accesses, which hit nowhere.
    """
    n = ids.size
    tree = np.zeros(n + 1, np.int32)
    last = np.full(n_blocks, -1, np.int32)
    histogram = np.zeros(n_blocks + 1, np.int64)
    seen = 0
    for i in range(n):
        x = ids[i]
        j = last[x]
        if j < 0:
            histogram[0] += 1
            seen += 1
        else:
            # Marks after j are the other blocks used since. All marks together are the blocks seen.
            older = 0
            k = j + 1
            while k > 0:
                older += tree[k]
                k &= k - 1
            histogram[seen - older + 1] += 1
            k = j + 1
            while k <= n:
                tree[k] -= 1
                k += k & -k
        k = i + 1
        while k <= n:
            tree[k] += 1
            k += k & -k
        last[x] = i
    return histogram
