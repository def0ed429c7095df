"""The flat arrays that every policy lives in, and the helpers that name their columns.

A policy is a state machine over three arrays, so that the metadata-only replay, the real tiers and the serving
simulator drive the very same compiled code:

``f`` : int32, shape (n_nodes, n_columns)
    One row per block id (``nodes_per_block`` rows where a policy keeps a block on two lists), then the list sentinels.
    A row is small and contiguous: one access touches one cache line per block.
``s`` : int64, shape (N_SCALARS,)
    Counters and parameters.
``t`` : int64, shape (policy dependent,)
    Heaps, sketches, buckets.
"""

from __future__ import annotations

import numba

# Columns of ``f``. STATE is 0 for an unknown block, positive while resident, negative for a ghost (remembered, not
# held).
STATE, PREV, NEXT, COUNT = 0, 1, 2, 3
# Only in the wide rows of policies that declare ``needs``: facts about the block, written by the driver.
POSITION, PARENT, PRIORITY, NEXT_USE = 4, 5, 6, 7
NARROW_COLUMNS, WIDE_COLUMNS = 4, 8

# Slots of ``s``: resident blocks, capacity, number of block ids, first sentinel row; the rest belongs to the policy.
SIZE, CAPACITY, N_BLOCKS, SENTINEL, FREE = 0, 1, 2, 3, 4
N_SCALARS = 32

# Operations of a policy's ``step`` function.
ACCESS, HIT, EVICT, INSERT, REMOVE = 0, 1, 2, 3, 4
# What ``step(ACCESS, ...)`` answers when no block had to leave; otherwise it is the victim's id.
WAS_HIT, NO_VICTIM = -2, -1

#: For the small functions that a step is made of. They are not kept on disk: the step is, with all of them inlined.
#: Without the reference counts that ``_nrt`` would add to every array argument a step is three times faster; the
#: price is that these functions can neither allocate nor slice.
jit = numba.njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)
