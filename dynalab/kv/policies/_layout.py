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

from collections.abc import Callable
from typing import Any, TypeVar

from numba.extending import register_jitable

F = TypeVar("F", bound=Callable[..., Any])

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

_jitted: set[Callable[..., Any]] = set()


def jit(function: F) -> F:
    """Make a function usable in compiled code, as one of the small ones that a step or a driver is made of.

    Compiled code takes it in; Python sees the plain function. Neither it nor the wrappers by which Python and C would
    call it are compiled on their own, which would take longer than all the rest. It is compiled for the types of its
    arguments, whichever constants they are, and not kept on disk: the step is, with everything inlined. Without the
    reference counts that ``_nrt`` would add to every array argument a step is three times faster; the price is that
    these functions can neither allocate nor slice.
    """
    if function not in _jitted:
        options = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}
        register_jitable(forceinline=True, **options)(function)
        _jitted.add(function)
    return function
