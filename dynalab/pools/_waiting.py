"""Those who wait for an item of a pool, threads and tasks in one queue, and the deadlines of tasks."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import Callable
from typing import Any, Final


class State:
    """What became of somebody who waits; changed under the pool's lock alone.

    Plain numbers: looking up a member of an enumeration takes longer than everything that is done about it.
    """

    NEW: Final = 0
    #: In the queue.
    WAITING: Final = 1
    #: A value was handed over.
    GIVEN: Final = 2
    #: The time was up.
    EXPIRED: Final = 3
    #: The pool was closed.
    CLOSED: Final = 4
    #: No healthy value is left.
    EXHAUSTED: Final = 5
    #: Gone, with or without a value.
    DONE: Final = 6


class Waiter:
    """Somebody in the queue: his state, the value that he was given, and (in the children) the bell that rings then."""

    __slots__ = ("state", "value")

    state: int
    value: Any

    def tell(self, state: int) -> bool:
        """Set the state and ring; False, and nothing done, where nobody hears it: he was cancelled, and is leaving."""
        raise NotImplementedError


class ThreadWaiter(Waiter):
    """A thread that sleeps on a lock of its own, so that exactly one wakes."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        self.state = State.NEW
        self._bell = threading.Lock()
        self._bell.acquire()

    def tell(self, state: int) -> bool:
        # Told first: the thread may run before the bell has done ringing.
        self.state = state
        self._bell.release()
        return True

    def wait(self, seconds: float | None) -> bool:
        """Sleep until the bell rings; False if it did not within so many seconds."""
        if seconds is None:
            return self._bell.acquire()
        return self._bell.acquire(True, min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class TaskWaiter(Waiter):
    """A task that awaits a future of its loop."""

    __slots__ = ("_loop", "_thread", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = State.NEW
        self._loop = loop
        self._thread = threading.get_ident()
        self.future: asyncio.Future[None] = asyncio.Future(loop=loop)

    def tell(self, state: int) -> bool:
        # A future that is done here was cancelled: its task has been told, and has not run yet.
        if self.future.done():
            return False
        self.state = state
        try:
            if threading.get_ident() == self._thread:
                self.future.set_result(None)
            else:
                self._loop.call_soon_threadsafe(self._ring_here)
        except RuntimeError:  # its loop was closed under it
            self.state = State.WAITING
            return False
        return True

    def _ring_here(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


#: Loops fire a little early (uvloop counts in milliseconds): a timer waits this long at least, or it would spin [s].
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
        self._limit = 64
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0

    def add(self, waiter: Waiter, deadline: float) -> None:
        """Let somebody's time be up when `time.perf_counter` says `deadline`."""
        heap = self._heap
        if len(heap) >= self._limit:
            # Nearly all have been served, and are thrown out together: one by one would cost more.
            heap[:] = [entry for entry in heap if entry[2].state == State.WAITING]
            heapq.heapify(heap)
            self._limit = max(64, 2 * len(heap))
        self._count += 1
        heapq.heappush(heap, (deadline, self._count, waiter))
        if self._timer is None or deadline < self._when:
            self._set(deadline, deadline - time.perf_counter())

    def _set(self, when: float, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = self.loop.call_later(max(delay, _LEAST_DELAY), self._fire)

    def _fire(self) -> None:
        self._timer = None
        heap, now = self._heap, time.perf_counter()
        while heap and (heap[0][0] <= now or heap[0][2].state != State.WAITING):
            self._expire(heapq.heappop(heap)[2])
        if heap:
            self._set(heap[0][0], heap[0][0] - now)
