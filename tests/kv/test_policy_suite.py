"""The conformance suite finds what it is there to find: each law is broken once, on purpose."""

from __future__ import annotations

import pytest
from reference import Fifo, Lru, Reference

from dynalab.testing import PolicyTests
from dynalab.testing.workloads import Run


class KeepsTheRemoved(Lru):
    def remove(self, x: int) -> None:
        pass


class ForgetsToInsert(Lru):
    def insert(self, x: int) -> None:
        if x % 7:
            super().insert(x)


class EvictsTooEarly(Lru):
    def access(self, x: int, next_use: int = -1) -> tuple[bool, int]:
        if x not in self.queue and len(self.queue) == self.capacity - 1 > 0:
            victim = self.evict(x)
            self.insert(x)
            return False, victim
        return super().access(x, next_use)


class GrowsBeyondCapacity(Lru):
    def access(self, x: int, next_use: int = -1) -> tuple[bool, int]:
        if x in self.queue:
            self.hit(x)
            return True, -1
        self.insert(x)
        return False, -1


class NamesTheWrongVictim(Lru):
    def evict(self, x: int) -> int:
        return super().evict(x) + 1


class DropsTwo(Fifo):
    def evict(self, x: int) -> int:
        super().evict(x)
        return super().evict(x) if self.queue else x


class SharesItsQueue(Lru):
    common = Lru(1).queue

    def start(self) -> None:
        self.common.clear()
        self.queue = self.common


class PrefersSmallIds(Lru):
    def evict(self, x: int) -> int:
        victim = min(self.queue)
        del self.queue[victim]
        return victim


class IgnoresEverySecondHit(Lru):
    """Decides in ``access`` by a counter that the single operations do not advance."""

    def start(self) -> None:
        super().start()
        self.turn = 0

    def access(self, x: int, next_use: int = -1) -> tuple[bool, int]:
        self.turn += 1
        if x in self.queue:
            if self.turn % 2:
                self.hit(x)
            return True, -1
        return super().access(x, next_use)


def suite(broken: type[Reference], inclusion: bool = False) -> PolicyTests:
    """The suite for LRU, run on another cache."""

    class Suite(PolicyTests):
        policy = "lru"

        def cache(self, run: Run) -> Reference:
            return broken(run.capacity)

    Suite.inclusion = inclusion
    return Suite()


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        ("test_books_are_right_at_every_step", KeepsTheRemoved),
        ("test_books_are_right_at_every_step", ForgetsToInsert),
        ("test_books_are_right_at_every_step", EvictsTooEarly),
        ("test_books_are_right_at_every_step", GrowsBeyondCapacity),
        ("test_books_are_right_at_every_step", NamesTheWrongVictim),
        ("test_books_are_right_at_every_step", DropsTwo),
        ("test_access_is_hit_or_evict_and_insert", IgnoresEverySecondHit),
        ("test_room_can_be_made_before_blocks_enter", DropsTwo),
        ("test_room_can_be_made_before_blocks_enter", KeepsTheRemoved),
        ("test_enough_room_means_no_eviction", EvictsTooEarly),
        ("test_one_block_of_room", GrowsBeyondCapacity),
        ("test_everything_can_be_removed_and_come_back", KeepsTheRemoved),
        ("test_caches_repeat_themselves_and_share_nothing", SharesItsQueue),
        ("test_names_do_not_matter", PrefersSmallIds),
    ],
)
def test_a_broken_policy_is_caught(law, broken):
    with pytest.raises(AssertionError):
        getattr(suite(broken), law)()


def test_fifo_is_caught_claiming_inclusion():
    """Belady's anomaly: a larger FIFO cache may lack what a smaller one holds."""
    with pytest.raises(AssertionError):
        suite(Fifo, inclusion=True).test_a_larger_cache_holds_what_a_smaller_one_holds()


@pytest.mark.parametrize("broken", [KeepsTheRemoved, DropsTwo])
def test_a_long_run_catches_it_too(broken):
    with pytest.raises(AssertionError):
        suite(broken).test_long_run(50)


def test_a_sound_policy_passes_every_law():
    sound = suite(Lru, inclusion=True)
    laws = [name for name in dir(sound) if name.startswith("test_") and name != "test_long_run"]
    assert len(laws) == 9
    for law in laws:
        getattr(sound, law)()
    sound.test_long_run(7)
