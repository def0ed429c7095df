"""Which block lies where: the stack's decisions, without a byte of memory.

The directory drives the very rules, policies and filters that :func:`dynalab.cache.replay_tiers` drives with
``pinned=True``, a request at a time, and answers with slots, with the copies to carry out and with events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError, ConfigError, NotEnoughBlocks, TierError, unknown
from dynalab.kv.admission import AdmissionState
from dynalab.kv.policies import PolicyState, get_policy
from dynalab.kv.policies._pointer import step_address
from dynalab.kv.tiering.book import COUNTS, FREE, HEAD, MOVES, N_MOVES
from dynalab.kv.tiering.rules import (
    AROUND_HOST,
    DEVICE,
    DISK,
    EDGES,
    EXCLUSIVE,
    HOST,
    N_EVENTS,
    N_SWITCHES,
    N_TIERS,
    OFFER_ALWAYS,
    PINNED,
    RESERVED,
    TIERS,
    TOUCH_ALL,
)
from dynalab.tiers import _steps
from dynalab.tiers._state import STORE
from dynalab.tiers.identity_table import HASH_OF, PARENT_OF, POSITION_OF, PRIORITY_OF, identity_table
from dynalab.tiers.tier import BlockKeys

MODES: Final = ("write_through", "write_back", "selective")
#: Copies and changes that one block can cause in one step, at most.
_PER_BLOCK: Final = 10


@dataclass(frozen=True, slots=True)
class Filter:
    """An admission filter in front of a tier, see :class:`dynalab.kv.admission.AdmissionState`.

    Attributes
    ----------
    kind : str
        Name in :data:`dynalab.kv.admission.ADMISSIONS`.
    min_frequency, flush_interval, max_entries, min_priority
        Its parameters; KVBM's defaults.
    """

    kind: str = "all"
    min_frequency: int = 2
    flush_interval: float = 600.0
    max_entries: int = 1_000_000
    min_priority: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a step.

    Attributes
    ----------
    moves : ndarray of int32, shape (n, 4)
        Copies: edge, number of the block, source slot, target slot.
    keys : BlockKeys
        Who those blocks are; n of them.
    news : tuple of (int, int, int)
        ``STORE`` or ``GONE``, hash, and parent's hash (0 for none) of blocks that are now in some tier, or no longer
        in any; in order.
    """

    moves: npt.NDArray[np.int32]
    keys: BlockKeys
    news: tuple[tuple[int, int, int], ...]


class Directory:
    """Blocks, slots and policies of up to three tiers.

    Parameters
    ----------
    slots : sequence of int, length 3
        Slots of device, host and disk; 0 for a tier that is not there.
    policies : sequence of str, length 3
    filters : sequence of Filter, length 3
        The device takes every block: its filter is not asked.
    mode : {"write_through", "write_back", "selective"}
    touch : {"served", "all"}
    disk_path : {"staged", "direct"}
    n_ids : int
        Blocks that can be remembered, held or not.
    tell : bool
        Whether outcomes bring news; who does not listen need not pay for it.

    Notes
    -----
    Not thread-safe: the stack holds its lock.
    """

    def __init__(
        self,
        slots: tuple[int, int, int],
        policies: tuple[str, str, str],
        filters: tuple[Filter, Filter, Filter],
        *,
        mode: str,
        touch: str,
        disk_path: str,
        n_ids: int,
        tell: bool = True,
    ) -> None:
        self._tell = tell
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        for field, value, choices in (("touch", touch, ("served", "all")), ("disk_path", disk_path, _PATHS)):
            if value not in choices:
                raise unknown(field, value, choices)
        exclusive = mode == "write_back"
        # A block that rises and the victim that sinks change places: below the device one slot must stay free for that.
        usable = [count - 1 if exclusive and k != DEVICE and count else count for k, count in enumerate(slots)]
        for name, count, left in zip(TIERS, slots, usable, strict=True):
            if count and not left:
                raise ConfigError(f"{name}: 1 block; mode 'write_back' keeps one slot free, give 2 or more")
        self.capacity: Final = tuple(usable)
        for name, policy in zip(TIERS, policies, strict=True):
            if get_policy(policy).offline:
                raise ConfigError(f"{name}: policy {policy!r} needs the future; choose one that can run")
        rows = n_ids + 1
        states = [
            PolicyState(policy, max(count, 1), rows if count else 0)
            for policy, count in zip(policies, usable, strict=True)
        ]
        admission = [
            AdmissionState(
                given.kind,
                rows,
                min_frequency=given.min_frequency,
                flush_interval=given.flush_interval,
                max_entries=given.max_entries,
                min_priority=given.min_priority,
                contiguous=True,
            )
            for given in filters
        ]
        self._policies = tuple(step_address(state.step) for state in states)
        widest = max(slots)
        switch = np.zeros(N_SWITCHES, np.bool_)
        switch[EXCLUSIVE] = exclusive
        switch[OFFER_ALWAYS] = mode == "selective" or (touch == "all" and mode == "write_through")
        switch[TOUCH_ALL] = touch == "all"
        switch[AROUND_HOST] = disk_path == "direct"
        ring_state = np.zeros((N_TIERS, 2), np.int64)
        ring_state[:, FREE] = slots
        ring = np.tile(np.arange(widest, dtype=np.int32), (N_TIERS, 1))
        self._events = np.zeros((N_TIERS, N_EVENTS), np.int64)
        self._traffic = np.zeros((1, len(EDGES)), np.int64)
        self._hold = (
            np.zeros((N_TIERS, rows), np.int32),
            np.zeros((2, N_TIERS), np.int64),
            np.zeros((N_TIERS, widest), np.int32),
        )
        self._states = states
        self._fixed = (
            tuple(tuple(getattr(state, name) for state in states) for name in "fst"),
            (tuple(given.v for given in admission), tuple(given.p for given in admission)),
            np.array(usable) > 0,
            switch,
            self._events,
            self._traffic,
            self._hold,
        )
        self._rest = (
            np.zeros((2, rows), np.uint8),
            np.zeros((N_TIERS, widest), np.int32),
            identity_table(n_ids),
        )
        self._slot_of = np.zeros((N_TIERS, rows), np.int32)
        self._ring, self._ring_state = ring, ring_state
        self._marked = np.zeros(rows, np.uint8)
        self._scratch(256)

    def _scratch(self, blocks: int) -> None:
        """Make room for the outcome of a step over `blocks` blocks."""
        self._room = blocks
        most = _PER_BLOCK * blocks + 16
        self._book = (
            self._slot_of,
            self._ring,
            self._ring_state,
            np.zeros((most, 4), np.int32),
            np.zeros(most, np.int32),
            self._marked,
            np.zeros(2, np.int64),
        )
        self._news = (
            np.zeros(most, np.int8),
            np.zeros(most, np.uint64),
            np.zeros(most, np.uint64),
            np.zeros(1, np.int64),
        )
        stopped, orphans, ids = self._rest
        self._state = (*self._fixed, self._book, stopped, orphans, ids, self._news)

    def _run(self, step: Any, size: int, *arguments: Any) -> Any:
        if size > self._room:
            self._scratch(2 * size)
        return step(self._policies, self._state, *arguments)

    def outcome(self) -> Outcome:
        """Return, once, what followed from the last step."""
        n = int(self._book[COUNTS][N_MOVES])
        moves: npt.NDArray[np.int32] = self._book[MOVES][:n].copy()  # type: ignore[assignment]
        self._book[COUNTS][N_MOVES] = 0
        kinds, hashes, parents, count = self._news
        m = int(count[0])
        count[0] = 0
        news: tuple[tuple[int, int, int], ...] = ()
        if m and self._tell:
            news = tuple(zip(kinds[:m].tolist(), hashes[:m].tolist(), parents[:m].tolist(), strict=True))
        return Outcome(moves, self.keys(moves[:, 1]), news)

    def keys(self, ids: npt.NDArray[np.int32]) -> BlockKeys:
        """Return who the blocks of these numbers are."""
        table = self._rest[2]
        parent = table[PARENT_OF][ids]
        # The last row stands for nobody, and its hash is 0.
        return BlockKeys(
            table[HASH_OF][ids],
            table[HASH_OF][parent],
            table[POSITION_OF][ids],
            table[PRIORITY_OF][ids].astype(np.int32),
        )

    def find(self, hashes: npt.NDArray[np.uint64]) -> tuple[int, npt.NDArray[np.int8]]:
        """Return the prefix held, and the tier of every block (3 for none), without telling the policies."""
        level = np.zeros(hashes.size, np.int8)
        return int(self._run(_steps.find, 0, hashes, level)), level

    def match(
        self, hashes: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8], npt.NDArray[np.int32]]:
        """Pin the longest prefix held; return its blocks' numbers, tiers and slots."""
        ids = np.full(hashes.size, -1, np.int32)
        level = np.empty(hashes.size, np.int8)
        slots = np.empty(hashes.size, np.int32)
        n = self._run(_steps.match, hashes.size, hashes, ids, level, slots)
        return ids[:n], level[:n], slots[:n]

    def onboard(
        self, ids: npt.NDArray[np.int32], level: npt.NDArray[np.int8], slots: npt.NDArray[np.int32], now: float
    ) -> int:
        """Bring matched blocks to the device, and set `level` and `slots` to where they are then; return how many.

        Raises
        ------
        NotEnoughBlocks
            The pins of all of them are gone then.
        """
        n = int(self._run(_steps.onboard, ids.size, ids, level, slots, now))
        if n < 0:
            raise NotEnoughBlocks(ids.size, self.available(DEVICE))
        return n

    def allocate(self, n: int, now: float) -> npt.NDArray[np.int32]:
        """Reserve slots on the device.

        Raises
        ------
        NotEnoughBlocks
        """
        # The first question spares an absurd number its arrays.
        slots = np.empty(min(n, self.capacity[DEVICE]), np.int32)
        if n > len(slots) or not self._run(_steps.allocate, n, slots, now):
            raise NotEnoughBlocks(n, self.available(DEVICE))
        return slots

    def register(
        self, hashes: npt.NDArray[np.uint64], parent: int, priority: int, slots: npt.NDArray[np.int32], now: float
    ) -> npt.NDArray[np.int32]:
        """Register blocks; set `slots` to where they are then, and return their numbers."""
        ids = np.empty(hashes.size, np.int32)
        answer = self._run(_steps.register, hashes.size, hashes, np.uint64(parent), priority, slots, ids, now)
        if answer == _steps.TWICE:
            raise BlockStateError("register: a hash is given twice; the blocks of one sequence differ in theirs")
        if answer == _steps.NO_NUMBER:
            raise TierError(
                f"id_capacity: all {self._slot_of.shape[1] - 1} numbers stand for blocks that are held or continued; "
                "make it larger"
            )
        return ids

    def let_go(self, ids: npt.NDArray[np.int32], level: npt.NDArray[np.int8], slots: npt.NDArray[np.int32]) -> None:
        """Take the pins of matched or registered blocks back."""
        self._run(_steps.let_go, 0, ids, level, slots)

    def give_back(self, slots: npt.NDArray[np.int32]) -> None:
        """Give reserved slots back that were never registered."""
        self._run(_steps.give_back, 0, slots)

    def lose(self, tier: int, hashes: npt.NDArray[np.uint64], slots: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Remove blocks whose bytes are not in these slots of a tier; return which of them still were there."""
        lost = np.zeros(hashes.size, np.bool_)
        self._run(_steps.lose, hashes.size, tier, np.ascontiguousarray(hashes), np.ascontiguousarray(slots), lost)
        return lost

    def any_pinned(self, tier: int, hashes: npt.NDArray[np.uint64], slots: npt.NDArray[np.int32]) -> bool:
        """Tell whether any of these blocks is in use in such a slot of a tier."""
        return bool(self._run(_steps.any_pinned, 0, tier, hashes, slots))

    def prefetch(self, hashes: npt.NDArray[np.uint64], now: float) -> int:
        """Bring a sequence's blocks from disk to host memory, as many as fit there together; return how many."""
        return int(self._run(_steps.prefetch, hashes.size, hashes, np.empty(hashes.size, np.int8), now))

    def use(self, hashes: npt.NDArray[np.uint64]) -> int:
        """Tell the policies that a sequence's blocks are used; return how many were found."""
        return int(self._run(_steps.use, 0, hashes))

    def restore(self, slots: npt.NDArray[Any], keys: BlockKeys) -> int:
        """Enter the blocks that the disk holds already, before anything else happens; return how many, the last ones.

        Raises
        ------
        TierError
            If the directory is not new.
        """
        if self._ring_state[DISK, HEAD] or (self._ring_state[DISK, FREE] != self._ring.shape[1] and self.size(DISK)):
            raise TierError("disk: only a new directory can take up the blocks of a disk")
        keep = len(keys) - min(len(keys), self.capacity[DISK])
        slots, keys = np.asarray(slots, np.int32)[keep:], keys[keep:]
        count = int(self._ring_state[DISK, FREE])
        others = np.setdiff1d(np.arange(count, dtype=np.int32), slots)
        self._ring[DISK, :count] = np.concatenate([slots, others])
        return int(self._run(_steps.restore, len(keys), keys.hash, keys.parent, keys.priority, slots))

    def clear(self, tier: int) -> None:
        """Remove every block that is not in use from a tier."""
        self._run(_steps.clear, 3 * self.capacity[tier], tier)

    def size(self, tier: int) -> int:
        """Blocks that a tier holds."""
        return self._states[tier].size if self.capacity[tier] else 0

    def in_use(self, tier: int) -> int:
        """Blocks of a tier that are pinned, and slots that are reserved."""
        return int(self._hold[1][PINNED, tier] + self._hold[1][RESERVED, tier])

    def available(self, tier: int) -> int:
        """Blocks that a tier can take: free slots, and blocks that are not in use."""
        return self.capacity[tier] - self.in_use(tier)

    @property
    def events(self) -> npt.NDArray[np.int64]:
        """Insertions, evictions, removals and rejections per tier, shape (3, 4)."""
        return self._events

    @property
    def traffic(self) -> npt.NDArray[np.int64]:
        """Blocks sent along each path, shape (6,)."""
        return self._traffic[0]

    def held(self, tier: int) -> npt.NDArray[np.uint64]:
        """Hashes of the blocks that a tier holds, in the order of their numbers."""
        if not self.capacity[tier]:
            return np.empty(0, np.uint64)
        return self._rest[2][HASH_OF][self._states[tier].resident()]

    def slot_of(self, tier: int, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Slots of blocks that a tier holds, by hash; -1 for those that it does not hold."""
        held = {int(key): int(x) for key, x in zip(self.held(tier), self._states[tier].resident(), strict=True)}
        return np.array([self._slot_of[tier, held[int(h)]] if int(h) in held else -1 for h in hashes], np.int32)


_PATHS = ("staged", "direct")

__all__ = ["DEVICE", "DISK", "HOST", "MODES", "STORE", "Directory", "Filter", "Outcome"]
