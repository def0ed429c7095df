"""Clients that mean harm, or are broken: closed, counted, bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest
from raw_peers import Peer, announce, bystander, open_sockets, request, resident, response, run, settle

from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:
    new_uvloop = None

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")

LOOPS = pytest.mark.parametrize(
    "loop",
    [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(new_uvloop, id="uvloop", marks=pytest.mark.skipif(new_uvloop is None, reason="needs uvloop")),
    ],
)
MIB = 2**20


def echo(request):
    return request.payload


async def later(request):
    await asyncio.sleep(0.005)
    return request.payload


async def mib_later(request):
    await asyncio.sleep(0.001)
    return bytes(MIB)


def endpoint(**settings):
    server = SharedTcpEndpoint(**settings)
    server.register("echo", echo)
    server.register("later", later)
    server.register("mib", lambda request: bytes(MIB))
    server.register("mib later", mib_later)
    return server


BROKEN = {
    "no path": b"\0\0",
    "an absurd path": b"\xff\xff" + b"x" * 70_000,
    "a path that is no text": b"\0\2\xff\xfe\0\2{}\0\0\0\0",
    "headers that are no JSON": b"\0\4echo\0\3{]}\0\0\0\0",
    "headers that are no object": b"\0\4echo\0\2[]\0\0\0\0",
    "headers of numbers": b'\0\4echo\0\7{"a":1}\0\0\0\0',
    "headers that are no text": b"\0\4echo\0\4\xff\xfe\xfd\xfc\0\0\0\0",
    "a payload beyond the limit": b"\0\4echo\0\2{}" + announce(40 * MIB),
    "an absurd payload": b"\0\4echo\0\2{}\xff\xff\xff\xff",
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": bytes(range(255, -1, -1)) * 100,
}


@LOOPS
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_request_is_answered_and_the_connection_closed(loop, what):
    async def main():
        before = open_sockets()
        async with endpoint() as server, bystander(server.address):
            # Behind good requests, in one piece and in many; and good ones behind it, which nobody may take for such.
            good = request("echo", b"one") + request("later", b"two" * 30_000) + request("nowhere")
            for pieces in (1, 7):
                peer = await Peer.of(server.address)
                sent = good + BROKEN[what] + request("echo", b"behind")
                step = -(-len(sent) // pieces)
                for at in range(0, len(sent), step):
                    peer.send(sent[at : at + step])
                    await asyncio.sleep(0.001)
                answers = await peer.closed()
                if answers:
                    assert b"behind" not in answers
                    expected = response(b"\0one") + response(b"\0" + b"two" * 30_000)
                    assert answers[: len(expected)] == expected[: len(answers)]
                await peer.close()
            await settle(lambda: server.connections == 1)
            assert server.metrics.bad_frames == 2
        assert server.budget.used == 0
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop)


@LOOPS
def test_frames_that_end_too_soon_half_closed_peers_and_resets(loop):
    whole = request("later", b"x" * 90_000)

    async def main():
        before = open_sockets()
        async with endpoint() as server, bystander(server.address) as waits:
            cuts = [1, 3, 9, 25, 29, 30, 5000, 70_000, len(whole) - 1]
            peers = [await Peer.of(server.address) for _ in range(4 * len(cuts))]
            for n, peer in enumerate(peers):
                peer.send(request("later", b"first") + whole[: cuts[n // 4]])
                await asyncio.sleep(0)
                if n % 4 == 0:
                    peer.writer.write_eof()
                elif n % 4 == 1:
                    peer.reset()
                elif n % 4 == 2:
                    await asyncio.sleep(0.002)
                    peer.reset()
                else:
                    peer.writer.close()
            for n, peer in enumerate(peers):
                if n % 4 == 0:
                    # It still reads: what it asked for before is answered.
                    assert await peer.closed() == response(b"\0first")
                await peer.close()
            # And one that has sent all that it wants to.
            peer = await Peer.of(server.address)
            peer.send(whole + request("echo", b"last"))
            peer.writer.write_eof()
            assert await peer.closed() == response(b"\0" + b"x" * 90_000) + response(b"\0last")
            await peer.close()
            await settle(lambda: server.connections == 1)
            assert server.metrics.bad_frames >= len(cuts)
            assert len(waits) > 3
        assert server.budget.used == 0
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop)


@LOOPS
def test_one_byte_at_a_time_is_too_slow(loop):
    async def main():
        async with endpoint(read_timeout=0.15) as server, bystander(server.address):
            slow = [await Peer.of(server.address) for _ in range(20)]
            idle = [await Peer.of(server.address) for _ in range(20)]
            sent = request("echo", b"x" * 1000)
            for at in range(60):
                for peer in slow:
                    if not peer.writer.is_closing():
                        peer.send(sent[at : at + 1])
                await asyncio.sleep(0.01)
            for peer in slow:
                await peer.closed()
                await peer.close()
            assert server.metrics.read_timeouts == 20
            # Who says nothing at all may stay; and who is merely slow to ask for the next.
            assert server.connections == 21
            for peer in idle:
                peer.send(request("echo", b"still here"))
                assert await peer.get() == [b"\0still here"]
                await peer.close()

    run(main(), loop=loop)


@LOOPS
@pytest.mark.parametrize("path", ["mib", "mib later", "echo"])
def test_one_who_asks_and_never_reads_is_closed_and_costs_little(loop, path):
    async def main():
        async with (
            endpoint(
                write_timeout=0.3, connection_bytes=8 * MIB, total_bytes=64 * MIB, max_concurrency=20, queue=20_000
            ) as server,
            bystander(server.address) as waits,
        ):
            before, highest = resident(), 0
            peers = [await Peer.of(server.address, limit=1) for _ in range(5)]
            for peer in peers:
                peer.writer.transport.pause_reading()
                peer.send(request(path, b"x" * 60_000 if path == "echo" else b"") * (300 if path == "echo" else 3000))
            while server.metrics.write_timeouts < 5:
                highest = max(highest, resident())
                await asyncio.sleep(0.005)
            # At most what the endpoint may hold, what was sent and not read yet, and one reply for each.
            assert highest - before < 64 * MIB + 5 * 20 * MIB
            await settle(lambda: server.connections == 1)
            for peer in peers:
                peer.reset()
            assert len(waits) > 3
        assert server.budget.used == 0

    run(main(), loop=loop, seconds=60)


@LOOPS
def test_the_last_bytes_are_not_waited_for_either(loop):
    """One who reads nothing has a little in the transport, not enough for a pause, and then closes his side."""

    async def main():
        async with endpoint(write_timeout=0.2, read_timeout=0.2) as server, bystander(server.address):
            peer = await Peer.of(server.address, limit=1)
            peer.writer.transport.pause_reading()
            # As much as the kernel takes, in small steps, until something stays with the transport.
            session = None
            while True:
                peer.send(request("echo", b"x" * 20_000))
                await asyncio.sleep(0.0005)
                session = session or max(server._sessions, key=lambda s: s._transport.get_write_buffer_size())
                if session._transport.get_write_buffer_size():
                    break
                session = None
            peer.writer.write_eof()
            await settle(lambda: server.connections == 1)
            assert server.metrics.write_timeouts == 1
            peer.reset()

    run(main(), loop=loop)


@LOOPS
def test_what_is_announced_and_never_sent_takes_no_memory_and_no_place(loop):
    async def main():
        async with (
            endpoint(total_bytes=2048 * MIB, read_timeout=0.1) as server,
            bystander(server.address) as waits,
            TcpConnectionPool() as client,
        ):
            before = resident()
            peers = [await Peer.of(server.address) for _ in range(500)]
            announced = request("echo")[:-4] + announce(32 * MIB - 40) + bytes(1000)
            for peer in peers:
                peer.send(request("echo", b"first") + announced)
            await settle(lambda: server.metrics.requests > 500)
            known = len(waits)
            await settle(lambda: len(waits) > known + 20)
            assert server.budget.used <= 2048 * MIB
            assert resident() - before < 64 * MIB
            # Small ones pass; a large one waits for its turn, and has it when the others are out of time.
            large = b"L" * (20 * MIB)
            assert await client.request(server.address, "echo", large, timeout=25) == large
            for peer in peers:
                await peer.closed()
                await peer.close()
            assert server.metrics.read_timeouts == 500
        assert server.budget.used == 0

    run(main(), loop=loop, seconds=60)


@LOOPS
@pytest.mark.slow
def test_thousands_of_idle_connections_cost_little_each(loop):
    n = 2000

    async def main():
        before = open_sockets()
        async with endpoint() as server, bystander(server.address) as waits:
            peers = []
            gc.collect()
            tracemalloc.start()
            try:
                for _ in range(n):
                    peers.append(await Peer.of(server.address))
                await settle(lambda: server.connections == n + 1)
                snapshot = tracemalloc.take_snapshot()
            finally:
                tracemalloc.stop()
            ours = snapshot.filter_traces([tracemalloc.Filter(True, "*/dynalab/net/*")])
            assert sum(trace.size for trace in ours.traces) / n < 8192
            for peer in peers[:50]:
                peer.send(request("echo", b"hello"))
                assert await peer.get() == [b"\0hello"]
            for peer in peers:
                peer.writer.transport.abort()
            await settle(lambda: server.connections == 1)
            assert len(waits) > 3
            peers.clear()
        await settle(lambda: open_sockets() == before)

    run(main(), loop=loop, seconds=60)


def test_many_who_need_more_than_there_is_are_all_served():
    """Large and small payloads from many connections, together far beyond what may be held: no deadlock."""

    async def main():
        async with endpoint(connection_bytes=3 * MIB, total_bytes=4 * MIB, max_concurrency=8) as server:
            async with TcpConnectionPool(size=10, channel_buffer=4, request_timeout=30) as client:
                sizes = [MIB, 10, 70_000, 3 * MIB, 0, 500_000, 65_536, 5 * MIB, 1000, 2 * MIB]
                payloads = [bytes([n % 251]) * sizes[n % len(sizes)] for n in range(120)]
                paths = ("echo", "later")
                found = await asyncio.gather(
                    *(client.request(server.address, paths[n % 2], each) for n, each in enumerate(payloads))
                )
                assert found == payloads
            await settle(lambda: server.connections == 0)
            assert server.budget.used == server.budget.large == server.budget.small == server.budget.replies == 0

    run(main(), seconds=60)


def test_bytes_of_those_who_left_come_back_when_their_handlers_end():
    async def main():
        release = asyncio.Event()
        async with endpoint(total_bytes=64 * MIB) as server:

            async def held(request):
                await release.wait()
                return request.payload

            server.register("held", held)
            for n in range(6):
                peer = await Peer.of(server.address)
                # Handled, in the handler's hands, and on its way.
                peer.send(request("echo", bytes(90_000)) + request("held", bytes(MIB)))
                peer.send(request("held", bytes(2 * MIB))[: -1 if n % 2 else None])
                await settle(lambda n=n: server.workers.active >= n + 1 + (n + 1) // 2)
                await asyncio.sleep(0.01)
                peer.reset()
                await settle(lambda: server.connections == 0)
            assert server.budget.used == server.budget.large == 6 * MIB + 3 * 2 * MIB
            release.set()
            await settle(lambda: server.workers.idle)
            assert server.budget.used == 0

    run(main())


@pytest.mark.parametrize("path", ["mib", "mib later"])
def test_one_who_reads_late_gets_it_all_and_little_waits_for_him_in_memory(path):
    async def main():
        settings = {"connection_bytes": 2 * MIB, "total_bytes": 8 * MIB, "max_concurrency": 3, "queue": 1000}
        async with endpoint(**settings) as server, bystander(server.address):
            peer = await Peer.of(server.address, limit=1)
            peer.writer.transport.pause_reading()
            peer.send(request(path) * 150 + request("echo", b"last") + request("nowhere"))
            await settle(lambda: server.budget.replies >= 2 * MIB)
            await asyncio.sleep(0.05)
            assert server.budget.replies <= 2 * MIB + 4 * MIB
            peer.writer.transport.resume_reading()
            for _ in range(150):
                (answer,) = await peer.get()
                assert len(answer) == MIB + 1
                assert server.budget.replies <= 2 * MIB + 4 * MIB
            assert await peer.get(2) == [b"\0last", b"\2Server unavailable: unknown endpoint nowhere"]
            await peer.close()
        assert server.budget.used == 0
        assert server.workers.idle

    run(main())


def test_one_who_leaves_without_reading_leaves_nothing_behind():
    async def main():
        async with endpoint(connection_bytes=2 * MIB, max_concurrency=3, queue=1000) as server:
            for path in ("mib", "mib later"):
                peer = await Peer.of(server.address, limit=1)
                peer.writer.transport.pause_reading()
                peer.send(request(path, b"x" * 1000) * 150)
                await settle(lambda: server.budget.replies >= 2 * MIB)
                await asyncio.sleep(0.02)
                peer.reset()
                await settle(lambda: server.connections == 0 and server.workers.idle)
                assert server.budget.used == 0
                assert await server.unregister(path, timeout=0) == 0

    run(main())
