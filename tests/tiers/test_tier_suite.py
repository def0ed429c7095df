"""The conformance suite itself: tiers with one fault each must fail it, and by the right law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from memory_storage import MemoryStorage

from dynalab.errors import TierError
from dynalab.kv import KVLayout
from dynalab.testing import TierTests
from dynalab.testing.tiers import LAYOUTS
from dynalab.tiers import BlockKeys, Capabilities, HostTier, Tier

BASE = LAYOUTS["block_first"]


class Overlapping(HostTier):
    """The last slot is the first."""

    def _one(self, slot: int) -> int:
        return super()._one(slot) % 6


class Crooked(HostTier):
    """Tables are off by one block."""

    @property
    def bases(self) -> tuple[int, ...]:
        return tuple(base + self.layout.block_stride for base in super().bases)


class Lenient(HostTier):
    """Takes any slot, by wrapping it around."""

    def check_slots(self, slots: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return super().check_slots(np.asarray(slots, np.int64) % self.capacity)


class Undead(HostTier):
    """Can be used when it is closed."""

    def _close(self) -> None:
        self._closed = False


class Boastful(HostTier):
    """Claims what it has not."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(addressable=True, cpu_access=True, pinned=True)


class Swapped(HostTier):
    """Claims locked pages and has none."""

    def __init__(self, layout: KVLayout, **options: Any) -> None:
        super().__init__(layout, lock=False, pinned=False, **options)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(addressable=True, cpu_access=True, locked=True)


class Casting(HostTier):
    """Takes values of any type and shape."""

    def put(self, slot: int, values: npt.NDArray[Any]) -> None:
        self.view_heads(slot)[...] = np.resize(values, self.view_heads(slot).shape)


class Forgetful(MemoryStorage):
    """Serves a block to any name."""

    def read(self, slots: Any, targets: Any, hashes: Any, **options: Any) -> npt.NDArray[np.int8]:
        names = [self.blocks.get(slot, (b"", 0))[1] for slot in np.asarray(slots).tolist()]
        return super().read(slots, targets, np.array(names, np.uint64), **options)


class Spilling(MemoryStorage):
    """Reads one byte too many."""

    def read(self, slots: Any, targets: Any, hashes: Any, **options: Any) -> npt.NDArray[np.int8]:
        import ctypes

        status = super().read(slots, targets, hashes, **options)
        for target in np.asarray(targets).tolist():
            ctypes.memset(target + self.block_bytes, 0, 1)
        return status


class Clinging(MemoryStorage):
    """Never forgets."""

    def forget(self, slots: npt.ArrayLike) -> None:
        self.check_slots(slots)


class Shifting(MemoryStorage):
    """Writes every block into the next slot as well."""

    def write(self, slots: Any, sources: Any, keys: BlockKeys, **options: Any) -> npt.NDArray[np.bool_]:
        written = super().write(slots, sources, keys, **options)
        for slot in np.asarray(slots).tolist():
            self.blocks[(slot + 1) % self.capacity] = self.blocks[slot]
        return written


def suite(kind: Callable[..., Tier]) -> Any:
    class Candidate(TierTests):
        def make_tier(self, layout: KVLayout, capacity: int) -> Tier:
            return kind(layout, capacity=capacity)

    return Candidate()


@pytest.mark.parametrize(
    ("kind", "law", "layout"),
    [
        (Overlapping, "test_every_slot_keeps_its_bytes", True),
        (Crooked, "test_tables_show_what_views_show", True),
        (Lenient, "test_slots_that_do_not_exist", True),
        (Undead, "test_closing", False),
        (Boastful, "test_facts_are_true", True),
        (Swapped, "test_facts_are_true", True),
        (Casting, "test_what_is_no_block_is_refused", False),
        (Forgetful, "test_a_block_is_served_to_its_name_only", False),
        (Spilling, "test_every_slot_keeps_its_bytes", True),
        (Clinging, "test_a_block_is_served_to_its_name_only", False),
        (Shifting, "test_every_slot_keeps_its_bytes", True),
    ],
)
def test_a_faulty_tier_fails(kind: Callable[..., Tier], law: str, layout: bool) -> None:
    with pytest.raises((AssertionError, TierError, pytest.fail.Exception)):
        getattr(suite(kind), law)(*[BASE] * layout)


@pytest.mark.parametrize("kind", [HostTier, MemoryStorage])
@pytest.mark.parametrize(
    "law", ["test_every_slot_keeps_its_bytes", "test_facts_are_true", "test_slots_that_do_not_exist"]
)
def test_a_right_tier_passes_the_same_laws(kind: Callable[..., Tier], law: str) -> None:
    getattr(suite(kind), law)(BASE)


def test_a_tier_that_loses_blocks_is_not_durable() -> None:
    class Candidate(TierTests):
        durable = True

        def make_tier(self, layout: KVLayout, capacity: int) -> Tier:
            return MemoryStorage(layout, capacity)

        reopen_tier = make_tier

    with pytest.raises(AssertionError):
        Candidate().test_blocks_survive()
    with pytest.raises(AssertionError):
        Candidate().test_facts_are_true(BASE)


def test_the_suite_asks_how_to_open_the_tier() -> None:
    with pytest.raises(NotImplementedError, match="say how to open the tier"):
        TierTests().make_tier(BASE, 1)
    with pytest.raises(NotImplementedError, match="again"):
        TierTests().reopen_tier(BASE, 1)
