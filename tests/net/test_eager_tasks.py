"""Coroutines begun at once by tasks that lend themselves: what a coroutine can tell from a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any

import pytest

from dynalab.net.eager import EagerTasks
from dynalab.net.loops import loop_factory

LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")),
]
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Rig:
    """Starts coroutines and keeps their outcomes."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks = EagerTasks(self.loop)
        self.ends: dict[str, tuple[Any, BaseException | None]] = {}

    def start(self, name: str, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[None] | None:
        def done(result: Any, error: BaseException | None) -> None:
            assert name not in self.ends, "ended twice"
            self.ends[name] = result, error

        return self.tasks.start(coro, contextvars.copy_context(), done)

    async def warm(self) -> None:
        """Have one task parked."""
        task = self.start("warm", asyncio.sleep(0))
        assert task is not None
        while "warm" not in self.ends:
            await asyncio.sleep(0)

    async def finish(self) -> None:
        await self.tasks.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}


def run(kind: str, test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        rig = Rig()
        rig.loop.set_exception_handler(lambda _, context: complaints.append(context))
        await rig.warm()
        await test(rig)
        await rig.finish()
        gc.collect()

    with asyncio.Runner(debug=True, loop_factory=loop_factory(kind)) as runner:  # type: ignore[arg-type]
        runner.run(main())
    assert not complaints


@pytest.mark.parametrize("kind", LOOPS)
def test_one_that_never_waits_ends_at_once_within_a_task(kind) -> None:
    async def test(rig: Rig) -> None:
        seen = []

        async def quick() -> int:
            seen.append(asyncio.current_task())
            return 7

        outer = asyncio.current_task()
        assert rig.start("quick", quick()) is None
        assert rig.ends["quick"] == (7, None)
        assert seen[0] not in (None, outer)
        assert asyncio.current_task() is outer

    run(kind, test)


@pytest.mark.parametrize("kind", LOOPS)
def test_the_task_is_the_same_before_and_after_waiting(kind) -> None:
    async def test(rig: Rig) -> None:
        async def waits() -> bool:
            before = asyncio.current_task()
            await asyncio.sleep(0)
            between = asyncio.current_task()
            await asyncio.sleep(0.001)
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0.001))
            return before is between is asyncio.current_task()

        task = rig.start("waits", waits())
        assert task is not None
        while "waits" not in rig.ends:
            await asyncio.sleep(0.001)
        assert rig.ends["waits"] == (True, None)
        # The task is free again, and lends itself once more.
        assert rig.start("again", waits()) is task
        while "again" not in rig.ends:
            await asyncio.sleep(0.001)

    run(kind, test)


@pytest.mark.parametrize("kind", LOOPS)
def test_timeouts_count_from_the_first_step(kind) -> None:
    async def test(rig: Rig) -> None:
        async def late() -> str:
            try:
                async with asyncio.timeout(0.005):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "timed out"
            return "never"

        for name in ("first", "second"):
            rig.start(name, late())
            while name not in rig.ends:
                await asyncio.sleep(0.001)
            assert rig.ends[name] == ("timed out", None)

    run(kind, test)


@pytest.mark.parametrize("kind", LOOPS)
def test_what_one_sets_in_its_context_no_other_sees(kind) -> None:
    async def test(rig: Rig) -> None:
        async def sets(value: str, *, wait: bool) -> tuple[str, str]:
            before = VARIABLE.get()
            VARIABLE.set(value)
            if wait:
                await asyncio.sleep(0.001)
            return before, VARIABLE.get()

        for name, wait in (("a", False), ("b", True), ("c", False), ("d", True)):
            rig.start(name, sets(name, wait=wait))
        while len(rig.ends) < 5:
            await asyncio.sleep(0.001)
        assert all(rig.ends[name] == (("unset", name), None) for name in "abcd")
        assert VARIABLE.get() == "unset"

    run(kind, test)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("waits_for", ["event", "future", "nothing", "ended", "stubborn"])
def test_cancelled_after_any_number_of_turns(waits_for: str, turns: int) -> None:
    async def test(rig: Rig) -> None:
        future = rig.loop.create_future()
        cleaned = []

        async def waits() -> str:
            try:
                if waits_for == "event":
                    await asyncio.Event().wait()
                elif waits_for == "future":
                    await future
                elif waits_for == "nothing":
                    while True:
                        await asyncio.sleep(0)
                elif waits_for == "ended":
                    rig.loop.call_soon(future.set_result, None)
                    await future
                    await asyncio.Event().wait()
                else:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        return "stayed"
            finally:
                cleaned.append(True)
            return "ended"

        task = rig.start("waits", waits())
        assert task is not None
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(8):
            await asyncio.sleep(0)
        result, error = rig.ends["waits"]
        assert (result == "stayed") == (waits_for == "stubborn")
        assert isinstance(error, asyncio.CancelledError) == (waits_for != "stubborn")
        assert cleaned == [True]
        assert task.done()
        # One task is not lent out twice, and none that was cancelled.
        ran = rig.start("next", asyncio.sleep(0, "next"))
        assert ran is not task
        while "next" not in rig.ends:
            await asyncio.sleep(0)
        assert rig.ends["next"] == ("next", None)

    run("asyncio", test)


@pytest.mark.parametrize("wait", [False, True])
def test_errors_are_told_and_the_task_is_kept(wait: bool) -> None:
    async def test(rig: Rig) -> None:
        async def fails() -> None:
            if wait:
                await asyncio.sleep(0)
            raise ValueError("no")

        first = rig.start("a", fails())
        while "a" not in rig.ends:
            await asyncio.sleep(0)
        second = rig.start("b", fails())
        while "b" not in rig.ends:
            await asyncio.sleep(0)
        assert first is second
        assert isinstance(rig.ends["a"][1], ValueError)

    run("asyncio", test)


def test_coroutines_that_start_others() -> None:
    async def test(rig: Rig) -> None:
        async def leaf(k: int) -> int:
            if k % 2:
                await asyncio.sleep(0)
            return k

        async def parent() -> str:
            mine = asyncio.current_task()
            for k in range(6):
                rig.start(f"leaf {k}", leaf(k))
                assert asyncio.current_task() is mine
            await asyncio.sleep(0.001)
            return "parent"

        rig.start("parent", parent())
        while len(rig.ends) < 8:
            await asyncio.sleep(0.001)
        assert all(rig.ends[f"leaf {k}"] == (k, None) for k in range(6))

    run("asyncio", test)
