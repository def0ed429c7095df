"""Coroutines begun at once: one that never waits costs neither a task of its own nor a turn of the event loop.

From Python 3.12 on, a task can be told to start eagerly. This does it from 3.11 on, in one way for all: a task that has
nothing to do lends itself. It is the current task while a new coroutine runs to where it first waits; if the coroutine
waits, the task goes on with it, so that `asyncio.current_task`, timeouts and task groups find the same task before and
after.
"""

from __future__ import annotations

import asyncio
from asyncio import tasks as _tasks
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Final, NamedTuple

#: Tasks that are kept for coroutines to come.
_KEPT: Final = 64

#: Called once, with (result, None) or (None, error).
Done = Callable[[Any, BaseException | None], None]


class _Job(NamedTuple):
    """A coroutine that is under way."""

    coro: Coroutine[Any, Any, Any]
    context: Context
    done: Done
    #: What it waits for; `_BEGIN` before its first step.
    waits_for: Any


_BEGIN: Final = object()


class EagerTasks:
    """Begins coroutines at once.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parked: list[_Lender] = []
        self._closed = False

    def start(self, coro: Coroutine[Any, Any, Any], context: Context, done: Done) -> asyncio.Task[None] | None:
        """Run `coro` in `context` until it waits; return the task that goes on with it, None if it has ended.

        With no task at hand, as at first, the coroutine begins in the next turn of the loop.
        """
        loop = self._loop
        if not self._parked:
            lender = _Lender(self)
            lender.task = loop.create_task(lender.run(_Job(coro, context, done, _BEGIN)))
            return lender.task
        lender = self._parked.pop()
        outer = asyncio.current_task(loop)
        if outer is not None:
            _tasks._leave_task(loop, outer)
        _tasks._enter_task(loop, lender.task)
        try:
            waits_for = context.run(coro.send, None)
        except StopIteration as end:
            result, error = end.value, None
        except (Exception, asyncio.CancelledError) as failed:
            result, error = None, failed
        else:
            lender.go_on(_Job(coro, context, done, waits_for))
            return lender.task
        finally:
            _tasks._leave_task(loop, lender.task)
            if outer is not None:
                _tasks._enter_task(loop, outer)
        self._parked.append(lender)
        done(result, error)
        return None

    def park(self, lender: _Lender) -> bool:
        """Keep a task for later; return whether it is wanted."""
        wanted = not self._closed and len(self._parked) < _KEPT
        if wanted:
            self._parked.append(lender)
        return wanted

    async def aclose(self) -> None:
        """End the tasks that have nothing to do; the others end with what they do."""
        self._closed = True
        idle = [lender.task for lender in self._parked]
        self._parked.clear()
        for task in idle:
            task.cancel()
        if idle:
            await asyncio.wait(idle)


class _Lender:
    """A task that runs one coroutine after the other."""

    task: asyncio.Task[None]

    def __init__(self, owner: EagerTasks) -> None:
        self._owner = owner
        self._job: _Job | None = None
        self._gate: asyncio.Future[None]

    def go_on(self, job: _Job) -> None:
        self._job = job
        self._gate.set_result(None)

    async def run(self, job: _Job) -> None:
        while True:
            try:
                result = await _drive(job)
            except asyncio.CancelledError as error:
                job.done(None, error)
                raise
            except Exception as error:
                job.done(None, error)
            else:
                job.done(result, None)
            # Whoever cancelled it meant the coroutine that has ended.
            if self.task.cancelling() or not self._owner.park(self):
                return
            self._gate = self._owner._loop.create_future()
            self._job = None
            try:
                await self._gate
            except asyncio.CancelledError:
                if self._job is None:
                    return
                # Cancelled between the first step of a coroutine and this one.
                job = _cancelled(self._job)
            else:
                assert self._job is not None
                job = self._job


def _cancelled(job: _Job) -> _Job:
    """Cancel what a coroutine waits for, as its task would have; if that has ended, the coroutine itself."""
    if job.waits_for is not None and job.waits_for.cancel():
        return job
    return job._replace(waits_for=asyncio.CancelledError())


@coroutine
def _drive(job: _Job) -> Generator[Any, Any, Any]:
    """Run the rest of a coroutine in its context."""
    coro, context, _, waits_for = job
    send, throw, enter = coro.send, coro.throw, context.run
    try:
        if waits_for is _BEGIN:
            waits_for = enter(send, None)
        elif isinstance(waits_for, BaseException):
            waits_for = enter(throw, waits_for)
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = enter(throw, error)
            else:
                waits_for = enter(send, value)
    except StopIteration as end:
        return end.value
