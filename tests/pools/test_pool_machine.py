"""Random walks of both kinds of pool beside a plain model: every request ends as the model says, no value is lost."""

from __future__ import annotations

import asyncio
import threading
import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lending_model import LendingModel

from dynalab.errors import PoolError
from dynalab.pools import Pool, SyncPool


class Walk(RuleBasedStateMachine):
    """What both walks do; the children know how to ask, and when everything has come to rest."""

    @initialize(size=st.integers(1, 3))
    def build(self, size):
        self.model = LendingModel(range(size))
        self.pool = self.kind(range(size), check=lambda value: value not in self.model.sick)
        self.number = 0
        self.items = {}
        self.settled = True

    def pick(self, data, numbers):
        return data.draw(st.sampled_from(sorted(numbers)))

    @rule()
    def ask(self):
        self.model.ask(self.number)
        self.start(self.number)
        self.number += 1
        self.rest()

    @precondition(lambda self: self.settled and self.model.held)
    @rule(data=st.data())
    def release(self, data):
        number = self.pick(data, self.model.held)
        self.model.release(number)
        self.items.pop(number).release()
        self.rest()

    @precondition(lambda self: self.settled and len(self.model.held) > 1)
    @rule()
    def release_all_at_once(self):
        for number in sorted(self.model.held):
            self.model.release(number)
            self.items.pop(number).release()
        self.rest()

    @precondition(lambda self: self.settled and self.model.held)
    @rule(data=st.data())
    def spoil(self, data):
        self.model.sick.add(self.model.held[self.pick(data, self.model.held)])

    @precondition(lambda self: self.settled and self.model.queue)
    @rule(data=st.data())
    def time_is_up(self, data):
        """For somebody in the queue: what the timer does."""
        number = self.pick(data, self.model.queue)
        place = self.model.queue.index(number)
        self.model.expire(number)
        self.pool._expire(list(self.pool._waiters)[place])
        self.rest()

    @precondition(lambda self: not self.model.closed and self.number > 8)
    @rule()
    def close(self):
        self.model.close()
        self.pool.close()
        self.rest()

    @invariant()
    def agrees(self):
        if not hasattr(self, "model") or not self.settled:
            return
        model, pool, metrics = self.model, self.pool, self.pool.metrics
        assert {number: item.value for number, item in self.items.items()} == model.held
        assert self.failed() == model.outcome
        assert (pool.available, pool.capacity) == (len(model.free), model.capacity)
        assert (metrics.waiting, metrics.in_use) == (len(model.queue), len(model.held))
        assert {name: getattr(metrics, name) for name in model.counts} == model.counts

    def teardown(self):
        if not hasattr(self, "model"):
            return
        self.turn()
        self.model.close()
        self.pool.close()
        self.turn()
        for item in self.items.values():
            item.release()
        assert sorted(self.pool._home) == sorted([*self.model.home, *self.model.held.values()])
        self.end()


class TaskWalk(Walk):
    """Several things may happen in one turn of the loop, cancellations among them."""

    kind = Pool

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tasks = {}

    async def borrow(self, number):
        self.items[number] = await self.pool.acquire(timeout=1000)

    def start(self, number):
        self.tasks[number] = self.loop.create_task(self.borrow(number))

    def rest(self):
        self.settled = False

    @rule()
    def turn(self):
        self.model.turn()
        for _ in range(3 + 2 * len(self.tasks)):
            self.loop.run_until_complete(asyncio.sleep(0))
        self.settled = True

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancel(self, data):
        open_tasks = [number for number, task in self.tasks.items() if not task.done()]
        if open_tasks:
            number = self.pick(data, open_tasks)
            if number not in self.model.cancelled:
                self.model.cancel(number)
                self.tasks[number].cancel()
                self.settled = False

    # In one turn with others: these need no rest before them.

    @precondition(lambda self: set(self.items) & set(self.model.held))
    @rule(data=st.data())
    def release_in_the_same_turn(self, data):
        number = self.pick(data, set(self.items) & set(self.model.held))
        self.model.release(number)
        self.items.pop(number).release()
        self.settled = False

    def failed(self):
        found = {}
        for number, task in self.tasks.items():
            if task.cancelled():
                found[number] = "CancelledError"
            elif task.done() and task.exception() is not None:
                found[number] = type(task.exception()).__name__
        return found

    def end(self):
        assert all(task.done() for task in self.tasks.values())
        assert self.failed() == self.model.outcome
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


class ThreadWalk(Walk):
    """One thing after the other, and threads come to rest in between."""

    kind = SyncPool

    def __init__(self):
        super().__init__()
        self.threads = {}
        self.errors = {}

    def borrow(self, number):
        try:
            self.items[number] = self.pool.acquire()
        except PoolError as error:
            self.errors[number] = type(error).__name__

    def start(self, number):
        self.threads[number] = threading.Thread(target=self.borrow, args=(number,), daemon=True)
        self.threads[number].start()

    def turn(self):
        self.rest()

    def rest(self):
        self.model.turn()
        for number, thread in list(self.threads.items()):
            if number not in self.model.queue:
                thread.join(10)
                assert not thread.is_alive(), "a thread is stuck"
                del self.threads[number]
        for _ in range(5000):
            if len(self.pool._waiters) == len(self.model.queue):
                return
            time.sleep(0.001)

    def failed(self):
        return self.errors

    def end(self):
        assert not self.threads


TestTasks = TaskWalk.TestCase
TestTasks.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestThreads = ThreadWalk.TestCase
TestThreads.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
