"""What a stack promises to who uses it: the blocks, and all that can be asked, set and told around them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from stack_cases import (
    LAYOUT,
    MODES,
    PAGE,
    PATIENCE,
    Trouble,
    assert_right,
    assert_sound,
    content,
    held,
    open_stack,
    prompt,
    refused,
    serve,
    sink,
    trouble,
    write,
)

from dynalab.errors import LayoutError, TierError
from dynalab.kv import KVLayout, sequence_hashes
from dynalab.tiers import (
    Blocks,
    DeviceTier,
    DiskTier,
    HostTier,
    KvEvent,
    TierStack,
)

__all__ = ["trouble"]


def test_what_a_user_does(tmp_path: Path) -> None:
    """The example by which the stack was asked for, on fewer bytes."""
    layout = KVLayout(num_layers=32, outer=2, page_tokens=16, inner=64, dtype="float16")
    tokens = np.random.default_rng(0).integers(0, 128_000, 200)
    with TierStack(
        DeviceTier(layout, "2MiB", device="host-emulated"),
        HostTier(layout, "8MiB"),
        DiskTier(layout, "32MiB", path=tmp_path / "kv"),
        policy="lru",
        admission="frequency",
    ) as stack:
        for found in (0, 12):
            hashes = sequence_hashes(tokens, layout.page_tokens)
            match = stack.match(hashes)
            blocks = stack.onboard(match).result()
            assert len(blocks) == found
            new = stack.allocate(len(hashes) - len(blocks))
            for i, block in enumerate(new.view()):
                block[...] = i
            stack.register(new, hashes[len(blocks) :])
            stack.release(blocks + new)
        facts = stack.stats()
        assert facts["resident"].sel(tier="device") == 12
        assert facts.attrs["device"] == "host-emulated"
        again = stack.onboard(stack.match(hashes)).result()
        assert [float(block.max()) for block in again.view()] == list(range(12))
        again.release()
    assert stack.device.closed


# Blocks and matches.


def test_blocks_are_a_sequence() -> None:
    with open_stack(None) as stack:
        blocks = stack.allocate(5)
        slots = blocks.slots.tolist()
        assert len(blocks) == len(set(slots)) == 5
        assert blocks[1].slots.tolist() == slots[1:2]
        assert blocks[-1].slots.tolist() == slots[4:]
        assert blocks[np.int64(2)].slots.tolist() == [slots[2]]
        assert blocks[1:4:2].slots.tolist() == slots[1:4:2]
        assert [block.slots[0] for block in blocks] == slots
        assert (blocks[3:] + blocks[:1]).slots.tolist() == slots[3:] + slots[:1]
        assert len(stack.allocate(0)) == len(blocks[2:2]) == 0
        with pytest.raises(IndexError):
            blocks[5]
        with pytest.raises(TypeError):
            blocks + slots
        assert blocks.hashes.tolist() == [0] * 5
        names = prompt(2, 1)
        write(blocks[:2], names)
        stack.register(blocks[:2], names)
        assert blocks.hashes.tolist() == [*names.tolist(), 0, 0, 0]
        assert "5, on device slots" in repr(blocks)
        blocks[3:].release()  # never registered: free again
        blocks[:3].release()
        assert_sound(stack)


def test_views_show_the_device_itself() -> None:
    for layout in (
        LAYOUT,
        LAYOUT.with_(order="layer_first"),
        LAYOUT.with_(order="layer_first", outer_contiguous=False),
    ):
        with open_stack(None, layout=layout, host_layout=layout) as stack:
            blocks = stack.allocate(2)
            for view in blocks.view():
                assert view.shape == (2, 2, PAGE, 32)
                assert view.dtype == np.float16
                view[1, 0, 3, 31] = 7
            assert stack.device.get(int(blocks.slots[1]))[1, 0, 3].ravel()[31] == 7
            blocks.release()
    apart = LAYOUT.with_(heads=4, head_order="HND")
    with open_stack(None, layout=apart, host_layout=apart) as stack:
        blocks = stack.allocate(2)
        refused(LayoutError, "'HND'", "use view_heads()", blocks.view)
        assert [view.shape for view in blocks.view_heads()] == [(2, 2, PAGE, 4, 8)] * 2
        blocks.release()


def test_matches_tell_what_lies_where(tmp_path: Path) -> None:
    with open_stack(tmp_path, device=8, host=8) as stack:
        long = prompt(6, 1)
        serve(stack, long[:4])
        sink(stack, long[:4])
        match = stack.match(long)
        assert (len(match), match.level.tolist()) == (4, [2] * 4)
        assert match.tiers == {"device": 0, "host": 0, "disk": 4}
        assert match.hashes.tolist() == long.tolist()
        assert repr(match) == "<Match: 4 of 6 blocks (4 on disk)>"
        match.level[:] = 0
        assert match.level.tolist() == [2] * 4
        blocks = stack.onboard(match).result(PATIENCE)
        assert repr(match) == "<Match: 4 of 6 blocks (4 on disk), used>"
        assert blocks.hashes.tolist() == long[:4].tolist()
        stack.release(blocks)
        nothing = stack.match(prompt(3, 9))
        assert (len(nothing), repr(nothing)) == (0, "<Match: 0 of 3 blocks (nothing)>")
        empty = stack.onboard(nothing)
        assert empty.done()
        assert len(empty.result()) == len(stack.onboard(stack.match([])).result()) == 0
        assert empty.failures == ()
        assert_sound(stack)


def test_the_longest_prefix_is_found(tmp_path: Path) -> None:
    """A block behind a gap is held, and of no use."""
    with open_stack(tmp_path) as stack:
        names = prompt(5, 1)
        blocks = stack.allocate(3)
        write(blocks, names[[0, 1, 3]])
        stack.register(blocks[:2], names[:2])
        stack.register(blocks[2:], names[3:4], parent=int(names[2]))
        stack.release(blocks)
        assert held(stack, names) == [0, 0, 3, 0, 3]
        match = stack.match(names)
        assert len(match) == 2
        stack.release(match)
        assert_sound(stack)


def test_in_use_means_not_evicted(tmp_path: Path) -> None:
    with open_stack(tmp_path, device=6, host=6, disk=20) as stack:
        mine, others = prompt(4, 1), [prompt(2, seed) for seed in range(10, 20)]
        serve(stack, mine)
        blocks = stack.onboard(stack.match(mine)).result(PATIENCE)
        for names in others:
            serve(stack, names)
            assert held(stack, mine) == [0] * 4
        assert_right(blocks, mine)
        stack.release(blocks)
        for names in others[:4]:
            serve(stack, names)
        assert (stack.find(mine) > 0).all()
        assert_sound(stack)


def test_pinned_where_it_lies(tmp_path: Path) -> None:
    """A prefix on the disk stays there however many others come, until it is released."""
    with open_stack(tmp_path, device=4, host=4, disk=12) as stack:
        mine = prompt(4, 1)
        serve(stack, mine)
        sink(stack, mine)
        pin = stack.pin(mine)
        for seed in range(10, 20):
            serve(stack, prompt(4, seed))
        assert held(stack, mine) == [2] * 4
        stack.release(pin)
        for seed in range(20, 26):
            serve(stack, prompt(4, seed))
        assert held(stack, mine) == [3] * 4
        assert_sound(stack)


def test_touched_is_used_and_found_is_not() -> None:
    for tell, stays in (("touch", True), ("find", False)):
        with open_stack(None, device=4, host=0) as stack:
            first, second = prompt(2, 1), prompt(2, 2)
            serve(stack, first)
            serve(stack, second)
            answer = getattr(stack, tell)(np.concatenate([first, prompt(3, 9)]))
            assert answer == 2 if tell == "touch" else answer.tolist() == [0, 0, 3, 3, 3]
            serve(stack, prompt(2, 3))
            assert held(stack, first) == ([0, 0] if stays else [3, 3])
            assert held(stack, second) == ([3, 3] if stays else [0, 0])
            assert stack.touch(prompt(2, 50)) == 0


def test_reset(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        for seed in range(6):
            serve(stack, prompt(6, seed))
        blocks, match = stack.allocate(2), stack.match(prompt(6, 5))
        refused(TierError, "blocks are in use (8 of device)", "release them first", stack.reset)
        stack.release(blocks)
        stack.release(match)
        stack.reset()
        assert stack.stats()["resident"].values.tolist() == [0, 0, 0]
        for seed in range(6):
            assert held(stack, prompt(6, seed)) == [3] * 6
        assert_sound(stack)


# Many at once.


@pytest.mark.parametrize("mode", MODES)
def test_threads_share_a_stack(tmp_path: Path, mode: str) -> None:
    errors: list[BaseException] = []
    with open_stack(tmp_path, device=40, host=30, disk=200, mode=mode, admit_after=1, max_pending_blocks=50) as stack:

        def client(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for _ in range(40):
                    names = prompt(6, int(rng.integers(15)), shared=3, topic=int(rng.integers(4)))
                    if rng.random() < 0.2:
                        stack.prefetch(names).wait(["best_effort", "wait_complete"][int(rng.integers(2))])
                    serve(stack, names)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE)
        assert not errors, errors
        assert stack.stats()["matched_tokens"] > 1000
        assert_sound(stack)


def test_registering_waits_for_room(trouble: Trouble) -> None:
    with open_stack(None, device=8, host=16, max_pending_blocks=4) as stack:
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(4, 1))
        blocks, names = stack.allocate(2), prompt(2, 2)
        write(blocks, names)
        thread = threading.Thread(target=lambda: stack.register(blocks, names))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert held(stack, names) == [3, 3]
        assert not stack.drain(0.001)
        gate.set()
        thread.join(PATIENCE)
        assert held(stack, names) == [0, 0]
        stack.release(blocks)
        assert_sound(stack)


@pytest.mark.parametrize("mode", MODES)
def test_events_once_per_hash_over_all_tiers(tmp_path: Path, mode: str) -> None:
    events: list[KvEvent] = []
    prompts = [prompt(5, seed, shared=2, topic=seed % 2) for seed in range(14)]
    parents = {int(h): int(p) for names in prompts for h, p in zip(names, [0, *names[:-1]], strict=True)}
    with open_stack(tmp_path, host=6, disk=20, mode=mode, admit_after=1, on_events=events.extend) as stack:
        rng = np.random.default_rng(3)
        for _ in range(80):
            serve(stack, prompts[int(rng.integers(14))])
        stack.drain()
        inside: set[int] = set()
        for event in events:
            assert event.parent == parents[event.hash]
            if event.kind == "store":
                assert event.hash not in inside
                inside.add(event.hash)
            else:
                assert event.kind == "remove"
                inside.remove(event.hash)
        everywhere = np.array(list(parents), np.uint64)
        assert inside == {int(h) for h, level in zip(everywhere, stack.find(everywhere), strict=True) if level < 3}
        assert sum(event.kind == "remove" for event in events) > 20


def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def listener(_: list[KvEvent]) -> None:
        raise RuntimeError("deaf")

    with open_stack(None, on_events=listener) as stack:
        serve(stack, prompt(3, 1))
        assert_sound(stack)
    assert any("on_events failed" in record.message for record in caplog.records)


def test_blocks_are_still_blocks_when_added_up() -> None:
    with open_stack(None) as stack:
        total: Blocks = stack.allocate(0)
        for _ in range(3):
            total = total + stack.allocate(1)
        names = prompt(3, 1)
        write(total, names)
        stack.register(total, names)
        assert (total[1].view()[0].view(np.uint16) == content(int(names[1]))).all()
        stack.release(total)
