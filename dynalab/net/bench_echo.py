"""What plain asyncio reaches: bytes echoed over a connection for each caller, without frames, pools or timeouts.

It is the limit that benchmarks of the network hold their figures against: nothing is parsed, queued or shared, and the
server sends back what arrives while more of it arrives. No use but that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self, cast

from dynalab.errors import ConnectionLost

#: From here on a reply is received into its own buffer: joining its parts would cost another copy.
_IN_PLACE: Final = 64 << 10


class EchoServer(asyncio.Protocol):
    """Sends back what it receives, as it comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._write(data)


class _Caller:
    """One connection with one request under way at most."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[bytes | bytearray] = self._loop.create_future()
        self._reply.set_result(b"")
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._reply.done():
            self._reply.set_exception(ConnectionLost(f"the echo server has gone ({error or 'closed'})"))

    def close(self) -> None:
        self._transport.abort()


class _PartsCaller(_Caller, asyncio.Protocol):
    """For small replies, which come whole."""

    def call(self, payload: bytes) -> asyncio.Future[bytes | bytearray]:
        self._missing = len(payload)
        self._parts: list[bytes] = []
        self._reply = self._loop.create_future()
        self._transport.write(payload)
        return self._reply

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing:
            self._parts.append(data)
        elif not self._reply.done():
            self._reply.set_result(b"".join((*self._parts, data)) if self._parts else data)


class _InPlaceCaller(_Caller, asyncio.BufferedProtocol):
    """For large replies, received where they stay."""

    def __init__(self) -> None:
        super().__init__()
        # uvloop asks for room before it knows whether anything has come.
        self._spare = memoryview(bytearray(1))
        self._view = self._spare

    def call(self, payload: bytes) -> asyncio.Future[bytes | bytearray]:
        self._missing = len(payload)
        self._buffer = bytearray(self._missing)
        self._view = memoryview(self._buffer)
        self._reply = self._loop.create_future()
        self._transport.write(payload)
        return self._reply

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[-self._missing :]

    def buffer_updated(self, nbytes: int) -> None:
        self._missing -= nbytes
        if not self._missing:
            self._view = self._spare
            if not self._reply.done():
                self._reply.set_result(self._buffer)


class EchoClient:
    """A connection for each caller, opened together and closed together.

    Parameters
    ----------
    address : str
        ``host:port`` of a server of :class:`EchoServer`.
    connections : int
    payload_bytes : int
        What the requests will carry [B]; it decides how replies are received.

    Attributes
    ----------
    callers : sequence
        Each with ``call(payload)``, a future of the bytes that come back.
    """

    def __init__(self, address: str, connections: int, payload_bytes: int) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port, self._connections = host, int(port), connections
        self._kind = _PartsCaller if payload_bytes < _IN_PLACE else _InPlaceCaller
        self.callers: Sequence[_PartsCaller | _InPlaceCaller] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            for _ in range(self._connections):
                _, caller = await loop.create_connection(self._kind, self._host, self._port)
                self.callers = [*self.callers, cast("_PartsCaller | _InPlaceCaller", caller)]
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for caller in self.callers:
            caller.close()
