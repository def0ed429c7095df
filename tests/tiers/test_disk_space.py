"""How much a disk tier may take: what files really take up, the cap that tiers share, and nothing by halves."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from disk_blocks import LAYOUT, Blocks

from dynalab.errors import ConfigError, TierError, TierFull
from dynalab.tiers import disk_space
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.disk_space import allocated_bytes, reserve

KIB = 1024


def open_tier(path: Path, capacity: int = 8, **options) -> DiskTier:
    return DiskTier(LAYOUT, capacity=capacity, path=path, threads=1, **options)


def by_du(path: Path) -> int:
    """A plain walk, for comparison."""
    places = {(s.st_dev, s.st_ino): s.st_blocks for file in path.rglob("*") if (s := os.lstat(file))}
    return 512 * sum(places.values())


def test_what_is_allocated_counts_not_what_a_file_is_long(tmp_path: Path) -> None:
    assert allocated_bytes(tmp_path) == 0
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        os.pwrite(file.fileno(), b"x" * 4096, 1 << 29)
        os.fsync(file.fileno())
    assert 4096 <= allocated_bytes(tmp_path) <= 64 * KIB
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "full").write_bytes(bytes(100_000))
    os.link(deep / "full", tmp_path / "again")
    os.symlink("/", tmp_path / "all")
    with (deep / "full").open("rb") as file:
        os.fsync(file.fileno())
    assert allocated_bytes(tmp_path) == by_du(tmp_path)
    assert 100_000 < allocated_bytes(tmp_path) < 300_000


def test_ranks_that_share_a_directory_are_bounded_together(tmp_path: Path) -> None:
    one = 8 * 4096 + 8 * KIB  # data, and two pages of index
    options = {"physical_cap": 2 * one + 24 * KIB, "cap_path": tmp_path}  # the directories themselves count, too
    with open_tier(tmp_path / "rank0", **options), open_tier(tmp_path / "rank1", **options):
        with pytest.raises(
            TierFull, match=r"files below .* take up .*, and 40 KiB more are needed, but physical_cap is"
        ):
            open_tier(tmp_path / "rank2", **options)
        assert not list((tmp_path / "rank2").iterdir())
        assert allocated_bytes(tmp_path) <= options["physical_cap"]
        # Alone in its directory it would have room.
        open_tier(tmp_path / "rank2", physical_cap=2 * one).close()


def test_files_of_others_count(tmp_path: Path) -> None:
    cap = 100 * KIB
    (tmp_path / "other").write_bytes(bytes(80 * KIB))
    with pytest.raises(TierFull, match="physical_cap is 100 KiB; raise the cap"):
        open_tier(tmp_path, physical_cap=cap)
    (tmp_path / "other").unlink()
    with open_tier(tmp_path, physical_cap="100KiB") as tier:
        Blocks(tier).write(range(8), range(8))
    # The tier's own files do not count twice when it is opened again, and may grow up to the cap.
    with open_tier(tmp_path, 14, physical_cap=cap) as tier:
        assert len(tier.recovered()[0]) == 8
    with pytest.raises(TierFull):
        open_tier(tmp_path, 40, physical_cap=cap)
    assert (tmp_path / "blocks.data").stat().st_size == 14 * 4096
    # Closed all the same when nothing more is needed, but others have filled the directory meanwhile.
    (tmp_path / "other").write_bytes(bytes(80 * KIB))
    with pytest.raises(TierFull):
        open_tier(tmp_path, 14, physical_cap=cap)
    with open_tier(tmp_path, 14) as tier:
        assert len(tier.recovered()[0]) == 8


def test_what_cannot_be_found_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TierFull, match=r"cannot be found out .* and physical_cap is set"):
        open_tier(tmp_path / "kv", physical_cap="1MiB", cap_path=tmp_path / "nowhere")
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (tmp_path / "secret").mkdir()
    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(TierFull, match="Permission denied"):
        open_tier(tmp_path / "kv", physical_cap="1MiB", cap_path=tmp_path)
    assert not list((tmp_path / "kv").iterdir())


def test_files_that_go_away_meanwhile_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(5000))
    (tmp_path / "b").write_bytes(bytes(5000))
    scandir = os.scandir

    def racing(path):
        entries = scandir(path)
        (tmp_path / "a" / "file").unlink(missing_ok=True)
        if (tmp_path / "a").exists():
            (tmp_path / "a").rmdir()
        return entries

    monkeypatch.setattr("os.scandir", racing)
    assert allocated_bytes(tmp_path) == os.stat(tmp_path / "b").st_blocks * 512


def test_of_tiers_opened_at_once_only_as_many_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if each takes its time between counting and taking."""

    def slowly(directory: Path) -> int:
        used = allocated_bytes(directory)
        time.sleep(0.02)
        return used

    monkeypatch.setattr(disk_space, "allocated_bytes", slowly)
    for rank in range(8):
        (tmp_path / str(rank)).mkdir()
    options = {"physical_cap": allocated_bytes(tmp_path) + 3 * 40 * KIB + 8 * KIB, "cap_path": tmp_path}
    outcomes: list[object] = []
    start = threading.Barrier(8)

    def run(rank: int) -> None:
        start.wait()
        try:
            outcomes.append(open_tier(tmp_path / str(rank), **options))
        except TierFull as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tiers = [tier for tier in outcomes if isinstance(tier, DiskTier)]
    assert (len(tiers), len(outcomes)) == (3, 8)
    assert allocated_bytes(tmp_path) <= options["physical_cap"]
    for tier in tiers:
        tier.close()


def test_a_cap_exceeded_only_in_the_end_takes_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as by a file system's own bookkeeping: the second count is what counts."""
    with open_tier(tmp_path) as tier:
        Blocks(tier).write(range(8), range(8))
    counts = iter([0, 1 << 40] * 2)
    monkeypatch.setattr(disk_space, "allocated_bytes", lambda directory: next(counts))
    with pytest.raises(TierFull, match="would take up 1 TiB"):
        open_tier(tmp_path, 100, physical_cap="1GiB")
    with pytest.raises(TierFull, match="would take up 1 TiB"):
        open_tier(tmp_path / "new", 100, physical_cap="1GiB")
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / "blocks.data").stat().st_size == 8 * 4096
    with open_tier(tmp_path) as tier:
        assert len(tier.recovered()[0]) == 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_what_was_taken_half_way_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def half(fd: int, size: int) -> None:
        os.ftruncate(fd, size // 2)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk_space, "fallocate", half)
    path = tmp_path / "f"
    path.write_bytes(b"kept")
    with path.open("r+b") as file, pytest.raises(OSError if code == errno.EIO else TierFull):
        reserve(file.fileno(), path, 1 << 20, True)
    assert path.read_bytes() == b"kept"
    with pytest.raises(TierError if code == errno.EIO else TierFull, match=r"disk: .*; .*choose another path"):
        open_tier(tmp_path / "kv")
    assert list((tmp_path / "kv").iterdir()) == []


def test_caps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="physical_cap: '3 bananas' is not a size"):
        open_tier(tmp_path, physical_cap="3 bananas")
    with pytest.raises(ConfigError, match="without a cap; give physical_cap, too"):
        open_tier(tmp_path, cap_path=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 1])
def test_zeros_fill_what_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def cannot(fd: int, size: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk_space, "fallocate", cannot)
    monkeypatch.setattr(disk_space, "ZERO_BYTES", 300_000)
    path = tmp_path / "f"
    path.write_bytes(b"kept")
    with path.open("r+b") as file:
        if size > 4:
            with pytest.raises(ConfigError, match="cannot reserve space"):
                reserve(file.fileno(), path, size, False)
            assert path.read_bytes() == b"kept"
        reserve(file.fileno(), path, size, True)
        assert path.read_bytes() == b"kept".ljust(size, b"\0")
        if size > 4:
            assert path.stat().st_blocks * 512 >= size


def test_a_hole_is_filled_when_the_tier_is_opened_again(tmp_path: Path) -> None:
    """A copy made without care for holes takes less on the drive than it is long: the rest is reserved anew."""
    with open_tier(tmp_path, 300) as tier:
        Blocks(tier).write(range(4), range(4))
    data = tmp_path / "blocks.data"
    begin = data.read_bytes()[: 4 * 4096]
    data.write_bytes(begin)
    os.truncate(data, 300 * 4096)
    assert data.stat().st_blocks * 512 < 300 * 4096
    with open_tier(tmp_path, 300) as tier:
        assert data.stat().st_blocks * 512 >= 300 * 4096
        assert len(tier.recovered()[0]) == 4
