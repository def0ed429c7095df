"""A stack when something goes wrong: nothing wrong is served, nothing taken stays taken, the next request goes through.

The drive fails for real where that can be had: limits on file sizes, files cut short, flipped bits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stack_cases import (
    MODES,
    PATHS,
    PATIENCE,
    Trouble,
    assert_right,
    assert_sound,
    content,
    held,
    open_stack,
    prompt,
    run,
    serve,
    sink,
    trouble,
    write,
)

from dynalab.errors import CorruptBlock, TransferError
from dynalab.tiers import DiskTier, StackConfig
from dynalab.tiers.disk_io import DataFile, DiskEngine, PosixEngine

__all__ = ["trouble"]


_LIMITED = """
import resource, sys
from pathlib import Path
from stack_cases import assert_sound, open_stack, prompt, serve
stack = open_stack(Path(sys.argv[1]), disk_tier_direct=sys.argv[2] == "direct")
# Half of the disk's slots lie behind the limit, one lies across it.
resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 4096 + 100, 32 * 4096 + 100))
for seed in range(12):
    serve(stack, prompt(8, seed))
    stack.drain()
print(int(stack.stats()["failed_blocks"].sum()), stack.stats().attrs["disk_write_failures"], stack.failures[-1])
served = sum(serve(stack, prompt(8, seed))["disk"] for seed in range(10))
print(served)
assert_sound(stack)
stack.close()
"""


@pytest.mark.parametrize("how", ["direct", "buffered"])
def test_a_disk_that_is_full(tmp_path: Path, how: str) -> None:
    """Real refusals by the system while blocks are written, one of them after a part of a block."""
    first, served = run(_LIMITED, tmp_path, how).splitlines()
    failed, counted, message = first.split(" ", 2)
    assert 20 < int(failed) == int(counted)
    assert message.startswith("disk: write of slot")
    assert "File too large (EFBIG)" in message or "Invalid argument (EINVAL)" in message
    assert int(served) > 20  # what was written is served
    with open_stack(tmp_path) as stack:
        assert 20 <= stack.stats()["resident"].sel(tier="disk") <= 33
        assert_sound(stack)


class Faulty(DiskEngine):
    """An engine that reports errors for some transfers: what a failing drive does."""

    name = "faulty"

    def __init__(self, file: DataFile, threads: int) -> None:
        self._inner = PosixEngine(file, threads)
        self.alignment = self._inner.alignment
        self.errors: Callable[[bool, int], int] = lambda write, offset: 0

    def transfer(self, offsets, addresses, nbytes, *, write):  # type: ignore[no-untyped-def]
        results = np.array([self.errors(write, o) for o in offsets.tolist()], np.int64)
        good = results == 0
        results[good] = self._inner.transfer(offsets[good], addresses[good], nbytes, write=write)
        return results

    def close(self) -> None:
        self._inner.close()


def test_a_drive_with_bad_sectors(tmp_path: Path) -> None:
    with open_stack(tmp_path, disk_tier_engine=Faulty) as stack:
        assert isinstance(stack.disk, DiskTier)
        engine = stack.disk._engine
        assert isinstance(engine, Faulty)
        names = prompt(6, 1)
        serve(stack, names)
        sink(stack, names)
        third = int(stack._directory.slot_of(2, names[3:4])[0]) * stack.disk.slot_bytes
        engine.errors = lambda write, offset: errno.EIO if offset == third else 0
        onboarding = stack.onboard(stack.match(names))
        blocks = onboarding.result(PATIENCE)
        assert_right(blocks, names[:3])
        assert any("Input/output error (EIO)" in str(error) for error in onboarding.failures)
        assert any("(EIO)" in str(error) for error in stack.failures)
        stack.release(blocks)
        assert held(stack, names)[3] == 3
        assert serve(stack, names)["computed"] == 3
        # Writes that fail are not on the disk, and everything else goes on.
        engine.errors = lambda write, offset: errno.EIO if write else 0
        lost = prompt(8, 2)
        serve(stack, lost)
        stack.drain()
        stack._directory.clear(0), stack._directory.clear(1)
        assert held(stack, lost) == [3] * 8
        engine.errors = lambda write, offset: 0
        assert serve(stack, lost)["computed"] == 8
        assert_sound(stack)
        assert stack.stats().attrs["disk_write_failures"] >= 8
        assert stack.stats().attrs["disk_read_failures"] == 1


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    """Short reads: the file ends within a block, and before others."""
    with open_stack(tmp_path, disk=40) as stack:
        names = prompt(8, 1)
        serve(stack, names)
        sink(stack, names)
        slots = stack._directory.slot_of(2, names).tolist()
        assert slots == sorted(slots)
        data = tmp_path / "blocks.data"
        os.truncate(data, slots[4] * 4096 + 512)
        onboarding = stack.onboard(stack.match(names))
        blocks = onboarding.result(PATIENCE)
        assert_right(blocks, names[: len(blocks)])
        assert len(blocks) <= 4
        assert any("the file ends before it" in str(error) for error in onboarding.failures)
        stack.release(blocks)
        os.truncate(data, 40 * 4096)
        for seed in range(5):
            serve(stack, prompt(8, seed))
        assert_sound(stack)


def test_a_file_system_in_memory() -> None:
    """``/dev/shm`` does without O_DIRECT where its kernel has none, and everything works."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no /dev/shm")
    path = shm / f"dynalab-stack-{os.getpid()}"
    try:
        names = prompt(6, 1)
        for direct in (True, False):
            with open_stack(path, disk_tier_direct=direct) as stack:
                assert stack.stats().attrs["disk_direct_io"] in ((0, 1) if direct else (0,))
                serve(stack, names)
                sink(stack, names)
                assert serve(stack, names)["disk"] == 6
                assert_sound(stack)
    finally:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def flip(path: Path, name: int) -> None:
    """Flip one bit of a block in a disk tier's file."""
    file = path / "blocks.data"
    at = file.read_bytes().index(content(name).tobytes()) + 700
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x10]))
        stream.flush()
        os.fsync(stream.fileno())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
def test_a_corrupt_block_is_a_miss(tmp_path: Path, mode: str, disk_path: str) -> None:
    with open_stack(tmp_path, mode=mode, disk_path=disk_path, admit_after=1) as stack:
        names = prompt(6, 1)
        serve(stack, names)
        sink(stack, names)
        flip(tmp_path, int(names[2]))
        match = stack.match(names)
        assert match.tiers["disk"] == 6
        onboarding = stack.onboard(match)
        blocks = onboarding.result(PATIENCE)
        assert len(blocks) == 2
        assert_right(blocks, names[:2])
        corrupt = [error for error in onboarding.failures if isinstance(error, CorruptBlock)]
        assert len(corrupt) == 1
        assert f"{int(names[2]):#018x}" in str(corrupt[0])
        assert stack.stats().attrs["disk_corrupt_blocks"] == 1
        assert any(isinstance(error, CorruptBlock) for error in stack.failures)
        assert "kvbm_transfer_failures 0" not in stack.metrics()
        stack.release(blocks)
        stack.drain()
        # It is nowhere any more; those behind it are, and become useful when it is computed again.
        assert held(stack, names)[2] == 3
        assert serve(stack, names)["computed"] >= 1
        assert stack.stats().attrs["disk_corrupt_blocks"] == 1
        sink(stack, names)
        assert serve(stack, names) == {"device": 0, "host": 0, "disk": 6, "computed": 0}
        assert stack.stats().attrs["disk_corrupt_blocks"] == 1
        assert_sound(stack)


def test_an_index_that_cannot_be_written_does_not_stall(tmp_path: Path) -> None:
    """Forgetting a corrupt block fails, too: it is not served all the same, and nothing waits for ever."""
    with open_stack(tmp_path) as stack:
        names = prompt(4, 1)
        serve(stack, names)
        sink(stack, names)
        flip(tmp_path, int(names[1]))
        assert isinstance(stack.disk, DiskTier)
        index = stack.disk._files.index_fd
        kept, full = os.dup(index), os.open("/dev/full", os.O_RDWR)
        os.dup2(full, index)
        blocks = stack.onboard(stack.match(names)).result(PATIENCE)
        assert_right(blocks, names[:1])
        stack.release(blocks)
        assert held(stack, names)[1] == 3
        os.dup2(kept, index)
        os.close(full), os.close(kept)
        stack.reset()
        assert_sound(stack)


def _break(path: str) -> Callable[..., np.ndarray]:
    def fault(mover, transfer, lo, hi):  # type: ignore[no-untyped-def]
        if transfer.path == path:
            raise OSError(errno.EIO, "Input/output error")
        return mover(transfer, lo, hi)

    return fault


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
@pytest.mark.parametrize("path", PATHS)
def test_copies_fail_at_random(trouble: Trouble, tmp_path: Path, mode: str, disk_path: str, path: str) -> None:
    """Every failing copy leaves garbage in its target, or has copied a part: no request ever sees any of it."""
    rng = np.random.default_rng(PATHS.index(path))
    counts = {"tried": 0, "failed": 0}

    def fault(mover, transfer, lo, hi):  # type: ignore[no-untyped-def]
        arrived = mover(transfer, lo, hi)
        if transfer.path != path:
            return arrived
        counts["tried"] += 1
        how = rng.integers(6)
        if how > 2:
            return arrived
        counts["failed"] += 1
        bad = rng.random(hi - lo) < 0.5
        bad[rng.integers(hi - lo)] = True
        target = {"device": stack.device, "host": stack.host}.get(path.split("_to_")[1])
        if target is not None:
            target.fill(transfer.dst[lo:hi][bad], 0xEE)
        if how == 0:
            raise OSError(errno.EIO, "Input/output error")
        return arrived & ~bad

    config = StackConfig(max_transfer_batch_size=3)
    options = {"mode": mode, "disk_path": disk_path, "config": config, "admit_after": 1}
    with open_stack(tmp_path, device=12, host=12, disk=60, **options) as stack:
        trouble.fault = fault
        for step in range(50):
            topic = int(rng.integers(4))
            names = prompt(int(rng.integers(4, 9)), int(rng.integers(12)), shared=3, topic=topic)
            if step % 7 == 0:
                stack.prefetch(names).wait(["wait_complete", "best_effort"][step % 2])
            serve(stack, names)
        stack.drain()
        lost = stack.stats()["failed_blocks"].sel(edge=path)
        assert (lost > 0) == (counts["failed"] > 0)
        # A path that nobody takes in this configuration is that of the other one.
        if counts["tried"] > 20:
            assert counts["failed"] > 3
            assert stack.failures
        trouble.fault = None
        assert_sound(stack)
        for number in range(12):
            serve(stack, prompt(6, number, shared=3))
        assert_sound(stack)


def test_every_path_has_failed_in_some_configuration(trouble: Trouble, tmp_path: Path) -> None:
    """The test above would show nothing about a path that none of its configurations takes."""
    tried: set[str] = set()

    def note(mover, transfer, lo, hi):  # type: ignore[no-untyped-def]
        tried.add(transfer.path)
        return mover(transfer, lo, hi)

    trouble.fault = note
    for disk_path in ("staged", "direct"):
        with open_stack(tmp_path / disk_path, device=8, host=8, disk=60, disk_path=disk_path) as stack:
            for seed in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4):
                serve(stack, prompt(8, seed))
    assert tried == set(PATHS)


def test_closing_in_haste_loses_nothing_on_the_disk(trouble: Trouble, tmp_path: Path) -> None:
    """Blocks that were on their way up, and given up, are found again by the next process."""
    names = prompt(6, 1)
    config = StackConfig(max_concurrent_transfers=1, max_transfer_batch_size=1)
    stack = open_stack(tmp_path, config=config)
    serve(stack, names)
    sink(stack, names)
    gate = trouble.stop("disk_to_host", "disk_to_device")
    coming = stack.onboard(stack.match(names))
    assert trouble.begun.acquire(timeout=PATIENCE)
    threading.Timer(0.05, gate.set).start()
    stack.close(cancel=True)
    assert len(coming.result(PATIENCE)) < 6
    assert stack._flow.n_failures == 0  # given up is not failed
    trouble.gates.clear()
    with open_stack(tmp_path) as stack:
        assert held(stack, names) == [2] * 6
        assert serve(stack, names)["disk"] == 6
        assert_sound(stack)


@pytest.mark.parametrize("arrives", [True, False])
def test_two_requests_wait_for_one_copy(trouble: Trouble, arrives: bool) -> None:
    with open_stack(None, device=8, host=16) as stack:
        names = prompt(3, 1)
        serve(stack, names)
        serve(stack, prompt(8, 2))
        stack.drain()
        gate = trouble.stop("host_to_device")
        if not arrives:
            trouble.fault = _break("host_to_device")
        one = stack.onboard(stack.match(names))
        match = stack.match(names)
        assert match.tiers["device"] == 3  # decided, if not there yet
        other = stack.onboard(match)
        assert not one.done()
        assert not other.done()
        gate.set()
        for onboarding in (one, other):
            blocks = onboarding.result(PATIENCE)
            assert len(blocks) == (3 if arrives else 0)
            assert bool(onboarding.failures) != arrives
            assert_right(blocks, names[: len(blocks)])
            stack.release(blocks)
        trouble.fault = None
        assert_sound(stack)


@pytest.mark.parametrize("arrives", [True, False])
def test_content_registered_while_it_is_on_its_way(trouble: Trouble, arrives: bool) -> None:
    """Bytes that another request has not received yet are waited for, and missed if they do not come."""
    with open_stack(None, device=8, host=16) as stack:
        names, done = prompt(2, 1), threading.Event()
        mine = stack.allocate(2)
        write(mine, names)
        serve(stack, names)
        serve(stack, prompt(6, 2))
        assert held(stack, names) == [1, 1]
        stack.drain()
        gate = trouble.stop("host_to_device")
        if not arrives:
            trouble.fault = _break("host_to_device")
        coming = stack.onboard(stack.match(names))
        outcome: list[object] = []

        def register() -> None:
            try:
                outcome.append(stack.register(mine, names))
            except TransferError as error:
                outcome.append(error)
            done.set()

        thread = threading.Thread(target=register)
        thread.start()
        assert not done.wait(0.05)
        gate.set()
        thread.join(PATIENCE)
        if arrives:
            assert outcome == [None]
            assert_right(mine, names)
        else:
            assert "block 0 of 2 was on its way" in str(outcome[0])
            assert "compute it again" in str(outcome[0])
        stack.release(coming.result(PATIENCE))
        stack.release(mine)
        trouble.fault = None
        assert_sound(stack)
