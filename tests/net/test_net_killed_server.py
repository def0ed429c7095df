"""A server that is killed and comes back, again and again: every request has one outcome, and nothing stays behind.

A tenth of the whole by default; all of it, 1,000 connections and 100,000 requests, with ``DYNALAB_WHOLE=1``.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from raw_peers import open_sockets, resident, run, settle

from dynalab.errors import CannotConnect, ConnectionLost, ServerOverloaded
from dynalab.net import TcpConnectionPool

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")

WHOLE = os.environ.get("DYNALAB_WHOLE") == "1"
CONNECTIONS, REQUESTS = (1000, 100_000) if WHOLE else (100, 10_000)
KILLS = 5
ROOM = 4
PATHS = ("quick", "plain", "slow")
#: By the number of the request.
RETRIES = ("safe", "safe", "safe", "always", "never")


class Mortal:
    """The server's process, and the journal of all of its lives."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.port = 0
        self.begin()

    def begin(self) -> None:
        file = Path(__file__).with_name("mortal_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(file), str(self.port), str(self.journal)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the server did not start"
        self.port = int(self.address.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def runs(self) -> Counter[int]:
        """How often the handler of each request ran."""
        return Counter(np.fromfile(self.journal, ">u8").tolist())


@dataclass
class Outcomes:
    answered: list[int] = field(default_factory=list)
    #: By number, whether the handler may have run; none of the errors themselves, for they hold memory.
    lost: dict[int, bool] = field(default_factory=dict)
    unreachable: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.answered) + len(self.lost) + len(self.unreachable)


def payload(number: int) -> bytes:
    return number.to_bytes(8, "big") * (1 + number % 5 + 3000 * (number % 500 == 0))


async def ask(client: TcpConnectionPool, address: str, numbers: list[int], outcomes: Outcomes) -> None:
    """Make the requests of one caller, one after the other."""
    for number in numbers:
        retry = RETRIES[number % len(RETRIES)]
        try:
            found = await client.request(address, PATHS[number % 3], payload(number), retry=retry)
        except ConnectionLost as error:
            outcomes.lost[number] = error.maybe_handled
        except (CannotConnect, ServerOverloaded):
            outcomes.unreachable.append(number)
        else:
            assert found == payload(number), "a response that answers another request"
            outcomes.answered.append(number)


async def load(client: TcpConnectionPool, mortal: Mortal, first: int, n: int, kills: int) -> Outcomes:
    """Make `n` requests by as many callers as there is room for, and kill the server at even distances."""
    outcomes, callers = Outcomes(), CONNECTIONS * ROOM
    async with asyncio.TaskGroup() as group:
        for caller in range(callers):
            numbers = [*range(first + caller, first + n, callers)]
            group.create_task(ask(client, mortal.address, numbers, outcomes))
        for kill in range(kills):
            await settle(lambda kill=kill: len(outcomes) >= n * (kill + 1) // (kills + 1), seconds=120)
            await asyncio.to_thread(mortal.kill)
            await asyncio.to_thread(mortal.begin)
    return outcomes


def allowed_twice(number: int) -> bool:
    return RETRIES[number % len(RETRIES)] == "always"


def at_rest() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


async def lap(mortal: Mortal, first: int, kills: int) -> str:
    """Make all requests, hold each to its one outcome, and tell what became of them."""
    async with TcpConnectionPool(
        size=CONNECTIONS, channel_buffer=ROOM, request_timeout=100, retries=6, backoff=0.1, seed=first
    ) as client:
        assert await client.warm_up(mortal.address, CONNECTIONS) == CONNECTIONS
        outcomes = await load(client, mortal, first, REQUESTS, kills)
        (host,) = client._hosts.values()
        assert len(host.connections) <= CONNECTIONS
        assert not host.retired
        assert not host.waiting
        assert host.in_flight == 0
        assert not client._calls
        counters = client.metrics
    numbers = range(first, first + REQUESTS)
    assert sorted([*outcomes.answered, *outcomes.lost, *outcomes.unreachable]) == [*numbers]
    assert counters.requests == REQUESTS
    assert counters.responses == len(outcomes.answered)
    assert counters.late == counters.timeouts == counters.bad_frames == 0
    assert outcomes.lost, "the server was killed while it was idle: nothing was tried"
    runs = mortal.runs()
    for number in outcomes.answered:
        assert runs[number] == 1 or (runs[number] and allowed_twice(number))
    for number, maybe in outcomes.lost.items():
        assert runs[number] <= maybe or allowed_twice(number)
    for number in outcomes.unreachable:
        assert runs[number] == 0 or allowed_twice(number)
    return (
        f"{REQUESTS} requests on {CONNECTIONS} connections, {kills} kills: {len(outcomes.answered)} answered, "
        f"{len(outcomes.lost)} lost, {len(outcomes.unreachable)} unreachable, {counters.retries} retries, "
        f"{sum(runs[n] > 1 for n in numbers)} handled twice"
    )


@pytest.mark.slow
def test_every_request_has_one_outcome_whatever_happens_to_the_server(tmp_path):
    mortal = Mortal(tmp_path / "journal")

    async def main():
        sockets = open_sockets()
        # Twice: what the first lap leaves is what any use leaves.
        print(await lap(mortal, 0, KILLS if WHOLE else 1))
        await settle(lambda: open_sockets() == sockets)
        before = at_rest()
        print(await lap(mortal, REQUESTS, KILLS))
        await settle(lambda: open_sockets() == sockets)
        print(f"memory: {at_rest() - before:+d} bytes")
        assert at_rest() - before < 16 * 2**20

    try:
        run(main(), seconds=500)
    finally:
        mortal.kill()
