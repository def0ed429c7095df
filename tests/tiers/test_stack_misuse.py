"""A stack used wrongly, or put together wrongly: named errors of one line, and the next request goes through."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stack_cases import (
    LAYOUT,
    PATIENCE,
    Trouble,
    assert_right,
    assert_sound,
    held,
    open_stack,
    prompt,
    refused,
    run,
    serve,
    sink,
    trouble,
    write,
)

from dynalab.errors import (
    BlockStateError,
    ConfigError,
    DeviceMemoryError,
    LayoutError,
    NotEnoughBlocks,
    TierClosed,
    TierError,
    TierFull,
    TierInUse,
)
from dynalab.tiers import DeviceTier, DiskTier, HostTier, TierStack

__all__ = ["trouble"]


def test_wrong_numbers_and_hashes(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        for n in (-1, True, 1.5, "3", None):
            refused(ConfigError, f"n: {n!r}", "give 0 or more", lambda n=n: stack.allocate(n))
        blocks, names = stack.allocate(2), prompt(2, 1)
        for bad in ([[1, 2]], [1.5, 2.5], ["a", "b"], [2**64, 1], None, 5):
            for call in (stack.match, stack.find, stack.touch, stack.pin, stack.prefetch):
                refused(ConfigError, "hashes: ", "give one row of 64-bit", lambda call=call, bad=bad: call(bad))
            refused(ConfigError, "hashes: ", "give one row", lambda bad=bad: stack.register(blocks, bad))
        refused(ConfigError, "hashes: 0", "hash with another salt", lambda: stack.match([5, 0]))
        refused(ConfigError, "hashes: 0", "hash with another salt", lambda: stack.register(blocks, [5, 0]))
        for count in (0, 1, 3):
            wrong = prompt(count, 2)
            refused(
                BlockStateError,
                f"2 blocks and {count} hashes",
                "give one hash for each block",
                lambda wrong=wrong: stack.register(blocks, wrong),
            )
        refused(BlockStateError, "a hash is given twice", "differ", lambda: stack.register(blocks, names[[0, 0]]))
        for parent in (-1, 2**64, 1.5, None, "x", True):
            refused(
                ConfigError,
                f"parent: {parent!r}",
                "0 for none",
                lambda parent=parent: stack.register(blocks, names, parent=parent),
            )
        for priority in (-1, 101, 1.5, None, True):
            refused(
                ConfigError,
                f"priority: {priority!r}",
                "give one",
                lambda priority=priority: stack.register(blocks, names, priority=priority),
            )
        # After all that the blocks are as good as new.
        write(blocks, names)
        stack.register(blocks, names)
        assert_right(blocks, names)
        stack.release(blocks)
        assert_sound(stack)


def test_more_blocks_than_there_are(tmp_path: Path) -> None:
    with open_stack(tmp_path, device=8, host=16) as stack:
        for n in (9, 10**12):
            refused(NotEnoughBlocks, f"device: {n} blocks asked, 8", "release", lambda n=n: stack.allocate(n))
        long = prompt(8, 1)
        serve(stack, long)
        sink(stack, long)
        kept = stack.allocate(3)
        refused(NotEnoughBlocks, "device: 6 blocks asked, 5 free or evictable", "larger", lambda: stack.allocate(6))
        match = stack.match(long)
        # All or nothing: the match is let go, nothing moves.
        before = stack.stats()["decided_blocks"]
        refused(NotEnoughBlocks, "device: 8 blocks asked, 5", "release blocks", lambda: stack.onboard(match))
        assert stack.stats()["decided_blocks"].equals(before)
        assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
        assert held(stack, long) == [2] * 8
        with pytest.raises(NotEnoughBlocks) as caught:
            stack.allocate(6)
        error = caught.value
        assert (error.requested, error.available, error.tier) == (6, 5, "device")
        stack.release(kept)
        assert_sound(stack)


def test_a_released_block_is_refused_everywhere() -> None:
    with open_stack(None) as stack:
        names = prompt(3, 1)
        blocks = stack.allocate(3)
        write(blocks, names)
        stack.register(blocks, names)
        stack.release(blocks[1])
        operations: list[Callable[[], object]] = [
            lambda: blocks.slots,
            lambda: blocks.hashes,
            blocks.view,
            lambda: stack.register(blocks[1], names[1:2]),
            lambda: stack.release(blocks),
            blocks.release,
            lambda: (blocks[:1] + blocks[1:]).view(),
            lambda: [block.view() for block in blocks],
        ]
        for operation in operations:
            refused(BlockStateError, "is released", "allocate or match it again", operation)
        assert "device slots" in repr(blocks)
        # The lease that takes the place of the one that ended is another one.
        again = stack.allocate(1)
        refused(BlockStateError, "block 1 of 3 is released", "again", blocks.view)
        # A release with one that has ended releases none of the others.
        assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
        refused(
            BlockStateError, "the same block is given twice", "give each once", lambda: stack.release(again + again)
        )
        stack.release(again + blocks[0] + blocks[2])
        assert_sound(stack)


def test_registering_twice(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        names = prompt(4, 1)
        blocks = stack.allocate(4)
        write(blocks, names)
        refused(
            BlockStateError,
            "the same block is given twice",
            "every block gets a hash",
            lambda: stack.register(blocks[:1] + blocks[:1], names[:2]),
        )
        stack.register(blocks[:2], names[:2])
        refused(
            BlockStateError,
            "block 0 of 4 (device slot",
            "register each block once",
            lambda: stack.register(blocks, names),
        )
        # Nothing of the refused call happened.
        assert held(stack, names) == [0, 0, 3, 3]
        stack.register(blocks[2:], names[2:], parent=int(names[1]))
        stack.release(blocks)
        assert_sound(stack)


def test_the_same_content_registered_by_two(tmp_path: Path) -> None:
    """The second one gets the first one's block, and its own is free again."""
    with open_stack(tmp_path) as stack:
        names = prompt(3, 1)
        one, other = stack.allocate(3), stack.allocate(3)
        write(one, names)
        write(other, names)
        stack.register(one, names)
        stack.register(other, names)
        assert other.slots.tolist() == one.slots.tolist()
        assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
        stack.release(one)
        assert_right(other, names)
        assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
        stack.release(other)
        assert_sound(stack)


def test_matches_are_used_once_and_by_their_stack(tmp_path: Path) -> None:
    with open_stack(tmp_path / "a") as stack, open_stack(tmp_path / "b") as other:
        names = prompt(3, 1)
        serve(stack, names)
        match = stack.match(names)
        refused(BlockStateError, "<Match: 3 of 3", "give what its match() returned", lambda: other.onboard(match))
        refused(BlockStateError, "<Match: 3 of 3", "give what its match() returned", lambda: other.release(match))
        blocks = stack.onboard(match).result(PATIENCE)
        for call in (stack.onboard, stack.release):
            refused(BlockStateError, "onboarded or released before", "match again", lambda call=call: call(match))
        refused(BlockStateError, "<Blocks: 3", "of this stack", lambda: other.release(blocks))
        refused(BlockStateError, "<Blocks: 3", "of this stack", lambda: other.register(blocks, names))
        refused(BlockStateError, "None", "its match() returned", lambda: stack.onboard(None))  # type: ignore[arg-type]
        refused(BlockStateError, "None", "of this stack", lambda: stack.release(None))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            blocks + other.allocate(0)
        released = stack.match(names)
        stack.release(released)
        refused(BlockStateError, "onboarded or released", "match again", lambda: stack.onboard(released))
        stack.release(blocks)
        assert_sound(stack)
        assert_sound(other)


def test_a_closed_stack(tmp_path: Path) -> None:
    stack = open_stack(tmp_path)
    names = prompt(3, 1)
    serve(stack, names)
    match, blocks = stack.match(names), stack.allocate(2)
    stack.close()
    stack.close()
    for call in (
        lambda: stack.match(names),
        lambda: stack.onboard(match),
        lambda: stack.allocate(1),
        lambda: stack.register(blocks, names[:2]),
        lambda: stack.find(names),
        lambda: stack.touch(names),
        lambda: stack.pin(names),
        lambda: stack.prefetch(names),
        stack.reset,
        stack.flush,
        blocks.view,
    ):
        refused(TierClosed, "closed", "a new one", call)
    # Clean-up code may run late.
    stack.release(match)
    stack.release(blocks)
    assert "closed" in repr(stack)
    with open_stack(tmp_path) as again:
        assert held(again, names) == [2] * 3
        assert_sound(again)


def test_a_callback_cannot_wait_for_itself(trouble: Trouble) -> None:
    """What runs on a worker thread is refused what would never end, and leaves nothing behind."""
    with open_stack(None, device=4, host=16) as stack:
        names = prompt(2, 1)
        serve(stack, names)
        serve(stack, prompt(4, 2))
        stack.drain()
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(2, 3))  # its way to the host is shut: nobody may overwrite its blocks yet
        seen: list[Exception] = []

        def try_all(_: object) -> None:
            for call in (lambda: stack.allocate(2), stack.close, stack.drain):
                try:
                    call()
                except TierError as error:
                    seen.append(error)

        held_up = threading.Event()
        trouble.gates["host_to_device"] = held_up
        coming = stack.onboard(stack.match(names))
        coming.add_done_callback(try_all)
        held_up.set()
        stack.release(coming.result(PATIENCE))
        gate.set()
        stack.drain()
        assert len(seen) == 3
        assert all("it would wait for itself" in str(error) for error in seen)
        assert_sound(stack)


def test_an_allocation_that_comes_too_late(trouble: Trouble) -> None:
    with open_stack(None, device=4, host=16) as stack:
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(4, 1))
        with pytest.raises(TimeoutError, match=r"device: copies out of 3 blocks have not ended after 0.01 s; nothing"):
            stack.allocate(3, timeout=0.01)
        assert stack.stats()["in_use"].values.tolist() == [0, 0, 0]
        gate.set()
        assert_sound(stack)


# Stacks that cannot be made.


def test_settings_that_do_not_exist_leave_nothing_open(tmp_path: Path) -> None:
    for options, culprit, cure in (
        ({"policy": "lruu"}, "policy: 'lruu'", "did you mean 'lru'?"),
        ({"policy": {"hots": "lru"}}, "policy: 'hots'", "did you mean 'host'?"),
        ({"policy": {"host": "lur"}}, "policy: 'lur'", "choose from"),
        ({"policy": 5}, "policy: 5", "give one for all tiers"),
        ({"policy": "belady"}, "belady", "choose one"),
        ({"admission": "frequencyy"}, "admission: 'frequencyy'", "did you mean 'frequency'?"),
        ({"admission": {"device": "all"}}, "admission: 'device'", "name one of these"),
        ({"admission": 5}, "admission: 5", "give a name"),
        ({"mode": "writeback"}, "mode: 'writeback'", "did you mean 'write_back'?"),
        ({"touch": "every"}, "touch: 'every'", "choose from served, all"),
        ({"disk_path": "dirct"}, "disk_path: 'dirct'", "did you mean 'direct'?"),
        ({"id_capacity": 79}, "id_capacity: 79", "give 80 or more"),
        ({"id_capacity": "many"}, "id_capacity: 'many'", "give 80 or more"),
        ({"max_pending_blocks": 0}, "max_pending_blocks: 0", "give 1 or more"),
        ({"config": {"max_concurrent_transfers": 3}}, "config: {", "give StackConfig(...)"),
        ({"mode": "write_back", "host": 1, "id_capacity": 80}, "host: 1 block", "give 2 or more"),
    ):
        refused(ConfigError, culprit, cure, lambda options=options: open_stack(tmp_path, **options))
    with open_stack(tmp_path) as stack:  # nobody holds the disk's file any more
        assert_sound(stack)


def test_tiers_in_the_wrong_places(tmp_path: Path) -> None:
    def device() -> DeviceTier:
        return DeviceTier(LAYOUT, capacity=4, device="host-emulated")

    def disk() -> DiskTier:
        return DiskTier(LAYOUT, capacity=4, path=tmp_path)

    def host() -> HostTier:
        return HostTier(LAYOUT, capacity=4)

    for tiers, culprit, cure in (
        ((host(),), "device: <HostTier", "give a DeviceTier"),
        ((device(), device()), "host: <DeviceTier", "give a HostTier"),
        ((device(), None, host()), "disk: <HostTier", "give a DiskTier"),
        ((device(), disk()), "host: <DiskTier", "give a HostTier"),
        ((None, host()), "device: None", "give a DeviceTier"),
        (("device",), "device: 'device'", "give a DeviceTier"),
    ):
        refused(ConfigError, culprit, cure, lambda tiers=tiers: TierStack(*tiers))  # type: ignore[arg-type]
        assert all(tier.closed for tier in tiers if hasattr(tier, "closed"))
    closed = disk()
    closed.close()
    refused(TierClosed, "disk: the tier is closed", "open a new one", lambda: TierStack(device(), None, closed))
    with TierStack(device(), host(), disk()) as stack:
        assert_sound(stack)


def test_layouts_that_do_not_fit(tmp_path: Path) -> None:
    for changed in (LAYOUT.with_(num_layers=3), LAYOUT.with_(dtype="float32"), LAYOUT.with_(page_tokens=8)):
        for where in ("layout", "host_layout"):
            refused(
                LayoutError,
                "layouts: ",
                "give all tiers layouts of one shape and dtype",
                lambda where=where, changed=changed: open_stack(tmp_path, **{where: changed}),
            )
        refused(
            LayoutError,
            "disk: ",
            "choose another path",
            lambda changed=changed: DiskTier(changed, capacity=64, path=tmp_path),
        )
    with open_stack(tmp_path, layout=LAYOUT.with_(order="layer_first")) as stack:
        assert_sound(stack)  # another order of the same blocks fits


def test_memory_that_cannot_be_had(tmp_path: Path) -> None:
    for make in (
        lambda: DeviceTier(LAYOUT, "900PB", device="host-emulated"),
        lambda: DeviceTier(LAYOUT, capacity=10**14, device="host-emulated"),
        lambda: HostTier(LAYOUT, "3000TB"),
        lambda: HostTier(LAYOUT, "3000TB", lock=False),
    ):
        refused(DeviceMemoryError, "of host memory asked", "make the tier or pool smaller", make)
    refused(TierFull, "blocks.data needs", "make the tier smaller", lambda: DiskTier(LAYOUT, "900TB", path=tmp_path))
    with open_stack(tmp_path) as stack:
        assert_sound(stack)


def test_a_second_process_on_the_same_files(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom stack_cases import open_stack\n"
        "from dynalab.errors import TierInUse\ntry:\n    open_stack(Path(sys.argv[1]))\n"
        "except TierInUse as error:\n    print(error)\n"
    )
    with open_stack(tmp_path) as stack:
        serve(stack, prompt(4, 1))
        done = run(script, tmp_path)
        assert f"blocks.data is held open by process {os.getpid()}; close that tier" in done
        refused(TierInUse, "another tier of this process", "choose another path", lambda: open_stack(tmp_path))
        assert_sound(stack)
    assert run(script, tmp_path) == ""
