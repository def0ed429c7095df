"""The POSIX engine: any batch against a plain copy, real short transfers and real errors, and no GIL."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError, TierClosed
from dynalab.tiers import disk_native
from dynalab.tiers.disk_io import DataFile, PosixEngine, check_threads, find_engine
from dynalab.tiers.disk_native import END_OF_FILE, RING

PAGE = mmap.PAGESIZE


def address_of(array: np.ndarray) -> int:
    return array.ctypes.data


def pages(count: int) -> np.ndarray:
    """Memory that begins at a page."""
    return np.frombuffer(mmap.mmap(-1, count * PAGE), np.uint8)


class Target:
    """An engine on a file of random bytes, and the same bytes in memory."""

    def __init__(self, path: Path, nbytes: int, *, direct: bool, threads: int = 2, coalesce: int = 1 << 20) -> None:
        self.bytes = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        path.write_bytes(self.bytes.tobytes())
        self.path = path
        self.fd = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
        self.engine = PosixEngine(DataFile(path, self.fd, direct, nbytes), threads, coalesce)

    def close(self) -> None:
        self.engine.close()
        os.close(self.fd)


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[list[Target]]:
    opened: list[Target] = []
    yield opened
    for target in opened:
        target.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[bool, int], Target]]:
    """Engines for hypothesis: one each of direct and buffered, joining much, little and nothing."""
    base = tmp_path_factory.mktemp("io")
    made = {
        (direct, coalesce): Target(base / f"{direct}{coalesce}", 64 * PAGE, direct=direct, coalesce=coalesce)
        for direct in (True, False)
        for coalesce in (0, 3 * PAGE, 1 << 20)
    }
    yield made
    for target in made.values():
        target.close()


@settings(max_examples=150)
@given(
    direct=st.booleans(),
    coalesce=st.sampled_from([0, 3 * PAGE, 1 << 20]),
    together=st.integers(1, 4),
    order=st.permutations(range(64)),
    count=st.integers(0, 64),
    write=st.booleans(),
)
def test_any_batch_is_a_plain_copy(shared, direct, coalesce, together, order, count, write) -> None:
    target = shared[direct, coalesce]
    nbytes = together * PAGE
    blocks = np.array([b for b in order if b < 64 // together][:count], np.int64)
    memory = pages(64)
    memory[:] = np.random.default_rng(count).integers(0, 256, memory.size, np.uint8)
    # Every block lies somewhere else in memory than in the file.
    places = np.random.default_rng(count + 1).permutation(64 // together)[: len(blocks)]
    addresses = (address_of(memory) + places * nbytes).astype(np.uint64)
    expected_memory = memory.copy()
    for block, place in zip(blocks, places, strict=True):
        inside, outside = slice(place * nbytes, (place + 1) * nbytes), slice(block * nbytes, (block + 1) * nbytes)
        if write:
            target.bytes[outside] = memory[inside]
        else:
            expected_memory[inside] = target.bytes[outside]
    assert target.engine.transfer(blocks * nbytes, addresses, nbytes, write=write).tolist() == [0] * len(blocks)
    np.testing.assert_array_equal(memory, expected_memory)
    if write:
        assert target.path.read_bytes() == target.bytes.tobytes()


def test_more_blocks_than_the_ring_holds_from_several_threads(tmp_path: Path, targets: list[Target]) -> None:
    count = 3 * RING + 5
    targets.append(target := Target(tmp_path / "f", count * 16, direct=False, threads=1, coalesce=0))
    wrong: list[str] = []

    def read(seed: int) -> None:
        blocks = np.random.default_rng(seed).permutation(count)
        memory = np.zeros((count, 16), np.uint8)
        addresses = (address_of(memory) + np.arange(count) * 16).astype(np.uint64)
        for _ in range(3):
            if target.engine.transfer(blocks * 16, addresses, 16, write=False).any():
                wrong.append("status")
            if not np.array_equal(memory, target.bytes.reshape(count, 16)[blocks]):
                wrong.append("bytes")
            memory[:] = 0

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("coalesce", [0, 1 << 20])
@pytest.mark.parametrize("left", [0, 1, 2 * PAGE, 5 * PAGE // 2, 5 * PAGE // 2 + 7, 6 * PAGE])
def test_a_file_cut_short_fails_the_blocks_behind_its_end(tmp_path, targets, direct, coalesce, left) -> None:
    """Real short reads: of a run that is read at once, the blocks that are there come out right."""
    targets.append(target := Target(tmp_path / "f", 6 * PAGE, direct=direct, coalesce=coalesce))
    os.truncate(target.path, left)
    memory = pages(6)
    addresses = (address_of(memory) + np.arange(6) * PAGE).astype(np.uint64)
    results = target.engine.transfer(np.arange(6) * PAGE, addresses, PAGE, write=False)
    whole = left // PAGE
    assert results.tolist() == [0] * whole + [END_OF_FILE] * (6 - whole)
    np.testing.assert_array_equal(memory[: whole * PAGE], target.bytes[: whole * PAGE])


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("bad", [0, 2, 5])
def test_an_address_without_memory_fails_its_own_block_only(tmp_path, targets, write, bad) -> None:
    """Six blocks go in one call, which fails as a whole: the engine finds out which one was to blame."""
    targets.append(target := Target(tmp_path / "f", 6 * PAGE, direct=True, threads=1))
    memory = pages(7)
    memory[:] = 7
    addresses = (address_of(memory) + np.arange(6) * PAGE).astype(np.uint64)
    addresses[bad] = PAGE  # nobody maps so low
    results = target.engine.transfer(np.arange(6) * PAGE, addresses, PAGE, write=write)
    assert results.tolist() == [errno.EFAULT if i == bad else 0 for i in range(6)]
    on_disk = np.frombuffer(target.path.read_bytes(), np.uint8).reshape(6, PAGE)
    for i in range(6):
        if i != bad and write:
            assert (on_disk[i] == 7).all()
        elif i != bad:
            np.testing.assert_array_equal(memory[i * PAGE : (i + 1) * PAGE], on_disk[i])


def test_io_errors_stay_with_their_block() -> None:
    """The kernel's view of this process's memory answers EIO, for real, where nothing is mapped."""
    source = pages(4)
    source[:] = np.random.default_rng(5).integers(0, 256, source.size, np.uint8)
    base, nothing = address_of(source), 16 * PAGE
    fd = os.open("/proc/self/mem", os.O_RDWR)
    engine = PosixEngine(DataFile(Path("/proc/self/mem"), fd, False, 0), threads=1)
    try:
        memory = np.zeros((5, 1000), np.uint8)
        addresses = (address_of(memory) + np.arange(5) * 1000).astype(np.uint64)
        offsets = np.array([base, base + 1000, nothing, nothing + 1000, base + 2000])
        results = engine.transfer(offsets, addresses, 1000, write=False)
        assert results.tolist() == [0, 0, errno.EIO, errno.EIO, 0]
        for row, start in ((0, 0), (1, 1000), (4, 2000)):
            np.testing.assert_array_equal(memory[row], source[start : start + 1000])
    finally:
        engine.close()
        os.close(fd)


@pytest.mark.parametrize("nbytes", [500, 3000, 20_000])
def test_every_call_short(nbytes: int) -> None:
    """A file that never gives more than some kilobytes at a time, whatever is asked."""
    fd = os.open("/proc/kallsyms", os.O_RDONLY)
    try:
        content = b""
        while len(content) < 60_000 and (part := os.pread(fd, 60_000 - len(content), len(content))):
            content += part
        if len(content) < 60_000 or len(os.pread(fd, 60_000, 0)) == 60_000:
            pytest.skip("this kernel shows no symbols, or all of them at once")
        count = 60_000 // nbytes
        engine = PosixEngine(DataFile(Path("/proc/kallsyms"), fd, False, 0), threads=1)
        memory = np.zeros((count, nbytes), np.uint8)
        addresses = (address_of(memory) + np.arange(count) * nbytes).astype(np.uint64)
        results = engine.transfer(np.arange(count) * nbytes, addresses, nbytes, write=False)
        engine.close()
        assert not results.any()
        assert memory.tobytes() == content[: count * nbytes]
    finally:
        os.close(fd)


def test_a_limit_on_file_sizes_fails_what_lies_beyond(tmp_path: Path) -> None:
    """A real short write, in a process of its own: the limit lies within the third of four blocks."""
    script = f"""
import os, resource, numpy as np
from pathlib import Path
from dynalab.tiers import disk_native
from dynalab.tiers.disk_io import DataFile, PosixEngine
fd = os.open({str(tmp_path / "f")!r}, os.O_RDWR | os.O_CREAT)
engine = PosixEngine(DataFile(Path("f"), fd, False, 0), threads=1)
memory = np.arange(4 * 4096, dtype=np.uint8).reshape(4, 4096)
addresses = (memory.ctypes.data + np.arange(4) * 4096).astype(np.uint64)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
print(engine.transfer(np.arange(4) * 4096, addresses, 4096, write=True).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([0, 0, errno.EFBIG, errno.EFBIG])
    assert (tmp_path / "f").stat().st_size == 9000


def test_signals_do_not_disturb(tmp_path: Path, targets: list[Target]) -> None:
    targets.append(target := Target(tmp_path / "f", 64 * PAGE, direct=True, coalesce=0))
    memory = pages(64)
    addresses = (address_of(memory) + np.arange(64) * PAGE).astype(np.uint64)
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(60):
            memory[:] = 0
            assert not target.engine.transfer(np.arange(64) * PAGE, addresses, PAGE, write=False).any()
            np.testing.assert_array_equal(memory, target.bytes)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung


def test_a_batch_needs_no_gil(tmp_path: Path, targets: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    """While this thread keeps the GIL for itself, another one's batch of 512 calls is served to the end."""
    count = 512
    targets.append(target := Target(tmp_path / "f", count * PAGE, direct=True, threads=3, coalesce=0))
    memory = pages(count)
    addresses = (address_of(memory) + np.arange(count) * PAGE).astype(np.uint64)
    offsets = np.random.default_rng(0).permutation(count) * PAGE
    view, ends = memoryview(memory), range(PAGE - 1, count * PAGE, PAGE)
    lasts = target.bytes[offsets + PAGE - 1].tolist()
    run_batch, under_way = disk_native.run_batch, []
    interval = sys.getswitchinterval()

    def run(*args: int) -> None:
        # From here on nobody has to give the GIL away, and the caller does so only by entering machine code.
        sys.setswitchinterval(1000)
        under_way.append(True)
        run_batch(*args)

    monkeypatch.setattr(disk_native, "run_batch", run)
    caller = threading.Thread(target=target.engine.transfer, args=(offsets, addresses, PAGE), kwargs={"write": False})
    deadline = time.monotonic() + 20
    try:
        caller.start()
        while not under_way and time.monotonic() < deadline:
            time.sleep(0.0002)
        assert under_way
        # Nothing here lets go of the GIL, as larger work of NumPy would.
        while any(view[end] != last for end, last in zip(ends, lasts, strict=True)):
            assert time.monotonic() < deadline, "the batch waits for the GIL"
    finally:
        sys.setswitchinterval(interval)
    caller.join()


def test_threads_go_home(tmp_path: Path) -> None:
    def running() -> int:
        return sum(thread.name.startswith("dynalab-disk") for thread in threading.enumerate())

    before = running()
    target = Target(tmp_path / "f", PAGE, direct=False, threads=5)
    assert running() == before + 5
    target.engine.close()
    target.engine.close()
    assert running() == before
    with pytest.raises(TierClosed):
        target.engine.transfer(np.zeros(1, np.int64), np.ones(1, np.uint64), 1, write=False)
    target.engine = PosixEngine(DataFile(target.path, target.fd, False, PAGE), threads=5)
    del target.engine
    gc.collect()
    assert running() == before
    os.close(target.fd)


def test_an_interpreter_may_end_without_closing(tmp_path: Path) -> None:
    script = f"""
from dynalab.kv import KVLayout
from dynalab.tiers.disk import DiskTier
tier = DiskTier(KVLayout(1, 1, 4, 8), capacity=4, path={str(tmp_path)!r})
print("bye")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


@pytest.mark.parametrize("threads", [0, -1, 513, True, 2.0, "4"])
def test_numbers_of_threads_that_are_none(threads: object) -> None:
    with pytest.raises(ConfigError, match=f"threads: {threads!r} is not a number from 1 to 512"):
        check_threads(threads)  # type: ignore[arg-type]


def test_engines_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="engine: 'posx' does not exist; did you mean 'posix'"):
        find_engine("posx")
