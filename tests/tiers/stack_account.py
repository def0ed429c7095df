"""A plain account of what a stack has promised to a user, and the means to hold it to that.

The account knows no policy. It knows who uses which slot with which content, and that is enough to say when a call must
fail, that nothing in use ever changes, and that what is served is what was written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from stack_bytes import DEVICE, DISK, LAYOUT, content, free_slots, peek, resident, words
from stack_rig import Rig

from dynalab.kv.tiering.rules import EVICTED, INSERTED, N_TIERS, REMOVED
from dynalab.tiers import Blocks, Match, Onboarding, Prefetch
from dynalab.tiers.tier import READ_OK


def forest(n: int, seed: int) -> list[tuple[int, ...]]:
    """Return the path to every node of a random forest, as hashes."""
    rng = np.random.default_rng(seed)
    paths: list[tuple[int, ...]] = []
    for i, key in enumerate(rng.integers(1, 2**63, n).tolist()):
        before = paths[int(rng.integers(max(0, i - 4), i))] if i and rng.random() < 0.85 else ()
        paths.append((*before[:8], key))
    return paths


PATHS = forest(18, 3)
HASHES = [path[-1] for path in PATHS]
PARENT = {path[-1]: path[-2] if len(path) > 1 else 0 for path in PATHS}


@dataclass
class Held:
    """One block in the hands of the user: a lease, the slot that it is about, and what must lie there."""

    lease: Blocks
    slot: int
    data: np.ndarray
    hash: int = 0


@dataclass
class Found:
    """A match that is neither onboarded nor released."""

    match: Match
    hashes: list[int]
    level: list[int]
    slots: list[int]


@dataclass
class Coming:
    """An onboarding whose outcome has not been looked at."""

    future: Onboarding
    hashes: list[int]
    slots: list[int]

    def slots_in_use(self) -> list[int]:
        """Slots of the blocks that are coming, or that have come."""
        return self.slots[: len(self.future.result())] if self.future.done() else self.slots


class Account:
    """What the user of a rig's stack holds.

    Attributes
    ----------
    reached : Counter
        Cases met.
    faults : int
        Copies that were made to fail, and blocks that were spoiled on the disk.
    """

    def __init__(self, rig: Rig, reached: Counter[str]) -> None:
        self.rig, self.stack, self.reached = rig, rig.stack, reached
        self.directory, self.flow, self.slots = rig.stack._directory, rig.stack._flow, rig.slots
        self.tiers = [k for k in range(N_TIERS) if self.slots[k]]
        self.blocks: list[Held] = []
        self.matches: list[Found] = []
        self.onboardings: list[Coming] = []
        self.prefetches: list[Prefetch] = []
        self.ended: list[Blocks] = []
        self.used_up: list[Match] = []
        self.faults = 0
        self.fault_rate = 0.0
        self.corrupted: set[int] = set()
        self._n_written = 0

    def in_use(self, k: int) -> set[int]:
        """Slots of a tier that must neither change nor be given to another block."""
        used = {slot for found in self.matches for at, slot in zip(found.level, found.slots, strict=True) if at == k}
        if k == DEVICE:
            used |= {held.slot for held in self.blocks}
            used |= {slot for coming in self.onboardings for slot in coming.slots_in_use()}
        return used

    def on(self, k: int, hashes: list[int]) -> list[int]:
        """Slots of blocks in a tier, -1 where it does not hold them."""
        return self.directory.slot_of(k, words(hashes)).tolist() if self.slots[k] else [-1] * len(hashes)

    @staticmethod
    def claim(holds: bool, error: Exception) -> None:
        """Let an error through that should not be."""
        if not holds:
            raise error

    def written(self) -> list[Held]:
        return [held for held in self.blocks if not held.hash]

    # ------------------------------------------------------------------ what always holds

    def check(self) -> None:
        """Hold the stack to the account."""
        self.rig.settle()
        for held in self.blocks:
            assert held.lease.slots.tolist() == [held.slot]
        if self.blocks:
            now = peek(self.stack.device, [held.slot for held in self.blocks])
            wrong = np.flatnonzero((now != np.stack([held.data for held in self.blocks])).any(axis=1)).tolist()
            assert not wrong, f"blocks in use have changed: {[self.blocks[i] for i in wrong]}"
        assert self.rig.order_of_events_holds
        everywhere = set().union(*(self._check_tier(k) for k in self.tiers))
        assert set(self.rig.alive) == everywhere
        levels = dict(zip(HASHES, self.stack.find(words(HASHES)).tolist(), strict=True))
        assert {key for key, k in levels.items() if k < 3} == everywhere

    def _check_tier(self, k: int) -> set[int]:
        """Count the slots of a tier, and compare the blocks that have arrived with their content."""
        hashes, slots = resident(self.stack, k)
        used, free, owned = self.in_use(k), free_slots(self.stack, k), set(slots.tolist())
        assert len(owned) == len(hashes) == self.directory.size(k), "a slot belongs to two blocks"
        assert set(free) | owned | used == set(range(self.slots[k])), "a slot is lost"
        assert len(set(free)) == len(free)
        assert not set(free) & (owned | used), "a slot that is used is given out"
        assert self.directory.in_use(k) == len(used)
        assert self.directory.available(k) == self.directory.capacity[k] - len(used)
        assert len(owned | used) <= self.directory.capacity[k]
        self.reached["in use though gone"] += len(used - owned - {held.slot for held in self.written()}) > 0
        events = self.directory.events[k]
        assert events[INSERTED] - events[EVICTED] - events[REMOVED] == len(hashes)
        if k != DISK and len(hashes):
            arrived = np.array([not self.flow.writers(k, slots[i : i + 1]) for i in range(len(slots))])
            tier = self.stack.device if k == DEVICE else self.stack.host
            wrong = (peek(tier, slots) != content(hashes)).any(axis=1) & arrived
            assert not wrong.any(), f"{tier.name}: slots {slots[wrong].tolist()} hold other blocks than they should"
        return {int(key) for key in hashes}

    def check_disk(self, found: dict[int, int], read: Any) -> None:
        """What another process finds on disk: all that was there, and nothing wrong."""
        hashes, slots = resident(self.stack, DISK)
        assert found.items() >= dict(zip(hashes.tolist(), slots.tolist(), strict=True)).items()
        room = np.zeros((1, LAYOUT.block_bytes), np.uint8)
        for key, slot in found.items():
            status = read([slot], [room.ctypes.data], [key])
            assert status[0] == READ_OK or slot in self.corrupted
            assert status[0] != READ_OK or (room == content([key])).all()


def together(blocks: list[Held]) -> Blocks:
    """Return blocks as one."""
    lease = blocks[0].lease
    for held in blocks[1:]:
        lease = lease + held.lease
    return lease
