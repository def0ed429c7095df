# ruff: noqa: F821 - the template calls functions that every policy supplies
"""What a policy is, and how the functions of its file become one compiled state machine.

Adding a policy means one file in this folder. It defines four functions over the arrays of ``_layout``,

``hit(f, s, t, x)``
    Block `x`, resident, is used.
``evict(f, s, t, x) -> victim``
    Choose exactly one resident block to leave, to make room for `x` (which is not resident, but may be a ghost); take
    it off the policy's lists and set its STATE to 0 or to a ghost state.
``insert(f, s, t, x)``
    Block `x` enters; there is room. Set its STATE to a positive value.
``remove(f, s, t, x)``
    Forget block `x`, resident or ghost, at the wish of the owner of the memory.

and registers them with :func:`register`. The size of the cache and the state of removed blocks are kept here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from dynalab.kv.keyed import sources_digest
from dynalab.kv.policies import _layout
from dynalab.kv.policies._layout import ACCESS, CAPACITY, EVICT, HIT, INSERT, NO_VICTIM, SIZE, STATE, WAS_HIT, jit

#: ``step(op, f, s, t, x)``: what every driver calls, through a pointer, so that a driver is compiled once for all
#: policies.
STEP_SIGNATURE = numba.int64(numba.int64, numba.int32[:, ::1], numba.int64[::1], numba.int64[::1], numba.int64)
STEP_TYPE = numba.types.FunctionType(STEP_SIGNATURE)


def _no_init(f: np.ndarray, s: np.ndarray, t: np.ndarray) -> None:
    """Leave the arrays as they are."""


def _no_table(capacity: int, n_blocks: int) -> int:
    return 0


@dataclass(frozen=True)
class Policy:
    """A replacement policy.

    Attributes
    ----------
    name, title, summary : str
        Key in :data:`~dynalab.kv.policies.POLICIES`, printable name, and one line on what it does.
    source : str
        Where the rule comes from.
    step : callable
        The compiled state machine, see :data:`STEP_SIGNATURE`.
    needs : tuple of str
        Facts about blocks that the driver must supply: "position", "parent", "priority", "next_use".
    lists : callable or int
        Number of list sentinels, or a function of (capacity, n_blocks) that gives it.
    nodes_per_block : int
        Rows of ``f`` per block id.
    init : callable
        Sets the policy's own scalars and tables once, in plain Python.
    table : callable
        Length of ``t`` as a function of (capacity, n_blocks).
    exact_ids : bool
        True where the numeric id of a block can change a decision (hashing, or ties broken by id).
    """

    name: str
    title: str
    summary: str
    source: str
    step: Any
    needs: tuple[str, ...] = ()
    lists: Callable[[int, int], int] | int = 1
    nodes_per_block: int = 1
    init: Callable[[np.ndarray, np.ndarray, np.ndarray], None] = _no_init
    table: Callable[[int, int], int] = _no_table
    exact_ids: bool = False

    @property
    def offline(self) -> bool:
        """True for bounds that must know the future."""
        return "next_use" in self.needs


#: All policies by name, in the order in which their files were registered.
POLICIES: dict[str, Policy] = {}


# Stand for the functions of whichever policy the template below is compiled for.
hit: Any
evict: Any
insert: Any
remove: Any


def _step(op, f, s, t, x):
    if op == ACCESS:
        if f[x, STATE] > 0:
            hit(f, s, t, x)
            return WAS_HIT
        victim = NO_VICTIM
        if s[SIZE] >= s[CAPACITY]:
            victim = evict(f, s, t, x)
            s[SIZE] -= 1
        insert(f, s, t, x)
        s[SIZE] += 1
        return victim
    if op == HIT:
        hit(f, s, t, x)
    elif op == EVICT:
        s[SIZE] -= 1
        return evict(f, s, t, x)
    elif op == INSERT:
        insert(f, s, t, x)
        s[SIZE] += 1
    elif f[x, STATE] != 0:
        if f[x, STATE] > 0:
            s[SIZE] -= 1
        remove(f, s, t, x)
        f[x, STATE] = 0
    return NO_VICTIM


def _compile_step(name: str, functions: dict[str, Callable[..., Any]], filename: str, module: str) -> Any:
    """Compile ``_step`` with one policy's functions in place of the names hit, evict, insert and remove.

    Numba keeps compiled code on disk only for plain functions of a file, neither for closures nor for functions passed
    as arguments. So the step's code object is given the policy's own file and globals, and a name that is keyed by the
    sources (see :mod:`dynalab.kv.keyed`): the next process finds it again.
    """
    qualified = f"step_{name}_{sources_digest()}"
    code = _step.__code__.replace(co_filename=filename, co_name=qualified, co_qualname=qualified)
    scope = {**vars(_layout), **functions, "__name__": module, "__builtins__": __builtins__}
    function = types.FunctionType(code, scope, qualified)
    function.__module__ = module
    return numba.njit(STEP_SIGNATURE, cache=True, nogil=True, error_model="numpy", _nrt=False)(function)


def register(
    name: str,
    title: str,
    summary: str,
    source: str,
    *,
    hit: Callable[..., Any],
    evict: Callable[..., Any],
    insert: Callable[..., Any],
    remove: Callable[..., Any],
    **options: Any,
) -> Policy:
    """Compile a policy's four functions into one state machine and enter it in :data:`POLICIES`.

    Parameters
    ----------
    name, title, summary, source : str
        See :class:`Policy`.
    hit, evict, insert, remove : callable
        The policy's functions, plain Python or jitted; see the module's docstring.
    **options
        The other fields of :class:`Policy`.
    """
    functions = {"hit": hit, "evict": evict, "insert": insert, "remove": remove}
    compiled = {key: fn if hasattr(fn, "py_func") else jit(fn) for key, fn in functions.items()}
    module = hit.__module__
    filename = sys.modules[module].__file__
    assert filename is not None
    policy = Policy(name, title, summary, source, _LazyStep(name, compiled, filename, module), **options)
    POLICIES[name] = policy
    return policy


class _LazyStep:
    """A step that is compiled (or loaded from the disk cache) when it is first used, for importing must stay cheap."""

    def __init__(self, name: str, functions: dict[str, Callable[..., Any]], filename: str, module: str) -> None:
        self._arguments = (name, functions, filename, module)
        self._compiled: Any = None

    def __call__(self) -> Any:
        """Return the compiled function."""
        if self._compiled is None:
            self._compiled = _compile_step(*self._arguments)
        return self._compiled
