"""The disk tier beside fio: same file, block size, depth and direction, random slots, O_DIRECT.

Run with ``python -m pytest tests/benchmarks/test_disk_speed.py --benchmark-only -s``.

Shared drives are noisy (a factor of two from second to second here), lend speed to who has been idle, and remember what
was read. So both sides run in turns, a round of one after a round of the other and every second round the other way
about, each after the same pause (fio takes that time to start; ours sleeps through it), each on other slots in every
round; what is asserted is the ratio of the medians. fio's figure is its own, without its start; ours is a wall clock
around the call. fio (libaio) keeps `DEPTH` transfers in flight; so do ours: `DEPTH` - 1 threads and the caller. Both
move `DEPTH` buffers around and around, since on virtual drives, whose host copies, more memory is slower memory.

Two things had to be made equal before the ratios meant anything. Huge pages: the tiers' arenas have them, and they made
reads here 2.5 times faster, for a 256 KiB block is one piece of memory then and not 64; fio gets them, too
(``--mem=shmhuge``), or else neither side. And where the cores are shared, a scheduler gives our 16 threads more of them
than fio's one, which made fio three times slower: so both get real-time priority where that is allowed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dynalab.kv import KVLayout
from dynalab.pools import HostArena
from dynalab.tiers import BlockKeys
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.disk_io import DataFile, PosixEngine
from dynalab.tiers.tier import READ_OK
from dynalab.units import format_size

BAR = 0.9
DEPTH = 16
ROUNDS = 15
FILE_BYTES = 1 << 30
ROUND_BYTES = 256 << 20
#: Huge pages that fio needs for its buffers, and some.
FIO_HUGE_PAGES = 48
_HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
SIZES = {"64 KiB": 64 << 10, "256 KiB": 256 << 10, "4 MiB": 4 << 20}

each_size = pytest.mark.parametrize("nbytes", list(SIZES.values()), ids=list(SIZES))
each_way = pytest.mark.parametrize("write", [True, False], ids=["write", "read"])


def in_turns(benchmark, sides: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median speed [bytes/s] of each side; the first one is timed as the benchmark's own."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    first, *others = sides

    def measure(names: list[str]) -> None:
        for name in names:
            speeds[name].append(sides[name]())

    def setup() -> None:
        if len(speeds[first]) % 2 == 0:
            measure(others)

    def own() -> None:
        measure([first])
        if len(speeds[first]) % 2 == 0:
            measure(others[::-1])

    benchmark.pedantic(own, setup=setup, rounds=rounds)
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    benchmark.extra_info.update({f"{name}_bytes_per_s": value for name, value in medians.items()})
    return medians


def say(label: str, medians: dict[str, float]) -> None:
    first = next(iter(medians.values()))
    parts = [f"{name} {value / 2**20:6.0f} MiB/s" for name, value in medians.items()]
    ratios = [f"{first / value:5.2f} x {name}" for name, value in list(medians.items())[1:]]
    print(f"\n{label:<24} {', '.join(parts)}: {', '.join(ratios)}", end="")


class Drive:
    """A file of `FILE_BYTES` that fio and the engine share, and buffers for both."""

    def __init__(self, path: Path, huge: bool) -> None:
        self.path, self.huge = path, huge
        size = DEPTH * max(SIZES.values())
        if huge:
            self.memory = HostArena(size, pinned=False, lock=False).array
        else:
            self.memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        rng = np.random.default_rng(0)
        self.memory.view(np.uint64)[:] = rng.integers(0, 2**63, size // 8, np.uint64)
        self.rng = rng
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(self.fd, 0, FILE_BYTES)
        self.pause = 0.4
        engine = self.engine()
        # Reserved is not yet written: what is read must have been written once.
        slots = np.arange(FILE_BYTES // (4 << 20))
        assert not engine.transfer(slots * (4 << 20), self.addresses(4 << 20, len(slots)), 4 << 20, write=True).any()
        engine.close()

    def engine(self) -> PosixEngine:
        return PosixEngine(DataFile(self.path, self.fd, True, FILE_BYTES), threads=DEPTH - 1)

    def addresses(self, nbytes: int, count: int) -> np.ndarray:
        return (self.memory.ctypes.data + np.arange(count) % DEPTH * nbytes).astype(np.uint64)

    def offsets(self, nbytes: int) -> np.ndarray:
        """Places of a round's blocks: random, none twice."""
        return self.rng.permutation(FILE_BYTES // nbytes)[: ROUND_BYTES // nbytes] * nbytes

    def fio(self, nbytes: int, write: bool) -> float:
        begin = time.perf_counter()
        words = [
            "fio",
            "--name=peer",
            f"--filename={self.path}",
            f"--rw={'randwrite' if write else 'randread'}",
            f"--bs={nbytes}",
            f"--iodepth={DEPTH}",
            f"--size={FILE_BYTES}",
            f"--io_size={ROUND_BYTES}",
            "--ioengine=libaio --direct=1 --randrepeat=0 --fallocate=none --allow_file_create=0 --output-format=json",
            "--mem=shmhuge" if self.huge else "--mem=malloc",
        ]
        done = subprocess.run(" ".join(words).split(), capture_output=True, text=True, check=True)
        (job,) = json.loads(done.stdout)["jobs"]
        part = job["write" if write else "read"]
        assert part["io_bytes"] == ROUND_BYTES
        self.pause = max(0.0, time.perf_counter() - begin - part["runtime"] / 1e3)
        return float(part["bw_bytes"])


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed (apt-get install fio)")
    place = tmp_path_factory.mktemp("disk")
    before = _HUGE_PAGES.read_text()
    with contextlib.suppress(PermissionError):
        _HUGE_PAGES.write_text(str(int(before) + FIO_HUGE_PAGES))
    huge = int(_HUGE_PAGES.read_text()) >= int(before) + FIO_HUGE_PAGES
    try:
        made = Drive(place / "file", huge)
    except OSError as error:
        pytest.skip(f"{place} has no direct I/O: {error}")
    print(f"\n({'huge' if huge else '4 KiB'} pages on both sides)", end="")
    yield made
    if huge:
        _HUGE_PAGES.write_text(before)
    os.close(made.fd)
    made.path.unlink()


@pytest.fixture
def first_in_line() -> Iterator[None]:
    """Real-time priority for this thread, and for the threads and processes that it starts."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("\n(no real-time priority: other work on the cores slows fio more than us)", end="")
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@each_size
@each_way
@pytest.mark.usefixtures("first_in_line")
def test_engine_beside_fio(benchmark, drive, nbytes, write):
    engine = drive.engine()
    count = ROUND_BYTES // nbytes
    addresses = drive.addresses(nbytes, count)

    def ours() -> float:
        offsets = drive.offsets(nbytes)
        time.sleep(drive.pause)
        begin = time.perf_counter()
        results = engine.transfer(offsets, addresses, nbytes, write=write)
        seconds = time.perf_counter() - begin
        assert not results.any()
        return ROUND_BYTES / seconds

    speeds = in_turns(benchmark, {"ours": ours, "fio": lambda: drive.fio(nbytes, write)})
    engine.close()
    say(f"{format_size(nbytes)} {'write' if write else 'read'}", speeds)
    assert speeds["ours"] >= BAR * speeds["fio"]


@each_size
@pytest.mark.usefixtures("first_in_line")
def test_what_verifying_costs(benchmark, drive, nbytes, tmp_path):
    """The whole tier (index, checksums) beside its bare engine: all blocks of a round written, then read."""
    layout = KVLayout(num_layers=1, outer=1, page_tokens=16, inner=nbytes // 32)
    count = ROUND_BYTES // nbytes
    addresses = drive.addresses(nbytes, count)
    places = np.arange(4 * count)
    figures: dict[str, list[float]] = {}
    tiers = {
        verify: DiskTier(layout, capacity=4 * count, path=tmp_path / str(verify), threads=DEPTH - 1, verify=verify)
        for verify in (True, False)
    }
    if not all(tier.capabilities.direct_io for tier in tiers.values()):
        pytest.skip("no direct I/O here")

    def timed(name: str, call: Callable[[], np.ndarray], good: object) -> None:
        time.sleep(drive.pause)
        begin = time.perf_counter()
        result = call()
        figures.setdefault(name, []).append(ROUND_BYTES / (time.perf_counter() - begin))
        assert (result == good).all()

    def one_round() -> None:
        slots = drive.rng.permutation(places)[:count]
        keys = BlockKeys.of(slots + 1)
        for verify, tier in tiers.items():
            told = "verifying" if verify else "not"
            timed(f"write, {told}", lambda tier=tier: tier.write(slots, addresses, keys), True)
            engine = tier._engine
            timed(
                "write, engine", lambda engine=engine: engine.transfer(slots * nbytes, addresses, nbytes, write=True), 0
            )
            timed(f"read, {told}", lambda tier=tier: tier.read(slots, addresses, keys.hash), READ_OK)
            timed(
                "read, engine", lambda engine=engine: engine.transfer(slots * nbytes, addresses, nbytes, write=False), 0
            )

    for tier in tiers.values():  # every slot once, so that later writes replace blocks
        for part in np.array_split(places, 4):
            assert tier.write(part, addresses[: len(part)], BlockKeys.of(part + 1)).all()
    benchmark.pedantic(one_round, rounds=9)
    medians = {name: float(np.median(values)) for name, values in figures.items()}
    benchmark.extra_info.update(medians)
    told = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in sorted(medians.items()))
    print(f"\n{format_size(nbytes):<9} [MiB/s] {told}", end="")
    for tier in tiers.values():
        tier.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "python-computes"])
def test_beside_threads_of_python(benchmark, drive, busy):
    """What not needing the GIL is worth at 64 KiB, alone and beside a thread that computes in Python."""
    nbytes = SIZES["64 KiB"]
    addresses = drive.addresses(nbytes, ROUND_BYTES // nbytes)
    engine, pool = drive.engine(), ThreadPoolExecutor(DEPTH)
    views = [memoryview(drive.memory)[i * nbytes : (i + 1) * nbytes] for i in range(DEPTH)]
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    def timed(call: Callable[[np.ndarray], object]) -> float:
        offsets = drive.offsets(nbytes)
        time.sleep(0.2)
        begin = time.perf_counter()
        call(offsets)
        return ROUND_BYTES / (time.perf_counter() - begin)

    def python(offsets: np.ndarray) -> None:
        list(pool.map(lambda i, offset: os.preadv(drive.fd, [views[i % DEPTH]], offset), range(len(offsets)), offsets))

    thread = threading.Thread(target=compute)
    if busy:
        thread.start()
    sides = {
        "ours": lambda: timed(lambda offsets: engine.transfer(offsets, addresses, nbytes, write=False)),
        "os.preadv": lambda: timed(python),
    }
    speeds = in_turns(benchmark, sides, rounds=9)
    stop.set()
    if busy:
        thread.join()
    engine.close()
    pool.shutdown()
    say(f"64 KiB read, {'busy' if busy else 'idle'}", speeds)
