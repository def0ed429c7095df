"""Permits for handlers that run, and a bounded queue of those that wait for one."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from dynalab.net.decoder import RequestFrame
from dynalab.net.eager import EagerTasks
from dynalab.net.exchange import Exchange
from dynalab.net.metrics import ServerCounters, WaitHistogram

#: What handles a request: ``async def``, or a plain function that is quick, for it runs in the event loop.
Handler = Callable[[RequestFrame], Any]


class Route:
    """A handler by its path, and how many of its requests are under way.

    Parameters
    ----------
    path : str
    handler : callable
    reply : bool
        Whether to answer with what the handler returns, or only to acknowledge that the request was accepted.
    """

    __slots__ = ("drained", "handler", "path", "reply", "under_way")

    def __init__(self, path: str, handler: Handler, reply: bool) -> None:
        self.path = path
        self.handler = handler
        self.reply = reply
        self.under_way = 0
        self.drained: asyncio.Event | None = None


_CANCELLED = asyncio.CancelledError()


class Workers:
    """Runs at most `permits` handlers at a time and keeps at most `queue` requests waiting, in order.

    Attributes
    ----------
    active : int
        Handlers that run.
    highest : int
        Most handlers that ran at a time.
    waits : WaitHistogram
        How long those queued waited for a permit [s].
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, permits: int, queue: int, counters: ServerCounters) -> None:
        self._loop = loop
        self._counters = counters
        self._queue: deque[Exchange] = deque()
        self._tasks: dict[Exchange, tuple[asyncio.Task[None], Coroutine[Any, Any, Any]]] = {}
        # What one handler sets is not seen by another, though that one's end may start this one.
        self._context = contextvars.copy_context()
        self._starter = EagerTasks(loop)
        self._pumping = False
        self._became_idle: asyncio.Event | None = None
        self.permits = permits
        self.capacity = queue
        self.active = 0
        self.highest = 0
        self.waits = WaitHistogram()

    @property
    def depth(self) -> int:
        """Requests that wait for a permit."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self.active == 0 and not self._queue

    def submit(self, work: Exchange) -> bool:
        """Take a request, unless permits and queue are full; return whether it was taken."""
        if self.active < self.permits and not self._queue:
            work.route.under_way += 1
            self._start(work)
            return True
        if len(self._queue) >= self.capacity:
            return False
        work.route.under_way += 1
        work.queued_at = self._loop.time()
        self._queue.append(work)
        return True

    def _start(self, work: Exchange) -> None:
        self.active += 1
        if self.active > self.highest:
            self.highest = self.active
        context = self._context.copy()
        try:
            result = context.run(work.route.handler, work.request)
        except (Exception, asyncio.CancelledError) as error:
            self._finish(work, None, error)
            return
        if type(result) is not CoroutineType:
            if isinstance(result, bytes) or not inspect.isawaitable(result):
                self._finish(work, result, None)
                return
            result = _awaited(result)
        task = self._starter.start(result, context, partial(self._finish, work))
        if task is not None and not work.ended:
            self._tasks[work] = task, result

    def _finish(self, work: Exchange, result: Any, error: BaseException | None) -> None:
        """Tell the outcome, give the permit back, and let the next in the queue have it."""
        self.active -= 1
        work.ended = True
        self._tasks.pop(work, None)
        counters = self._counters
        counters.handled += 1
        if error is not None:
            counters.failed += 1
        work.done(result, error)
        self._leave(work.route)
        if self._queue and not self._pumping:
            self._pump()

    def _leave(self, route: Route) -> None:
        route.under_way -= 1
        if route.drained is not None and route.under_way == 0:
            route.drained.set()
        if self._became_idle is not None and self.idle:
            self._became_idle.set()

    def _pump(self) -> None:
        # A handler that is a plain function ends inside _start, and _finish would come here again: one loop is enough.
        self._pumping = True
        try:
            while self._queue and self.active < self.permits:
                work = self._queue.popleft()
                self.waits.observe(self._loop.time() - work.queued_at)
                if not work.wanted():
                    self.drop([work])
                elif not work.session.set_aside(work):
                    self._start(work)
        finally:
            self._pumping = False

    def take_back(self, works: Sequence[Exchange]) -> None:
        """Queue those that were set aside again, before all others."""
        self._queue.extendleft(reversed(works))
        if not self._pumping:
            self._pump()

    def drop(self, works: Sequence[Exchange]) -> None:
        """Forget requests whose peer has gone."""
        for work in works:
            self._counters.abandoned += 1
            work.done(None, None)
            self._leave(work.route)

    def cancel(self) -> int:
        """Drop what waits, cancel what runs, and return how many requests that were."""
        n = len(self._queue) + self.active
        while self._queue:
            work = self._queue.popleft()
            self._counters.abandoned += 1
            work.done(None, _CANCELLED)
            self._leave(work.route)
        for work, (task, coroutine) in [*self._tasks.items()]:
            task.cancel()
            # A task that is cancelled before its first step runs nothing at all.
            task.add_done_callback(partial(self._never_ran, work, coroutine))
        return n

    def _never_ran(self, work: Exchange, coroutine: Coroutine[Any, Any, Any], _: asyncio.Task[None]) -> None:
        if not work.ended:
            coroutine.close()
            self._finish(work, None, _CANCELLED)

    async def aclose(self) -> None:
        """End the tasks that are kept for handlers to come."""
        await self._starter.aclose()

    async def idled(self) -> None:
        """Wait until nothing runs and nothing waits."""
        while not self.idle:
            self._became_idle = asyncio.Event()
            await self._became_idle.wait()
        self._became_idle = None


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
