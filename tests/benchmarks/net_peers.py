"""Clients that are measured beside each other, each set up as one who knows it would, and the process they call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from dynalab.net.bench_echo import EchoClient
from dynalab.net.bench_load import Call
from dynalab.net.client import TcpConnectionPool

#: The largest payload, and more requests at once than any client makes.
MOST_BYTES, PLACES = 1 << 20, 1024
ROOT = Path(__file__).resolve().parents[2]

Client = Callable[[str, int, int], AbstractAsyncContextManager[list[Call]]]


@contextmanager
def servers(loop: str, cores: set[int]) -> Iterator[dict[str, str]]:
    """Start the process of all servers on some cores; yields the address of each."""
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, str(Path(here, "net_server_main.py")), loop],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), here))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        os.sched_setaffinity(process.pid, cores)
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


@asynccontextmanager
async def bare(address: str, concurrency: int, nbytes: int) -> AsyncIterator[list[Call]]:
    async with EchoClient(address, concurrency, nbytes) as client:
        yield [caller.call for caller in client.callers]


@asynccontextmanager
async def over_aiohttp(address: str, concurrency: int, nbytes: int) -> AsyncIterator[list[Call]]:
    url = URL(f"http://{address}/")
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    ) as session:

        async def call(payload: bytes) -> bytes:
            async with session.post(url, data=payload) as response:
                return await response.read()

        yield [call] * concurrency


def ours(path: str) -> Client:
    """One set-up for all payloads and any concurrency."""

    @asynccontextmanager
    async def client(address: str, concurrency: int, nbytes: int) -> AsyncIterator[list[Call]]:
        async with TcpConnectionPool(size=8, channel_buffer=64) as pool:

            async def call(payload: bytes) -> bytes | bytearray | memoryview:
                return await pool.request(address, path, payload)

            yield [call] * concurrency

    return client


#: Peer: the server that it calls, and how.
PEERS: dict[str, tuple[str, Client]] = {
    "ours": ("ours", ours("coroutine")),
    "inline": ("ours", ours("function")),
    "aiohttp": ("low_level", over_aiohttp),
    "aiohttp app": ("application", over_aiohttp),
    "bare": ("bare", bare),
}
