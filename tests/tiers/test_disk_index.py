"""What is recovered from an index, whatever was done to its bytes, and what a loss of power may do to a tier."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from disk_blocks import LAYOUT, Blocks, name_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError, DynalabError, LayoutError, TierError
from dynalab.kernels import checksum
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.disk_index import BlockIndex
from dynalab.tiers.disk_superblock import ENTRY_BYTES, PAGE, Superblock
from dynalab.tiers.tier import READ_OK, BlockKeys

SLOTS = 12
MASK = 2**64 - 1


class Entry(NamedTuple):
    sequence: int
    hash: int
    parent: int
    position: int
    priority: int
    checksum: int
    slot: int


def plain_checksum(data: bytes, seed: int) -> int:
    """The checksum, word by word, with Python's integers."""

    def mix(x: int) -> int:
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 & MASK
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 & MASK
        return x ^ x >> 32

    step = int(checksum.STEP)
    key = mix(seed ^ step)
    total = key + len(data) * step
    for i in range(0, len(data), 8):
        total += mix(int.from_bytes(data[i : i + 8], "little") ^ (key + i // 8 * step & MASK))
    return mix(total & MASK)


def pack(entry: Entry, file_id: int) -> bytes:
    body = struct.pack("<QQQiiQQQ", *entry, 0)
    return body + struct.pack("<Q", plain_checksum(body, file_id))


def recovery(data: bytes, file_id: int) -> list[Entry]:
    """The rule, entry by entry: valid ones in the order they were written, the last one of a hash."""
    found: dict[int, Entry] = {}
    entries = []
    for slot in range(len(data) // ENTRY_BYTES):
        raw = data[slot * ENTRY_BYTES : (slot + 1) * ENTRY_BYTES]
        *words, _, check = struct.unpack("<QQQiiQQQQ", raw)
        entry = Entry(*words)
        if entry.sequence and entry.slot == slot and check == plain_checksum(raw[:-8], file_id):
            entries.append(entry)
    for entry in sorted(entries, key=lambda entry: entry.sequence):  # of equals, the later slot is the last
        found.pop(entry.hash, None)
        found[entry.hash] = entry
    return list(found.values())


def opened(path: Path, data: bytes, file_id: int) -> tuple[list[Entry], BlockIndex]:
    """Recover with the code under test."""
    with path.open("w+b") as file:
        file.write(bytes(PAGE) + data)
        file.flush()
        index = BlockIndex(file.fileno(), len(data) // ENTRY_BYTES, file_id)
        slots = index.recover(data)
        keys = index.keys(slots)
        there, sequences, checksums, known = index.look_up(slots, keys.hash)
        assert there.all()
        assert not known.any()
        rows = zip(sequences, keys.hash, keys.parent, keys.position, keys.priority, checksums, slots, strict=True)
        return [Entry(*map(int, row)) for row in rows], index


entries = st.builds(
    Entry,
    st.integers(0, 40),
    st.integers(0, 5) | st.integers(0, MASK),
    st.integers(0, MASK),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, MASK),
    st.integers(0, SLOTS - 1),
)
#: Flipped bits, zeroed or scrambled ranges, entries copied to another slot, entries of another file.
damages = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, SLOTS * ENTRY_BYTES * 8 - 1)),
        st.tuples(st.just("zero"), st.integers(0, SLOTS * ENTRY_BYTES), st.integers(0, 200)),
        st.tuples(st.just("noise"), st.integers(0, SLOTS * ENTRY_BYTES), st.integers(0, 200)),
        st.tuples(st.just("copy"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("other"), st.integers(0, SLOTS - 1)),
    ),
    max_size=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | entries, min_size=SLOTS, max_size=SLOTS), damages, st.integers(0, MASK), st.booleans())
def test_recovery_follows_the_rule_whatever_was_done(tmp_path, rows, damage, file_id, own_slots) -> None:
    """Nothing is recovered that was not written so, in its own slot; all else is counted and cleared in the file."""
    data = bytearray()
    for slot, row in enumerate(rows):
        entry = row if row is None or not own_slots else row._replace(slot=slot)
        data += bytes(ENTRY_BYTES) if entry is None else pack(entry, file_id)
    for what, *where in damage:
        begin, end = where[0], min(where[0] + where[-1], len(data))
        if what == "flip":
            data[where[0] // 8] ^= 1 << where[0] % 8
        elif what == "zero":
            data[begin:end] = bytes(max(0, end - begin))
        elif what == "noise":
            data[begin:end] = np.random.default_rng(begin).bytes(max(0, end - begin))
        elif what == "copy":
            source, target = (w * ENTRY_BYTES for w in where)
            data[target : target + ENTRY_BYTES] = data[source : source + ENTRY_BYTES]
        else:
            at = where[0] * ENTRY_BYTES
            data[at : at + ENTRY_BYTES] = pack(Entry(9, 1, 2, 3, 4, 5, where[0]), file_id ^ 1)
    expected = recovery(bytes(data), file_id)
    found, index = opened(tmp_path / "index", bytes(data), file_id)
    assert found == expected
    raw = np.frombuffer(data, np.uint8).reshape(SLOTS, ENTRY_BYTES)
    assert index.damaged + index.superseded + len(found) == np.count_nonzero(raw.any(axis=1))
    # The file says the same now as the tier does.
    kept = np.zeros_like(raw)
    for entry in found:
        kept[entry.slot] = raw[entry.slot]
    assert (tmp_path / "index").read_bytes()[PAGE:] == kept.tobytes()
    assert opened(tmp_path / "again", kept.tobytes(), file_id)[0] == expected


@pytest.fixture(scope="module")
def eight_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed tier of eight blocks, all in use."""
    path = tmp_path_factory.mktemp("tier")
    with DiskTier(LAYOUT, capacity=8, path=path, threads=1) as tier:
        Blocks(tier).write(range(8), range(8))
    return path


@settings(max_examples=100)
@given(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 8 * 512 - 1)),
        st.tuples(st.just("cut"), st.integers(0, PAGE + 8 * ENTRY_BYTES - 1)),
        st.tuples(st.just("noise"), st.integers(0, 300), st.integers(1, 200)),
    )
)
def test_a_damaged_first_page_is_told_never_guessed_at(eight_blocks, damage) -> None:
    """A bit flipped in the superblock, or an index cut short: a clear error with a cure, and the blocks stay."""
    index = eight_blocks / "blocks.index"
    original = data = index.read_bytes()
    what, at, *size = damage
    if what == "flip":
        data = data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
    elif what == "cut":
        data = data[:at]
    else:
        data = data[:at] + np.random.default_rng(at).bytes(size[0]) + data[at + size[0] :]
    index.write_bytes(data)
    try:
        with pytest.raises(DynalabError, match=r"blocks.index .*reset=True") as caught:
            DiskTier(LAYOUT, capacity=8, path=eight_blocks, threads=1).close()
        assert isinstance(caught.value, TierError)
        assert "\n" not in str(caught.value)
        assert index.read_bytes() == data
    finally:
        index.write_bytes(original)
    with DiskTier(LAYOUT, capacity=8, path=eight_blocks, threads=1) as tier:
        assert (Blocks(tier).check(*[tier.recovered()[0], tier.recovered()[1].hash]) == READ_OK).all()
        assert len(tier.recovered()[0]) == 8


def superblock(**changes) -> Superblock:
    return replace(Superblock(10, 4096, 3, 7, "abc", "3 layers"), **changes)


@settings(max_examples=50)
@given(
    st.builds(
        superblock,
        block_bytes=st.integers(1, MASK),
        slot_bytes=st.integers(1, MASK),
        capacity=st.integers(0, MASK),
        file_id=st.integers(0, MASK),
        fingerprint=st.text("0123456789abcdef", max_size=32),
        layout=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=80),
    )
)
def test_a_superblock_comes_back(block: Superblock) -> None:
    page = block.to_bytes()
    assert len(page) == PAGE
    assert not any(page[512:]), "it lies in one sector"
    assert Superblock.from_bytes(page, Path("x")) == block


def test_superblocks_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynalab.tiers import disk_superblock as module

    page = superblock().to_bytes()
    monkeypatch.setattr(module, "_VERSION", 2)
    with pytest.raises(TierError, match=r"x has version 1, this is version 2; .* reset=True"):
        Superblock.from_bytes(page, Path("x"))
    torn = page[:20] + b"?" + page[21:]
    with pytest.raises(TierError, match="has version 1 or is damaged, this is version 2"):
        Superblock.from_bytes(torn, Path("x"))
    monkeypatch.undo()
    right = module.bytes_checksum
    monkeypatch.setattr(module, "bytes_checksum", lambda data, seed: right(data, seed) ^ (len(data) == 256))
    with pytest.raises(TierError, match="written with another checksum"):
        Superblock.from_bytes(page, Path("x"))


def test_long_descriptions_are_cut() -> None:
    block = superblock(layout="é" * 300)
    assert Superblock.from_bytes(block.to_bytes(), Path("x")).layout.startswith("é" * 127)


def test_growing_and_other_layouts() -> None:
    old = superblock()
    assert old.grown_to(superblock(capacity=5, file_id=8), Path("x")) == superblock(capacity=5)
    for other in (superblock(fingerprint="b"), superblock(block_bytes=11), superblock(slot_bytes=8192)):
        with pytest.raises(LayoutError):
            old.grown_to(other, Path("x"))
    with pytest.raises(ConfigError):
        old.grown_to(superblock(capacity=2), Path("x"))


class PowerLoss:
    """A tier of few slots, and every version that each of its sectors has had since the last flush."""

    SECTOR = 512

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tier = DiskTier(LAYOUT, capacity=4, path=path, threads=1)
        self.blocks = Blocks(self.tier)
        self.files = [path / "blocks.data", path / "blocks.index"]
        self.count = 0
        self.flush()

    def flush(self) -> None:
        self.tier.flush()
        self.versions = [[[sector] for sector in self._sectors(file)] for file in self.files]

    def step(self, what: str, slots: list[int]) -> None:
        if what == "write":
            numbers = range(self.count, self.count + len(slots))
            self.count += len(slots)
            # As the drive sees it: after each of the steps of a write.
            index, publish = self.tier._index, self.tier._index.publish
            index.publish = lambda *args: (self._look(), publish(*args))[1]  # type: ignore[method-assign]
            staging, transfer = self.tier._staging, self.tier._staging.transfer
            staging.transfer = lambda *args, **how: (self._look(), transfer(*args, **how))[1]  # type: ignore[method-assign]
            assert self.blocks.write(slots, numbers).all()
            index.publish, staging.transfer = publish, transfer  # type: ignore[method-assign]
            self.touched = {slot: name_of(number) for slot, number in zip(slots, numbers, strict=True)}
        else:
            self.tier.forget(slots)
            self.touched = dict.fromkeys(slots, 0)
        self._look()

    def _look(self) -> None:
        for versions, file in zip(self.versions, self.files, strict=True):
            for history, sector in zip(versions, self._sectors(file), strict=True):
                if history[-1] != sector:
                    history.append(sector)

    def _sectors(self, file: Path) -> list[bytes]:
        data = file.read_bytes()
        return [data[at : at + self.SECTOR] for at in range(0, len(data), self.SECTOR)]


@settings(max_examples=40)
@given(data=st.data())
def test_after_a_loss_of_power_nothing_wrong_is_served(tmp_path_factory, data) -> None:
    """Each sector written since the last flush has any one of its versions: all a drive with a cache promises."""
    base = tmp_path_factory.mktemp("power")
    drive = PowerLoss(base / "before")
    expected: dict[int, int] = {}
    touched: set[int] = set()
    steps = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["write", "write", "write", "forget", "flush"]),
                st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
            ),
            min_size=1,
            max_size=8,
        )
    )
    for what, slots in steps:
        if what == "flush":
            drive.flush()
            touched.clear()
            continue
        drive.step(what, slots)
        expected.update(drive.touched)
        touched.update(slots)
    drive.tier.close()
    after = base / "after"
    after.mkdir()
    for versions, file in zip(drive.versions, drive.files, strict=True):
        survivors = [
            history[data.draw(st.integers(0, len(history) - 1))] if len(history) > 1 else history[0]
            for history in versions
        ]
        (after / file.name).write_bytes(b"".join(survivors))
    with DiskTier(LAYOUT, capacity=4, path=after, threads=1) as tier:
        slots, keys = tier.recovered()
        status = Blocks(tier).check(slots, keys.hash)  # which compares the bytes
        served = {int(s): int(h) for s, h, ok in zip(slots, keys.hash, status, strict=True) if ok == READ_OK}
        for slot, name in expected.items():
            if slot not in touched:
                assert served.get(slot, 0) == name, "a block that was flushed is lost"
        # Anyone that asks for a block by name gets it or nothing, wherever it was.
        everything = [name_of(n) for n in range(drive.count)]
        for slot in range(4):
            Blocks(tier).check([slot] * min(5, len(everything)), everything[:5])


def test_a_sequence_number_is_never_used_twice(tmp_path: Path) -> None:
    """Not by a process that finds the highest one: else the order of two entries would be open."""
    seen = []
    for _ in range(3):
        with DiskTier(LAYOUT, capacity=4, path=tmp_path, threads=1) as tier:
            Blocks(tier).write([0, 1], [2 * len(seen), 2 * len(seen) + 1])
            seen += tier._index.look_up(np.array([0, 1]), np.zeros(2, np.uint64))[1].tolist()
    assert seen == sorted(set(seen))
    assert BlockKeys.of(seen).hash.tolist() == seen
