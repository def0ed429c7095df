"""The decoders in the loops that they are made for: asyncio's and uvloop's, plain and through TLS.

What they rely on, and no documentation promises, is that a loop fills and reports a buffer before it asks anybody for
the next one: here several connections at once would show if one did not.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from dynalab.net.decoder import SMALL, RequestDecoder, ResponseDecoder
from dynalab.net.frames import encode_request_head, encode_response_head

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:
    new_uvloop = None

LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(new_uvloop, id="uvloop", marks=pytest.mark.skipif(new_uvloop is None, reason="needs uvloop")),
]
CONNECTIONS = 8
SIZES = [0, 1, 100, 5000, SMALL, SMALL + 1, 300_000, 3, 2_000_000, 64]


class Server(asyncio.BufferedProtocol):
    """Answers each request with the digest of its payload, and its payload."""

    def __init__(self) -> None:
        self.decoder = RequestDecoder()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        for frame in self.decoder.buffer_updated(nbytes):
            data = hashlib.sha256(frame.path.encode() + frame.payload).digest()
            self.transport.write(encode_response_head(len(data) + len(frame.payload)) + data + frame.payload)


class Client(asyncio.BufferedProtocol):
    """Collects responses until there are as many as awaited."""

    def __init__(self, awaited: int) -> None:
        self.decoder = ResponseDecoder()
        self.responses: list[bytes | bytearray] = []
        self.awaited = awaited
        self.done = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.responses += self.decoder.buffer_updated(nbytes)
        if len(self.responses) == self.awaited and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed early"))


def contexts(tls: bool) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    if not tls:
        return None, None
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def talk(tls: bool) -> list[list[tuple[bytes, bytes]]]:
    loop = asyncio.get_running_loop()
    server_context, client_context = contexts(tls)
    server = await loop.create_server(Server, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    name = "localhost" if tls else None
    pairs = [
        await loop.create_connection(
            lambda: Client(len(SIZES)), "127.0.0.1", port, ssl=client_context, server_hostname=name
        )
        for _ in range(CONNECTIONS)
    ]
    for turn, size in enumerate(SIZES):
        for number, (transport, _) in enumerate(pairs):
            payload = bytes([number + 1, turn + 1]) * (size // 2) + b"x" * (size % 2)
            stream = encode_request_head(f"path-{number}", None, size) + payload
            # Cut where it hurts: inside the head, and inside the payload.
            for piece in (stream[:5], stream[5 : 40 + number], stream[40 + number :]):
                transport.write(piece)
                await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.gather(*(client.done for _, client in pairs))
    for transport, _ in pairs:
        transport.close()
    server.close()
    await server.wait_closed()
    return [[(bytes(data[:32]), bytes(data[32:])) for data in client.responses] for _, client in pairs]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("new_loop", LOOPS)
def test_connections_that_share_a_buffer(new_loop: Callable[[], asyncio.AbstractEventLoop], tls: bool) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        responses = runner.run(talk(tls))
    for number, got in enumerate(responses):
        assert [len(payload) for _, payload in got] == SIZES
        for turn, (digest, payload) in enumerate(got):
            size = SIZES[turn]
            assert payload == bytes([number + 1, turn + 1]) * (size // 2) + b"x" * (size % 2)
            assert digest == hashlib.sha256(f"path-{number}".encode() + payload).digest()
