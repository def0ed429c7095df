"""The disk tier when drives fill up, fail or are tampered with: real limits, real errors, and no harm done."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from disk_blocks import LAYOUT, Blocks, name_of

from dynalab.errors import ConfigError, LayoutError, TierError, TierFull, TierInUse, TransferError
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.disk_io import DataFile, DiskEngine, PosixEngine
from dynalab.tiers.tier import READ_CORRUPT, READ_FAILED, READ_OK, READ_STALE

NAMES = [name_of(i) for i in range(64)]
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def mount(kind: str, place: Path, options: str) -> Iterator[Path]:
    """A file system of its own, where this process may have one."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", kind, "-o", options, kind, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {kind} can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from mount("tmpfs", tmp_path / "small", "size=1m")


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Path]:
    """A file system that can neither reserve space nor bypass the page cache."""
    yield from mount("ramfs", tmp_path / "plain", "mode=0755")


def open_tier(path: Path, capacity: int = 8, **options) -> DiskTier:
    return DiskTier(LAYOUT, capacity=capacity, path=path, threads=2, **options)


def check_all(path: Path, slots: int, capacity: int = 8) -> None:
    """The tier opens and holds exactly the blocks 0 to slots - 1, in these slots."""
    with open_tier(path, capacity) as tier:
        assert sorted(tier.recovered()[0].tolist()) == list(range(slots))
        assert (Blocks(tier).check(range(slots), NAMES[:slots]) == READ_OK).all()


def test_a_file_system_too_small_takes_nothing(small: Path) -> None:
    for capacity in (300, 256):  # one is seen in advance, the other leaves no room for the index
        with pytest.raises(TierFull, match=r"needs .*(free|full); make the tier smaller"):
            open_tier(small, capacity)
        assert list(small.iterdir()) == []
    with open_tier(small, 200) as tier:
        assert Blocks(tier).write(range(200), range(200)).all()


def test_a_tier_that_cannot_grow_stays_as_it_was(small: Path) -> None:
    with open_tier(small, 100) as tier:
        Blocks(tier).write(range(8), range(8))
    sizes = {path.name: path.stat().st_size for path in small.iterdir()}
    for capacity in (300, 255):
        with pytest.raises(TierFull):
            open_tier(small, capacity)
        assert {path.name: path.stat().st_size for path in small.iterdir()} == sizes
    check_all(small, 8, capacity=100)


def test_a_drive_full_at_a_write(small: Path) -> None:
    """Space that a copy-on-write file system would not have reserved: here, a hole. Real ENOSPC."""
    with open_tier(small, 8) as tier:
        blocks = Blocks(tier)
        assert blocks.write(range(8), range(8)).all()
        libc = ctypes.CDLL(None, use_errno=True)
        offset = ctypes.c_int64(4 * tier.slot_bytes)
        hole = libc.fallocate(tier._files.data_fd, _PUNCH_HOLE, offset, ctypes.c_int64(2 * tier.slot_bytes))
        assert hole == 0
        with pytest.raises(OSError, match="No space"):
            (small / "filler").write_bytes(bytes(1 << 20))
        errors: list[TransferError] = []
        assert blocks.write(range(3, 7), range(13, 17), errors=errors).tolist() == [True, False, False, True]
        assert [f"write of slot {slot}" in str(error) for slot, error in zip((4, 5), errors, strict=True)] == [True] * 2
        assert "No space left on device (ENOSPC)" in str(errors[0])
        assert isinstance(errors[0].__cause__, OSError)
        assert errors[0].__cause__.errno == errno.ENOSPC
        names = [name_of(n) for n in (13, 14, 15, 16)]
        assert blocks.check(range(3, 7), names).tolist() == [READ_OK, READ_STALE, READ_STALE, READ_OK]
        assert blocks.check([4, 5], NAMES[4:6]).tolist() == [READ_STALE] * 2  # the old blocks are gone, too
        (small / "filler").unlink()
        assert blocks.write([4, 5], [14, 15]).all()
        assert (blocks.check(range(3, 7), names) == READ_OK).all()
        assert tier.stats()["write_failures"] == 2


_LIMITED = """
import resource, sys
from disk_blocks import LAYOUT, Blocks, name_of
from dynalab.errors import TierFull
from dynalab.tiers import disk_space
from dynalab.tiers.disk import DiskTier

def cannot_reserve(fd, size):
    raise OSError(95, "Operation not supported")

path, early, zeros = sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True"
if zeros:
    disk_space.fallocate = cannot_reserve
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
if early:
    limit()
    try:
        DiskTier(LAYOUT, capacity=8, path=path, zero_fill=zeros)
    except TierFull as error:
        print(error)
    sys.exit()
with DiskTier(LAYOUT, capacity=8, path=path, zero_fill=zeros) as tier:
    limit()
    blocks = Blocks(tier)
    print(blocks.write(range(8), range(8)).tolist(), tier.last_errors[-1])
    print(blocks.check(range(8), [name_of(i) for i in range(8)]).tolist())
"""


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_a_limit_on_file_sizes(tmp_path: Path, early: bool, zeros: bool) -> None:
    """When the tier is opened, also half-way through writing zeros, and later, when blocks are written."""
    path = tmp_path / "kv"
    words = [sys.executable, "-c", _LIMITED, str(path), str(early), str(zeros)]
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    assert done.returncode == 0, done.stderr
    if early:
        assert (
            "blocks.data needs 32 KiB, and it would be larger than files may be here (see `ulimit -f`)" in done.stdout
        )
        assert list(path.iterdir()) == []
        return
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{[True] * 4 + [False] * 4} disk: write of slot 7")
    assert "File too large (EFBIG)" in first
    assert second == str([READ_OK] * 4 + [READ_STALE] * 4)
    check_all(path, 4)


def test_a_file_system_that_cannot_reserve_or_bypass(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"cannot reserve space; .* zero_fill=True \(DYN_KVBM_DISK_ZEROFILL_FALLBACK"):
        open_tier(plain)
    assert list(plain.iterdir()) == []
    with open_tier(plain, zero_fill=True) as tier:
        assert not tier.capabilities.direct_io
        assert (plain / "blocks.data").stat().st_blocks * 512 == 8 * tier.slot_bytes
        Blocks(tier).write(range(3), range(3))
    assert sum("does not do direct I/O" in record.message for record in caplog.records) == 1
    check_all(plain, 3)
    with pytest.raises(ConfigError, match="cannot reserve space"):
        open_tier(plain, 20)
    with open_tier(plain, 20, zero_fill=True) as tier:
        assert len(tier.recovered()[0]) == 3


def test_memory_as_a_file_system() -> None:
    """``/dev/shm`` refuses O_DIRECT or not, as its kernel likes: both are fine."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no /dev/shm")
    path = shm / f"dynalab-test-{os.getpid()}"
    try:
        with open_tier(path) as tier:
            Blocks(tier).write(range(5), range(5))
        check_all(path, 5)
    finally:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


class Faulty(DiskEngine):
    """An engine whose transfers to some offsets fail, or do not take place although it says so."""

    name = "faulty"

    def __init__(self, file: DataFile, threads: int) -> None:
        self.inner = PosixEngine(file, threads)
        self.alignment = self.inner.alignment
        self.bad: dict[int, int] = {}
        self.lost: set[int] = set()
        self.breaks = False

    def transfer(self, offsets, addresses, nbytes, *, write):
        if self.breaks:
            raise RuntimeError("the engine broke")
        keep = np.array([o not in self.lost and o not in self.bad for o in offsets.tolist()], np.bool_)
        results = np.array([self.bad.get(o, 0) for o in offsets.tolist()], np.int64)
        results[keep] = self.inner.transfer(offsets[keep], addresses[keep], nbytes, write=write)
        return results

    def close(self) -> None:
        self.inner.close()


def test_a_failing_drive(tmp_path: Path) -> None:
    with open_tier(tmp_path, engine=Faulty) as tier:
        blocks, engine = Blocks(tier), tier._engine
        assert isinstance(engine, Faulty)
        blocks.write(range(8), range(8))
        engine.bad = {2 * tier.slot_bytes: errno.EIO, 5 * tier.slot_bytes: errno.ENXIO}
        status = blocks.check(range(8), NAMES[:8])
        assert status.tolist() == [READ_FAILED if i in (2, 5) else READ_OK for i in range(8)]
        assert "read of slot 2" in str(tier.last_errors[0])
        assert "Input/output error (EIO)" in str(tier.last_errors[0])
        assert "(ENXIO)" in str(tier.last_errors[1])
        assert blocks.write([1, 2], [21, 22]).tolist() == [True, False]
        engine.bad = {}
        # What failed to be read is there still; what failed to be written is not, and neither is what it replaced.
        expected = [READ_OK, READ_OK, READ_STALE, READ_OK]
        assert blocks.check([1, 5, 2, 7], [name_of(21), NAMES[5], name_of(22), NAMES[7]]).tolist() == expected
        assert blocks.check([2], [NAMES[2]]).tolist() == [READ_STALE]
        # A drive that lies about a write is found out.
        engine.lost = {3 * tier.slot_bytes}
        assert blocks.write([3], [33]).all()
        engine.lost = set()
        assert blocks.check([3], [name_of(33)]).tolist() == [READ_CORRUPT]
        # An engine that raises leaves the slots empty and free for the next.
        engine.breaks = True
        with pytest.raises(RuntimeError, match="the engine broke"):
            blocks.write([6], [66])
        engine.breaks = False
        assert blocks.check([6], [NAMES[6]]).tolist() == [READ_STALE]
        assert blocks.write([6], [66]).all()
    with open_tier(tmp_path) as tier:
        assert sorted(tier.recovered()[0].tolist()) == [0, 1, 3, 4, 5, 6, 7]


def test_an_index_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is acknowledged that the next process would not find; what is overwritten cannot come back wrong."""
    with open_tier(tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write(range(4), range(4))
        kept = os.dup(tier._files.index_fd)
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, tier._files.index_fd)
        assert blocks.write([0, 6], [10, 16]).tolist() == [False, False]
        assert "No space left on device (ENOSPC)" in str(tier.last_errors[-1])
        with pytest.raises(TransferError, match=r"forget of slot 1 in .*ENOSPC"):
            tier.forget([1])
        assert blocks.check([0, 0, 1, 6], [NAMES[0], name_of(10), NAMES[1], name_of(16)]).tolist() == [READ_STALE] * 4
        os.dup2(kept, tier._files.index_fd)
        os.close(full), os.close(kept)
        assert blocks.check([2, 3], NAMES[2:4]).tolist() == [READ_OK] * 2
        assert blocks.write([6], [16]).all()
    with open_tier(tmp_path) as tier:
        # The old block 0 was not overwritten, for its entry could not be cleared first: it may be found.
        slots, keys = tier.recovered()
        assert (Blocks(tier).check(slots, keys.hash) == READ_OK).all()
        assert sorted(slots.tolist()) == [0, 1, 2, 3, 6]


def test_a_file_cut_short_under_an_open_tier(tmp_path: Path) -> None:
    with open_tier(tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write(range(8), range(8))
        os.truncate(tmp_path / "blocks.data", 3 * tier.slot_bytes + 100)
        assert blocks.check(range(8), NAMES[:8]).tolist() == [READ_OK] * 3 + [READ_FAILED] * 5
        assert "the file ends before it" in str(tier.last_errors[0])
        assert blocks.write([7], [7]).all()  # the file grows again
        assert blocks.check([7], [NAMES[7]]).tolist() == [READ_OK]
        os.truncate(tmp_path / "blocks.data", 0)
    with pytest.raises(TierError, match=r"blocks.data has 0 bytes where its index speaks of 32768: .* reset=True"):
        open_tier(tmp_path)
    with open_tier(tmp_path, reset=True) as tier:
        assert len(tier.recovered()[0]) == 0
        Blocks(tier).write(range(2), range(2))
    check_all(tmp_path, 2)


def test_files_deleted_under_an_open_tier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_tier(tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write(range(4), range(4))
        (tmp_path / "blocks.data").unlink()
        (tmp_path / "blocks.index").unlink()
        assert blocks.write([5], [5]).all()
        assert (blocks.check([0, 1, 2, 3, 5], [*NAMES[:4], NAMES[5]]) == READ_OK).all()
        with open_tier(tmp_path) as other:  # new files: nobody is in the way
            assert len(other.recovered()[0]) == 0
            Blocks(other).write([0], [0])
        tier.flush()
    check_all(tmp_path, 1)
    (tmp_path / "blocks.index").unlink()
    with open_tier(tmp_path) as tier:
        assert len(tier.recovered()[0]) == 0
    assert any("has no index beside it" in record.message for record in caplog.records)


def test_a_second_tier_is_refused(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom disk_blocks import LAYOUT\n"
        f"from dynalab.tiers.disk import DiskTier\ntier = DiskTier(LAYOUT, capacity=8, path={str(tmp_path)!r})\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    for options in ({}, {"reset": True}, {"direct": False}):
        with pytest.raises(TierInUse, match=rf"blocks.data is held open by process {other.pid}; close that tier"):
            open_tier(tmp_path, **options)
    other.communicate("")
    with open_tier(tmp_path), pytest.raises(TierInUse, match="held open by another tier of this process"):
        open_tier(tmp_path)
    open_tier(tmp_path).close()


def test_capacities_may_grow_but_not_shrink(tmp_path: Path) -> None:
    with open_tier(tmp_path, 8) as tier:
        Blocks(tier).write(range(8), range(8))
    with pytest.raises(ConfigError, match=r"has 8 blocks \(32 KiB\), more than the capacity of 5 \(20 KiB\) asked for"):
        open_tier(tmp_path, 5)
    with open_tier(tmp_path, 40) as tier:
        assert len(tier.recovered()[0]) == 8
        Blocks(tier).write(range(8, 40), range(8, 40))
    check_all(tmp_path, 40, capacity=40)
    with open_tier(tmp_path, 5, reset=True) as tier:
        assert len(tier.recovered()[0]) == 0
    assert (tmp_path / "blocks.data").stat().st_size == 5 * 4096


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with open_tier(tmp_path) as tier:
        Blocks(tier).write(range(8), range(8))
    for other in (LAYOUT.with_(dtype="bfloat16"), LAYOUT.with_(num_layers=3), LAYOUT.with_(head_order="HND", heads=4)):
        with pytest.raises(LayoutError, match=r"holds blocks of 2 layers .* not of .*; choose another path, or pass"):
            DiskTier(other, capacity=8, path=tmp_path)
    check_all(tmp_path, 8)


def test_what_a_creation_left_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "blocks.data").write_bytes(b"?" * 5000)
    (tmp_path / "blocks.index.new").write_bytes(b"half")
    with open_tier(tmp_path) as tier:
        Blocks(tier).write(range(8), range(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.data", "blocks.index"]
    check_all(tmp_path, 8)


def test_places_where_no_tier_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TierError, match=r"file: File exists; choose another path"):
        open_tier(tmp_path / "file")
    with pytest.raises(TierError, match="choose another path"):
        open_tier(Path("/proc/no"))
    (tmp_path / "kv" / "blocks.data").mkdir(parents=True)
    with pytest.raises(TierError, match=r"blocks.data: Is a directory; choose another path"):
        open_tier(tmp_path / "kv")
