"""The pool of host buffers: apart, aligned, fair, and never lent twice."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dynalab.errors import BlockStateError, ConfigError, DeviceMemoryError, TierClosed, TierError
from dynalab.pools import BufferPool

PATIENCE = 10.0


@pytest.mark.parametrize("size", [1, 4096, 5000])
def test_buffers_are_aligned_apart_and_of_their_size(size: int) -> None:
    with BufferPool(3, size, pinned=False) as pool:
        buffers = [pool.acquire() for _ in range(3)]
        for n, buffer in enumerate(buffers):
            assert buffer.address % 4096 == 0
            assert buffer.address == buffer.array.ctypes.data
            assert buffer.array.shape == (size,)
            buffer.array[:] = n + 1
        assert [set(buffer.array.tolist()) for buffer in buffers] == [{1}, {2}, {3}]
        span = max(b.address for b in buffers) - min(b.address for b in buffers)
        assert span == 2 * (-(-size // 4096) * 4096), "one allocation"


def test_free_buffers_go_round() -> None:
    with BufferPool(3, 64, pinned=False) as pool:
        first, second = pool.acquire(), pool.acquire()
        assert (first.index, second.index) == (0, 1)
        first.release()
        assert [pool.acquire().index, pool.acquire().index] == [2, 0]


def test_a_released_buffer_is_out_of_reach_and_comes_back_once() -> None:
    with BufferPool(1, 64, pinned=False) as pool:
        with pool.acquire() as buffer:
            assert pool.try_acquire() is None
            buffer.release()
            assert pool.available == 1
        assert pool.available == 1
        for ask in (lambda: buffer.array, lambda: buffer.address):
            with pytest.raises(BlockStateError, match="buffer 0 was given back"):
                ask()
        again = pool.acquire()
        buffer.release()
        assert pool.available == 0, "the old loan cannot give the new one back"
        again.release()


def test_a_buffer_comes_back_after_an_error() -> None:
    with BufferPool(1, 64, pinned=False) as pool:
        with pytest.raises(ZeroDivisionError), pool.acquire():
            raise ZeroDivisionError
        assert pool.available == 1


def test_waiting_ends_in_time_with_a_reason() -> None:
    with BufferPool(2, 64, pinned=False) as pool:
        held = [pool.acquire(), pool.acquire()]
        begin = time.perf_counter()
        with pytest.raises(TierError, match=r"no buffer came free within 0\.05 s, all 2 are held; give buffers back"):
            pool.acquire(timeout=0.05)
        assert time.perf_counter() - begin >= 0.05
        stats = pool.stats()
        assert (stats["waiting"], stats["waited"], stats["in_use"]) == (0, 1, 2)
        assert stats["wait_seconds"] >= 0.05
        held[0].release()
        assert pool.acquire(timeout=0).index == 0, "who gave up gets nothing later"


def started_one_by_one(pool: BufferPool, count: int, served: list[int]) -> list[threading.Thread]:
    """Threads that wait for a buffer, in a known order."""
    threads = []
    for n in range(count):

        def wait(n: int = n) -> None:
            with pool.acquire(PATIENCE):
                served.append(n)

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        until = time.perf_counter() + PATIENCE
        while pool.stats()["waiting"] <= n and time.perf_counter() < until:
            time.sleep(0.001)
        assert pool.stats()["waiting"] == n + 1
    return threads


def test_waiters_are_served_in_the_order_of_asking() -> None:
    with BufferPool(1, 64, pinned=False) as pool:
        held, served = pool.acquire(), list[int]()
        threads = started_one_by_one(pool, 6, served)
        assert pool.try_acquire() is None
        held.release()
        for thread in threads:
            thread.join(PATIENCE)
        assert served == list(range(6))
        assert pool.available == 1


def test_an_interrupted_wait_loses_no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while waiting, before a buffer comes and just after."""
    with BufferPool(1, 64, pinned=False) as pool:
        held = pool.acquire()

        def interrupt(bell: threading.Event, timeout: float | None) -> bool:
            if turns.pop() == "after":
                held.release()
            raise KeyboardInterrupt

        monkeypatch.setattr(threading.Event, "wait", interrupt)
        turns = ["after", "before"]
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pool.acquire()
            assert pool.stats()["waiting"] == 0
        assert pool.available == 1


def test_closing_turns_waiters_away_and_keeps_what_is_lent() -> None:
    pool = BufferPool(1, 4096, pinned=False)
    held, outcomes = pool.acquire(), list[str]()

    def wait() -> None:
        try:
            pool.acquire(PATIENCE)
        except TierClosed as error:
            outcomes.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool.stats()["waiting"]:
        time.sleep(0.001)
    pool.close()
    pool.close()
    thread.join(PATIENCE)
    assert outcomes == ["this buffer pool is closed; build a new one"]
    held.array[:] = 5
    assert int(held.array.sum()) == 5 * 4096, "a lent buffer's memory stays until it is given back"
    view = held.array
    held.release()
    assert not view.any(), "then the pages are gone"
    for ask in (pool.acquire, pool.try_acquire):
        with pytest.raises(TierClosed):
            ask()
    assert "closed" in repr(pool)


def test_no_buffer_is_ever_held_twice() -> None:
    """Eight threads, three buffers: each writes its mark, yields, and must find it unchanged."""
    with BufferPool(3, 64, pinned=False) as pool:
        wrong: list[int] = []

        def work(mark: int) -> None:
            for turn in range(150):
                with pool.acquire(PATIENCE) as buffer:
                    buffer.array[:] = mark
                    if turn % 7 == 0:
                        time.sleep(0.0001)
                    if (buffer.array != mark).any():
                        wrong.append(mark)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        stats = pool.stats()
        assert not wrong
        assert (stats["acquired"], stats["available"], stats["high_water"], stats["waiting"]) == (1200, 3, 3, 0)


def test_timeouts_that_race_with_returns_lose_no_buffer() -> None:
    with BufferPool(1, 64, pinned=False) as pool:
        rng = np.random.default_rng(1)

        def work(seed: int) -> None:
            waits = np.random.default_rng(seed).random(200) * 4e-4
            for wait in waits:
                try:
                    with pool.acquire(timeout=wait):
                        time.sleep(1e-4)
                except TierError:
                    pass

        threads = [threading.Thread(target=work, args=(int(seed),)) for seed in rng.integers(0, 99, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        stats = pool.stats()
        assert (stats["available"], stats["waiting"]) == (1, 0)
        assert 0 < stats["acquired"] < 800


class PoolMachine(RuleBasedStateMachine):
    """The pool beside a list of numbers."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BufferPool(3, 64, pinned=False, lock=False)
        self.free, self.most, self.taken = [0, 1, 2], 0, 0

    @rule(target=held)
    def take(self):
        buffer = self.pool.try_acquire()
        if not self.free:
            assert buffer is None
            return None
        assert buffer is not None
        assert buffer.index == self.free.pop(0)
        self.taken += 1
        self.most = max(self.most, 3 - len(self.free))
        return buffer

    @rule(buffer=consumes(held), again=st.booleans())
    def give(self, buffer, again: bool) -> None:
        if buffer is not None:
            buffer.release()
            self.free.append(buffer.index)
            if again:
                buffer.release()

    @invariant()
    def agree(self) -> None:
        stats = self.pool.stats()
        assert (stats["available"], stats["in_use"]) == (len(self.free), 3 - len(self.free))
        assert (stats["high_water"], stats["acquired"]) == (self.most, self.taken)

    def teardown(self) -> None:
        self.pool.close()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=25, stateful_step_count=25)


def test_a_pool_says_what_memory_it_has(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), BufferPool(2, "8KiB", pinned=False) as pool:
        assert pool.kind in ("locked", "pageable")
        assert pool.locked == (pool.kind == "locked") == (not caplog.records)
        assert pool.numa_node is None or pool.numa_node >= 0
        assert "2 x 8 KiB, 2 free" in repr(pool)
    with BufferPool(2, "8KiB", pinned=False, lock=False) as pool:
        assert pool.kind == "pageable"


def test_pools_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="count: a pool of 0 buffers"):
        BufferPool(0, 4096)
    with pytest.raises(ConfigError, match="size: buffers of 0 bytes"):
        BufferPool(1, 0)
    with pytest.raises(DeviceMemoryError, match="2 PiB of host memory asked"):
        BufferPool(2, "1PiB")
