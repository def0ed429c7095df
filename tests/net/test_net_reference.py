"""What the reference's own tests demand of client and endpoint, demanded of ours."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from raw_peers import Peer, raw_server, read_request, request, response, run, settle

from dynalab.errors import ConfigError, ConnectionLost, NetClosed, NetError, ServerOverloaded, ServerUnavailable
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:
    new_uvloop = None

pytestmark = [
    pytest.mark.filterwarnings(
        "error::ResourceWarning", "error::RuntimeWarning", "error::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.parametrize(
        "loop",
        [
            pytest.param(asyncio.new_event_loop, id="asyncio"),
            pytest.param(new_uvloop, id="uvloop", marks=pytest.mark.skipif(new_uvloop is None, reason="needs uvloop")),
        ],
    ),
]


def watched(main, loop):
    """Run in debug mode: asyncio itself looks for what was never awaited, and for calls of other threads."""
    return run(main, loop=loop, debug=True)


def echo(request):
    return request.payload


class Gate:
    """A handler that waits until it is opened, and counts who is inside."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = self.highest = self.ended = 0

    async def __call__(self, request):
        self.inside += 1
        self.highest = max(self.highest, self.inside)
        try:
            await self.opened.wait()
        finally:
            self.inside -= 1
        self.ended += 1
        return request.payload


def test_five_requests_at_once_on_one_connection(loop):
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool(size=1) as client:
            server.register("echo", echo)
            found = await asyncio.gather(*(client.request(server.address, "echo", b"%d" % n) for n in range(5)))
            assert found == [b"%d" % n for n in range(5)]
            assert server.metrics.requests == server.metrics.handled == 5
            assert server.metrics.connections == client.metrics.connects == 1

    watched(main(), loop)


def test_one_request_after_the_other_uses_one_connection(loop):
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool(size=100) as client:
            server.register("echo", echo)
            for _ in range(20):
                assert await client.request(server.address, "echo", b"ping") == b"ping"
            assert server.metrics.connections == 1

    watched(main(), loop)


def test_a_connection_that_the_server_closes_at_once_is_handed_to_nobody(loop):
    accepted = 0

    async def serve(reader, writer):
        nonlocal accepted
        accepted += 1
        if accepted > 2:
            while True:
                writer.write(response(b"\0" + await read_request(reader)))

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=2, channel_buffer=10, retries=0) as client:
            for _ in range(2):
                with pytest.raises(NetError) as caught:
                    await client.request(address, "x", retry="never")
                assert isinstance(caught.value, ConnectionError)
                await settle(lambda: client.stats()["connections"].sum() == 0)
            assert await client.request(address, "x", b"again") == b"again"
            assert accepted == 3

    watched(main(), loop)


def test_a_new_connection_is_healthy_and_stays_so(loop):
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool() as client:
            server.register("echo", echo)
            assert await client.warm_up(server.address) == 1
            (connection,) = next(iter(client._hosts.values())).connections
            assert connection.healthy
            assert await client.request(server.address, "echo", b"ping") == b"ping"
            assert connection.healthy
            # Closed by the server, it is known to be unhealthy without any further request.
            await server.aclose()
            await settle(lambda: not connection.healthy)
            (host,) = client._hosts.values()
            await settle(lambda: not host.connections)

    watched(main(), loop)


def test_three_permits_and_ten_requests(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=3, queue=10) as server, TcpConnectionPool(size=4) as client:
            server.register("gate", gate)
            tasks = [asyncio.create_task(client.request(server.address, "gate", b"%d" % n)) for n in range(10)]
            await settle(lambda: server.workers.depth == 7)
            assert gate.inside == server.workers.active == 3
            gate.opened.set()
            assert await asyncio.gather(*tasks) == [b"%d" % n for n in range(10)]
            assert gate.highest == server.workers.highest == 3
            assert server.workers.idle
            assert sum(server.permit_waits.counts) == 7
            assert server.permit_waits.total > 0

    watched(main(), loop)


def test_the_histogram_of_waits_has_who_waited(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=2) as server, TcpConnectionPool() as client:
            server.register("gate", gate)
            tasks = [asyncio.create_task(client.request(server.address, "gate")) for _ in range(6)]
            await settle(lambda: server.workers.depth == 4)
            told = {
                sample.name: sample.value
                for family in text_string_to_metric_families(server.prometheus())
                for sample in family.samples
            }
            assert told["dynamo_work_handler_queue_depth"] == 4
            assert told["dynamo_work_handler_pool_active_tasks"] == told["dynamo_work_handler_pool_capacity"] == 2
            assert told["dynamo_work_handler_queue_capacity"] == server.config.queue
            gate.opened.set()
            await asyncio.gather(*tasks)
            told = {
                (sample.name, sample.labels.get("le")): sample.value
                for family in text_string_to_metric_families(server.prometheus())
                for sample in family.samples
            }
            assert told["dynamo_work_handler_permit_wait_seconds_count", None] == 4
            assert told["dynamo_work_handler_permit_wait_seconds_bucket", "+Inf"] == 4
            assert told["dynamo_work_handler_enqueue_rejected_total", None] == 0

    watched(main(), loop)


def test_taking_a_handler_away_waits_for_its_requests_and_turns_new_ones_away(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=1) as server, TcpConnectionPool() as client:
            server.register("gate", gate)
            server.register("echo", echo)
            running, queued = (asyncio.create_task(client.request(server.address, "gate", b"x")) for _ in range(2))
            await settle(lambda: server.workers.depth == 1)
            leaving = asyncio.create_task(server.unregister("gate"))
            await asyncio.sleep(0.05)
            assert not leaving.done()
            async with TcpConnectionPool(retries=0) as other:
                with pytest.raises(ServerUnavailable, match="unknown endpoint gate"):
                    await other.request(server.address, "gate")
            gate.opened.set()
            assert await leaving == 0
            assert await running == await queued == b"x"
            assert gate.ended == 2
            assert await server.unregister("gate") == 0
            assert await client.request(server.address, "echo", b"on") == b"on"
            # The name is free again.
            server.register("gate", echo)
            assert await client.request(server.address, "gate", b"new") == b"new"

    watched(main(), loop)


def test_taking_a_handler_away_waits_no_longer_than_it_is_told(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(drain_timeout=0.02) as server, TcpConnectionPool() as client:
            for timeout in (None, 0.01, 0):
                server.register("gate", gate)
                task = asyncio.create_task(client.request(server.address, "gate", b"x"))
                await settle(lambda: gate.inside == 1)
                assert await server.unregister("gate", timeout) == 1
                gate.opened.set()
                assert await task == b"x"
                gate.opened.clear()

    watched(main(), loop)


def test_the_end_of_an_endpoint_lets_its_requests_end_and_turns_new_ones_away(loop):
    async def main():
        gate = Gate()
        async with TcpConnectionPool(size=1, retries=0) as client:
            server = SharedTcpEndpoint()
            await server.start()
            address = server.address
            server.register("gate", gate)
            task = asyncio.create_task(client.request(address, "gate", b"x" * 200_000))
            await settle(lambda: gate.inside == 1)
            ending = asyncio.create_task(server.aclose())
            await asyncio.sleep(0)
            late = asyncio.create_task(client.request(address, "gate", b"late"))
            await settle(lambda: server.metrics.unavailable == 1)
            assert not ending.done()
            gate.opened.set()
            assert await task == b"x" * 200_000
            with pytest.raises(ServerUnavailable, match="draining"):
                await late
            assert await ending == 0
            with pytest.raises(NetError) as gone:
                await client.request(address, "gate")
            assert isinstance(gone.value, ConnectionError)
            for use in (server.start, server.start):
                with pytest.raises(NetClosed):
                    await use()
            assert await server.aclose() == 0

    watched(main(), loop)


def test_what_a_full_queue_turns_away_leaves_the_connection_open(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=2, queue=1) as server, TcpConnectionPool(size=1) as client:
            server.register("gate", gate)
            asked = [
                asyncio.create_task(client.request(server.address, "gate", b"%d" % n, retry="never")) for n in range(8)
            ]
            await settle(lambda: server.metrics.enqueue_rejected == 5)
            gate.opened.set()
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert outcomes[:3] == [b"0", b"1", b"2"]
            assert [str(type(each)) for each in outcomes[3:]] == [str(ServerOverloaded)] * 5
            assert await client.request(server.address, "gate", b"on") == b"on"
            assert client.metrics.connects == server.metrics.connections == 1
            assert client.metrics.rejected == 5

    watched(main(), loop)


def test_an_acknowledgement_comes_with_acceptance_and_the_handler_runs_though_nobody_is_left(loop):
    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=1, queue=1) as server:
            server.register("gate", gate, reply=False)
            server.register("reply", gate)
            peer = await Peer.of(server.address)
            peer.send(request("gate", b"1") + request("gate", b"2") + request("gate", b"3"))
            assert await peer.get(3) == [b"\0", b"\0", b"\1Server overloaded: worker at capacity"]
            assert gate.ended == 0
            await peer.close()
            await settle(lambda: server.connections == 0)
            gate.opened.set()
            await settle(lambda: server.workers.idle)
            assert gate.ended == 2
            # Where the reply is what was asked for, nobody's request is not begun.
            gate.opened.clear()
            peer = await Peer.of(server.address)
            peer.send(request("reply", b"4") + request("reply", b"5"))
            await settle(lambda: server.workers.depth == 1)
            peer.reset()
            await settle(lambda: server.connections == 0)
            gate.opened.set()
            await settle(lambda: server.workers.idle)
            assert gate.ended == 3
            assert server.metrics.abandoned == 1
            assert server.budget.used == 0

    watched(main(), loop)


def test_a_client_like_dynamos_gets_the_plain_forms(loop):
    async def fails(_):
        raise ValueError("no such model")

    async def main():
        gate = Gate()
        async with SharedTcpEndpoint(max_concurrency=1, queue=0) as server:
            server.register("echo", echo)
            server.register("fails", fails)
            server.register("gate", gate, reply=False)
            peer = await Peer.of(server.address)

            async def ask(path, payload=b"", status=False):
                peer.send(request(path, payload, status))
                return (await peer.get())[0]

            assert await ask("echo", b"some") == b"some"
            assert await ask("echo", b"") == b""
            assert await ask("nowhere") == b"Server unavailable: unknown endpoint nowhere"
            assert await ask("fails") == b"Handler failed: ValueError: no such model"
            assert await ask("gate") == b""
            assert await ask("echo", b"x") == b"Server overloaded: worker at capacity"
            assert await ask("echo", b"x", status=True) == b"\1Server overloaded: worker at capacity"
            gate.opened.set()
            await settle(lambda: server.workers.idle)
            # A frame that is none ends the connection, but not without a word.
            peer.send(request("echo", b"last", status=False) + b"\0\0\0\0\0\0")
            answers = await peer.closed()
            assert answers.startswith(response(b"last"))
            assert b"Read error: request: a path of 0 bytes" in answers
            await peer.close()

    watched(main(), loop)


def test_names_and_handlers_that_cannot_be(loop):
    async def main():
        async with SharedTcpEndpoint() as server:
            server.register("echo", echo)
            for path, handler in (("", echo), ("é" * 513, echo), ("echo", echo), ("x", None), ("y", b"")):
                with pytest.raises(ConfigError):
                    server.register(path, handler)

            @server.handler("decorated", reply=False)
            def decorated(request):
                return None

            assert decorated is server.routes["decorated"].handler
            assert not server.routes["decorated"].reply
            with pytest.raises(NetError, match=r"cannot listen on 127.*choose another"):
                await SharedTcpEndpoint(port=int(server.address.rsplit(":", 1)[1])).start()
            with pytest.raises(NetError, match="cannot listen on"):
                await SharedTcpEndpoint(host="no-such-host.invalid").start()

    watched(main(), loop)


def test_the_address_names_all_that_was_lost(loop):
    async def serve(reader, writer):
        await reader.readexactly(60)

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            asked = [asyncio.create_task(client.request(address, "x", b"y" * 40)) for _ in range(5)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
            assert all(address in str(outcome) for outcome in outcomes)
            assert len({id(outcome) for outcome in outcomes}) == 5

    watched(main(), loop)
