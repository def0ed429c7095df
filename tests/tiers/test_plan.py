"""The scoreboard of copies, by brute force: in any order that its waits allow, every slot ends as if one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.kv.tiering.book import ENDS
from dynalab.tiers._plan import GROUP_BLOCKS, plan

Move = tuple[int, int, int]  # edge, source slot, target slot
N_EDGES = len(ENDS)


@dataclass
class Board:
    """Calls of ``plan`` one after the other on the same slots, and what a plain reading of them demands.

    Attributes
    ----------
    moves : list of (edge, source, target)
        All copies so far; copy ``i`` belongs to group ``ticket[i]``.
    after : dict of int to set of int
        Groups that each group waits for.
    """

    n_slots: int
    moves: list[Move] = field(default_factory=list)
    ticket: list[int] = field(default_factory=list)
    after: dict[int, set[int]] = field(default_factory=dict)
    n_groups: int = 0

    def __post_init__(self) -> None:
        self._last_write = np.zeros((3, self.n_slots), np.int64)
        self._last_read = np.zeros((N_EDGES, self.n_slots), np.int64)

    def add(self, moves: list[Move], floor: int = 0) -> int:
        """Plan further copies, the groups up to `floor` being done; return how many groups they make."""
        table = np.array([(edge, 0, source, target) for edge, source, target in moves], np.int32).reshape(-1, 4)
        group = np.full(len(moves), -1, np.int32)
        waits = np.full((5 * len(moves), 2), -1, np.int64)
        base = self.n_groups
        n, n_waits = plan(table, self._last_write, self._last_read, base, floor, group, waits)
        assert sorted(set(group.tolist())) == list(range(n)), "groups are numbered from 0, none is empty"
        assert (waits[n_waits:] == -1).all()
        for i in range(base + 1, base + 1 + n):
            self.after[i] = set()
        for g, ticket in waits[:n_waits].tolist():
            assert 0 <= g < n
            assert floor < ticket <= base + n
            self.after[base + 1 + g].add(ticket)
        self.moves += moves
        self.ticket += (group + base + 1).tolist()
        self.n_groups += n
        return n

    def order(self) -> list[int]:
        """Groups in an order that the waits allow; raises where groups wait for each other in a circle."""
        return list(TopologicalSorter(self.after).static_order())

    def ancestors(self) -> dict[int, set[int]]:
        """Groups that are over when a group begins."""
        found: dict[int, set[int]] = {}
        for group in self.order():
            found[group] = set(self.after.get(group, ())).union(*(found[other] for other in self.after.get(group, ())))
        return found


def ends(move: Move) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tier and slot of a copy's source, and of its target."""
    edge, source, target = move
    return (ENDS[edge][0], source), (ENDS[edge][1], target)


def conflicts(first: Move, second: Move) -> bool:
    """Whether two copies may not overlap: one writes what the other reads or writes."""
    (read, written), (then_read, then_written) = ends(first), ends(second)
    return written in (then_read, then_written) or read == then_written


def check_groups(board: Board) -> None:
    """One path and a bounded number of blocks each, and no copy beside one that it must not overtake."""
    before = board.ancestors()
    members: dict[int, list[int]] = {}
    for i, ticket in enumerate(board.ticket):
        members.setdefault(ticket, []).append(i)
    for rows in members.values():
        assert len(rows) <= GROUP_BLOCKS
        assert len({board.moves[i][0] for i in rows}) == 1
    for j, second in enumerate(board.moves):
        for i in range(j):
            if conflicts(board.moves[i], second):
                assert board.ticket[i] in before[board.ticket[j]], f"copy {j} does not wait for copy {i}"


class Machine:
    """Slots that copies read and write a while, several at once; a torn copy shows."""

    def __init__(self, n_slots: int) -> None:
        self.slots: dict[tuple[int, int], object] = {(k, i): (k, i) for k in range(3) for i in range(n_slots)}
        self.under_way: dict[int, tuple[Move, object]] = {}

    def begin(self, name: int, move: Move) -> None:
        source, target = ends(move)
        self.under_way[name] = move, self.slots[source]
        self.slots[target] = ("half written", name)

    def end(self, name: int) -> None:
        move, value = self.under_way.pop(name)
        source, target = ends(move)
        assert self.slots[source] == value, f"copy {name}: its source changed while it was read"
        assert self.slots[target] == ("half written", name), f"copy {name}: its target was written by another"
        self.slots[target] = value

    def one_by_one(self, moves: list[Move]) -> dict[tuple[int, int], object]:
        for i, move in enumerate(moves):
            self.begin(i, move)
            self.end(i)
        return self.slots


class Live:
    """Carries copies out side by side, choosing at random among what may begin and what may end."""

    def __init__(self, board: Board, rng: np.random.Generator) -> None:
        self.board, self.rng, self.machine = board, rng, Machine(board.n_slots)
        self._waiting: set[int] = set()
        self._left: dict[int, int] = {}
        self._seen = 0

    def take_on(self) -> None:
        """Take on what has been planned since."""
        for i in range(self._seen, len(self.board.moves)):
            self._waiting.add(i)
            ticket = self.board.ticket[i]
            self._left[ticket] = self._left.get(ticket, 0) + 1
        self._seen = len(self.board.moves)

    @property
    def floor(self) -> int:
        """All groups up to this one are done."""
        return next((ticket - 1 for ticket in sorted(self._left) if self._left[ticket]), self.board.n_groups)

    def step(self) -> bool:
        """Let one copy begin or end; False where all have ended."""
        after, ticket = self.board.after, self.board.ticket
        ready = [i for i in sorted(self._waiting) if not any(self._left[other] for other in after[ticket[i]])]
        choices = [(True, i) for i in ready] + [(False, i) for i in sorted(self.machine.under_way)]
        if not choices:
            assert not self._waiting, "groups wait for each other"
            return False
        begins, i = choices[int(self.rng.integers(len(choices)))]
        if begins:
            self.machine.begin(i, self.board.moves[i])
            self._waiting.remove(i)
        else:
            self.machine.end(i)
            self._left[ticket[i]] -= 1
        return True

    def finish(self) -> dict[tuple[int, int], object]:
        """Let everything end, and return what the slots hold."""
        self.take_on()
        while self.step():
            pass
        return self.machine.slots


def moves(n_slots: int, max_size: int = 40, edges: tuple[int, ...] = tuple(range(N_EDGES))) -> st.SearchStrategy:
    slot = st.integers(0, n_slots - 1)
    return st.lists(st.tuples(st.sampled_from(edges), slot, slot), max_size=max_size)


def random_moves(rng: np.random.Generator, n: int, n_slots: int, n_edges: int = N_EDGES) -> list[Move]:
    edges = rng.permutation(N_EDGES)[:n_edges]
    return [(int(rng.choice(edges)), int(rng.integers(n_slots)), int(rng.integers(n_slots))) for _ in range(n)]


@settings(max_examples=200)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), moves(n))), st.integers(0, 2**32 - 1))
def test_any_order_ends_as_one_by_one(case: tuple[int, list[Move]], seed: int) -> None:
    n_slots, wanted = case
    board = Board(n_slots)
    board.add(wanted)
    check_groups(board)
    rng = np.random.default_rng(seed)
    expected = Machine(n_slots).one_by_one(wanted)
    for _ in range(3):
        assert Live(board, rng).finish() == expected


@settings(max_examples=150)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.lists(moves(n, 12), max_size=8))), st.data())
def test_later_calls_wait_for_what_is_not_done(case: tuple[int, list[list[Move]]], data: st.DataObject) -> None:
    """Each call knows up to which group all are done, and only that: later ones may be done as well."""
    n_slots, calls = case
    board = Board(n_slots)
    floor = 0
    before: list[int] = []
    for wanted in calls:
        start = len(board.moves)
        board.add(wanted, floor)
        before += [floor] * (len(board.moves) - start)
        floor = data.draw(st.integers(floor, board.n_groups))
    reach = board.ancestors()
    for j, second in enumerate(board.moves):
        # A group that is done has waited for others: these are done as well, whatever their number.
        over = set(range(before[j] + 1)).union(*(reach.get(ticket, ()) for ticket in range(before[j] + 1)))
        for i in range(j):
            done = board.ticket[i] in over
            if conflicts(board.moves[i], second) and not done:
                assert board.ticket[i] in reach[board.ticket[j]], f"copy {j} does not wait for copy {i}"


@pytest.mark.parametrize("seed", range(8))
def test_calls_among_copies_under_way(seed: int) -> None:
    """Plan, carry out a part, plan more: only what is done is left out of the waits."""
    rng = np.random.default_rng(seed)
    board = Board(int(rng.integers(1, 6)))
    live = Live(board, rng)
    floors = []
    for _ in range(40):
        board.add(random_moves(rng, int(rng.integers(0, 20)), board.n_slots), live.floor)
        live.take_on()
        for _ in range(int(rng.integers(0, 50))):
            live.step()
        floors.append(live.floor)
    assert live.finish() == Machine(board.n_slots).one_by_one(board.moves)
    assert len(set(floors)) > 10, "some calls begin while other groups are under way"


@pytest.mark.parametrize("n_edges", [1, 2, 3, 6])
@pytest.mark.parametrize("n_slots", [1, 3, 40])
def test_more_groups_than_the_window_holds(n_slots: int, n_edges: int) -> None:
    """Relations are kept for 64 groups at a time; the groups before them are waited for all the same."""
    rng = np.random.default_rng(100 * n_slots + n_edges)
    wanted = random_moves(rng, 300, n_slots, n_edges)
    board = Board(n_slots)
    n_groups = board.add(wanted[:250]) + board.add(wanted[250:])
    check_groups(board)
    assert Live(board, rng).finish() == Machine(n_slots).one_by_one(wanted)
    if n_slots < 40:
        assert n_groups > 128, "the case is there to pass the window more than once"


@pytest.mark.parametrize("edge", range(N_EDGES))
def test_copies_that_do_not_touch_share_groups(edge: int) -> None:
    """As many in a group as may be, and no wait at all."""
    n = 3 * GROUP_BLOCKS - 5
    board = Board(n)
    order = np.random.default_rng(edge).permutation(n).tolist()
    assert board.add([(edge, i, order[i]) for i in range(n)]) == 3
    assert [board.ticket.count(ticket) for ticket in (1, 2, 3)] == [GROUP_BLOCKS, GROUP_BLOCKS, GROUP_BLOCKS - 5]
    assert not any(board.after.values())


def test_many_readers_of_one_slot_share_a_group() -> None:
    """A block that is copied twice from where it lies is no conflict."""
    board = Board(8)
    assert board.add([(1, 5, target) for target in range(8)]) == 1
    # Two paths that read the same slot do not wait for each other either.
    assert board.add([(2, 5, 0)]) == 1
    assert board.after == {1: set(), 2: set()}
    # Who writes it waits for both.
    board.add([(0, 3, 5)])
    assert board.after[3] >= {2, 1}


def test_blocks_that_change_places_wait_for_each_other() -> None:
    """Each block rises from the host and pushes another down, through the one host slot that is free at the time."""
    n = 60
    board = Board(n + 1)
    free_host, wanted = n, []
    for i in range(n):
        wanted += [(2, i, i), (0, i, free_host), (1, i, i)]
        free_host = i
    board.add(wanted)
    check_groups(board)
    expected = Machine(n + 1).one_by_one(wanted)
    assert Live(board, np.random.default_rng(0)).finish() == expected
