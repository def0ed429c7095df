"""The disk tier: the conformance suite on every kind of file and engine, and what it finds when it is opened again."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from disk_blocks import LAYOUT, Blocks, name_of, refuse_direct

from dynalab.errors import ConfigError, CorruptBlock, TierClosed, TierError, TransferError
from dynalab.kv import KVLayout
from dynalab.testing import TierTests
from dynalab.tiers import BlockKeys
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.tier import READ_CORRUPT, READ_OK, READ_STALE


class TestDiskTier(TierTests):
    durable = True
    direct = True

    @pytest.fixture(autouse=True)
    def _directories(self, tmp_path: Path) -> None:
        self.base, self.made = tmp_path, 0

    def make_tier(self, layout: KVLayout, capacity: int) -> DiskTier:
        self.made += 1
        return self.reopen_tier(layout, capacity)

    def reopen_tier(self, layout: KVLayout, capacity: int) -> DiskTier:
        tier = DiskTier(layout, capacity=capacity, path=self.base / str(self.made), threads=2, direct=self.direct)
        assert tier.capabilities.direct_io == self.direct
        return tier


class TestBufferedDiskTier(TestDiskTier):
    direct = False


@pytest.mark.parametrize("size", ["64KiB", 65_536 + 4095])
def test_a_size_is_so_many_slots_of_whole_pages(tmp_path: Path, size: str | int) -> None:
    layout = KVLayout(num_layers=1, outer=1, page_tokens=4, inner=13)  # 104 bytes
    with DiskTier(layout, size, path=tmp_path) as tier:
        assert (tier.capacity, tier.slot_bytes) == (16, 4096)
        assert (tmp_path / "blocks.data").stat().st_size == 65_536
        assert (tmp_path / "blocks.index").stat().st_size == 4096 + 16 * 64
        assert tier.stats()["allocated_bytes"] >= 65_536 + 4096
    with pytest.raises(ConfigError, match="no room for one block"):
        DiskTier(layout, 4095, path=tmp_path)


def test_a_new_process_finds_blocks_in_the_order_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    slots = rng.permutation(50)
    with DiskTier(LAYOUT, capacity=50, path=tmp_path) as tier:
        blocks = Blocks(tier)
        for part in np.array_split(slots, 7):
            assert blocks.write(part, part + 1000).all()
        assert blocks.write([slots[5]], [9999]).all()  # rewritten: now the last
        tier.forget(slots[:2])
    with DiskTier(LAYOUT, capacity=50, path=tmp_path) as tier:
        found, keys = tier.recovered()
        expected = [s for s in slots[2:] if s != slots[5]] + [slots[5]]
        assert found.tolist() == expected
        assert keys.hash.tolist() == [name_of(9999 if s == slots[5] else s + 1000) for s in expected]
        again = Blocks.keys([9999 if s == slots[5] else s + 1000 for s in expected])
        for mine, theirs in zip(
            (keys.parent, keys.position, keys.priority), (again.parent, again.position, again.priority), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        assert (Blocks(tier).check(found, keys.hash) == READ_OK).all()
        stats = tier.stats()
        assert (stats["recovered_blocks"], stats["live_blocks"], stats["blocks_read"]) == (48, 48, 48)
        # What was forgotten is not there, also not under its old name.
        assert (Blocks(tier).check(slots[:2], [name_of(s + 1000) for s in slots[:2]]) == READ_STALE).all()


def test_nobody_is_recovered_twice(tmp_path: Path) -> None:
    """Two slots with one hash: the later one counts, and the other one's slot is empty, also in the file."""
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write([3, 1], [5, 6])
        blocks.write([0], [5])
        assert (blocks.check([3, 0], [name_of(5)] * 2) == READ_OK).all()  # while the process lives, both are there
    for _ in range(2):
        with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
            slots, keys = tier.recovered()
            assert slots.tolist() == [1, 0]
            assert keys.hash.tolist() == [name_of(6), name_of(5)]
            assert tier.stats()["superseded_entries"] == (1 if _ == 0 else 0)
            assert (Blocks(tier).check([3], [name_of(5)]) == READ_STALE).all()


def test_layouts_of_equal_content_share_a_file(tmp_path: Path) -> None:
    """What is stored is block-first; how the tiers around lay blocks out does not matter."""
    with DiskTier(LAYOUT.with_(order="layer_first"), capacity=4, path=tmp_path) as tier:
        Blocks(tier).write([2], [7])
    with DiskTier(LAYOUT.with_(alignment=8192), capacity=4, path=tmp_path) as tier:
        assert (Blocks(tier).check(*[tier.recovered()[0], tier.recovered()[1].hash]) == READ_OK).all()
        assert len(tier.recovered()[0]) == 1


def test_flipped_bits_are_a_miss_and_counted(tmp_path: Path) -> None:
    with DiskTier(LAYOUT, capacity=8, path=tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write(range(8), range(8))
        data = np.memmap(tmp_path / "blocks.data", np.uint8, "r+")
        data[3 * tier.slot_bytes + 17] ^= 1
        data[6 * tier.slot_bytes + tier.block_bytes - 1] ^= 128
        data.flush()
        errors: list[TransferError] = []
        status = blocks.check(range(8), [name_of(i) for i in range(8)], errors=errors)
        assert status.tolist() == [READ_CORRUPT if i in (3, 6) else READ_OK for i in range(8)]
        assert [type(error) for error in errors] == [CorruptBlock] * 2
        assert "slot 3" in str(errors[0])
        assert f"{name_of(3):#018x}" in str(errors[0])
        assert tier.last_errors == tuple(errors)
        assert tier.stats()["corrupt_blocks"] == 2
        # Written anew it is good again.
        blocks.write([3], [3])
        assert blocks.check([3], [name_of(3)]).tolist() == [READ_OK]


def test_without_verification_recovered_blocks_are_verified_once(tmp_path: Path) -> None:
    def damage() -> None:
        data = np.memmap(tmp_path / "blocks.data", np.uint8, "r+")
        data[::4096] ^= 1
        data.flush()

    with DiskTier(LAYOUT, capacity=2, path=tmp_path, verify=False) as tier:
        blocks = Blocks(tier)
        blocks.write([0, 1], [0, 1])
        damage()
        assert blocks.status([0, 1], [name_of(0), name_of(1)]).tolist() == [READ_OK] * 2  # as asked: not looked at
    with DiskTier(LAYOUT, capacity=2, path=tmp_path, verify=False) as tier:
        assert Blocks(tier).status([0], [name_of(0)]).tolist() == [READ_CORRUPT]
        damage()
        assert Blocks(tier).check([0], [name_of(0)]).tolist() == [READ_OK]
        damage()
        assert Blocks(tier).status([0, 1], [name_of(0), name_of(1)]).tolist() == [READ_OK, READ_CORRUPT]


def test_addresses_at_odd_places_and_in_any_mixture(tmp_path: Path) -> None:
    layout = KVLayout(num_layers=3, outer=2, page_tokens=16, inner=128)  # 24 KiB: direct I/O without padding
    room = np.zeros(64 * layout.block_bytes, np.uint8)
    start = -room.ctypes.data % 4096
    rng = np.random.default_rng(4)
    content = rng.integers(0, 256, (20, layout.block_bytes), np.uint8)
    with DiskTier(layout, capacity=20, path=tmp_path) as tier:
        offsets = start + np.arange(20) * 2 * layout.block_bytes + rng.choice([0, 1, 8, 512, 4095], 20)
        addresses = (room.ctypes.data + offsets).astype(np.uint64)
        for offset, block in zip(offsets, content, strict=True):
            room[offset : offset + len(block)] = block
        slots = rng.permutation(20)
        assert tier.write(slots, addresses, BlockKeys.of(slots + 1)).all()
        before = room.copy()
        for offset, block in zip(offsets, content, strict=True):
            room[offset : offset + len(block)] = ~block
        assert (tier.read(slots, addresses, slots + 1) == READ_OK).all()
        np.testing.assert_array_equal(room, before)  # the blocks, and not a byte around them


def test_wrong_arguments_change_nothing(tmp_path: Path) -> None:
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write([0], [0])
        address = blocks.memory[:2]
        with pytest.raises(TierError, match="slot 1 is named twice"):
            tier.write([1, 1], address, BlockKeys.of([1, 2]))
        with pytest.raises(TierError, match=r"2 slots, 2 sources, 1 keys; give one of each a block"):
            tier.write([0, 1], address, BlockKeys.of([1]))
        with pytest.raises(TierError, match=r"1 slots, 2 targets"):
            tier.read([0], address, [1])
        with pytest.raises(TierError, match="none of them 0"):
            tier.write([0], np.array([0], np.uint64), BlockKeys.of([1]))
        assert blocks.check([0, 1], [name_of(0), name_of(1)]).tolist() == [READ_OK, READ_STALE]
        assert tier.write([], address[:0], BlockKeys.of([])).tolist() == []
        assert tier.read([], address[:0], []).tolist() == []
        tier.forget([])
        tier.forget([3, 3])
        assert tier.stats()["blocks_written"] == 1


def test_a_slot_in_use_is_refused_to_others_and_reads_of_it_are_stale(tmp_path: Path) -> None:
    """A write that hangs in the drive: the slot's old block is gone at once, its new one not there yet."""
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write([0, 1], [0, 1])
        inside, go_on = threading.Event(), threading.Event()
        transfer = tier._engine.transfer

        def slow(*args, write: bool):
            if write:
                inside.set()
                assert go_on.wait(10)
            return transfer(*args, write=write)

        tier._engine.transfer = slow  # type: ignore[method-assign]
        writer = threading.Thread(target=blocks.write, args=([0], [8]))
        writer.start()
        assert inside.wait(10)
        assert blocks.check([0, 0, 1], [name_of(0), name_of(8), name_of(1)]).tolist() == [
            READ_STALE,
            READ_STALE,
            READ_OK,
        ]
        for act in (lambda: tier.forget([0]), lambda: blocks.write([1, 0], [5, 6])):
            with pytest.raises(TierError, match="slot 0 is being written or forgotten by another thread"):
                act()
        closer = threading.Thread(target=tier.close)
        closer.start()
        closer.join(0.05)
        assert closer.is_alive(), "closing waits for what is under way"
        go_on.set()
        writer.join(10)
        closer.join(10)
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        assert tier.recovered()[1].hash.tolist() == [name_of(1), name_of(8)]


def test_a_block_overwritten_while_it_is_read_is_stale(tmp_path: Path) -> None:
    """Even if its bytes came out right: who asked may not rely on the slot any more."""
    with DiskTier(LAYOUT, capacity=2, path=tmp_path) as tier:
        blocks = Blocks(tier)
        blocks.write([0, 1], [0, 1])
        transfer = tier._engine.transfer

        def overtaken(*args, write: bool):
            result = transfer(*args, write=write)
            if not write:
                tier.forget([0])
            return result

        tier._engine.transfer = overtaken  # type: ignore[method-assign]
        assert blocks.status([0, 1], [name_of(0), name_of(1)]).tolist() == [READ_STALE, READ_OK]
        assert tier.stats()["stale_reads"] == 1


def test_many_threads_on_distinct_slots(tmp_path: Path) -> None:
    with DiskTier(LAYOUT, capacity=64, path=tmp_path, threads=3) as tier:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                blocks, rng = Blocks(tier), np.random.default_rng(number)
                mine = np.arange(number * 8, number * 8 + 8)
                for round_ in range(25):
                    some = rng.permutation(mine)[: rng.integers(1, 9)]
                    assert blocks.write(some, some + 100 * round_).all()
                    assert (blocks.check(some, [name_of(s + 100 * round_) for s in some]) == READ_OK).all()
                    tier.forget(some[:1])
                    if round_ % 8 == 0:
                        tier.flush()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        live = tier.stats()["live_blocks"]
        for thread in threads:
            assert not thread.is_alive()
    with DiskTier(LAYOUT, capacity=64, path=tmp_path) as tier:
        slots, keys = tier.recovered()
        assert len(slots) == live - tier.stats()["superseded_entries"]
        assert (Blocks(tier).check(slots, keys.hash) == READ_OK).all()


def test_a_file_system_without_direct_io_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_direct(monkeypatch, at="open")
    with DiskTier(LAYOUT, capacity=4, path=tmp_path / "a") as tier:
        assert not tier.capabilities.direct_io
        assert not tier.stats()["direct_io"]
        Blocks(tier).write([1], [1])
        assert Blocks(tier).check([1], [name_of(1)]).tolist() == [READ_OK]
    assert len([r for r in caplog.records if "does not do direct I/O" in r.message]) == 1
    caplog.clear()
    DiskTier(LAYOUT, capacity=4, path=tmp_path / "a", direct=False).close()
    assert not caplog.records, "asked for, it is no warning"
    monkeypatch.undo()
    refuse_direct(monkeypatch, at="transfer")
    with DiskTier(LAYOUT, capacity=4, path=tmp_path / "a") as tier:
        assert not tier.capabilities.direct_io
        assert Blocks(tier).check([1], [name_of(1)]).tolist() == [READ_OK]


def test_a_forked_process_leaves_the_tier_alone(tmp_path: Path) -> None:
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        Blocks(tier).write([1], [1])
        child = os.fork()
        if child == 0:
            try:
                Blocks(tier).status([1], [name_of(1)])
            except TierClosed as error:
                tier.close()
                os._exit(0 if "forked" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(TierError, match="held open"):  # the child's close did not give the lock away
            DiskTier(LAYOUT, capacity=4, path=tmp_path)
        assert Blocks(tier).check([1], [name_of(1)]).tolist() == [READ_OK]


def test_a_forked_process_does_not_keep_a_closed_tier_locked(tmp_path: Path) -> None:
    """Such as a data loader's worker, which has all files of its parent open."""
    reader, writer = os.pipe()
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        Blocks(tier).write([1], [1])
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # returns when the parent has closed its end
            os._exit(0)
    os.close(reader)
    try:
        with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
            assert len(tier.recovered()[0]) == 1
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_a_flush_brings_the_data_to_the_drive_before_what_speaks_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr("os.fdatasync", lambda fd: (synced.append(fd), fdatasync(fd))[1])
    with DiskTier(LAYOUT, capacity=4, path=tmp_path) as tier:
        synced.clear()
        tier.flush()
        order = [tier._files.data_fd, tier._files.index_fd]
        assert synced == order
    assert synced == order * 2, "closing flushes"


def test_a_flush_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiskTier(LAYOUT, capacity=4, path=tmp_path)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fdatasync", failing)
    with pytest.raises(TransferError, match=r"flush of .* failed: Input/output error \(EIO\)"):
        tier.flush()
    tier.close()
    monkeypatch.undo()
    DiskTier(LAYOUT, capacity=4, path=tmp_path).close()
    with pytest.raises(TierClosed):
        tier.flush()
