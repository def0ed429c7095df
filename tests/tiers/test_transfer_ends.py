"""Backpressure, draining and closing of the transfer engine, and the races between them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from gates import PATIENCE, Gate, blocks

from dynalab.errors import TierClosed, TierError
from dynalab.tiers import Transfer, TransferEngine


def workers() -> list[str]:
    # Helpers of large copies stay for the next one.
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("dynalab-") and not name.startswith("dynalab-copy")]


def until_somebody_waits(engine: TransferEngine) -> None:
    """Return when a thread waits in `submit` for room."""
    for _ in range(10_000):
        if engine._submitters_waiting:
            return
        time.sleep(0.001)
    raise AssertionError("nobody waits for room")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def tight(gate: Gate) -> Iterator[TransferEngine]:
    """An engine that takes four blocks per path; path "a" has a gate."""
    engine = TransferEngine({"a": gate, "b": Gate(open_=True)}, concurrency=1, batch=1, max_pending_blocks=4)
    with engine:
        yield engine
        gate.open()


def test_a_full_path_takes_nothing_in_time(tight: TransferEngine, gate: Gate) -> None:
    assert tight.submit([blocks("a", 3)], timeout=0)
    assert tight.submit([blocks("a", 1)], timeout=0)
    refused = [free := blocks("b", 1), blocks("a", 1)]
    assert not tight.submit(refused, timeout=0)
    assert not tight.submit(refused, timeout=0.01), "all of them or none"
    assert tight.stats()["b"].pending_blocks == 0
    assert tight.submit([free], timeout=0)
    assert free.result(PATIENCE).all()
    assert tight.submit([blocks("a", 0)], timeout=0), "no blocks need no room"
    assert tight.stats()["a"].most_pending_blocks == 4


def test_submit_waits_for_room(tight: TransferEngine, gate: Gate) -> None:
    tight.submit([blocks("a", 4)])
    with ThreadPoolExecutor(1) as pool:
        late = blocks("a", 2, "late")
        submitted = pool.submit(tight.submit, [late])
        gate.wait_begun(1)
        until_somebody_waits(tight)
        gate.let(0)
        gate.wait_begun(2)
        assert not submitted.done(), "one block of room is not enough for two"
        gate.let(1)
        assert submitted.result(PATIENCE)
    gate.open()
    assert late.result(PATIENCE).all()
    assert tight.stats()["a"].most_pending_blocks == 4


def test_cancelling_makes_room(tight: TransferEngine, gate: Gate) -> None:
    tight.submit([first := blocks("a", 4)])
    gate.wait_begun(1)
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(tight.submit, [blocks("a", 3)])
        until_somebody_waits(tight)
        assert first.cancel() == 3
        assert submitted.result(PATIENCE)


def test_an_empty_path_takes_what_is_larger_than_the_bound(tight: TransferEngine, gate: Gate) -> None:
    assert tight.submit([blocks("a", 50)], timeout=0)
    assert not tight.submit([blocks("a", 1)], timeout=0)


def test_callbacks_never_wait_for_room(tight: TransferEngine, gate: Gate) -> None:
    answers: list[bool] = []
    first = blocks("a", 1)
    first.add_done_callback(lambda _: answers.append(tight.submit([blocks("a", 9)])))
    tight.submit([first, blocks("a", 3)])
    gate.open()
    assert tight.drain(PATIENCE)
    assert answers == [True]
    assert tight.stats()["a"].blocks_done == 13


def test_closing_wakes_those_who_wait_for_room(tight: TransferEngine, gate: Gate) -> None:
    tight.submit([blocks("a", 4)])
    gate.wait_begun(1)
    with ThreadPoolExecutor(2) as pool:
        submitted = pool.submit(tight.submit, [never := blocks("a", 4)])
        until_somebody_waits(tight)
        closed = pool.submit(tight.close)
        with pytest.raises(TierClosed):
            submitted.result(PATIENCE)
        assert not closed.done()
        gate.open()
        closed.result(PATIENCE)
    assert not never.done()
    assert tight.stats()["a"].blocks_done == 4


def test_drain_gives_up_in_time(tight: TransferEngine, gate: Gate) -> None:
    assert tight.drain(0)
    tight.submit([blocks("a", 1)])
    assert not tight.drain(0.001)
    gate.open()
    assert tight.drain(PATIENCE)


def test_close_finishes_what_was_taken_on_and_leaves_no_thread(gate: Gate) -> None:
    before = workers()
    engine = TransferEngine({"a": gate, "b": gate}, concurrency=3, batch=1)
    assert workers() == before, "threads start on demand"
    first = blocks("a", 5)
    engine.submit([first, later := blocks("b", 5, after=[first])])
    gate.wait_begun(3)
    assert len(workers()) == len(before) + 3
    with ThreadPoolExecutor(3) as pool:
        closing = [pool.submit(engine.close) for _ in range(3)]
        gate.open()
        for each in closing:
            each.result(PATIENCE)
    assert first.done()
    assert later.ok.all()
    assert workers() == before
    engine.close()
    engine.close(cancel=True)
    with pytest.raises(TierClosed, match="open a new one"):
        engine.submit([blocks("a", 1)])
    assert engine.stats()["b"].blocks_done == 5


def test_a_transfer_given_up_does_not_end_before_those_it_comes_after(gate: Gate) -> None:
    """Who comes after it relies on them as well: only the last of a chain is ever named."""
    with TransferEngine({"a": gate, "b": gate, "c": gate}) as engine:
        first = blocks("a", 1)
        middle = blocks("b", 2, after=[first])
        last = blocks("c", 1, "last", after=[middle])
        engine.submit([first, middle, last])
        gate.wait_begun(1)
        assert middle.cancel() == 2
        assert not middle.wait(0.05)
        assert not last.done()
        assert len(gate.order) == 1
        gate.open()
        assert last.result(PATIENCE).all()
        assert first.done()
        assert middle.done()
        assert not middle.ok.any()


def test_close_may_cancel(gate: Gate) -> None:
    done: list[str] = []
    engine = TransferEngine({"a": gate, "b": gate}, concurrency=1, batch=2, on_done=lambda t: done.append(t.payload))
    running, queued = blocks("a", 4, "running"), blocks("a", 3, "queued")
    waiting = blocks("b", 1, "waiting", after=[queued])
    engine.submit([running, queued, waiting])
    gate.wait_begun(1)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close, cancel=True)
        while engine.stats()["b"].blocks_cancelled == 0:
            assert not closing.done(), "the batch in flight finishes"
        assert not waiting.done(), "one that it comes after has not ended"
        gate.let(0)
        closing.result(PATIENCE)
    assert running.ok.tolist() == [True, True, False, False]
    assert not queued.ok.any()
    assert sorted(done) == ["queued", "running", "waiting"]
    assert all("cancelled" in str(t.errors[0]) for t in (running, queued, waiting))
    assert not workers()


def test_an_error_in_the_with_block_cancels(gate: Gate) -> None:
    transfer = blocks("a", 3)

    def let_go_when_cancelled() -> None:
        for _ in range(10_000):
            if transfer.errors:
                return gate.open()
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError), TransferEngine({"a": gate}, concurrency=1, batch=1) as engine:  # noqa: PT012
            engine.submit([transfer])
            gate.wait_begun(1)
            pool.submit(let_go_when_cancelled)
            engine.drain(1 / 0)
        assert transfer.ok.tolist() == [True, False, False]
        assert not workers()


def test_without_threads_the_transfers_stay_queued(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.open()
    with TransferEngine({"a": gate}, concurrency=2, batch=1) as engine:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TierError, match="a: no worker thread can be started"):
            engine.submit([first := blocks("a", 3)])
        monkeypatch.setattr(threading.Thread, "start", start)
        engine.submit([blocks("a", 1)])
        assert first.result(PATIENCE).all()


def test_many_submit_while_others_cancel_and_close() -> None:
    """Whoever loses the race to `close` is told so; every transfer taken on ends, and no thread stays."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for round_ in range(15):
            engine = TransferEngine(
                {"a": Gate(open_=True), "b": Gate(open_=True)}, concurrency=2, batch=3, max_pending_blocks=20
            )
            taken: list[Transfer] = []
            begin = threading.Barrier(5)

            def produce(
                seed: int, engine: Any = engine, taken: list[Transfer] = taken, begin: Any = begin
            ) -> tuple[int, int]:
                rng = np.random.default_rng(seed)
                begin.wait(PATIENCE)
                mine: list[Transfer] = []
                for _ in range(200):
                    new = [blocks("ab"[int(rng.integers(2))], int(rng.integers(8)), after=mine[-2:])]
                    try:
                        engine.submit(new)
                    except TierClosed:
                        break
                    mine += new
                    if rng.integers(5) == 0:
                        mine[int(rng.integers(len(mine)))].cancel()
                taken += mine
                return len(mine), sum(map(len, mine))

            with ThreadPoolExecutor(4) as pool:
                producers = [pool.submit(produce, 10 * round_ + i) for i in range(4)]
                begin.wait(PATIENCE)
                while engine.stats()["a"].transfers < 25 * round_ and not all(each.done() for each in producers):
                    engine.drain(0.0001)
                engine.close(cancel=round_ % 2 == 0)
                counts = [producer.result(PATIENCE) for producer in producers]
            assert not workers()
            assert all(transfer.done() for transfer in taken)
            stats = engine.stats().values()
            assert sum(s.transfers for s in stats) == sum(n for n, _ in counts)
            ended = sum(s.blocks_done + s.blocks_failed + s.blocks_cancelled for s in stats)
            assert ended == sum(n for _, n in counts)
            assert sum(s.blocks_done for s in stats) == sum(int(t.ok.sum()) for t in taken)
            assert all((s.pending_blocks, s.in_flight) == (0, 0) for s in stats)
    finally:
        sys.setswitchinterval(interval)
