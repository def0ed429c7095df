"""Object pools beside what one would take instead, in one process: SQLAlchemy's QueuePool, and an asyncio.Queue.

Run with ``python -m pytest tests/benchmarks/test_pool_speed.py --benchmark-only -s``.

All sides run in turns, and what is asserted are medians of the ratios of each round. The rivals: QueuePool with a
connection that does nothing, with its reset on return and without; an asyncio.Queue with a time limit by
``asyncio.timeout`` or ``asyncio.wait_for``, whichever is faster, that counts what our pool counts. Ours counts always.

Where items are too few, a task or thread must be put to sleep and woken for each acquire, on either side: that is most
of the time then, and what is asserted is less. And there the rivals let newcomers overtake: they are spared much of the
sleeping, and somebody else pays; ours serves in the order of asking.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import pytest

from dynalab.pools import Pool, SyncPool
from dynalab.pools.pool_metrics import WAIT_BOUNDS

ITEMS, ROUNDS, BAR = 8, 15, 3.0
TIMEOUT = 10.0


class Connection:
    """What QueuePool pools here."""

    def rollback(self):
        pass

    def close(self):
        pass


class TimedQueue:
    """A pool as one makes it of asyncio.Queue."""

    def __init__(self, values, by_timeout):
        self.queue = asyncio.Queue()
        for value in values:
            self.queue.put_nowait(value)
        self.get = self.get_by_timeout if by_timeout else self.get_by_wait_for
        self.acquires = self.waits = self.timeouts = self.in_use = self.high_water = 0
        self.wait_seconds = 0.0
        self.wait_counts = [0] * (len(WAIT_BOUNDS) + 1)

    async def get_by_timeout(self, timeout):
        async with asyncio.timeout(timeout):
            return await self.queue.get()

    async def get_by_wait_for(self, timeout):
        return await asyncio.wait_for(self.queue.get(), timeout)

    async def acquire(self, timeout):
        begin = time.perf_counter()
        if self.queue.empty():
            self.waits += 1
        try:
            value = await self.get(timeout)
        except TimeoutError:
            self.timeouts += 1
            raise
        waited = time.perf_counter() - begin
        self.acquires += 1
        self.wait_counts[bisect_left(WAIT_BOUNDS, waited)] += 1
        self.wait_seconds += waited
        self.in_use += 1
        self.high_water = max(self.high_water, self.in_use)
        return value

    def release(self, value):
        self.in_use -= 1
        self.queue.put_nowait(value)


def ratios(benchmark, sides: dict[str, Callable[[], float]], bare: str = "") -> dict[str, float]:
    """Run all sides once a round; returns the median of each side's seconds over those of the first.

    Parameters
    ----------
    sides : dict of str to callable
        Each returns the seconds of one acquire and release; ours is the first.
    bare : str
        The side that is no pool at all: what it takes is taken off the others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()

    def once():
        for name, side in sides.items():
            seconds[name].append(side())

    benchmark.pedantic(once, rounds=ROUNDS)
    net = {name: np.array(values) - (np.array(seconds[bare]) if bare else 0.0) for name, values in seconds.items()}
    ours, *others = (name for name in sides if name != bare)
    found = {name: float(np.median(net[name] / net[ours])) for name in others}
    figures = {name: float(np.median(values)) for name, values in net.items() if name != bare}
    benchmark.extra_info.update(figures)
    told = ", ".join(f"{name} {figures[name] * 1e6:.2f} us = {ratio:.1f} times" for name, ratio in found.items())
    print(f"\n{ours} {figures[ours] * 1e6:.2f} us; {told}")
    return found


def in_threads(work: Callable[[], object], threads: int, each: int) -> float:
    """Return the seconds of one of `work`, done `each` times by each of so many threads."""
    start = threading.Barrier(threads)
    begins, ends = [], []

    def body():
        start.wait()
        begins.append(time.perf_counter())
        for _ in range(each):
            work()
        ends.append(time.perf_counter())

    workers = [threading.Thread(target=body) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (max(ends) - min(begins)) / (threads * each)


@pytest.mark.parametrize(
    ("threads", "each", "hold", "bar"),
    [(1, 8000, False, BAR), (ITEMS, 1000, False, BAR), (2 * ITEMS, 100, True, 0.5)],
    ids=["alone", "as many as items", "twice as many, that let others run"],
)
def test_threads(benchmark, threads, each, hold, bar):
    from sqlalchemy.pool import QueuePool

    ours = SyncPool([Connection() for _ in range(ITEMS)])
    plain = {"pool_size": ITEMS, "max_overflow": 0, "timeout": TIMEOUT}
    rivals = {"QueuePool": QueuePool(Connection, **plain)}
    rivals["QueuePool without reset"] = QueuePool(Connection, reset_on_return=None, **plain)

    def borrow():
        item = ours.acquire(TIMEOUT)
        if hold:
            time.sleep(0)
        item.release()

    def connect(pool):
        connection = pool.connect()
        if hold:
            time.sleep(0)
        connection.close()

    sides = {"SyncPool": lambda: in_threads(borrow, threads, each)}
    for name, pool in rivals.items():
        sides[name] = lambda pool=pool: in_threads(lambda: connect(pool), threads, each)
    found = ratios(benchmark, sides)
    assert (ours.metrics.waits > 0) == hold
    assert min(found.values()) > bar


async def tasks_with(pool, tasks: int, each: int, hold: bool) -> float:
    """Return the seconds of one acquire and release by so many tasks, each time across a turn of the loop or not."""

    async def ours():
        for _ in range(each):
            item = await pool.acquire(TIMEOUT)
            if hold:
                await asyncio.sleep(0)
            item.release()

    async def rival():
        for _ in range(each):
            value = await pool.acquire(TIMEOUT)
            if hold:
                await asyncio.sleep(0)
            pool.release(value)

    async def bare():
        for _ in range(each):
            if hold:
                await asyncio.sleep(0)

    body = bare if pool is None else ours if isinstance(pool, Pool) else rival
    begin = time.perf_counter()
    await asyncio.gather(*[body() for _ in range(tasks)])
    return (time.perf_counter() - begin) / (tasks * each)


@pytest.mark.parametrize(
    ("tasks", "each", "bar"),
    [(1, 3000, BAR), (ITEMS, 300, BAR), (8 * ITEMS, 40, 1.0), (64 * ITEMS, 1, 1.0)],
    ids=["alone", "as many as items", "eight times as many", "a queue of strangers"],
)
def test_tasks(benchmark, tasks, each, bar):
    """The last: tasks that come once, so that nobody can overtake by coming back."""
    with asyncio.Runner() as runner:
        ours = Pool(range(ITEMS))
        pools = {
            "Pool": ours,
            "Queue with timeout": TimedQueue(range(ITEMS), by_timeout=True),
            "Queue with wait_for": TimedQueue(range(ITEMS), by_timeout=False),
            "bare": None,
        }
        hold = tasks > 1
        repeats = max(1, 2000 // (tasks * each))
        sides = {
            name: lambda pool=pool: float(
                np.mean([runner.run(tasks_with(pool, tasks, each, hold)) for _ in range(repeats)])
            )
            for name, pool in pools.items()
        }
        found = ratios(benchmark, sides, bare="bare")
    assert ours.metrics.acquires > tasks * each * ROUNDS
    assert min(found.values()) > bar
