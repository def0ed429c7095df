"""A pool of objects for tasks of an event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from dynalab.errors import PoolError
from dynalab.pools._base import BasePool, check_timeout
from dynalab.pools._waiting import Deadlines, State, TaskWaiter
from dynalab.pools.item import Place, PoolItem, here

T = TypeVar("T")
_new: Any = object.__new__
_ident = threading.get_ident


class Pool(BasePool[T], Generic[T]):
    """A fixed set of objects that tasks of one event loop borrow, in the order of asking.

    The pool never makes a value: its capacity is the number of those it is given. A value that comes back goes to
    whoever waits longest, else behind the free ones; nobody overtakes who waits. A wait that times out or is
    cancelled, at whatever moment, takes nothing with it. Where a value is free, `acquire` does not suspend its task.

    The pool belongs to the loop that uses it first, until that loop ends; it may be built before any loop runs. Items
    may be released in any thread, and other threads borrow with `acquire_blocking`.

    Parameters
    ----------
    values : iterable
        What to lend.
    name : str
        For messages and metrics.
    on_return : callable, optional
        Takes a value that comes back, before anyone else gets it: to reset it. If it raises, `release` raises the same,
        and the value counts as unhealthy.
    check : callable, optional
        Takes a value that is to be lent, and tells whether it is healthy; if it raises, the value is not.
    replace : callable, optional
        Takes an unhealthy value and returns one that takes its place, unchecked. If it raises, `acquire` raises a
        `PoolError`, and the value stays to be replaced later. Without it an unhealthy value leaves the pool.
    trace : bool
        Keep the whole stack of who takes an item, for the warning about a leak: slow. Without it the warning names file
        and line; with ``tracemalloc`` running it carries the stack in any case.

    Raises
    ------
    ConfigError
        If there are no values, or a hook is no plain function.

    Examples
    --------
    >>> async def main():
    ...     async with Pool(["a", "b"], name="letters") as pool:
    ...         async with pool.acquire(timeout=1) as item:
    ...             print(item.value, pool.available)
    ...         item = await pool.acquire()
    ...         print(item.value)
    ...         item.release()
    >>> asyncio.run(main())
    a 1
    b
    """

    def __init__(
        self,
        values: Iterable[T],
        *,
        name: str = "pool",
        on_return: Callable[[T], object] | None = None,
        check: Callable[[T], object] | None = None,
        replace: Callable[[T], T] | None = None,
        trace: bool = False,
    ) -> None:
        super().__init__(values, name=name, on_return=on_return, check=check, replace=replace, trace=trace)
        self._thread = 0
        self._deadlines: Deadlines | None = None

    def acquire(self, timeout: float | None = None) -> Acquire[T]:
        """Return an item, waiting for one behind those who asked before: ``await`` it, or use ``async with``.

        Nothing is asked before that. Time spent in hooks does not count.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; by default for ever.

        Raises
        ------
        PoolTimeout
            If no item came free in time.
        PoolClosed
            If the pool is closed, or is closed meanwhile.
        PoolExhausted
            If no healthy value is left in it.
        PoolError
            If an unhealthy value could not be replaced, or if another loop uses the pool.
        ConfigError
            If `timeout` is no time to wait.
        """
        if timeout is not None and not (type(timeout) is float and timeout >= 0.0):
            check_timeout(timeout)
        asked: Any = _new(Acquire)
        asked._pool = self
        asked._timeout = timeout
        frame = sys._getframe(1)
        asked._place = here(frame) if self._trace else (frame.f_code, frame.f_lasti, None)
        asked._item = asked._steps = None
        return asked

    def acquire_blocking(self, timeout: float | None = None) -> PoolItem[T]:
        """Return an item to a thread without a running loop, waiting in the same queue as the tasks do.

        Raises
        ------
        PoolError
            In a thread whose loop is running: it would stand still; besides what `acquire` raises.
        """
        if timeout is not None:
            check_timeout(timeout)
        if asyncio._get_running_loop() is not None:
            raise PoolError(
                f"pool {self.name!r}: acquire_blocking() would stop the event loop of this thread; "
                "await acquire() instead, or call it in another thread"
            )
        frame = sys._getframe(1)
        place = here(frame) if self._trace else (frame.f_code, frame.f_lasti, None)
        return self._try(place) or self._acquire_in_thread(timeout, place)

    async def aclose(self, timeout: float | None = None) -> list[T]:
        """Close the pool, wait until all items are back, and return their values.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; by default for ever.

        Raises
        ------
        PoolTimeout
            If items are still out then; the pool is closed all the same.
        """
        if timeout is not None:
            check_timeout(timeout)
        waiter = TaskWaiter(asyncio.get_running_loop())
        if not self._begin_closing(waiter):
            done, _ = await asyncio.wait([waiter.future], timeout=timeout)
            if not done:
                self._refuse_to_end(timeout)
        return self._values_home()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, timeout: float | None, place: Place) -> Generator[Any, None, PoolItem[T]]:
        """Await an item."""
        begin = time.perf_counter()
        deadlines = self._bind()
        first = False
        while True:
            waiter = TaskWaiter(deadlines.loop)
            try:
                self._enter(waiter, first)
                if waiter.state == State.WAITING:
                    if timeout == 0:
                        self._expire(waiter)
                    elif timeout is not None:
                        deadlines.add(waiter, begin + timeout)
                    yield from waiter.future
                item = self._receive(waiter, begin, timeout, place)
            except BaseException:
                self._leave(waiter)
                raise
            if item is not None:
                return item
            first = True

    def _bind(self) -> Deadlines:
        """Make sure that the pool belongs to the running loop, and return the deadlines of those who wait."""
        loop = asyncio.get_running_loop()
        deadlines = self._deadlines
        if deadlines is not None and deadlines.loop is loop:
            self._thread = _ident()
            return deadlines
        with self._lock:
            # Of loops that have ended nobody waits any more; of one that stands still somebody may.
            if (
                deadlines is not None
                and not deadlines.loop.is_closed()
                and (deadlines.loop.is_running() or self._waiters or self._in_use())
            ):
                raise PoolError(
                    f"pool {self.name!r} is in use by another event loop; build a pool for each loop, or call "
                    "acquire_blocking() in a thread without one"
                )
            self._deadlines = deadlines = Deadlines(loop, self._expire)
            self._thread = _ident()
            return deadlines


class Acquire(Coroutine[Any, None, PoolItem[T]]):
    """An item that was asked for: ``await`` it, or use it in ``async with``; may be made a task of, too."""

    __slots__ = ("_item", "_place", "_pool", "_steps", "_timeout")
    __name__ = "Pool.acquire"  # for tasks, which tell what they run

    _pool: Pool[T]
    _timeout: float | None
    _place: Place
    _item: PoolItem[T] | None
    _steps: Generator[Any, None, PoolItem[T]] | None

    def __await__(self) -> Generator[Any, None, PoolItem[T]]:
        pool = self._pool
        # Which loop runs is a slow question, and which thread a quick one; who has to wait is asked the former.
        if pool._thread != _ident():
            pool._bind()
        item = pool._try(self._place)
        if item is None:
            item = yield from pool._wait(self._timeout, self._place)
        return item

    @types.coroutine
    def __aenter__(self) -> Generator[Any, None, PoolItem[T]]:
        if self._item is not None:
            raise PoolError(f"pool {self._pool.name!r}: this acquire() has its item already; call acquire() again")
        item = self._item = yield from self.__await__()
        return item

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        item = self._item
        if item is not None and item._live:
            item.release()

    # As a coroutine it goes where only those are taken: asyncio.create_task, run_coroutine_threadsafe.

    def send(self, value: None) -> Any:
        """Take a step."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Take a step by raising an error where it waits."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.throw(*error)

    def close(self) -> None:
        """Give it up."""
        if self._steps is not None:
            self._steps.close()
