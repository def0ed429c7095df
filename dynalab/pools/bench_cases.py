"""One measurement of a pool: so many borrowers for so long, or one hand-over after the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from dynalab.errors import ConfigError
from dynalab.pools.pool import Pool
from dynalab.pools.sync_pool import SyncPool

#: How long to sleep while somebody gets into the queue [s].
_PAUSE: Final = 50e-6


class Case(NamedTuple):
    """A kind of pool, the values in it, and how many threads or tasks borrow from it."""

    kind: str
    items: int
    concurrency: int


class Measured(NamedTuple):
    """What borrowing took.

    Attributes
    ----------
    seconds : float
        By the clock, of each acquire and release, all borrowers together [s].
    bare : float
        The same without a pool [s]: what it takes to let others run meanwhile; 0 where items suffice for all.
    waited : float
        Share of the acquires that had to wait.
    """

    seconds: float
    bare: float
    waited: float


def borrow(case: Case, n: int) -> Measured:
    """Let threads or tasks acquire and release about `n` times in all, at least once each."""
    kind, items, concurrency = case
    each = max(1, n // concurrency)
    # Where there are too few items, holders let the others run, or they would hardly meet.
    hold = concurrency > items
    if kind == "threads":
        pool = SyncPool(range(items), name="bench")
        seconds = _threads(pool, hold, concurrency, each)
        bare = _threads(None, hold, concurrency, each) if hold else 0.0
    else:
        seconds, bare, pool = on_loop(kind, lambda: _tasks(items, hold, concurrency, each))
    metrics = pool.metrics
    assert (metrics.acquires, metrics.in_use) == (each * concurrency, 0), "the pool has lost count"
    return Measured(seconds, bare, metrics.waits / metrics.acquires)


def hand_over(kind: str, n: int) -> list[float]:
    """Return the time from each of `n` releases until who waits has the item [s]."""
    if kind == "threads":
        return _threads_hand_over(n)
    return on_loop(kind, lambda: _tasks_hand_over(n))


def on_loop(kind: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Run to its end what `work` returns on a new loop of that kind, in a thread where none runs: not JupyterLab's.

    Raises
    ------
    ConfigError
        If `kind` is "uvloop" and that is not installed.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    if kind == "uvloop":
        try:
            from uvloop import new_event_loop as factory
        except ImportError:
            raise ConfigError("kinds: uvloop is not installed; install it, or measure threads and asyncio") from None
    found: list[Any] = []
    errors: list[BaseException] = []

    async def main() -> None:
        found.append(await work())

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="pool bench")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


def _threads(pool: SyncPool[int] | None, hold: bool, threads: int, each: int) -> float:
    start = threading.Barrier(threads)
    begins: list[float] = []
    ends: list[float] = []

    def body() -> None:
        start.wait()
        begins.append(time.perf_counter())
        for _ in range(each):
            item = pool.acquire() if pool is not None else None
            if hold:
                time.sleep(0)
            if item is not None:
                item.release()
        ends.append(time.perf_counter())

    workers = [threading.Thread(target=body, name="pool bench") for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (max(ends) - min(begins)) / (threads * each)


async def _tasks(items: int, hold: bool, tasks: int, each: int) -> tuple[float, float, Pool[int]]:
    async def body(pool: Pool[int] | None) -> None:
        for _ in range(each):
            item = await pool.acquire() if pool is not None else None
            if hold:
                await asyncio.sleep(0)
            if item is not None:
                item.release()

    async def seconds(pool: Pool[int] | None) -> float:
        begin = time.perf_counter()
        await asyncio.gather(*[body(pool) for _ in range(tasks)])
        return (time.perf_counter() - begin) / (tasks * each)

    pool = Pool(range(items), name="bench")
    return await seconds(pool), await seconds(None) if hold else 0.0, pool


def _threads_hand_over(n: int) -> list[float]:
    pool = SyncPool([0], name="bench")
    arrived: list[float] = []

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def body() -> None:
        for _ in range(n):
            go.acquire()
            with pool.acquire():
                arrived.append(time.perf_counter())
            done.release()

    worker = threading.Thread(target=body, name="pool bench", daemon=True)
    worker.start()
    left = []
    for _ in range(n):
        item = pool.acquire()
        go.release()
        while not pool.metrics.waiting:
            time.sleep(_PAUSE)
        left.append(time.perf_counter())
        item.release()
        done.acquire()
    worker.join()
    return [there - here for here, there in zip(left, arrived, strict=True)]


async def _tasks_hand_over(n: int) -> list[float]:
    pool = Pool([0], name="bench")
    found = []

    async def body() -> float:
        async with pool.acquire():
            return time.perf_counter()

    for _ in range(n):
        item = await pool.acquire()
        waiter = asyncio.create_task(body())
        await asyncio.sleep(0)
        begin = time.perf_counter()
        item.release()
        found.append(await waiter - begin)
    return found
