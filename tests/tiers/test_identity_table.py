"""Numbers for hashes against a dictionary: found again, recycled in order, never taken from under anybody."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import NotEnoughBlocks, TierError
from dynalab.kv.policies._layout import STATE
from dynalab.tiers import _steps
from dynalab.tiers.directory import Directory, Filter
from dynalab.tiers.identity_table import (
    BEFORE,
    BEHIND,
    CHILDREN,
    HASH_OF,
    HELD,
    KEYS,
    PARENT_OF,
    POSITION_OF,
    USED,
    VALUES,
)

_MIX = 0x9E3779B97F4A7C15
DEVICE, HOST, DISK = range(3)


def home(key: int, places: int) -> int:
    """Where the hash table looks for a key first."""
    return (key * _MIX % 2**64 >> 32) & (places - 1)


def hashes(n: int, seed: int, n_ids: int, homes: int | None = None) -> list[int]:
    """Different hashes; with `homes`, only such as the table of `n_ids` numbers looks for at so few of its places."""
    rng = np.random.default_rng(seed)
    places = 1 << max(3, (2 * n_ids - 1).bit_length())
    found: dict[int, None] = {}
    while len(found) < n:
        key = int(rng.integers(1, 2**64, dtype=np.uint64))
        # The last places of the table: runs of entries go round its end.
        if homes is None or home(key, places) >= places - homes:
            found[key] = None
    return list(found)


def words(keys: list[int]) -> npt.NDArray[np.uint64]:
    return np.array(keys, np.uint64)


class Numbers:
    """A directory whose table of numbers is watched from outside."""

    def __init__(
        self, n_ids: int, slots: tuple[int, int, int] = (1, 0, 0), policy: str = "lru", **options: str
    ) -> None:
        filters = (Filter(), Filter("after", 2), Filter("after", 2))
        settings_ = {"mode": "write_through", "touch": "served", "disk_path": "staged"} | options
        self.directory = Directory(slots, (policy,) * 3, filters, n_ids=n_ids, **settings_)
        self.n_ids = n_ids
        self.ids = self.directory._rest[2]

    def match(self, keys: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8], npt.NDArray[np.int32]]:
        return self.directory.match(words(keys))

    def known(self) -> dict[int, int]:
        """Numbers by hash, as the hash table has them."""
        taken = self.ids[VALUES] >= 0
        keys = self.ids[KEYS][taken].tolist()
        found = dict(zip(keys, self.ids[VALUES][taken].tolist(), strict=True))
        assert len(found) == len(keys), "a hash stands in the table twice"
        return found

    def ring(self) -> list[int]:
        """Hashes in the ring, the next to go first."""
        end = len(self.ids[BEFORE]) - 1
        order, x = [], end
        while (behind := int(self.ids[BEHIND][x])) != end:
            assert int(self.ids[BEFORE][behind]) == x
            order.append(int(self.ids[HASH_OF][behind]))
            x = behind
            assert len(order) <= self.n_ids, "the ring does not close"
        assert int(self.ids[BEFORE][end]) == x
        return order

    def parents(self) -> dict[int, int]:
        """Hash of the block before each known one, 0 for none."""
        answer = {}
        for key, x in self.known().items():
            parent = int(self.ids[PARENT_OF][x])
            answer[key] = int(self.ids[HASH_OF][parent]) if parent >= 0 else 0
        return answer

    def held(self) -> set[int]:
        return {int(key) for k in range(3) for key in self.directory.held(k)}

    def audit(self) -> None:
        """Check everything that must hold whatever has happened."""
        known, held = self.known(), self.held()
        assert len(set(known.values())) == len(known) == int(self.ids[USED][0]) <= self.n_ids
        assert set(known.values()) == set(range(len(known)))
        mask = len(self.ids[KEYS]) - 1
        for key, x in known.items():
            assert int(self.ids[HASH_OF][x]) == key
            place = home(key, mask + 1)
            while int(self.ids[KEYS][place]) != key or self.ids[VALUES][place] < 0:
                assert self.ids[VALUES][place] >= 0, "a hash cannot be found from its home"
                place = (place + 1) & mask
        parents = self.parents()
        children = dict.fromkeys(known, 0)
        for key, parent in parents.items():
            if parent:
                assert parent in known, "a known block has lost the one before it"
                children[parent] += 1
                assert self.ids[POSITION_OF][known[key]] == self.ids[POSITION_OF][known[parent]] + 1
            else:
                assert self.ids[POSITION_OF][known[key]] == 0
        for key, x in known.items():
            assert self.ids[CHILDREN][x] == children[key]
            assert bool(self.ids[HELD][x]) == (key in held)
        assert held <= set(known), "a tier holds a block that is not known"
        assert sorted(self.ring()) == sorted(key for key in known if key not in held and not children[key])


class Model:
    """Who is known, who comes before whom, and who goes next, where no tier holds anything."""

    def __init__(self, n_ids: int) -> None:
        self.n_ids = n_ids
        self.parent: dict[int, int] = {}
        self.order: list[int] = []
        self.recycled: set[int] = set()

    def children(self, key: int) -> int:
        return sum(parent == key for parent in self.parent.values())

    def see(self, keys: list[int]) -> None:
        """Know a sequence, as far as there are numbers; `recycled` is who lost a number to it, if only for a while."""
        self.recycled.clear()
        before = 0
        for key in keys:
            if key not in self.parent and not self.enter(key, before):
                return
            before = key

    def enter(self, key: int, parent: int) -> bool:
        if len(self.parent) == self.n_ids:
            others = [other for other in self.order if other != parent]
            if not others:
                return False
            self.order.remove(others[0])
            self.recycled.add(others[0])
            orphaned = self.parent.pop(others[0])
            if orphaned and not self.children(orphaned):
                self.order.insert(0, orphaned)
        self.parent[key] = parent
        if parent in self.order:
            self.order.remove(parent)
        self.order.append(key)
        return True


@st.composite
def prompts(draw: st.DrawFn, n_keys: int) -> list[list[int]]:
    """Sequences of key indices: paths that branch, and now and then any order at all."""
    rows: list[list[int]] = []
    for _ in range(draw(st.integers(1, 20))):
        shared: list[int] = []
        if rows and draw(st.booleans()):
            earlier = draw(st.sampled_from(rows))
            shared = earlier[: draw(st.integers(0, len(earlier)))]
        rows.append(shared + draw(st.lists(st.integers(0, n_keys - 1), min_size=1, max_size=7)))
    return rows


@settings(max_examples=150)
@given(st.data(), st.integers(1, 12), st.sampled_from([None, 1, 2]), st.integers(0, 99))
def test_numbers_are_found_again_and_recycled_in_order(
    data: st.DataObject, n_ids: int, homes: int | None, seed: int
) -> None:
    keys = hashes(20, seed, n_ids, homes)
    numbers, model = Numbers(n_ids), Model(n_ids)
    for row in data.draw(prompts(len(keys))):
        sequence = [keys[i] for i in row]
        before = numbers.known()
        found, _, _ = numbers.match(sequence)
        assert len(found) == 0
        model.see(sequence)
        assert numbers.parents() == model.parent
        assert numbers.ring() == model.order
        numbers.audit()
        for key, x in numbers.known().items():
            assert before.get(key, x) == x or key in model.recycled, "a number changed hands for nothing"


@settings(max_examples=60)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(0, 6),
    st.sampled_from(["lru", "lineage", "s3fifo", "arc", "lirs", "priority"]),
    st.sampled_from(["write_through", "write_back", "selective"]),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_no_number_is_taken_from_a_block_that_is_held_or_continued(
    data: st.DataObject, device: int, host: int, disk: int, policy: str, mode: str, spare: int, seed: int
) -> None:
    """Requests through tiny tiers with hardly a number to spare."""
    slots = (device, host and host + 1, disk and disk + 1)
    n_ids = sum(slots) + spare
    numbers = Numbers(n_ids, slots, policy, mode=mode)
    directory = numbers.directory
    keys = hashes(24, seed, n_ids, data.draw(st.sampled_from([None, 2])))
    for row in data.draw(prompts(len(keys))):
        sequence = list(dict.fromkeys(keys[i] for i in row))
        parents = numbers.parents()
        found, level, places = numbers.match(sequence)
        try:
            n = directory.onboard(found, level, places, 0.0)
        except NotEnoughBlocks:
            n = 0
        else:
            rest = words(sequence[n:])
            try:
                new = directory.allocate(len(rest), 0.0)
            except NotEnoughBlocks:
                directory.let_go(found, np.zeros(n, np.int8), places)
            else:
                given_to = new.copy()
                try:
                    mine = directory.register(rest, sequence[n - 1] if n else 0, 0, given_to, 0.0)
                except TierError:
                    directory.give_back(new)
                    mine, given_to = np.empty(0, np.int32), np.empty(0, np.int32)
                every = np.concatenate([found, mine]).astype(np.int32)
                directory.let_go(every, np.zeros(len(every), np.int8), np.concatenate([places, given_to]))
        directory.outcome()
        numbers.audit()
        assert all(directory.in_use(k) == 0 for k in range(3))
        for key in sequence[: len(found)]:
            assert numbers.parents()[key] == parents[key]
        facts = zip(directory._states, directory.capacity, strict=True)
        for state in (state for state, capacity in facts if capacity):
            unknown = set(range(n_ids)) - set(numbers.known().values())
            assert not state.f[sorted(unknown), STATE].any(), "a policy remembers a block that has no number"


def test_a_filter_forgets_with_the_number() -> None:
    """What "after" has counted for a block must not count for the one that gets its number."""
    numbers = Numbers(3, (1, 1, 0))
    directory = numbers.directory
    counted = directory._fixed[1][0][HOST]
    for key in range(1, 40):
        for _ in range(3):
            found, level, places = numbers.match([key])
            n = directory.onboard(found, level, places, 0.0)
            slots = directory.allocate(1 - n, 0.0)
            mine = directory.register(words([key][n:]), 0, 0, slots, 0.0)
            every = np.concatenate([found, mine]).astype(np.int32)
            directory.let_go(every, np.zeros(1, np.int8), np.concatenate([places, slots]))
            directory.outcome()
        assert counted[numbers.known()[key]] == 3, "uses of an earlier block were counted for this one"


def test_a_sequence_is_forgotten_from_its_end() -> None:
    numbers = Numbers(6)
    numbers.match([1, 2, 3, 4])
    numbers.match([1, 2, 9])
    assert numbers.ring() == [4, 9]
    numbers.match([50])
    assert set(numbers.known()) == {1, 2, 3, 4, 9, 50}
    numbers.match([51])
    assert set(numbers.known()) == {1, 2, 3, 9, 50, 51}
    numbers.match([52])
    assert set(numbers.known()) == {1, 2, 9, 50, 51, 52}
    assert numbers.ring() == [9, 50, 51, 52], "block 2 is continued by 9 still"


def test_a_sequence_longer_than_all_numbers_keeps_its_beginning() -> None:
    numbers = Numbers(5)
    keys = list(range(10, 20))
    assert [len(part) for part in numbers.match(keys)] == [0, 0, 0]
    assert numbers.parents() == {b: a for a, b in pairwise([0, *keys[:5]])}
    numbers.audit()


def test_numbers_run_out_by_name_and_nothing_changes() -> None:
    """Two blocks are in use; the other three numbers cannot name a sequence of four."""
    numbers = Numbers(5, (4, 0, 0))
    directory = numbers.directory
    for key in (1, 2):
        slots = directory.allocate(1, 0.0)
        directory.register(words([key]), 0, 0, slots, 0.0)
    new = directory.allocate(2, 0.0)
    numbers.match([1, 31, 32, 33])
    with pytest.raises(TierError, match=r"^id_capacity: all 5 numbers stand for blocks that are held or continued"):
        directory.register(words([41, 42, 43, 44]), 0, 0, np.resize(new, 4), 0.0)
    assert numbers.held() == {1, 2}
    assert directory.in_use(DEVICE) == 4
    numbers.audit()
    assert directory.outcome().news == ((1, 1, 0), (1, 2, 0))


def test_one_registration_does_not_give_two_of_its_blocks_one_number() -> None:
    """A known block in the middle of a sequence that is new: the first block has nobody who continues it."""
    numbers = Numbers(4, (3, 0, 0))
    directory = numbers.directory
    first = directory.allocate(1, 0.0)
    directory.register(words([7]), 0, 0, first, 0.0)
    numbers.match([8, 9])
    # Known: 7 (held), 8 and 9. Block 20 takes the last number, 21 that of 9; 22 could only take those of 8 or 20.
    new = directory.allocate(2, 0.0)
    slots = np.concatenate([new, first])
    with pytest.raises(TierError, match="id_capacity"):
        directory.register(words([20, 8, 21, 22, 23]), 0, 0, np.resize(slots, 5), 0.0)
    assert numbers.held() == {7}
    numbers.audit()


def test_a_matched_prefix_is_named_right_when_its_tail_takes_numbers() -> None:
    """The blocks found stay themselves, however many numbers the rest of the sequence takes."""
    numbers = Numbers(6, (3, 0, 0))
    directory = numbers.directory
    slots = directory.allocate(3, 0.0)
    directory.register(words([1, 2, 3]), 0, 0, slots, 0.0)
    directory.let_go(np.array([0, 1, 2], np.int32), np.zeros(3, np.int8), slots)
    for tail in range(100, 200, 10):
        found, level, places = numbers.match([1, 2, 3, *range(tail, tail + 9)])
        assert [int(numbers.ids[HASH_OF][x]) for x in found] == [1, 2, 3]
        assert sorted(places.tolist()) == sorted(slots.tolist())
        directory.let_go(found, level, places)
        numbers.audit()


def test_steps_are_compiled_anew_when_the_table_changes(tmp_path: Path) -> None:
    """Numba watches the file of a step only, and the table's functions are inlined into it."""
    from dynalab.kv.keyed import Late, keyed

    source = tmp_path / "table.py"
    names = []
    for text in ("a", "b", "a"):
        source.write_text(text)

        def step() -> None:
            """Do nothing."""

        names.append(keyed(step, str(source)).__qualname__)
    assert names[0] == names[2] != names[1]
    assert keyed(lambda: None).__qualname__.rpartition("_")[2] != names[0].rpartition("_")[2]
    from dynalab.tiers import _state

    assert {Path(file).name for file in _state._INLINED} >= {"identity_table.py", "_holding.py", "_state.py"}
    assert isinstance(_steps.match, Late)
    assert _steps.match._files == _state._INLINED
