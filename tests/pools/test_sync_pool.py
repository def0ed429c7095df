"""The pool of threads: order, hand-over, timeouts, interrupts, the end."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time

import pytest

from dynalab.errors import ConfigError, PoolClosed, PoolExhausted, PoolTimeout
from dynalab.pools import SyncPool
from dynalab.pools._store import Condemned


def start(target, *arguments):
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


def until(condition):
    """Wait for what another thread does."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it does not happen")


def test_values_come_in_order_and_go_to_the_back_reset():
    pool = SyncPool([[1], [2], [3]], on_return=lambda value: value.__setitem__(0, 0))
    items = [pool.try_acquire() for _ in range(3)]
    assert [item.value[0] for item in items] == [1, 2, 3]
    assert pool.try_acquire() is None
    for item in items:
        item.release()
    with pool.acquire() as item:
        assert item.value == [0]


def test_a_blocked_thread_goes_on_after_a_release():
    pool = SyncPool(["v"])
    passed = []
    held = pool.acquire()
    workers = [start(lambda: passed.append(pool.acquire_blocking().release())) for _ in range(2)]
    until(lambda: pool.metrics.waiting == 2)
    assert passed == []
    held.release()
    for worker in workers:
        worker.join(10)
    assert len(passed) == 2
    assert pool.available == 1


def test_who_asks_first_is_served_first_and_nobody_overtakes():
    pool = SyncPool([0])
    held = pool.acquire()
    order = []

    def ask(number):
        with pool.acquire(timeout=10):
            order.append(number)

    workers = []
    for number in range(8):
        workers.append(start(ask, number))
        until(lambda: pool.metrics.waiting == len(workers))
    held.release()
    assert pool.try_acquire() is None or len(order) == 8
    for worker in workers:
        worker.join(10)
    assert order == list(range(8))


def test_the_time_is_up():
    pool = SyncPool(["only"], name="single")
    with pool.acquire():
        for timeout in (0, 0.01):
            begin = time.perf_counter()
            with pytest.raises(PoolTimeout, match=f"'single'.*within {timeout} s"):
                pool.acquire(timeout)
            assert time.perf_counter() - begin >= timeout
    assert (pool.metrics.timeouts, pool.metrics.waiting, pool.available) == (2, 0, 1)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_no_time_to_wait_is_refused(timeout):
    pool = SyncPool([1])
    with pytest.raises(ConfigError, match="timeout"):
        pool.acquire(timeout)
    with pytest.raises(ConfigError, match="timeout"):
        pool.close_and_wait(timeout)


def test_a_very_long_time_is_one():
    pool = SyncPool([1])
    held = pool.acquire()
    got = []
    worker = start(lambda: got.append(pool.acquire(float("inf"))))
    until(lambda: pool.metrics.waiting)
    held.release()
    worker.join(10)
    got[0].release()


def test_an_interrupt_while_waiting_takes_nothing_with_it():
    assert threading.current_thread() is threading.main_thread()
    pool = SyncPool([1])
    held = pool.acquire()

    def interrupt():
        until(lambda: pool.metrics.waiting)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    worker = start(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    worker.join(10)
    metrics = pool.metrics
    assert (metrics.waiting, metrics.cancelled, metrics.in_use) == (0, 1, 1)
    held.release()
    assert pool.available == 1


def test_an_interrupt_after_the_hand_over_passes_the_value_on(monkeypatch):
    """The value has come, and the interrupt comes before the waiter has looked."""
    from dynalab.pools._waiting import ThreadWaiter

    pool = SyncPool([1])
    held = pool.acquire()
    real = ThreadWaiter.wait

    def wait_and_be_interrupted(waiter, seconds):
        if threading.current_thread() is threading.main_thread():
            held.release()
            raise KeyboardInterrupt
        return real(waiter, seconds)

    monkeypatch.setattr(ThreadWaiter, "wait", wait_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    assert (pool.available, pool.metrics.in_use, pool.metrics.cancelled) == (1, 0, 1)


def test_a_time_that_is_up_just_when_the_value_comes(monkeypatch):
    from dynalab.pools._waiting import ThreadWaiter

    pool = SyncPool([1])
    held = pool.acquire()

    def too_late(waiter, seconds):
        held.release()
        return False

    monkeypatch.setattr(ThreadWaiter, "wait", too_late)
    item = pool.acquire(timeout=0.001)
    assert (item.value, pool.metrics.timeouts) == (1, 0)
    item.release()


def test_closing_turns_waiters_away_and_waits_for_items():
    with SyncPool(["a", "b"], name="shut") as pool:
        held = [pool.acquire(), pool.acquire()]
        errors = []

        def ask():
            try:
                pool.acquire()
            except PoolClosed as error:
                errors.append(str(error))

        workers = [start(ask) for _ in range(3)]
        until(lambda: pool.metrics.waiting == 3)
        with pytest.raises(PoolTimeout, match=r"2 of 2 items are still out after 0\.01 s"):
            pool.close_and_wait(timeout=0.01)
        for worker in workers:
            worker.join(10)
        assert errors == ["pool 'shut' is closed; build a new one"] * 3
        home = []
        closing = start(lambda: home.extend(pool.close_and_wait()))
        held[1].release()
        assert closing.is_alive()
        held[0].release()
        closing.join(10)
        assert home == ["b", "a"]
    assert pool.closed


def test_a_closed_pool_gives_back_values_whose_hook_failed():
    pool = SyncPool(["a"], on_return=lambda value: value.missing)
    item = pool.acquire()
    pool.close()
    with pytest.raises(AttributeError):
        item.release()
    assert pool.close_and_wait(timeout=1) == ["a"]


def test_everybody_is_told_when_no_healthy_value_is_left():
    pool = SyncPool([1], check=lambda value: value == 1)
    held = pool.acquire()
    errors = []

    def ask():
        try:
            pool.acquire()
        except PoolExhausted as error:
            errors.append(error)

    workers = [start(ask) for _ in range(3)]
    until(lambda: pool.metrics.waiting == 3)
    held.value = 2
    held.release()
    for worker in workers:
        worker.join(10)
    assert len(errors) == 3
    assert pool.capacity == 0


def test_a_value_that_another_thread_snatches_before_the_lock_is_not_there():
    pool = SyncPool([1])
    found = []
    with pool._lock:
        worker = start(lambda: found.append(pool.try_acquire()))
        time.sleep(0.02)  # by now he has seen a free value, and waits for the lock
        pool._home.append(pool._free.popleft())
    worker.join(10)
    assert found == [None]


def test_a_value_that_another_thread_condemns_before_the_lock_is_replaced():
    def fail(value):
        raise ValueError

    pool = SyncPool(["old"], on_return=fail, replace=lambda value: "new")
    found = []
    held = pool.acquire()
    pool._free.append("there")  # as if there were a value; what is handed over below takes its place
    with pool._lock:
        worker = start(lambda: found.append(pool.try_acquire()))
        time.sleep(0.02)  # by now he has seen that no value needs care, and waits for the lock
        pool._free.clear()
        pool._careful = True
        pool._put(Condemned(held._value))
    worker.join(10)
    assert found[0].value == "new"
    held._live = False
    with pytest.raises(ValueError):
        found[0].release()


def test_a_crowd_of_threads_with_times_that_are_up_loses_and_doubles_nothing():
    """Many threads on few items, switched as often as Python can; values are counted by whoever holds them."""
    holders = [0] * 4
    pool = SyncPool(range(4), on_return=lambda value: None)
    wrong = []
    served = [0] * 24

    def work(number):
        draw = random.Random(number)
        for _ in range(300):
            try:
                with pool.acquire(timeout=draw.choice([None, None, 0, 1e-5, 1e-4, 1e-3])) as item:
                    holders[item.value] += 1
                    if draw.random() < 0.5:
                        time.sleep(0)
                    if holders[item.value] != 1:
                        wrong.append(item.value)
                    holders[item.value] -= 1
                    served[number] += 1
            except PoolTimeout:
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [start(work, number) for number in range(len(served))]
        for worker in workers:
            worker.join(60)
    finally:
        sys.setswitchinterval(interval)
    metrics = pool.metrics
    assert wrong == []
    assert sorted(pool.close_and_wait(timeout=10)) == [0, 1, 2, 3]
    # Who set no time was served: a third of the calls at least.
    assert min(served) >= 50
    assert (metrics.acquires, metrics.acquires + metrics.timeouts) == (sum(served), 24 * 300)
    assert (metrics.in_use, metrics.waiting, metrics.high_water) == (0, 0, 4)
    assert not [thread for thread in workers if thread.is_alive()]
