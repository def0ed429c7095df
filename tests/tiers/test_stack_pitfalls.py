"""Orders of events that can go wrong: copies that end early, slots that change hands, promises between requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stack_bytes import DEVICE, DISK, HOST, check_all_bytes, content, free_slots, peek, poke, resident, words
from stack_rig import Rig

from dynalab.errors import NotEnoughBlocks, TransferError
from dynalab.tiers import Blocks

MODES = ("write_through", "write_back")


class Steps:
    """A stack whose copies are let through by name of their path.

    Blocks are numbers from 1 on, each a sequence of its own.
    """

    def __init__(self, mode: str, slots: tuple[int, int, int], **options: Any) -> None:
        self.rig = Rig(0, slots, ("lru",) * 3, dict.fromkeys(range(1, 200), 0), mode=mode, **options)
        self.stack = self.rig.stack

    def write(self, *keys: int) -> None:
        """Compute blocks, one after the other, and release them."""
        for key in keys:
            blocks = self.new()
            poke(self.stack.device, blocks.slots, content([key]))
            self.stack.register(blocks, [key])
            self.stack.release(blocks)

    def new(self) -> Blocks:
        return self.stack.allocate(1)

    def match(self, key: int) -> Any:
        match = self.stack.match([key])
        assert len(match) == 1
        return match

    def push_down(self, n: int) -> None:
        """Take so many blocks off the device."""
        self.stack.release(self.stack.allocate(n))

    def where(self, *keys: int) -> list[int]:
        return self.stack.find(words(keys)).tolist()

    def let(self, path: str) -> None:
        """Let the first batch on a path through that waits."""
        self.rig.settle()
        with self.rig._turn:
            names = {mine: name for mine, (name, *_) in self.rig._waiting.items()}
        order = self.rig.pending()
        self.rig.step(next(i for i, mine in enumerate(order) if names[mine] == path))

    def waiting(self) -> list[str]:
        """Paths on which batches wait to be let through."""
        self.rig.settle()
        with self.rig._turn:
            return sorted(name for name, *_ in self.rig._waiting.values())

    def check(self) -> None:
        """Nothing in flight or in use: every slot is accounted for, every byte right."""
        assert self.stack.drain()
        check_all_bytes(self.stack)
        for k, n in enumerate(self.rig.slots):
            if n:
                _, slots = resident(self.stack, k)
                assert sorted([*slots.tolist(), *free_slots(self.stack, k)]) == list(range(n))
        assert [self.stack._directory.in_use(k) for k in range(3)] == [0, 0, 0]
        assert self.rig.order_of_events_holds

    def serve(self, key: int) -> None:
        """Onboard a block, look at it, and release it."""
        onboarding = self.stack.onboard(self.match(key))
        self.rig.run_until(onboarding.done)
        blocks = onboarding.result(0)
        assert len(blocks) == 1
        assert (peek(self.stack.device, blocks.slots) == content([key])).all()
        self.stack.release(blocks)


@pytest.fixture
def build() -> Iterator[Any]:
    made: list[Steps] = []

    def make(mode: str, slots: tuple[int, int, int], **options: Any) -> Steps:
        made.append(Steps(mode, slots, **options))
        return made[-1]

    yield make
    for steps in made:
        steps.rig.close()
        steps.rig.clean_up()


def on_disk_only(steps: Steps, *keys: int) -> None:
    """Write blocks, and others until these lie on the disk alone."""
    steps.write(*keys)
    host, device = steps.rig.slots[HOST], steps.rig.slots[DEVICE]
    steps.write(*range(100, 100 + host + device))
    steps.push_down(device)
    assert steps.stack.drain()
    assert steps.where(*keys) == [DISK] * len(keys)


@pytest.mark.parametrize("mode", MODES)
def test_a_prefetch_given_up_leaves_everything_where_it_was(mode, build):
    """Also what had to sink to make room for it."""
    steps = build(mode, (2, 3, 12), batch=1, concurrency=1)
    on_disk_only(steps, 1, 2)
    before = dict(steps.rig.alive)
    fetched = [steps.stack.prefetch(words([key])) for key in (1, 2)]
    assert [each.n_blocks for each in fetched] == [1, 1]
    assert steps.where(1, 2) == [HOST, HOST]
    for each in reversed(fetched):
        each.wait("best_effort")
        assert each.done()
    assert steps.stack.stats()["cancelled_blocks"].sum() >= 1
    assert steps.rig.alive == before
    steps.check()
    assert steps.rig.alive == before
    for key in (1, 2):
        steps.serve(key)
    steps.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["matched", "onboarded"])
def test_what_was_promised_to_another_request_is_not_given_up(mode, how, build):
    steps = build(mode, (2, 3, 12), batch=1, concurrency=1)
    on_disk_only(steps, 1, 2)
    # Two in a row on one path: the second has not begun.
    first, second = (steps.stack.prefetch(words([key])) for key in (1, 2))
    match = steps.match(2)
    assert match.level.tolist() == [HOST]
    onboarding = steps.stack.onboard(match) if how == "onboarded" else None
    second.wait("best_effort")
    assert second.done(), "it has been left to the other request"
    onboarding = onboarding or steps.stack.onboard(match)
    steps.rig.run_until(onboarding.done)
    blocks = onboarding.result(0)
    assert len(blocks) == 1
    assert (peek(steps.stack.device, blocks.slots) == content([2])).all()
    steps.stack.release(blocks)
    assert first.wait() == 1
    steps.check()


def test_a_slot_whose_next_block_is_given_up_keeps_its_bytes_for_those_who_read_them(build):
    """Block 1 is to come up from a host slot that is already another's, and then nobody's."""
    steps = build("write_through", (2, 2, 9), disk_path="direct", batch=1, concurrency=1)
    on_disk_only(steps, 2, 3)
    steps.write(60, 1)
    for _ in range(2):
        steps.let("device_to_host")
    with pytest.raises(TimeoutError):
        steps.stack.allocate(2, timeout=0.0)
    onboarding = steps.stack.onboard(steps.match(1))
    assert steps.waiting() == ["device_to_disk"], "block 1 cannot come up before its new slot has been read"
    fetched = [steps.stack.prefetch(words([key])) for key in (2, 3)]
    assert steps.where(1, 2, 3, 60) == [DEVICE, HOST, HOST, DISK]
    for each in fetched:
        each.wait("best_effort")
    assert steps.where(1, 2, 3) == [DEVICE, HOST, DISK], "block 2 had begun"
    steps.rig.run_until(onboarding.done)
    blocks = onboarding.result(0)
    assert len(blocks) == 1, onboarding.failures
    assert (peek(steps.stack.device, blocks.slots) == content([1])).all()
    steps.stack.release(blocks)
    steps.check()


def test_what_comes_after_a_copy_given_up_comes_after_those_before_it(build):
    """Three copies into one host slot; the middle one is given up, the first is slow."""
    steps = build("write_through", (3, 1, 9), disk_path="direct", batch=1, concurrency=1)
    on_disk_only(steps, 2, 3)
    steps.write(1)
    while "device_to_disk" in steps.waiting():
        steps.let("device_to_disk")
    assert steps.waiting() == ["device_to_host"]
    steps.stack.prefetch(words([2])).wait("best_effort")
    last = steps.stack.prefetch(words([3]))
    assert steps.where(3) == [HOST]
    assert steps.waiting() == ["device_to_host"], "block 3 waits for block 1, although it comes after block 2"
    assert last.wait() == 1
    steps.check()
    assert (peek(steps.stack.host, [0]) == content([3])).all()
    steps.serve(3)


def test_a_block_matched_on_disk_and_prefetched_since_rises_from_host_memory(build):
    """In write-back mode it lies in both tiers, and leaves both."""
    steps = build("write_back", (2, 2, 12))
    on_disk_only(steps, 1)
    match = steps.match(1)
    assert match.level.tolist() == [DISK]
    assert steps.stack.prefetch(words([1])).wait() == 1
    steps.write(50, 51)
    onboarding = steps.stack.onboard(match)
    steps.rig.run_until(onboarding.done)
    moved = steps.stack.stats()["moved_blocks"]
    assert moved.sel(edge="host_to_device") == 1
    assert moved.sel(edge="disk_to_device") == 0
    steps.stack.release(onboarding.result(0))
    steps.check()
    assert [1 in resident(steps.stack, k)[0] for k in (DEVICE, HOST, DISK)] == [True, False, False]


@pytest.mark.parametrize("mode", MODES)
def test_two_matches_of_one_block_below_the_device(mode, build):
    """The first to onboard brings it up; the second finds it there, and nothing stays pinned or twice."""
    steps = build(mode, (2, 4, 0))
    steps.write(1)
    steps.push_down(2)
    steps.stack.drain()
    first, second, third = (steps.match(1) for _ in range(3))
    assert steps.where(1) == [HOST]
    one, two = steps.stack.onboard(first), steps.stack.onboard(second)
    steps.stack.release(third)
    steps.rig.run_until(lambda: one.done() and two.done())
    assert one.result(0).slots.tolist() == two.result(0).slots.tolist()
    steps.stack.release(one.result(0))
    assert steps.stack._directory.in_use(DEVICE) == 1
    steps.stack.release(two.result(0))
    assert steps.stack.stats()["moved_blocks"].sel(edge="host_to_device") == 1
    steps.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arrives", [True, False])
def test_a_block_computed_while_it_comes_up(mode, arrives, build):
    """Who registers it uses the one that comes, and is told if it does not."""
    steps = build(mode, (3, 4, 0))
    steps.write(1)
    steps.push_down(3)
    steps.stack.drain()
    match, new = steps.match(1), steps.new()
    poke(steps.stack.device, new.slots, content([1]))
    onboarding = steps.stack.onboard(match)
    if not arrives:
        steps.rig.verdict = lambda transfer, lo, hi: np.zeros(hi - lo, np.bool_)
        with pytest.raises(TransferError, match=r"^register: block 0 of 1 was on its way to the device already"):
            steps.stack.register(new, [1])
    else:
        steps.stack.register(new, [1])
        assert (peek(steps.stack.device, new.slots) == content([1])).all()
    blocks = onboarding.result(0)
    assert len(blocks) == arrives
    steps.stack.release(blocks + new)
    steps.check()
    assert steps.where(1) == [DEVICE if arrives else (HOST if mode == "write_through" else 3)]


def test_an_offload_that_fails_takes_what_was_read_from_it_along(build):
    """Device to host fails: the copy on to the disk, and the one back up, must not carry what never came."""
    steps = build("write_through", (2, 4, 9), batch=1, concurrency=1)
    steps.rig.verdict = lambda transfer, lo, hi: np.full(hi - lo, transfer.path != "device_to_host")
    steps.write(1)
    assert steps.waiting() == ["device_to_host"]
    steps.push_down(2)
    assert steps.where(1) == [3]
    assert not steps.rig.alive
    assert [str(error).partition(":")[0] for error in steps.stack.failures] == ["device_to_host", "host_to_disk"]
    steps.check()


def test_a_block_lost_while_it_is_matched_keeps_its_slot_until_it_is_let_go(build):
    """Nobody else's before that, and free after."""
    steps = build("write_through", (2, 2, 0), batch=1)
    steps.write(1)
    steps.push_down(2)
    steps.stack.drain()
    onboarding = steps.stack.onboard(steps.match(1))
    late = steps.match(1)
    assert late.level.tolist() == [DEVICE]
    steps.rig.verdict = lambda transfer, lo, hi: np.zeros(hi - lo, np.bool_)
    steps.rig.run_until(onboarding.done)
    assert len(onboarding.result(0)) == 0
    assert len(onboarding.failures) == 1
    assert steps.where(1) == [HOST]
    assert steps.stack._directory.in_use(DEVICE) == 1
    with pytest.raises(NotEnoughBlocks):
        steps.stack.allocate(2)
    new = steps.new()
    assert new.slots.tolist() != late._slots.tolist()
    nothing = steps.stack.onboard(late)
    assert len(nothing.result(0)) == 0
    assert steps.stack._directory.in_use(DEVICE) == 1
    steps.stack.release(steps.new() + new)
    steps.check()
