"""Those who wait for an item of a pool, threads and tasks in one queue, and the deadlines of tasks."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Final


class State(Enum):
    """What became of somebody who waits; changed under the pool's lock alone."""

    NEW = "not in the queue yet"
    WAITING = "in the queue"
    GIVEN = "a value was handed over"
    EXPIRED = "the time was up"
    CLOSED = "the pool was closed"
    EXHAUSTED = "no healthy value is left"
    DONE = "gone, with or without a value"


class Waiter:
    """Somebody in the queue: his state, the value that he was given, and (in the children) the bell that rings then."""

    __slots__ = ("state", "value")

    def __init__(self) -> None:
        self.state = State.NEW
        self.value: Any = None

    def ring(self) -> bool:
        """Wake who waits; False where he cannot be woken any more, and another one must be served."""
        raise NotImplementedError


class ThreadWaiter(Waiter):
    """A thread that sleeps on a lock of its own, so that exactly one wakes."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        super().__init__()
        self._bell = threading.Lock()
        self._bell.acquire()

    def ring(self) -> bool:
        self._bell.release()
        return True

    def wait(self, seconds: float | None) -> bool:
        """Sleep until the bell rings; False if it did not within so many seconds."""
        if seconds is None:
            return self._bell.acquire()
        return self._bell.acquire(True, min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class TaskWaiter(Waiter):
    """A task that awaits a future of its loop."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def ring(self) -> bool:
        # A future that is done here was cancelled: its task has been told, and has not run yet.
        if self.future.done():
            return False
        try:
            if asyncio._get_running_loop() is self._loop:
                self.future.set_result(None)
            else:
                self._loop.call_soon_threadsafe(self._ring_here)
        except RuntimeError:  # its loop was closed under it
            return False
        return True

    def _ring_here(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


#: Uvloop counts in milliseconds: what is set anew waits one at least, instead of turning round and round until then.
_LEAST_DELAY: Final = 0.001


class Deadlines:
    """The deadlines of tasks that wait in one pool: one timer of the loop for all of them.

    A timer for each would cost more than all the rest of waiting, and nearly none of them ever fires. Only the loop's
    own thread comes here.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    expire : callable
        Takes a waiter whose time is up; he may have been served meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[Waiter], object]) -> None:
        self.loop = loop
        self._expire = expire
        self._heap: list[tuple[float, int, Waiter]] = []
        self._count = 0
        self._live_limit = 64
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0

    def add(self, waiter: Waiter, deadline: float) -> None:
        """Let somebody's time be up at `deadline` on the loop's clock."""
        heap = self._heap
        while heap and heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
        if len(heap) > self._live_limit:
            # Those who were served lie behind somebody who may wait for long; thrown out when they may be half of all.
            heap[:] = [entry for entry in heap if entry[2].state is State.WAITING]
            heapq.heapify(heap)
            self._live_limit = max(64, 2 * len(heap))
        self._count += 1
        heapq.heappush(heap, (deadline, self._count, waiter))
        if self._timer is None or deadline < self._when:
            self._set(deadline)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = self.loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        heap, now = self._heap, self.loop.time()
        while heap and (heap[0][0] <= now or heap[0][2].state is not State.WAITING):
            self._expire(heapq.heappop(heap)[2])
        if heap:
            self._set(max(heap[0][0], now + _LEAST_DELAY))
