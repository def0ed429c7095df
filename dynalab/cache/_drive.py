"""The jitted loops that drive policies with metadata alone."""

from __future__ import annotations

import numba
import numpy as np

from dynalab.kv.keyed import late
from dynalab.kv.policies._layout import ACCESS, NEXT_USE, WAS_HIT
from dynalab.kv.policies._registry import STEP_TYPE

_NODES = numba.int32[:, ::1]
_I64 = numba.int64[::1]
_IDS = numba.int32[::1]
_FLAGS = numba.uint8[::1]

jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@late(numba.int64(STEP_TYPE, _NODES, _I64, _I64, _IDS, _IDS, _FLAGS))
def drive(step, f, s, t, ids, next_use, hit):
    """Run every access of a trace through one cache.

    Parameters
    ----------
    step, f, s, t
        A policy's state machine and arrays.
    ids : int32, shape (n_accesses,)
    next_use : int32, shape (n_accesses,) or (0,)
        Index of the next access to the same block, -1 for none; empty where the policy does not ask for it.
    hit : uint8, shape (n_accesses,)
        Set to 1 where the access found its block.

    Returns
    -------
    int
        Evictions.
    """
    evictions = 0
    for i in range(ids.size):
        x = ids[i]
        if next_use.size:
            f[x, NEXT_USE] = next_use[i]
        outcome = step(ACCESS, f, s, t, x)
        hit[i] = outcome == WAS_HIT
        evictions += outcome >= 0
    return evictions


@jit
def count_hits(hit, offsets, full):
    """Reduce hit flags to counts per request.

    Parameters
    ----------
    hit : uint8, shape (n_accesses,)
    offsets : int64, shape (n_requests + 1,)
    full : uint8, shape (n_accesses,)
        1 where the access covers a whole block.

    Returns
    -------
    hits, prefix, full_hits : int32, shape (n_requests,)
        Blocks found, blocks found before the first one missed, and whole blocks found.
    """
    n = offsets.size - 1
    hits = np.zeros(n, np.int32)
    prefix = np.zeros(n, np.int32)
    full_hits = np.zeros(n, np.int32)
    for r in range(n):
        unbroken = True
        for i in range(offsets[r], offsets[r + 1]):
            if hit[i]:
                hits[r] += 1
                full_hits[r] += full[i]
                prefix[r] += unbroken
            else:
                unbroken = False
    return hits, prefix, full_hits


@jit
def served_tokens(level, offsets, lengths, n_tiers):
    """Sum the tokens that each tier served to each request.

    Parameters
    ----------
    level : int8, shape (n_accesses,)
        Tier that served each access; `n_tiers` where none did.
    offsets : int64, shape (n_requests + 1,)
    lengths : int32, shape (n_accesses,)
        Tokens that each access covers.
    n_tiers : int

    Returns
    -------
    int64, shape (n_requests, n_tiers)
    """
    tokens = np.zeros((offsets.size - 1, n_tiers), np.int64)
    for r in range(offsets.size - 1):
        for i in range(offsets[r], offsets[r + 1]):
            if level[i] < n_tiers:
                tokens[r, level[i]] += lengths[i]
    return tokens


@jit
def previous_and_next(ids, n_blocks):
    """Return the index of the previous and of the next access to the same block, -1 for none (int32 each)."""
    previous = np.full(ids.size, -1, np.int32)
    following = np.full(ids.size, -1, np.int32)
    last = np.full(n_blocks, -1, np.int32)
    for i in range(ids.size):
        j = last[ids[i]]
        previous[i] = j
        if j >= 0:
            following[j] = i
        last[ids[i]] = i
    return previous, following
