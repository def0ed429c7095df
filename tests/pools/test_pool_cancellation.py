"""Cancellation and time that is up at every turn of the loop: nothing is lost, nothing is doubled, nobody is stuck."""

from __future__ import annotations

import asyncio
import random

import pytest

from dynalab.errors import PoolTimeout
from dynalab.pools import Pool

LOOPS = ["asyncio"]
try:
    import uvloop

    LOOPS.append("uvloop")
except ImportError:
    uvloop = None


def run(main, loop="asyncio"):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        return runner.run(main)


async def borrow(pool, log, name, turns, timeout=None):
    try:
        async with pool.acquire(timeout) as item:
            log.append((name, item.value))
            for _ in range(turns):
                await asyncio.sleep(0)
    except PoolTimeout:
        log.append((name, None))


async def all_home(pool, size):
    """Everything is back where it was, and serves."""
    assert len(asyncio.all_tasks()) == 1
    assert (pool.available, pool.metrics.waiting, pool.metrics.in_use) == (size, 0, 0)
    items = [await pool.acquire(timeout=0) for _ in range(size)]
    assert len({item.value for item in items}) == size
    for item in items:
        item.release()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_task_cancelled_at_every_turn(loop, victim):
    """Three tasks on one value; one of them is cancelled after k turns, for every k until all are done."""

    async def main():
        finished = False
        turn = 0
        while not finished:
            pool, log = Pool(["v"]), []
            tasks = [asyncio.create_task(borrow(pool, log, name, turns=2)) for name in range(3)]
            for _ in range(turn):
                await asyncio.sleep(0)
            finished = all(task.done() for task in tasks)
            tasks[victim].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            others = [name for name in range(3) if name != victim]
            assert [name for name, _ in log if name != victim] == others
            assert all(results[name] is None for name in others)
            await all_home(pool, 1)
            turn += 1
        assert turn > 6

    run(main(), loop)


@pytest.mark.parametrize("cancel_first", [True, False])
def test_handed_over_and_cancelled_in_one_turn(cancel_first):
    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        first, second, third = (asyncio.create_task(pool.acquire()) for _ in range(3))
        await asyncio.sleep(0)
        for action in (first.cancel, held.release) if cancel_first else (held.release, first.cancel):
            action()
        item = await second
        assert first.cancelled()
        assert not third.done()
        assert (pool.metrics.cancelled, pool.metrics.acquires) == (1, 2)
        item.release()
        (await third).release()
        await all_home(pool, 1)

    run(main())


def test_all_cancelled_while_a_value_is_on_its_way():
    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(50)]
        await asyncio.sleep(0)
        held.release()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert all(task.cancelled() for task in waiting)
        await all_home(pool, 1)

    run(main())


def test_the_time_is_up_in_the_turn_of_the_hand_over():
    """The timer and the release happen in one turn, in both orders; the value reaches one of two who wait."""

    async def main():
        for timer_first in (True, False):
            pool = Pool([1])
            held = await pool.acquire()
            log = []
            first = asyncio.create_task(borrow(pool, log, "first", 0, timeout=1000))
            second = asyncio.create_task(borrow(pool, log, "second", 0))
            await asyncio.sleep(0)
            waiter = next(iter(pool._waiters))
            if timer_first:
                pool._expire(waiter)
                held.release()
            else:
                held.release()
                pool._expire(waiter)
            await asyncio.gather(first, second)
            expected = [("first", None), ("second", 1)] if timer_first else [("first", 1), ("second", 1)]
            assert sorted(log) == sorted(expected)
            assert pool.metrics.timeouts == timer_first
            await all_home(pool, 1)

    run(main())


def test_cancelled_and_timed_out_in_one_turn():
    async def main():
        for cancel_first in (True, False):
            pool = Pool([1])
            held = await pool.acquire()
            task = asyncio.create_task(pool.acquire(timeout=1000))
            await asyncio.sleep(0)
            waiter = next(iter(pool._waiters))
            actions = [task.cancel, lambda pool=pool, waiter=waiter: pool._expire(waiter)]
            for action in actions if cancel_first else reversed(actions):
                action()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.release()
            await all_home(pool, 1)

    run(main())


def test_closed_and_cancelled_in_one_turn():
    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        tasks = [asyncio.create_task(pool.acquire()) for _ in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        pool.close()
        tasks[1].cancel()
        held.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["CancelledError"] * 2 + ["PoolClosed"] * 2
        assert await pool.aclose(timeout=1) == [1]

    run(main())


def test_a_body_that_is_cancelled_gives_its_item_back():
    async def main():
        pool = Pool([1])
        task = asyncio.create_task(borrow(pool, [], "x", turns=1000))
        await asyncio.sleep(0)
        assert pool.available == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await all_home(pool, 1)

    run(main())


def test_a_generator_that_is_thrown_away_takes_nothing():
    """A coroutine that waits and is closed, as those of a loop that ends are."""

    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        for asked in (pool.acquire(), borrow(pool, [], "x", 0)):
            asked.send(None)
            assert pool.metrics.waiting == 1
            asked.close()
            assert pool.metrics.waiting == 0
        held.release()
        await all_home(pool, 1)

    run(main())


def test_cancelled_while_it_waits_for_its_second_try():
    """Given an unhealthy value, a waiter stands in the queue again, and is cancelled there."""

    async def main():
        pool = Pool(["sick", "well"], check=lambda value: value != "sick now")
        sick, well = await pool.acquire(), await pool.acquire()
        first, second = (asyncio.create_task(pool.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        sick.value = "sick now"
        sick.release()
        await asyncio.sleep(0)
        first.cancel()
        well.release()
        item = await second
        assert (item.value, first.cancelled(), pool.capacity) == ("well", True, 1)
        item.release()
        await all_home(pool, 1)

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("seed", range(4))
def test_random_storms(loop, seed):
    """Tasks that come, hold, time out and are cancelled at random: whoever was not, is served in his turn."""

    async def storm(pool, log, waited, name, turns, timeout):
        if not pool.available:
            waited.add(name)
        await borrow(pool, log, name, turns, timeout)

    async def main():
        draw = random.Random(seed)
        pool, log, waited = Pool(range(3)), [], set()
        tasks, cancelled = [], set()
        for name in range(300):
            timeout = draw.choice([None, None, 1e-4, 1e-3, 0])
            tasks.append(asyncio.create_task(storm(pool, log, waited, name, draw.randrange(8), timeout)))
            for _ in range(draw.randrange(2)):
                await asyncio.sleep(0)
            if draw.random() < 0.3:
                victim = draw.randrange(len(tasks))
                tasks[victim].cancel()
                cancelled.add(victim)
        await asyncio.gather(*tasks, return_exceptions=True)
        # Who found a free value may go on before one wakes to whom another value was given earlier.
        served = [name for name, value in log if value is not None and name in waited and name not in cancelled]
        assert served == sorted(served)
        assert len(served) > 20
        assert {name for name, _ in log} | cancelled == set(range(300))
        await all_home(pool, 3)

    run(main(), loop)
