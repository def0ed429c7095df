"""The arrays of one cache under one policy, and a Python handle on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, unknown
from dynalab.kv.policies import _layout
from dynalab.kv.policies._layout import ACCESS, CAPACITY, EVICT, HIT, INSERT, N_BLOCKS, REMOVE, SENTINEL, SIZE, STATE
from dynalab.kv.policies._registry import POLICIES, Policy

_FACTS = {"position": _layout.POSITION, "parent": _layout.PARENT, "priority": _layout.PRIORITY}


def get_policy(name: str | Policy) -> Policy:
    """Return the policy of that name.

    Raises
    ------
    ConfigError
        If there is none; the message names the closest and all others.
    """
    if isinstance(name, Policy):
        return name
    key = str(name).lower()
    if key not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return POLICIES[key]


class PolicyState:
    """One cache: a policy, a capacity in blocks, and the flat arrays between them.

    Parameters
    ----------
    policy : str or Policy
    capacity : int
        Blocks that fit, at least 1.
    n_blocks : int
        Block ids run from 0 to ``n_blocks - 1``.
    position, parent, priority : array_like of int, shape (n_blocks,), optional
        Facts about the blocks, for the policies that declare to need them: index within the prompt, id of the preceding
        block (-1 for a root), and KVBM's priority 0..100.

    Attributes
    ----------
    step : callable
        The compiled state machine ``step(op, f, s, t, x)`` to hand to a jitted driver.
    f, s, t : ndarray
        Its arrays, see :mod:`dynalab.kv.policies._layout`.
    """

    def __init__(
        self,
        policy: str | Policy,
        capacity: int,
        n_blocks: int,
        *,
        position: npt.ArrayLike | None = None,
        parent: npt.ArrayLike | None = None,
        priority: npt.ArrayLike | None = None,
    ) -> None:
        self.policy = get_policy(policy)
        if capacity < 1:
            raise ConfigError(f"capacity: {capacity} blocks cannot hold anything; give at least 1")
        self.step = self.policy.step()
        lists = self.policy.lists
        n_lists = lists if isinstance(lists, int) else lists(capacity, n_blocks)
        rows = self.policy.nodes_per_block * n_blocks
        columns = _layout.WIDE_COLUMNS if self.policy.needs else _layout.NARROW_COLUMNS
        self.f = np.zeros((rows + n_lists, columns), np.int32)
        sentinels = np.arange(rows, rows + n_lists)
        self.f[sentinels, _layout.PREV] = self.f[sentinels, _layout.NEXT] = sentinels
        self.s = np.zeros(_layout.N_SCALARS, np.int64)
        self.s[CAPACITY], self.s[N_BLOCKS], self.s[SENTINEL] = capacity, n_blocks, rows
        self.t = np.zeros(self.policy.table(capacity, n_blocks), np.int64)
        facts = {"position": position, "parent": parent, "priority": priority}
        for need in self.policy.needs:
            if need not in facts:
                continue
            given = facts[need]
            default = -1 if need == "parent" else 0
            self.f[:n_blocks, _FACTS[need]] = default if given is None else given
        self.policy.init(self.f, self.s, self.t)

    @property
    def size(self) -> int:
        """Resident blocks."""
        return int(self.s[SIZE])

    @property
    def capacity(self) -> int:
        """Blocks that fit."""
        return int(self.s[CAPACITY])

    def contains(self, x: int) -> bool:
        """Tell whether block `x` is resident."""
        return bool(self.f[x, STATE] > 0)

    def resident(self) -> npt.NDArray[np.int64]:
        """Return the resident block ids, in rising order."""
        return np.flatnonzero(self.f[: self.s[N_BLOCKS], STATE] > 0)

    def hit(self, x: int) -> None:
        """Use block `x`, which is resident."""
        self.step(HIT, self.f, self.s, self.t, x)

    def evict(self, x: int) -> int:
        """Let one block leave to make room for `x`, and return it."""
        return int(self.step(EVICT, self.f, self.s, self.t, x))

    def insert(self, x: int) -> None:
        """Enter block `x`; there must be room."""
        self.step(INSERT, self.f, self.s, self.t, x)

    def remove(self, x: int) -> None:
        """Forget block `x`, resident or ghost; does nothing if it is unknown."""
        self.step(REMOVE, self.f, self.s, self.t, x)

    def access(self, x: int, next_use: int = -1) -> tuple[bool, int]:
        """Use block `x`, bringing it in on a miss.

        Parameters
        ----------
        x : int
        next_use : int
            Index of the next access to `x`, -1 for never; only offline bounds look at it.

        Returns
        -------
        hit : bool
        victim : int
            The block that had to leave, -1 for none.
        """
        if self.policy.offline:
            self.f[x, _layout.NEXT_USE] = next_use
        outcome = int(self.step(ACCESS, self.f, self.s, self.t, x))
        return outcome == _layout.WAS_HIT, max(outcome, -1)
