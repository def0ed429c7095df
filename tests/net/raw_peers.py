"""Peers made of bare sockets, frames made by hand, and a loop that is watched while it runs."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dynalab.net import TcpConnectionPool

T = TypeVar("T")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def request(path: str = "echo", payload: bytes = b"", status: bool = True, **headers: str) -> bytes:
    """Make a request's frame without our encoder."""
    name = path.encode()
    told = json.dumps(headers | ({"x-reply": "status"} if status else {}), separators=(",", ":")).encode()
    return struct.pack(">H", len(name)) + name + struct.pack(">H", len(told)) + told + announce(len(payload)) + payload


def announce(nbytes: int) -> bytes:
    """Make a length."""
    return struct.pack(">I", nbytes)


def response(data: bytes) -> bytes:
    """Make a response's frame; `data` begins with the status."""
    return announce(len(data)) + data


def run(
    main: Coroutine[Any, Any, T],
    *,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    seconds: float = 30.0,
    debug: bool = False,
) -> T:
    """Run `main`, and hold it to leaving no task and giving the loop nothing to complain of."""
    told: list[dict[str, Any]] = []

    async def whole() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with asyncio.timeout(seconds):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    with asyncio.Runner(debug=debug, loop_factory=loop) as runner:
        result = runner.run(whole())
    if debug:
        # What was never awaited, or destroyed while it was pending, is told when it is collected.
        gc.collect()
    assert not told, told
    return result


async def settle(until: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not until():
            await asyncio.sleep(0.002)


class Peer:
    """A client made of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, address: str, **options: Any) -> Peer:
        host, port = address.rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port), **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def get(self, n: int = 1) -> list[bytes]:
        """Read responses."""
        found = []
        for _ in range(n):
            (length,) = struct.unpack(">I", await self.reader.readexactly(4))
            found.append(await self.reader.readexactly(length))
        return found

    async def closed(self) -> bytes:
        """Wait for the other side to close, and return what came before."""
        try:
            return await self.reader.read(-1)
        except ConnectionError:
            return b""

    def reset(self) -> None:
        """Close so that the other side meets an error."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@asynccontextmanager
async def raw_server(serve: Serve, **options: Any) -> AsyncIterator[str]:
    """Serve every connection by a function of reader and writer; yield the address."""
    running: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, OSError, EOFError):
            pass
        finally:
            running.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(one, "127.0.0.1", 0, **options)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in [*running]:
            task.cancel()
        if running:
            await asyncio.wait([*running])


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request and return its payload."""
    for size in (2, 2):
        (length,) = struct.unpack(">H", await reader.readexactly(size))
        await reader.readexactly(length)
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    return await reader.readexactly(length)


@asynccontextmanager
async def bystander(address: str, path: str = "echo", **options: Any) -> AsyncIterator[list[float]]:
    """Keep asking on a connection of its own: every answer must be right while others attack; yield what it waited."""
    waits: list[float] = []
    loop = asyncio.get_running_loop()

    async def ask(client: TcpConnectionPool) -> None:
        while True:
            began = loop.time()
            sent = b"bystander %d" % len(waits)
            assert await client.request(address, path, sent, timeout=10, retry="never") == sent
            waits.append(loop.time() - began)
            await asyncio.sleep(0.002)

    async with TcpConnectionPool(size=1, **options) as client:
        task = asyncio.create_task(ask(client))
        try:
            yield waits
        finally:
            before = len(waits)
            await settle(lambda: len(waits) > before + 1 or task.done())
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()


def open_sockets() -> int:
    """Sockets that this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(link.readlink()).startswith("socket:")
    return found


def resident() -> int:
    """Bytes of this process that lie in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")
