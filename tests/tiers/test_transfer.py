"""The transfer engine: order, bounds, independence, dependencies and outcomes, each proved with movers at a gate."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from gates import PATIENCE, Gate, blocks

from dynalab.errors import ConfigError, TierError, TransferError
from dynalab.tiers import Transfer, TransferEngine, _path
from dynalab.tiers import engine as engine_module


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def other() -> Gate:
    return Gate(open_=True)


@pytest.fixture
def one(gate: Gate, other: Gate) -> Iterator[TransferEngine]:
    """One block at a time on path "a", where a gate stands; path "b" is free."""
    with TransferEngine({"a": gate, "b": other}, concurrency=1, batch=1, block_bytes=10) as engine:
        yield engine
        gate.open()


def test_higher_priority_first_then_age(one: TransferEngine, gate: Gate) -> None:
    one.submit([blocks("a", 1, "holds the worker", priority=-9)])
    gate.wait_begun(1)
    priorities = [0, 5, 0, -3, 5, 1, 5, 0, 2**40, -(2**40)]
    one.submit([blocks("a", 1, i, priority=p) for i, p in enumerate(priorities)])
    gate.open()
    assert one.drain(PATIENCE)
    expected = sorted(range(len(priorities)), key=lambda i: (-priorities[i], i))
    assert [name for name, _, _ in gate.order[1:]] == expected


def test_an_urgent_transfer_overtakes_between_the_batches_of_a_long_one(one: TransferEngine, gate: Gate) -> None:
    long = blocks("a", 3, "long")
    one.submit([long])
    gate.wait_begun(1)
    one.submit([blocks("a", 2, "urgent", priority=1)])
    gate.open()
    assert long.result(PATIENCE).all()
    assert gate.order == [("long", 0, 1), ("urgent", 0, 1), ("urgent", 1, 2), ("long", 1, 2), ("long", 2, 3)]


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (8, 4), (3, 4), (1, 1), (33, 16)])
def test_batches_cover_every_block_once(n: int, batch: int) -> None:
    gate = Gate(open_=True)
    with TransferEngine({"a": gate}, concurrency=1, batch=batch) as engine:
        engine.submit([transfer := blocks("a", n)])
        assert transfer.result(PATIENCE).tolist() == [True] * n
    assert [(lo, hi) for _, lo, hi in gate.order] == [(lo, min(lo + batch, n)) for lo in range(0, n, batch)]


def test_so_many_batches_in_flight_and_no_more(gate: Gate) -> None:
    with TransferEngine({"a": gate}, concurrency=3, batch=2) as engine:
        engine.submit([blocks("a", 10, "x"), blocks("a", 4, "y")])
        gate.wait_begun(3)
        stats = engine.stats()["a"]
        assert (stats.in_flight, stats.pending_blocks, stats.batches) == (3, 14, 0)
        gate.let(1)
        gate.wait_begun(4)
        assert engine.stats()["a"].batches == 1
        gate.open()
        assert engine.drain(PATIENCE)
        stats = engine.stats()["a"]
        assert (gate.most, stats.most_in_flight, stats.batches, stats.transfers) == (3, 3, 7, 2)


def test_idle_workers_are_not_counted_twice(gate: Gate) -> None:
    """After any number of small jobs, a large one has all its batches in flight at once."""
    with TransferEngine({"a": gate}, concurrency=4, batch=1) as engine:
        begun = 0
        for n in (1, 1, 1, 2, 1, 4, 1, 3, 4):
            engine.submit([transfer := blocks("a", n)])
            gate.wait_begun(begun + n)
            assert engine.stats()["a"].in_flight == n
            gate.let(*range(begun, begun + n))
            assert transfer.result(PATIENCE).all()
            begun += n


def test_time_is_counted_once_where_batches_overlap(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    for module in (_path, engine_module):
        monkeypatch.setattr(module, "perf_counter", lambda: now)
    with TransferEngine({"a": gate}, concurrency=2, batch=1) as engine:
        engine.submit([blocks("a", 2)])
        gate.wait_begun(2)
        now = 13.0
        gate.open()
        engine.drain(PATIENCE)
        now = 20.0
        engine.submit([blocks("a", 1)])
        engine.drain(PATIENCE)
        stats = engine.stats()["a"]
        assert (stats.busy_s, stats.batch_s) == (3.0, 6.0)


def test_paths_do_not_wait_for_each_other(one: TransferEngine, gate: Gate) -> None:
    one.submit([blocks("a", 5)])
    gate.wait_begun(1)
    one.submit([transfer := blocks("b", 50)])
    assert transfer.result(PATIENCE).all()
    assert one.stats()["a"].pending_blocks == 5


def test_a_diamond_of_dependencies(gate: Gate) -> None:
    with TransferEngine({"a": gate, "b": gate}, concurrency=4, batch=4) as engine:
        top = blocks("a", 1, "top")
        left, right = blocks("a", 1, "left", after=[top]), blocks("b", 1, "right", after=[top])
        bottom = blocks("b", 1, "bottom", after=[left, right, top], priority=99)
        engine.submit([top, left, right, bottom])
        gate.wait_begun(1)
        assert [name for name, _, _ in gate.order] == ["top"]
        gate.let(0)
        gate.wait_begun(3)
        assert {name for name, _, _ in gate.order} == {"top", "left", "right"}
        gate.let([name for name, _, _ in gate.order].index("left"))
        assert left.wait(PATIENCE)
        assert len(gate.order) == 3, "one of two is not enough"
        gate.open()
        assert bottom.result(PATIENCE).all()
        assert gate.order[-1][0] == "bottom"


@pytest.mark.parametrize("fate", ["fails", "is cancelled"])
def test_what_comes_after_runs_whatever_became_of_the_first(one: TransferEngine, gate: Gate, fate: str) -> None:
    one.submit([blocks("a", 1, "holds the worker")])
    gate.wait_begun(1)
    first = blocks("a", 2, "first")
    later = blocks("b", 2, "later", after=[first])
    one.submit([first, later])
    if fate == "fails":
        gate.outcome = lambda _, lo, hi: np.zeros(hi - lo, bool)
    else:
        assert first.cancel() == 2
    gate.open()
    assert later.result(PATIENCE).all()
    assert not first.ok.any()


def test_transfers_come_after_those_done_and_those_of_other_engines_done(one: TransferEngine) -> None:
    with TransferEngine({"b": Gate(open_=True)}) as elsewhere:
        elsewhere.submit([foreign := blocks("b", 1)])
        foreign.result(PATIENCE)
    one.submit([first := blocks("b", 1)])
    first.result(PATIENCE)
    one.submit([later := blocks("b", 1, after=[first, foreign, first])])
    assert later.result(PATIENCE).all()


def test_a_long_chain_keeps_neither_its_past_nor_the_stack(one: TransferEngine) -> None:
    chain: list[Transfer] = []
    for i in range(3000):
        chain.append(blocks("b", 1, i, after=chain[-1:]))
    one.submit(chain)
    assert chain[-1].result(PATIENCE).all()
    assert all(transfer.after == () for transfer in chain)


def test_a_batch_that_fails_fails_alone(one: TransferEngine, gate: Gate) -> None:
    gate.open()
    cause = OSError(28, "No space left on device")

    def outcome(transfer: Transfer, lo: int, hi: int) -> Any:
        if lo == 1:
            raise cause
        return np.ones(hi - lo, bool)

    gate.outcome = outcome
    one.submit([transfer := blocks("a", 4)])
    assert transfer.result(PATIENCE).tolist() == [True, False, True, True]
    (error,) = transfer.errors
    assert isinstance(error, TransferError)
    assert error.__cause__ is cause
    for part in ("a: blocks 1 to 1 of 4", "[1]", "[101]", "OSError", "No space left"):
        assert part in str(error)
    stats = one.stats()["a"]
    assert (stats.blocks_done, stats.blocks_failed, stats.bytes_done, stats.pending_blocks) == (3, 1, 30, 0)


def test_blocks_that_a_mover_denies_have_an_error_too(one: TransferEngine, gate: Gate) -> None:
    gate.open()
    gate.outcome = lambda _, lo, hi: np.full(hi - lo, lo != 2)
    one.submit([transfer := blocks("a", 4)])
    assert transfer.result(PATIENCE).tolist() == [True, True, False, True]
    assert [str(error) for error in transfer.errors] == ["a: blocks [2] of 4 did not arrive"]


@pytest.mark.parametrize("answer", [None, True, np.ones(2, bool), np.ones(1), np.ones((1, 1), bool), [1]])
def test_a_mover_without_a_clear_answer_has_moved_nothing(one: TransferEngine, gate: Gate, answer: Any) -> None:
    gate.open()
    gate.outcome = lambda *_: answer
    one.submit([transfer := blocks("a", 1)])
    assert not transfer.result(PATIENCE).any()
    assert "not 1 truth values" in str(transfer.errors[0])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_no_error_ends_a_worker(one: TransferEngine, gate: Gate, error: BaseException) -> None:
    gate.open()

    def outcome(transfer: Transfer, lo: int, hi: int) -> Any:
        raise error

    gate.outcome = outcome
    one.submit([transfer := blocks("a", 3)])
    assert not transfer.result(PATIENCE).any()
    assert [failure.__cause__ for failure in transfer.errors] == [error] * 3


def test_cancelling_what_is_queued_and_what_runs(one: TransferEngine, gate: Gate) -> None:
    running, queued = blocks("a", 3, "running"), blocks("a", 2, "queued")
    waiting = blocks("a", 1, "waiting", after=[running])
    one.submit([running, queued, waiting])
    gate.wait_begun(1)
    assert (queued.cancel(), running.cancel(), waiting.cancel()) == (2, 2, 1)
    assert (queued.cancel(), running.cancel()) == (0, 0)
    assert not running.done(), "its first batch is still on the way"
    gate.open()
    assert running.result(PATIENCE).tolist() == [True, False, False]
    assert queued.result(PATIENCE).tolist() == [False, False]
    assert not waiting.result(PATIENCE).any()
    assert [str(error) for error in running.errors] == ["a: cancelled before blocks 1 to 2 of 3 started"]
    assert len(gate.order) == 1
    assert running.cancel() == 0
    stats = one.stats()["a"]
    assert (stats.blocks_done, stats.blocks_cancelled, stats.blocks_failed, stats.pending_blocks) == (1, 5, 0, 0)


def test_a_transfer_without_blocks_is_a_point_in_time(one: TransferEngine, gate: Gate) -> None:
    before = blocks("a", 1)
    point = blocks("b", 0, after=[before])
    after = blocks("b", 1, after=[point])
    one.submit([before, point, after, free := blocks("a", 0)])
    assert not point.done()
    gate.open()
    assert after.result(PATIENCE).all()
    assert free.result(PATIENCE).shape == (0,)
    assert free.cancel() == 0
    assert free.errors == []


def test_on_done_comes_before_callbacks_dependents_and_waiters(gate: Gate, other: Gate) -> None:
    seen: list[tuple[Any, ...]] = []
    reached, held = threading.Event(), threading.Event()

    def on_done(transfer: Transfer) -> None:
        seen.append(("engine", transfer.payload, transfer.ok.tolist(), len(other.order)))
        if transfer.payload == "first":
            reached.set()
            assert held.wait(PATIENCE)

    with TransferEngine({"a": gate, "b": other}, on_done=on_done) as engine:
        gate.open()
        first = blocks("a", 1, "first")
        first.add_done_callback(lambda t: seen.append(("own", t.payload, t.result().tolist())))
        engine.submit([first, later := blocks("b", 1, "later", after=[first])])
        assert reached.wait(PATIENCE)
        # One that comes while the callbacks run waits for its turn.
        first.add_done_callback(lambda t: seen.append(("too", t.done())))
        assert not first.wait(0.01), "a waiter goes on when the callbacks have run"
        assert not later.done()
        held.set()
        assert later.result(PATIENCE).all()
        assert seen == [
            ("engine", "first", [True], 0),
            ("own", "first", [True]),
            ("too", False),
            ("engine", "later", [True], 1),
        ]
        first.add_done_callback(lambda t: seen.append(("late", t.done())))
        assert seen[-1] == ("late", True)


def test_callbacks_that_fail_are_logged_and_hurt_nobody(one: TransferEngine, caplog: pytest.LogCaptureFixture) -> None:
    transfer = blocks("b", 1, "x")
    told: list[str] = []
    transfer.add_done_callback(lambda _: 1 / 0)
    transfer.add_done_callback(lambda _: told.append("second"))
    one.submit([transfer, later := blocks("b", 1, after=[transfer])])
    assert later.result(PATIENCE).all()
    assert told == ["second"]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_callbacks_submit_more_and_drain_waits_for_it(one: TransferEngine, gate: Gate) -> None:
    cascade: list[Transfer] = []

    def again(transfer: Transfer) -> None:
        if len(cascade) < 5:
            cascade.append(blocks("a" if transfer.path == "b" else "b", 2))
            cascade[-1].add_done_callback(again)
            one.submit([cascade[-1]])

    gate.open()
    first = blocks("b", 1)
    first.add_done_callback(again)
    one.submit([first])
    assert one.drain(PATIENCE)
    assert len(cascade) == 5
    assert all(transfer.ok.all() for transfer in cascade)


def test_a_callback_cannot_wait_for_others(one: TransferEngine, gate: Gate) -> None:
    refused: list[TierError] = []

    def callback(_: Transfer) -> None:
        for wait in (lambda: stuck.wait(1), one.drain, one.close):
            with pytest.raises(TierError, match="it would wait for itself") as error:
                wait()
            refused.append(error.value)

    one.submit([stuck := blocks("a", 1)])
    first = blocks("b", 1)
    first.add_done_callback(callback)
    one.submit([first])
    assert first.wait(PATIENCE)
    assert len(refused) == 3


def test_many_wait_for_one(one: TransferEngine, gate: Gate) -> None:
    one.submit([transfer := blocks("a", 1)])
    with pytest.raises(TimeoutError, match="1 of 1 blocks are still to be moved"):
        transfer.result(0.001)
    with ThreadPoolExecutor(8) as pool:
        waiters = [pool.submit(transfer.result, PATIENCE) for _ in range(8)]
        gate.open()
        assert all(waiter.result(PATIENCE).all() for waiter in waiters)


def test_transfers_and_engines_that_cannot_be(one: TransferEngine) -> None:
    with pytest.raises(TransferError, match=r"a: sources of shape \(3,\) and targets of shape \(2,\)"):
        Transfer("a", [1, 2, 3], [1, 2])
    with pytest.raises(TransferError, match="give one row"):
        Transfer("a", [[1]], [[2]])
    with pytest.raises(TransferError, match="slots are integers, not float64"):
        Transfer("a", [1.5], [2])
    with pytest.raises(TransferError, match=r"below 2\*\*31"):
        Transfer("a", [2**33], [2])
    for field in ("concurrency", "batch", "max_pending_blocks"):
        with pytest.raises(ConfigError, match=f"{field}: 0 is less than 1"):
            TransferEngine({}, **{field: 0})
    new = blocks("b", 1)
    for act in (new.wait, new.result, new.cancel):
        with pytest.raises(TierError, match="before it is submitted"):
            act()
    with pytest.raises(ConfigError, match="path: 'bb' does not exist; did you mean 'b'"):
        one.submit([new, blocks("bb", 1)])
    with pytest.raises(TierError, match="submitted before; make a new one"):
        one.submit([new, new])
    with pytest.raises(TierError, match="comes after a transfer"):
        one.submit([blocks("b", 1, after=[new]), new])
    assert one.submit([])
    assert one.submit([new]), "what was refused with others was not taken on"
    assert new.result(PATIENCE).all()
    with pytest.raises(TierError, match="submitted before"):
        one.submit([new])
