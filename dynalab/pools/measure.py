"""Measure how long one waits at a pool: arrivals and holds driven through the pool itself, in real or virtual time.

In real time the machine takes part: timers come late, and the pool's own code costs a little. In virtual time
(:mod:`dynalab.pools.virtual_time`) the same code runs with a clock that jumps, so that a hundred thousand requests take
seconds and a result depends on nothing but its input.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.pools.fifo import checked
from dynalab.pools.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    import xarray as xr

_Floats = npt.NDArray[np.float64]


class Measurable(Protocol):
    """What a pool needs to be measured; :class:`dynalab.pools.Pool` has it."""

    @property
    def capacity(self) -> int:
        """Items in all."""

    @property
    def available(self) -> int:
        """Items that nobody holds."""

    def acquire(self) -> Any:
        """Return an awaitable of an item with ``release()``."""


def measure_waits(
    pool_factory: Callable[[], Measurable],
    arrivals: npt.ArrayLike,
    services: npt.ArrayLike,
    *,
    virtual: bool = True,
    sample_s: float = 0.0,
) -> xr.Dataset:
    """Let requests arrive at a pool, hold an item each for a time, and return how long they waited.

    Parameters
    ----------
    pool_factory : callable
        Makes a pool; called once per replica, within the event loop that drives it. It may make another capacity each
        time.
    arrivals, services : array_like of float, shape (n,) or (replicas, n)
        Seconds at which requests arrive (sorted) and for which they hold an item. Replicas are pools of their own, side
        by side in one loop: more waits in the same time.
    virtual : bool
        In virtual time, or in real time with timers to some 0.1 ms.
    sample_s : float
        Look at the pools every so many seconds while requests arrive, 0 for never: `in_use` as the pool tells it, and
        `waiting`.

    Returns
    -------
    xarray.Dataset
        ``arrival``, ``wait`` and ``service`` over (replica, request) as they came to pass, in seconds; ``in_use`` and
        ``waiting`` over (replica, sample); ``capacity`` over (replica). The attribute ``clock`` says "virtual time" or
        "real time".

    Raises
    ------
    ConfigError
        For arrivals or services that cannot be.
    PoolError
        Whatever the pool raises.

    Examples
    --------
    >>> from dynalab.pools import Pool
    >>> found = measure_waits(lambda: Pool(["a"]), [0.0, 1.0, 2.0], [5.0, 1.0, 1.0])
    >>> found.wait.values.tolist(), found.clock
    ([[0.0, 4.0, 4.0]], 'virtual time')
    """
    import xarray as xr

    times, holds = (np.atleast_2d(np.asarray(values, np.float64)) for values in (arrivals, services))
    if times.ndim != 2 or times.shape != holds.shape or not times.size:
        raise ConfigError(f"services: shape {holds.shape} for arrivals of shape {times.shape}; give one for each")
    for row in zip(times, holds, strict=True):
        checked(*row)
    shortest = float(times[:, -1].min())
    if not 0 <= sample_s <= shortest:
        raise ConfigError(
            f"sample_s: {sample_s!r} s while requests arrive for {shortest:g} s; give less, or 0 for none"
        )
    run = _Run(times, holds, sample_s)
    pools = _run(run.main(pool_factory), virtual)
    seconds = {"units": "s"}
    dims = ("replica", "request")
    made = {
        "arrival": (dims, run.arrived - run.begin, seconds | {"long_name": "time of arrival"}),
        "wait": (dims, run.granted - run.arrived, seconds | {"long_name": "wait for an item"}),
        "service": (dims, run.released - run.granted, seconds | {"long_name": "time an item was held"}),
    }
    if sample_s:
        seen = np.asarray(run.samples, np.int64).transpose(1, 2, 0)
        made["in_use"] = (("replica", "sample"), seen[0], {"long_name": "items in use"})
        made["waiting"] = (("replica", "sample"), seen[1], {"long_name": "requests waiting"})
    capacities = ("replica", [pool.capacity for pool in pools], {"long_name": "items of the pool"})
    clock = "virtual time" if virtual else "real time"
    return xr.Dataset(made, {"capacity": capacities}, {"clock": clock, "sample_s": sample_s})


class _Run:
    """One measurement under way."""

    def __init__(self, times: _Floats, holds: _Floats, sample_s: float) -> None:
        self.times, self.holds, self.sample_s = times, holds, sample_s
        self.begin = 0.0
        self.arrived, self.granted, self.released = (np.full(times.shape, np.nan) for _ in range(3))
        self.waiting = [0] * len(times)
        self.samples: list[tuple[list[int], list[int]]] = []
        self.left = times.size
        self.tasks: set[asyncio.Task[None]] = set()

    async def main(self, pool_factory: Callable[[], Measurable]) -> list[Measurable]:
        self.loop = asyncio.get_running_loop()
        pools = [pool_factory() for _ in self.times]
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.begin = self.loop.time()
        for replica, pool in enumerate(pools):
            row = zip((self.times[replica] + self.begin).tolist(), self.holds[replica].tolist(), strict=True)
            self._arrive(replica, pool, enumerate(row), None)
        if self.sample_s:
            self._start(self._sample(pools))
        await self.done
        return pools

    def _arrive(self, replica: int, pool: Measurable, rest: Iterator[Any], now: tuple[int, float] | None) -> None:
        """Let the request arrive that is due, and set the timer for the next one."""
        if now is not None:
            self._start(self._request(replica, now[0], pool, now[1]))
        for request, (due, hold) in rest:
            # A timer that is due already is called at once: in real time the late ones arrive as a burst.
            self.loop.call_at(due, self._arrive, replica, pool, rest, (request, hold))
            return

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled() or self.done.done():
            return
        error = task.exception()
        if error is not None:
            self.done.set_exception(error)

    async def _request(self, replica: int, request: int, pool: Measurable, hold: float) -> None:
        clock = self.loop.time
        self.arrived[replica, request] = clock()
        self.waiting[replica] += 1
        item = await pool.acquire()
        self.waiting[replica] -= 1
        self.granted[replica, request] = now = clock()
        # A timer gives the item back, no sleeping task: a request then costs little enough for thousands a second.
        self.loop.call_at(now + hold, self._release, replica, request, item)

    def _release(self, replica: int, request: int, item: Any) -> None:
        self.released[replica, request] = self.loop.time()
        try:
            item.release()
        except Exception as error:  # told to who measures: nobody awaits a timer
            if not self.done.done():
                self.done.set_exception(error)
            return
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    async def _sample(self, pools: list[Measurable]) -> None:
        for tick in range(1, int(self.times[:, -1].min() / self.sample_s) + 1):
            await asyncio.sleep(max(0.0, self.begin + tick * self.sample_s - self.loop.time()))
            self.samples.append(([pool.capacity - pool.available for pool in pools], list(self.waiting)))


def _run(main: Coroutine[Any, Any, list[Measurable]], virtual: bool) -> list[Measurable]:
    """Run in a loop of its own; in a thread of its own where one is running here, as in a notebook."""
    # Of all selectors only select() takes fractions of a millisecond.
    factory = VirtualTimeLoop if virtual else lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    found: list[list[Measurable]] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                found.append(runner.run(main))
        except BaseException as error:  # handed over to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, name="dynalab-measure")
    # A notebook holds many objects: a collection that walks all of them stops real requests for a tenth of a second.
    freeze = not virtual and not gc.get_freeze_count()
    if freeze:
        gc.collect()
        gc.freeze()
    try:
        thread.start()
        thread.join()
    finally:
        if freeze:
            gc.unfreeze()
    if failed:
        raise failed[0]
    return found[0]
