"""Servers that answer wrongly, too much, too little or never: a typed error, a closed connection, and a counter."""

from __future__ import annotations

import asyncio

import pytest
from raw_peers import announce, open_sockets, raw_server, read_request, resident, response, run, settle

from dynalab.errors import ConnectionLost, NetError, RequestTimeout
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:
    new_uvloop = None

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize(
        "loop",
        [
            pytest.param(asyncio.new_event_loop, id="asyncio"),
            pytest.param(new_uvloop, id="uvloop", marks=pytest.mark.skipif(new_uvloop is None, reason="needs uvloop")),
        ],
    ),
]
MIB = 2**20


async def outcomes_of(client, address, n=4, **options):
    return await asyncio.gather(
        *(client.request(address, "x", b"%d" % k, retry="never", **options) for k in range(n)), return_exceptions=True
    )


#: What the server sends, how many of four requests that answers, and the counter that knows of the rest.
ANSWERS = {
    "a length beyond the limit": (response(b"\0ok") + announce(64 * MIB), 1, "bad_frames"),
    "an absurd length": (b"\xff\xff\xff\xff" * 9, 0, "bad_frames"),
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", 0, "bad_frames"),
    "no status": (response(b"\0ok") * 2 + response(b"") + response(b"\0ok"), 2, "bad_frames"),
    "half a response": (response(b"\0ok") + response(b"\0 and this one is cut")[:9], 1, "bad_frames"),
    "half a large response": (response(b"\0ok") + announce(MIB) + bytes(90_000), 1, "bad_frames"),
    "nothing": (b"", 0, "lost"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_what_is_no_answer_ends_the_connection_and_those_before_it_count(loop, what):
    sent, good, counter = ANSWERS[what]

    async def serve(reader, writer):
        for _ in range(4):
            await read_request(reader)
        writer.write(sent)
        await writer.drain()
        if "half" not in what and what != "nothing":
            await reader.read(-1)

    async def main():
        before = open_sockets()
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            # Nobody else's connection is touched.
            async with SharedTcpEndpoint() as other:
                other.register("echo", lambda request: request.payload)
                assert await client.request(other.address, "echo", b"1") == b"1"
                outcomes = await outcomes_of(client, address, timeout=10)
                assert outcomes[:good] == [b"ok"] * good
                assert {type(outcome) for outcome in outcomes[good:]} == {ConnectionLost}
                assert all(outcome.maybe_handled and address in str(outcome) for outcome in outcomes[good:])
                assert await client.request(other.address, "echo", b"2") == b"2"
            assert getattr(client.metrics, counter) >= 1
            assert client.metrics.lost == 4 - good
            assert client.metrics.responses == good + 2
            (host,) = (host for address_, host in client._hosts.items() if str(address_) == address)
            assert not host.connections
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop)


def test_an_answer_that_nobody_asked_for(loop):
    async def serve(reader, writer):
        payload = await read_request(reader)
        writer.write(response(b"\0" + payload))
        if payload == b"0":
            writer.write(response(b"\0unasked"))
        await reader.read(-1)

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            assert await client.request(address, "x", b"0") == b"0"
            await settle(lambda: client.metrics.bad_frames == 1)
            # It answers nobody: the next request goes on a connection of its own.
            assert await client.request(address, "x", b"next") == b"next"
            assert client.metrics.connects == 2

    run(main(), loop=loop)


def test_an_answer_before_it_is_asked_for(loop):
    async def serve(reader, writer):
        writer.write(response(b"\0early"))
        await read_request(reader)
        writer.write(response(b"\0right"))
        await reader.read(-1)

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            for n in range(1, 4):
                await client.warm_up(address)
                (host,) = client._hosts.values()
                await settle(lambda n=n, host=host: client.metrics.bad_frames == n and not host.connections)

    run(main(), loop=loop)


def test_a_server_that_never_answers_takes_no_more_than_its_places(loop):
    async def serve(reader, writer):
        await reader.read(-1)

    async def main():
        before = open_sockets()
        async with (
            raw_server(serve) as address,
            TcpConnectionPool(size=2, channel_buffer=3, request_timeout=0.1) as client,
        ):
            for _ in range(3):
                outcomes = await outcomes_of(client, address, 20)
                assert {type(outcome) for outcome in outcomes} == {RequestTimeout}
                (host,) = client._hosts.values()
                assert host.in_flight <= 2 * 3 * 3 + 20
            assert client.metrics.timeouts == 60
            # Silent connections are given up.
            await settle(lambda: host.in_flight == 0 and client.metrics.stuck >= 2)
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop)


def test_a_server_that_reads_nothing_is_given_up_and_memory_with_it(loop):
    async def serve(reader, writer):
        await asyncio.sleep(30)

    async def main():
        before = open_sockets()
        async with (
            raw_server(serve, limit=1000) as address,
            TcpConnectionPool(size=1, channel_buffer=4, request_timeout=0.1) as client,
        ):
            memory = resident()
            for n in range(8):
                outcomes = await asyncio.gather(
                    *(client.request(address, "x", bytearray(4 * MIB)) for _ in range(8)), return_exceptions=True
                )
                assert {type(outcome) for outcome in outcomes} == {RequestTimeout}, n
                del outcomes
            (host,) = client._hosts.values()
            await settle(lambda: host.in_flight == 0)
            # Of 256 MiB that were asked to be sent.
            assert resident() - memory < 128 * MIB
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop)


def test_a_reset_in_the_middle_of_an_answer(loop):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(announce(MIB) + bytes(200_000))
        await writer.drain()
        writer.transport.abort()

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            outcomes = await outcomes_of(client, address, 3)
            assert {type(outcome) for outcome in outcomes} == {ConnectionLost}

    run(main(), loop=loop)


def test_a_server_with_a_smaller_limit_says_so(loop):
    async def main():
        async with SharedTcpEndpoint(max_message=2048) as server, TcpConnectionPool(size=1) as client:
            server.register("echo", lambda request: request.payload)
            for size in (3000, 2**24):
                # What it says comes through, though most of the request was never read.
                with pytest.raises(NetError, match=r"refused the request: Read error: .*the limit is 2048"):
                    await client.request(server.address, "echo", bytes(size), retry="never")
            assert await client.request(server.address, "echo", bytes(1000)) == bytes(1000)

    run(main(), loop=loop)
