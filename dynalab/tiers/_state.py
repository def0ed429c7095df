"""The arrays that the directory's steps work on, as one tuple, and how a step is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from dynalab.kv.keyed import Late
from dynalab.kv.policies._pointer import step_at
from dynalab.kv.tiering.book import BOOK_TYPE
from dynalab.kv.tiering.rules import FILTERS_TYPE, HOLD_TYPE, N_TIERS, jit
from dynalab.tiers.identity_table import IDS_TYPE

_NODES = numba.types.UniTuple(numba.int32[:, ::1], N_TIERS)
_INTS = numba.types.UniTuple(numba.int64[::1], N_TIERS)
I32, I64, U64, I8 = numba.int32[::1], numba.int64[::1], numba.uint64[::1], numba.int8[::1]
_FLAGS = numba.boolean[::1]
_I64_2D = numba.int64[:, ::1]
#: Kinds, hashes and parents' hashes of events, and their number.
NEWS_TYPE = numba.types.Tuple((I8, U64, U64, I64))
STORE, GONE = 1, -1

# Entries of ``state``: the policies' arrays, filters, tiers that exist, switches, counters, pins, book, stopped
# filters, pins of slots whose block is gone, numbers of hashes, events.
ARRAYS, FILTERS, ACTIVE, SWITCH, EVENTS, TRAFFIC, HOLD, BOOK, STOPPED, ORPHANS, IDS, NEWS = range(12)
STATE_TYPE = numba.types.Tuple(
    (
        numba.types.Tuple((_NODES, _INTS, _INTS)),
        FILTERS_TYPE,
        _FLAGS,
        _FLAGS,
        _I64_2D,
        _I64_2D,
        HOLD_TYPE,
        BOOK_TYPE,
        numba.uint8[:, ::1],
        numba.int32[:, ::1],
        IDS_TYPE,
        NEWS_TYPE,
    )
)


# Sources that steps inline besides those of policies and rules.
_INLINED = tuple(str(Path(__file__).with_name(name)) for name in ("_state.py", "_holding.py", "identity_table.py"))
_POLICIES_TYPE = numba.types.UniTuple(numba.int64, N_TIERS)


_steps: list[Late] = []


def load_steps() -> None:
    """Compile all steps, or find them on disk: before copies run, whose ends must not fail for want of a compiler."""
    for step in _steps:
        step.load()


def compiled(returns: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Late]:
    """Compile a step that takes the addresses of the three policies, the state, and `arguments`."""
    signature = returns(_POLICIES_TYPE, STATE_TYPE, *arguments)

    def register(function: Callable[..., Any]) -> Late:
        _steps.append(Late(function, signature, *_INLINED))
        return _steps[-1]

    return register


@jit
def as_cache(policies, state):
    """Return the policies and their arrays as the rules want them."""
    steps = (step_at(policies[0]), step_at(policies[1]), step_at(policies[2]))
    return (steps, state[ARRAYS][0], state[ARRAYS][1], state[ARRAYS][2])
