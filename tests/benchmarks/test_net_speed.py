"""Requests over our client and endpoint beside aiohttp's and beside a bare echo: one client, one server process.

Run with ``python -m pytest tests/benchmarks/test_net_speed.py --benchmark-only -s``.

All take turns of a third of a second, in another order in every round, and the rates of a round are divided by each
other: other work on the machine slows down all of them. Of aiohttp's two servers the faster one counts. The bare echo
has one connection for each caller, parses nothing, and sends back what arrives while more arrives. Client and server
have a core each: left to the scheduler, the two ends of the bare echo share one for a while and then do not, and a
round trip of it takes 27 us or 45 us by chance. So run it on a quiet machine: who has one core only waits for it.

Bars, for asyncio's own loop and a handler that is a coroutine: three times aiohttp's requests/s, 0.7 times the bare
echo's, and no later p99 than aiohttp's.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import numpy as np
import pytest
from net_peers import PEERS, servers

from dynalab.net.bench_load import Load, closed_loop
from dynalab.units import format_duration, format_size

AIOHTTP_BAR, BARE_BAR = 3.0, 0.7
PAYLOADS, CONCURRENCY = (64, 4 << 10, 1 << 20), (1, 16, 256)
ROUNDS, SECONDS, WARM = 9, 0.3, 0.1
AIOHTTP = ("aiohttp", "aiohttp app")


def new_loop(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop
    return asyncio.new_event_loop


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def peers(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """Kind of loop, and the addresses of all servers."""
    new_loop(request.param)
    cores = os.sched_getaffinity(0)
    with servers(request.param, {max(cores)}) as addresses:
        os.sched_setaffinity(0, {min(cores)})
        gc.collect()
        gc.freeze()  # what the test runner holds is no client's to look through
        yield request.param, addresses
        gc.unfreeze()
        os.sched_setaffinity(0, cores)


async def in_turns(addresses: dict[str, str], nbytes: int, concurrency: int) -> dict[str, list[Load]]:
    payloads = [os.urandom(nbytes) for _ in range(min(concurrency, 16))]
    loads: dict[str, list[Load]] = {name: [] for name in PEERS}
    async with AsyncExitStack() as stack:
        calls = {}
        for name, (server, client) in PEERS.items():
            calls[name] = await stack.enter_async_context(client(addresses[server], concurrency, nbytes))
            await closed_loop(calls[name], payloads, WARM)
        names = list(PEERS)
        for number in range(ROUNDS):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                loads[name].append(await closed_loop(calls[name], payloads, SECONDS))
    return loads


@pytest.mark.parametrize("concurrency", CONCURRENCY)
@pytest.mark.parametrize("nbytes", PAYLOADS)
def test_requests_beside_aiohttp_and_a_bare_echo(benchmark, peers, nbytes, concurrency) -> None:
    kind, addresses = peers
    found: dict[str, list[Load]] = {}

    def measure() -> None:
        with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
            found.update(runner.run(in_turns(addresses, nbytes, concurrency)))

    benchmark.pedantic(measure, rounds=1)
    rates = {name: np.array([load.rate for load in loads]) for name, loads in found.items()}
    late = {name: np.median([np.percentile(x.latencies, [50, 99]) for x in loads], 0) for name, loads in found.items()}
    aiohttp = max(AIOHTTP, key=lambda name: float(np.median(rates[name])))
    ratios = {rival: float(np.median(rates["ours"] / rates[rival])) for rival in (aiohttp, "bare")}
    cells = [f"{kind} {format_size(nbytes):>6} x {concurrency:<3}"]
    for name in PEERS:
        p50, p99 = map(format_duration, late[name])
        cells.append(f"{name} {np.median(rates[name]):.0f}/s ({p50}, {p99})")
    cells.append(f"ours {ratios[aiohttp]:.2f} x {aiohttp}, {ratios['bare']:.2f} x bare")
    print("\n" + " | ".join(cells))
    benchmark.extra_info |= {name: float(np.median(rate)) for name, rate in rates.items()} | {
        "of_aiohttp": ratios[aiohttp],
        "of_bare": ratios["bare"],
        "p99": {name: float(p99) for name, (_, p99) in late.items()},
    }
    if kind == "asyncio":
        assert ratios[aiohttp] >= AIOHTTP_BAR
        assert ratios["bare"] >= BARE_BAR
        assert late["ours"][1] <= late[aiohttp][1]
