"""Measure requests over TCP on this machine: rates and latencies over all that is set, beside a bare echo.

A client in a thread of this process calls a server in a process of its own. Callers ask again as soon as they have
their reply; every reply is compared with what was sent. Rounds visit all cases in shuffled order, the bare echo among
them; medians over the rounds are given, with their tenth and ninetieth percentiles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import numpy as np

from dynalab.net.bench_echo import EchoClient
from dynalab.net.bench_load import Load, closed_loop
from dynalab.net.bench_plan import LEAST_ROUNDS, Case, NetBenchPlan
from dynalab.net.bench_server import PATH, BenchServer
from dynalab.net.client import TcpConnectionPool
from dynalab.net.loops import loop_factory

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NetBenchPlan", "bench_net"]

T = TypeVar("T")

#: A measurement lasts so long at least and at most [s]; before it, a few callers ask for a part of that time, with no
#: more bytes under way than are sent soon.
_SHORTEST, _LONGEST, _WARM, _WARM_BYTES = 0.02, 1.0, 0.1, 8 << 20
#: Share of the time that goes by between measurements, for a first guess.
_OVERHEAD: Final = 1.5
#: Different payloads that callers send, as far as they fit into so many bytes.
_PAYLOADS, _PAYLOAD_BYTES = 16, 64 << 20
_MOST_ROUNDS: Final = 100


class Limit(NamedTuple):
    """A case of the bare echo."""

    loop: str
    payload_bytes: int
    concurrency: int


class Sample(NamedTuple):
    """One measurement: load, CPU seconds of the server, seconds of a first connection, connections at the end."""

    load: Load
    server_cpu_seconds: float
    connect_seconds: float
    connections: int


def bench_net(plan: NetBenchPlan, *, progress: bool = True) -> xr.Dataset:
    """Measure requests and replies between this process and another one.

    Parameters
    ----------
    plan : NetBenchPlan
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    xarray.Dataset
        Over (loop, payload_bytes, concurrency, pool_size, channel_buffer, server_concurrency, handler_seconds):
        ``request_rate`` [1/s], the median over rounds, with ``request_rate_p10`` and ``request_rate_p90``; ``latency``
        [s], over percentile, too; ``client_cpu`` and ``server_cpu`` [s], of one request; ``connections`` of the client;
        ``share_of_limit``; ``requests`` that were measured. Over (loop, payload_bytes, concurrency): ``limit``
        [1/s], what the bare echo does, with its percentiles, and ``limit_latency`` [s]. Over (loop): ``connect_time``
        [s] of a connection, over percentile, too.

    Raises
    ------
    NetError
        If a reply is not what was sent, or the servers cannot be had.

    Examples
    --------
    >>> plan = NetBenchPlan(loops="asyncio", payload_bytes=64, concurrency=2, pool_size=1, seconds=0.2)
    >>> found = bench_net(plan, progress=False)
    >>> bool((found.request_rate > 0).all()), found.request_rate.attrs["units"]
    (True, '1/s')
    """
    from tqdm.auto import tqdm

    from dynalab.net.bench_results import bench_dataset

    deadline = time.perf_counter() + plan.seconds
    rng = np.random.default_rng(plan.seed)
    payloads = {size: _payloads(rng, size, max(plan.concurrency)) for size in plan.payload_bytes}
    limits = dict.fromkeys(Limit(case.loop, case.payload_bytes, case.concurrency) for case in plan.cases)
    jobs: list[Case | Limit] = [*plan.cases, *limits]
    samples: dict[Case | Limit, list[Sample]] = {job: [] for job in jobs}
    with ExitStack() as stack:
        sides = {kind: stack.enter_context(_Side(kind, plan)) for kind in plan.loops}
        seconds = float(np.clip(plan.seconds / (_OVERHEAD * LEAST_ROUNDS * len(jobs)), _SHORTEST, _LONGEST))
        hidden = None if progress else True
        with tqdm(total=len(jobs) * LEAST_ROUNDS, desc="measuring", unit="case", leave=False, disable=hidden) as bar:
            for done in range(_MOST_ROUNDS):
                if done >= LEAST_ROUNDS and time.perf_counter() >= deadline:
                    break
                bar.total = max(bar.total or 0, len(jobs) * (done + 1))
                for number in rng.permutation(len(jobs)).tolist():
                    job = jobs[number]
                    samples[job].append(sides[job.loop].measure(job, payloads[job.payload_bytes], seconds))
                    bar.update()
    return bench_dataset(plan, samples, seconds)


def _payloads(rng: np.random.Generator, nbytes: int, concurrency: int) -> list[bytes]:
    """Return different payloads: a reply that goes to another caller than the one that asked is seen."""
    return [rng.bytes(nbytes) for _ in range(max(1, min(concurrency, _PAYLOADS, _PAYLOAD_BYTES // nbytes)))]


class _Side:
    """One kind of loop: a thread with the client's, and the process of the servers.

    A thread, for the caller's may have a loop that runs, as in a notebook.
    """

    def __init__(self, kind: str, plan: NetBenchPlan) -> None:
        set_ups = list(dict.fromkeys((case.server_concurrency, case.handler_seconds) for case in plan.cases))
        self._timeout = plan.seconds + 60.0
        with ExitStack() as undo:
            self._server = undo.enter_context(BenchServer(kind, set_ups, queue=max(plan.concurrency)))
            self._loop = loop_factory(kind)()
            self._thread = Thread(target=self._loop.run_forever, name=f"dynalab bench {kind}", daemon=True)
            self._thread.start()
            undo.callback(self._stop)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def measure(self, job: Case | Limit, payloads: list[bytes], seconds: float) -> Sample:
        """Measure a case once."""
        work = self._limit(job, payloads, seconds) if isinstance(job, Limit) else self._case(job, payloads, seconds)
        return self._run(work)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        running: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    async def _case(self, case: Case, payloads: list[bytes], seconds: float) -> Sample:
        address = self._server.addresses[case.server_concurrency, case.handler_seconds]
        async with TcpConnectionPool(
            size=case.pool_size, channel_buffer=case.channel_buffer, request_timeout=self._timeout, retries=0
        ) as client:
            begin = time.perf_counter()
            await client.warm_up(address)
            connected = time.perf_counter() - begin
            await client.warm_up(address, -(-case.concurrency // case.channel_buffer))

            async def call(payload: bytes) -> bytes | bytearray:
                return await client.request(address, PATH, payload)

            load, cpu = await self._load([call] * case.concurrency, payloads, seconds)
            return Sample(load, cpu, connected, int(client.stats().connections.sum()))

    async def _limit(self, limit: Limit, payloads: list[bytes], seconds: float) -> Sample:
        begin = time.perf_counter()
        async with EchoClient(self._server.echo, limit.concurrency, limit.payload_bytes) as client:
            connected = (time.perf_counter() - begin) / limit.concurrency
            load, cpu = await self._load([caller.call for caller in client.callers], payloads, seconds)
            return Sample(load, cpu, connected, limit.concurrency)

    async def _load(self, calls: list[Any], payloads: list[bytes], seconds: float) -> tuple[Load, float]:
        await closed_loop(calls[: max(1, _WARM_BYTES // len(payloads[0]))], payloads, _WARM * seconds)
        before = self._server.cpu_seconds()
        load = await closed_loop(calls, payloads, seconds)
        return load, self._server.cpu_seconds() - before

    def _stop(self) -> None:
        """Cancel what runs in the thread, and end it."""

        async def cancel() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        try:
            asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(5)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            if not self._thread.is_alive():
                self._loop.close()
