"""Ten thousand tasks on eight items, of which many are cancelled or time out: nobody starves, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import warnings
import weakref
from collections import Counter

import pytest

from dynalab.errors import PoolTimeout
from dynalab.pools import Pool

WAITERS, ITEMS = 10_000, 8


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_thousand_waiters_on_eight_items(seed):
    draw = random.Random(seed)
    outcome: dict[int, str] = {}
    served: list[int] = []
    holders = [0] * ITEMS

    async def borrow(pool, number, timeout):
        try:
            async with pool.acquire(timeout) as item:
                served.append(number)
                holders[item.value] += 1
                assert holders[item.value] == 1, "two hold one item"
                for _ in range(number % 3):
                    await asyncio.sleep(0)
                holders[item.value] -= 1
            outcome[number] = "served"
        except PoolTimeout:
            outcome[number] = "timed out"
        except asyncio.CancelledError:
            outcome[number] = "cancelled"
            raise

    async def main():
        pool = Pool(range(ITEMS), on_return=lambda value: holders.__setitem__(value, 0))
        timeouts = [draw.choice([None, None, None, 0.0, 0.001, 0.02, 0.2]) for _ in range(WAITERS)]
        tasks = [asyncio.create_task(borrow(pool, number, timeouts[number])) for number in range(WAITERS)]
        victims = draw.sample(range(WAITERS), WAITERS // 4)
        for victim in victims[: len(victims) // 2]:
            tasks[victim].cancel()
        await asyncio.sleep(0)
        for count, victim in enumerate(victims[len(victims) // 2 :]):
            tasks[victim].cancel()
            if count % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

        # Nobody starved: whoever set no time and was not cancelled was served, and all were in the order of asking.
        patient = {number for number in range(WAITERS) if timeouts[number] is None} - set(victims)
        assert len(patient) > WAITERS // 4
        assert all(outcome[number] == "served" for number in patient)
        assert served == sorted(served)
        assert len(served) == len(set(served))
        # Every other one had one outcome; those who were cancelled before they ran have none.
        counts = Counter(outcome.values())
        assert counts["timed out"] > 100
        assert counts["cancelled"] > 100
        never_ran = sum(1 for number in victims if number not in outcome)
        assert counts.total() + never_ran == WAITERS

        metrics = pool.metrics
        assert (metrics.capacity, metrics.in_use, metrics.waiting, metrics.leaked) == (ITEMS, 0, 0, 0)
        assert metrics.acquires == len(served) == sum(metrics.wait_counts)
        assert metrics.acquires + metrics.timeouts + metrics.cancelled == WAITERS - never_ran
        # Whose time was up may have been cancelled before he woke.
        assert metrics.timeouts >= counts["timed out"]
        assert metrics.high_water == ITEMS
        assert len(asyncio.all_tasks()) == 1
        assert sorted(await pool.aclose(timeout=1)) == list(range(ITEMS))
        return weakref.ref(pool)

    pool = asyncio.run(main())
    gc.collect()
    assert pool() is None, "something of the crowd still holds the pool"


def test_tasks_threads_and_garbage_on_one_pool():
    """Tasks that are cancelled, threads, items that nobody releases, a hook that fails: all values come home."""

    def fail_sometimes(value):
        if draw.random() < 0.1:
            raise ValueError

    def thread(number):
        mine = random.Random(number)
        for _ in range(100):
            try:
                item = pool.acquire_blocking(mine.choice([10, 0, 1e-4, 1e-3]))
            except PoolTimeout:
                continue
            if mine.random() < 0.1:
                cycle = [item]
                cycle.append(cycle)
                del item, cycle
                continue
            with contextlib.suppress(ValueError):
                (item.share() if mine.random() < 0.2 else item).release()

    async def task(number):
        mine = random.Random(number)
        for _ in range(20):
            with contextlib.suppress(PoolTimeout, ValueError):
                async with pool.acquire(mine.choice([10, 0, 1e-4, 1e-3])):
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main():
        tasks = [asyncio.create_task(task(number)) for number in range(100)]
        threads = [asyncio.create_task(asyncio.to_thread(thread, number)) for number in range(4)]
        while not all(each.done() for each in threads):
            tasks[draw.randrange(len(tasks))].cancel()
            gc.collect()
            await asyncio.sleep(0.001)
        await asyncio.gather(*threads)
        await asyncio.gather(*tasks, return_exceptions=True)
        gc.collect()
        metrics = pool.metrics
        assert (metrics.in_use, metrics.waiting, metrics.capacity) == (0, 0, 4)
        assert min(metrics.leaked, metrics.unhealthy, metrics.cancelled) > 0
        assert sorted(await pool.aclose(timeout=10)) == [0, 1, 2, 3]
        assert len(asyncio.all_tasks()) == 1

    draw = random.Random(0)
    pool = Pool(range(4), on_return=fail_sometimes, replace=lambda value: value)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gc.freeze()  # all that was there before need not be looked through each time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            asyncio.run(main())
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
