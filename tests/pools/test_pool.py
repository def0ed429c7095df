"""The pool of tasks: order, hand-over, timeouts, sharing, health, loops, the end, and what it says when misused."""

from __future__ import annotations

import asyncio
import threading
import warnings

import pytest

from dynalab.errors import ConfigError, PoolClosed, PoolError, PoolExhausted, PoolTimeout
from dynalab.pools import Pool, PoolItem


class Counter:
    """A value that can be changed in place, as those of the reference's tests."""

    def __init__(self, number):
        self.number = number

    def reset(self):
        self.number = 0


def counters(*numbers):
    return Pool([Counter(number) for number in numbers], on_return=Counter.reset)


async def turns(n=3):
    for _ in range(n):
        await asyncio.sleep(0)


def test_values_come_in_order_and_go_to_the_back_reset():
    async def main():
        pool = counters(1, 2, 3, 4, 5)
        assert pool.capacity == 5
        async with pool.acquire() as item:
            assert item.value.number == 1
            item.value.number += 10
        drained = [pool.try_acquire() for _ in range(5)]
        assert [item.value.number for item in drained] == [2, 3, 4, 5, 0]
        assert pool.try_acquire() is None
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.01)
        for item in drained:
            item.release()
        again = await pool.acquire(timeout=0.01)
        assert again.value.number == 0
        again.release()

    asyncio.run(main())


def test_a_value_may_be_put_in_the_place_of_another():
    async def main():
        pool = Pool(["old"])
        async with pool.acquire() as item:
            item.value = "new"
        async with pool.acquire() as item:
            assert item.value == "new"

    asyncio.run(main())


def test_a_free_value_does_not_suspend():
    async def main():
        pool = Pool([1])
        others = asyncio.create_task(asyncio.sleep(0))
        for _ in range(5):
            async with pool.acquire(timeout=1):
                pass
            (await pool.acquire()).release()
        assert not others.done()
        await others

    asyncio.run(main())


def test_who_asks_first_is_served_first_and_nobody_overtakes():
    async def main():
        pool = Pool([0])
        held = await pool.acquire()
        order = []

        async def ask(number):
            async with pool.acquire():
                order.append(number)

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0)
        held.release()
        # The value is given away, though nobody has run yet.
        assert pool.try_acquire() is None
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_asked_for_twice_gives_two_items_but_not_in_one_with():
    async def main():
        pool = Pool([1, 2])
        asked = pool.acquire()
        first, second = await asked, await asked
        assert (first.value, second.value) == (1, 2)
        first.release()
        second.release()
        asked = pool.acquire()
        async with asked:
            with pytest.raises(PoolError, match="call acquire\\(\\) again"):
                async with asked:
                    pass
        assert pool.available == 2

    asyncio.run(main())


def test_nothing_is_taken_before_it_is_awaited():
    async def main():
        pool = Pool([1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                pool.acquire()
        assert (pool.available, pool.metrics.acquires) == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize("wrap", ["task", "gather", "wait_for", "threadsafe", "timeout"])
def test_it_goes_where_coroutines_go(wrap):
    async def main():
        pool = Pool([7])
        held = await pool.acquire()
        asyncio.get_running_loop().call_later(0.005, held.release)
        if wrap == "task":
            item = await asyncio.create_task(pool.acquire(timeout=5))
        elif wrap == "gather":
            (item,) = await asyncio.gather(pool.acquire(timeout=5))
        elif wrap == "wait_for":
            item = await asyncio.wait_for(pool.acquire(), 5)
        elif wrap == "timeout":
            async with asyncio.timeout(5):
                item = await pool.acquire()
        else:
            loop = asyncio.get_running_loop()
            future = asyncio.run_coroutine_threadsafe(pool.acquire(), loop)
            item = await asyncio.wrap_future(future)
        assert item.value == 7
        item.release()

    asyncio.run(main())


def test_a_task_of_it_that_never_runs_or_is_cancelled_takes_nothing():
    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        never = asyncio.create_task(pool.acquire())
        never.cancel()
        waits = asyncio.create_task(pool.acquire())
        await turns()
        waits.cancel()
        held.release()
        await turns()
        assert never.cancelled()
        assert waits.cancelled()
        assert pool.available == 1
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0, 0.0, 0.002])
def test_the_time_is_up(timeout):
    async def main():
        pool = Pool(["only"], name="single")
        async with pool.acquire():
            begin = asyncio.get_running_loop().time()
            with pytest.raises(PoolTimeout, match=rf"'single'.*within {timeout} s.*all 1 are in use"):
                await pool.acquire(timeout)
            assert asyncio.get_running_loop().time() - begin >= timeout
            with pytest.raises(TimeoutError):
                async with pool.acquire(timeout):
                    pass
        metrics = pool.metrics
        assert (metrics.timeouts, metrics.waits, metrics.cancelled, metrics.waiting) == (2, 2, 0, 0)

    asyncio.run(main())


def test_times_are_up_in_their_own_order():
    async def main():
        pool = Pool([0])
        gone = []

        async def ask(timeout):
            try:
                await pool.acquire(timeout)
            except PoolTimeout:
                gone.append(timeout)

        async with pool.acquire():
            await asyncio.gather(*[ask(timeout) for timeout in (0.03, 0.01, 0.02, 0.005, 0.025)])
        assert gone == sorted(gone)
        assert len(gone) == 5

    asyncio.run(main())


def test_deadlines_of_the_served_do_not_pile_up():
    async def main():
        pool = Pool([0])

        async def borrow():
            async with pool.acquire(timeout=1000):
                pass

        for _ in range(20):
            async with pool.acquire():
                waiting = [asyncio.create_task(borrow()) for _ in range(50)]
                await turns()
            await asyncio.gather(*waiting)
        assert pool.metrics.waits == 1000
        assert len(pool._deadlines._heap) <= 200

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", -0.1])
def test_no_time_to_wait_is_refused_even_if_a_value_is_free(timeout):
    pool = Pool([1])
    for ask in (pool.acquire, pool.acquire_blocking):
        with pytest.raises(ConfigError, match="timeout"):
            ask(timeout)


def test_for_ever_is_a_time_too():
    async def main():
        pool = Pool([1])
        held = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire(timeout=float("inf")))
        await turns()
        held.release()
        (await waiting).release()

    asyncio.run(main())


def test_a_pool_lives_through_loops_one_after_the_other():
    pool = Pool([1])

    async def once():
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.001)
        return pool.metrics.timeouts

    assert [asyncio.run(once()) for _ in range(3)] == [1, 2, 3]


def test_who_waited_on_a_loop_that_was_closed_is_passed_over():
    pool = Pool([1])

    async def leave_waiting():
        item = await pool.acquire()
        asyncio.get_running_loop().stop()
        return item

    loop = asyncio.new_event_loop()
    holder = loop.create_task(leave_waiting())
    stuck = loop.create_task(pool.acquire())
    loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    holder.result().release()
    assert pool.available == 1
    stuck.get_coro().close()

    async def other():
        async with pool.acquire(timeout=1) as item:
            return item.value

    assert asyncio.run(other()) == 1


def test_a_second_loop_is_refused():
    pool = Pool([1, 2], name="ours")
    refused = []

    async def other():
        for _ in range(2):
            try:
                await pool.acquire(timeout=0.01)
            except PoolError as error:
                refused.append(str(error))

    async def main():
        async with pool.acquire():
            await asyncio.to_thread(asyncio.run, other())

    asyncio.run(main())
    assert len(refused) == 2
    assert all("'ours' is in use by another event loop" in text for text in refused)
    assert pool.available == 2


def test_a_second_loop_of_the_same_thread_may_not_wait_while_items_of_the_first_are_out():
    pool = Pool([1])
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        held = first.run_until_complete(asyncio.wait_for(pool.acquire(), 1))
        with pytest.raises(PoolError, match="another event loop"):
            second.run_until_complete(asyncio.wait_for(pool.acquire(), 1))
        held.release()
        second.run_until_complete(asyncio.wait_for(pool.acquire(), 1)).release()
    finally:
        first.close()
        second.close()


def test_other_threads_wait_in_the_same_queue():
    async def main():
        pool = Pool(["x"])
        order = []
        inside = threading.Event()

        def thread():
            with pool.acquire_blocking(timeout=10) as item:
                order.append(("thread", item.value))
                inside.set()

        async def task(name):
            async with pool.acquire(timeout=10):
                order.append((name, "x"))

        held = await pool.acquire()
        first = asyncio.create_task(task("first"))
        await turns()
        worker = threading.Thread(target=thread)
        worker.start()
        while pool.metrics.waiting < 2:
            await asyncio.sleep(0.001)
        last = asyncio.create_task(task("last"))
        await turns()
        held.release()
        await asyncio.gather(first, last)
        worker.join()
        assert order == [("first", "x"), ("thread", "x"), ("last", "x")]
        assert inside.is_set()

    asyncio.run(main())


def test_a_thread_may_release_what_a_task_took():
    async def main():
        pool = Pool([1])
        item = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire(timeout=10))
        await turns()
        await asyncio.to_thread(item.release)
        assert (await waiting).value == 1
        (waiting.result()).release()
        with pytest.raises(PoolTimeout):
            async with pool.acquire():
                await asyncio.to_thread(pool.acquire_blocking, 0.01)
        assert pool.available == 1

    asyncio.run(main())


def test_blocking_the_loop_is_refused():
    async def main():
        pool = Pool([1])
        with pytest.raises(PoolError, match="await acquire\\(\\) instead"):
            pool.acquire_blocking()
        assert pool.available == 1

    asyncio.run(main())


def test_closing_turns_waiters_away_and_waits_for_items():
    async def main():
        pool = Pool(["a", "b", "c"], name="shut")
        held = [await pool.acquire() for _ in range(3)]
        waiting = [asyncio.create_task(pool.acquire(timeout=10)) for _ in range(3)]
        await turns()
        closing = asyncio.create_task(pool.aclose())
        await turns()
        for task in waiting:
            with pytest.raises(PoolClosed, match="'shut' is closed"):
                await task
        for ask in (pool.try_acquire, lambda: pool.acquire_blocking(1)):
            with pytest.raises(PoolError):
                ask()
        with pytest.raises(PoolClosed):
            await pool.acquire()
        held[1].release()
        await turns()
        assert not closing.done()
        with pytest.raises(PoolTimeout, match="2 of 3 items are still out"):
            await pool.aclose(timeout=0.001)
        shared = held[0].share()
        held[2].release()
        shared.release()
        assert await closing == ["b", "c", "a"]
        assert await pool.aclose() == ["b", "c", "a"]
        assert pool.closed
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_what_was_handed_over_before_the_close_is_still_used():
    async def main():
        async with Pool([1]) as pool:
            held = await pool.acquire()
            waiting = asyncio.create_task(pool.acquire())
            await turns()
            held.release()
            pool.close()
            item = await waiting
            assert item.value == 1
            item.release()
        assert await pool.aclose(timeout=1) == [1]

    asyncio.run(main())


def test_a_close_does_not_wait_for_a_value_that_has_left_the_pool():
    async def main():
        pool = Pool(["a"], check=lambda value: value != "sick")
        held = await pool.acquire()
        held.value = "sick"
        waiting = asyncio.create_task(pool.acquire())
        await turns()
        # The close begins while the sick value is on its way to who waits.
        closing = asyncio.create_task(pool.aclose(timeout=10))
        held.release()
        with pytest.raises(PoolClosed):
            await waiting
        assert await closing == []

    asyncio.run(main())


def test_everybody_is_told_when_no_healthy_value_is_left():
    async def main():
        pool = Pool([1, 2], check=lambda value: value < 10, name="frail")
        held = [await pool.acquire() for _ in range(2)]
        waiting = [asyncio.create_task(pool.acquire(timeout=10)) for _ in range(4)]
        await turns()
        for item in held:
            item.value = 99
            item.release()
        for task in waiting:
            with pytest.raises(PoolExhausted, match=r"'frail'.*no healthy value"):
                await task
        with pytest.raises(PoolExhausted):
            await pool.acquire()
        with pytest.raises(PoolExhausted):
            pool.try_acquire()
        metrics = pool.metrics
        assert (metrics.capacity, metrics.in_use, metrics.unhealthy, metrics.acquires) == (0, 0, 2, 2)
        assert await pool.aclose(timeout=1) == []

    asyncio.run(main())


def test_an_unhealthy_value_handed_to_a_waiter_costs_him_nothing_but_time():
    async def main():
        pool = Pool(["bad", "good"], check=lambda value: value != "spoilt")
        bad, good = await pool.acquire(), await pool.acquire()
        order = []

        async def ask(name):
            async with pool.acquire(timeout=10) as item:
                order.append((name, item.value))

        tasks = [asyncio.create_task(ask(name)) for name in "ab"]
        await turns()
        bad.value = "spoilt"
        bad.release()
        await turns()
        assert not order
        assert pool.capacity == 1
        good.release()
        await asyncio.gather(*tasks)
        assert order == [("a", "good"), ("b", "good")]

    asyncio.run(main())


def test_an_unhealthy_value_sends_a_waiter_to_one_that_is_free_by_now():
    async def main():
        pool = Pool(["a", "b"], check=lambda value: value != "sick")
        first, second = await pool.acquire(), await pool.acquire()
        waiting = asyncio.create_task(pool.acquire(timeout=10))
        await turns()
        first.value = "sick"
        first.release()
        second.release()
        assert pool.available == 1
        item = await waiting
        assert (item.value, pool.capacity, pool.metrics.waits) == ("b", 1, 1)
        item.release()

    asyncio.run(main())


def test_an_item_says_what_it_is():
    async def main():
        pool = Pool([1], name="said")
        item = await pool.acquire()
        assert repr(item) == "PoolItem('said', held)"
        assert repr(pool) == "Pool('said', 1 values, 0 free, 0 waiting)"
        assert "test_pool.py:" in item.taken_at
        assert item.taken_at.endswith(" in main")
        item.release()
        assert item.released
        assert repr(item) == "PoolItem('said', given back)"
        pool.close()
        assert repr(pool) == "Pool('said', 1 values, closed)"

    asyncio.run(main())
    with pytest.raises(PoolError, match="only pools make these"):
        PoolItem()
