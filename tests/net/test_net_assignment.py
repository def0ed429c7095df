"""Which request goes on which connection, when one more is opened, and when one goes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from raw_peers import open_sockets, raw_server, read_request, response, run, settle

from dynalab.errors import AddressError, CannotConnect, NetError, RequestTimeout
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")


class Script:
    """A server that answers when it is told to: requests by connection, in the order of arrival."""

    def __init__(self) -> None:
        self.arrived: list[tuple[int, bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.closed = 0

    async def __call__(self, reader, writer):
        number = len(self.writers)
        self.writers.append(writer)
        try:
            while True:
                self.arrived.append((number, await read_request(reader)))
        finally:
            self.closed += 1

    def answer(self, connection: int, payload: bytes = b"") -> None:
        self.writers[connection].write(response(b"\0" + payload))

    def on(self, connection: int) -> list[bytes]:
        return [payload for number, payload in self.arrived if number == connection]


@asynccontextmanager
async def scripted(**settings):
    script = Script()
    async with raw_server(script) as address, TcpConnectionPool(**settings) as client:
        yield script, client, address


def ask(client, address, n, **options):
    return [asyncio.create_task(client.request(address, "x", b"%d" % k, **options)) for k in range(n)]


async def drop(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def host_of(client):
    (host,) = client._hosts.values()
    return host


def test_one_more_connection_only_when_all_are_full():
    async def main():
        async with scripted(size=3, channel_buffer=2) as (script, client, address):
            tasks = []
            for n, connections in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 3), (12, 3)):
                while len(tasks) < n:
                    tasks += ask(client, address, 1)
                await settle(lambda n=n: len(script.arrived) == min(n, 6))
                await asyncio.sleep(0.002)
                assert len(host_of(client).connections) == len(script.writers) == connections
            assert len(host_of(client).waiting) == 6
            assert client.stats()["connections"].item() == 3
            await drop(tasks)

    run(main())


def test_all_at_once_do_not_exceed_the_size_and_connect_one_at_a_time():
    at_once = highest = 0

    async def main():
        async with scripted(size=5, channel_buffer=3) as (script, client, address):
            loop = asyncio.get_running_loop()
            connect = loop.create_connection

            async def slowly(*args, **options):
                nonlocal at_once, highest
                at_once += 1
                highest = max(highest, at_once)
                await asyncio.sleep(0.005)
                try:
                    return await connect(*args, **options)
                finally:
                    at_once -= 1

            loop.create_connection = slowly
            tasks = ask(client, address, 40)
            warming = [asyncio.create_task(client.warm_up(address, n)) for n in (1, 3, 5, 9)]
            await settle(lambda: len(script.arrived) == 15)
            assert max(await asyncio.gather(*warming)) == 5
            assert highest == 1
            assert len(script.writers) == client.metrics.connects == 5
            assert sorted(len(script.on(n)) for n in range(5)) == [3] * 5
            await drop(tasks)

    run(main())


def test_requests_that_wait_are_served_in_the_order_of_asking():
    async def main():
        async with scripted(size=2, channel_buffer=1) as (script, client, address):
            tasks = ask(client, address, 12)
            await settle(lambda: len(script.arrived) == 2)
            for k in (3, 4, 9):
                tasks[k].cancel()
            order = [k for k in range(12) if k not in (3, 4, 9)]
            for served in range(2, 9):
                script.answer(script.arrived[served - 2][0], script.arrived[served - 2][1])
                await settle(lambda served=served: len(script.arrived) == served + 1)
            assert [int(payload) for _, payload in script.arrived] == order
            for served in (7, 8):
                script.answer(script.arrived[served][0], script.arrived[served][1])
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [k for k, outcome in enumerate(outcomes) if outcome == b"%d" % k] == order

    run(main())


def test_connections_take_turns():
    async def main():
        async with scripted(size=3, channel_buffer=100) as (script, client, address):
            assert await client.warm_up(address, 3) == 3
            tasks = ask(client, address, 30)
            await settle(lambda: len(script.arrived) == 30)
            assert [len(script.on(n)) for n in range(3)] == [10] * 3
            assert sorted(int(script.on(n)[0]) for n in range(3)) == [0, 1, 2]
            await drop(tasks)

    run(main())


def test_all_hosts_together_connect_so_many_at_a_time():
    at_once = highest = 0

    async def main():
        nonlocal at_once, highest
        before = open_sockets()
        async with TcpConnectionPool(connect_limit=4, request_timeout=30) as client:
            loop = asyncio.get_running_loop()
            connect = loop.create_connection

            async def slowly(*args, **options):
                nonlocal at_once, highest
                at_once += 1
                highest = max(highest, at_once)
                await asyncio.sleep(0.002)
                try:
                    return await connect(*args, **options)
                finally:
                    at_once -= 1

            loop.create_connection = slowly
            async with SharedTcpEndpoint(host="0.0.0.0") as server:
                server.register("echo", lambda request: request.payload)
                port = server.address.rsplit(":", 1)[1]
                answers = await asyncio.gather(
                    *(client.request(f"127.0.1.{n}:{port}", "echo", b"%d" % n) for n in range(1, 61))
                )
                assert answers == [b"%d" % n for n in range(1, 61)]
                assert highest == 4
                assert server.connections == 60
                assert client.stats().sizes["address"] == 60
        await settle(lambda: open_sockets() == before)

    run(main())


def test_an_address_that_is_not_used_loses_its_connections_and_its_counts_are_kept():
    async def main():
        async with (
            SharedTcpEndpoint() as server,
            SharedTcpEndpoint() as other,
            TcpConnectionPool(idle_ttl=0.05) as client,
        ):
            for each in (server, other):
                each.register("echo", lambda request: request.payload)

                @each.handler("slow")
                async def slow(request):
                    await asyncio.sleep(0.3)
                    return b"done"

            assert await client.warm_up(other.address, 3) == 3
            assert await client.request(server.address, "echo", b"x") == b"x"
            waits = asyncio.create_task(client.request(server.address, "slow"))
            await settle(lambda: other.connections == 0)
            assert [str(address) for address in client._hosts] == [server.address]
            assert server.connections == 1
            assert await waits == b"done"
            await settle(lambda: server.connections == 0 and not client._hosts)
            assert not client._by_text
            assert client.metrics.requests == client.metrics.responses == 2
            assert await client.request(server.address, "echo", b"again") == b"again"
            assert client.metrics.connects == 5

    run(main())


def test_a_connection_that_falls_silent_is_replaced_and_closed_when_nobody_waits():
    async def main():
        async with scripted(size=1, channel_buffer=3, request_timeout=0.4) as (script, client, address):
            with pytest.raises(RequestTimeout):
                await client.request(address, "x", b"given up", timeout=0.02)
            (patient,) = [asyncio.create_task(client.request(address, "x", b"patient", timeout=20))]
            await settle(lambda: len(script.on(0)) == 2)
            await settle(lambda: client.metrics.stuck == 1)
            # The one who is patient still may get the answer; others have a new connection.
            fresh = asyncio.create_task(client.request(address, "x", b"fresh", timeout=20))
            await settle(lambda: script.on(1) == [b"fresh"])
            script.answer(1, b"fresh")
            assert await fresh == b"fresh"
            assert script.closed == 0
            script.answer(0, b"late")
            script.answer(0, b"patient")
            assert await patient == b"patient"
            assert client.metrics.late == 1
            await settle(lambda: script.closed == 1)
            assert not host_of(client).retired

    run(main())


def test_a_silent_connection_gives_back_what_it_had_not_begun():
    """A peer that reads nothing: what waits behind a half written request is sent on another connection."""

    async def serve(reader, writer):
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await asyncio.sleep(30)
        while True:
            writer.write(response(b"\0" + (await read_request(reader))[:1]))

    accepted = 0

    async def main():
        async with (
            raw_server(serve, limit=1000) as address,
            TcpConnectionPool(size=1, request_timeout=0.1) as client,
        ):
            with pytest.raises(RequestTimeout):
                await client.request(address, "x", bytes(2**24), timeout=0.03)
            behind = [asyncio.create_task(client.request(address, "x", b"%d" % n, timeout=20)) for n in range(5)]
            assert await asyncio.gather(*behind) == [b"%d" % n for n in range(5)]
            assert client.metrics.stuck == 1
            await settle(lambda: not host_of(client).retired)

    run(main())


def test_an_old_connection_is_not_silent_because_it_was_not_asked():
    """Idle for long, then asked with little time: that alone is no reason to close it."""

    async def main():
        async with scripted(size=1, request_timeout=0.3) as (script, client, address):
            first = ask(client, address, 1)[0]
            await settle(lambda: script.arrived)
            script.answer(0)
            await first
            await asyncio.sleep(0.5)
            with pytest.raises(RequestTimeout):
                await client.request(address, "x", timeout=0.01)
            # Time enough to be looked at, and not to lose patience.
            await asyncio.sleep(0.12)
            script.answer(0)
            await settle(lambda: client.metrics.late == 1)
            assert client.metrics.stuck == 0
            assert client.metrics.connects == 1

    run(main())


def test_a_half_closed_server_is_left_at_once_though_it_reads_nothing():
    async def serve(reader, writer):
        await reader.readexactly(10)
        writer.write_eof()
        await asyncio.sleep(30)

    async def main():
        before = open_sockets()
        async with raw_server(serve, limit=1000) as address, TcpConnectionPool(retries=0) as client:
            with pytest.raises(NetError) as lost:
                await client.request(address, "x", bytes(2**24), timeout=20)
            assert isinstance(lost.value, ConnectionError)
            await settle(lambda: not host_of(client).connections)
            assert open_sockets() == before + 2
        await settle(lambda: open_sockets() == before)

    run(main())


def test_warming_up_opens_as_many_as_asked_and_says_why_it_cannot():
    async def closes(reader, writer):
        return

    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool(size=6) as client:
            assert await client.warm_up(server.address) == 1
            assert await client.warm_up(server.address, 4) == 4
            assert await client.warm_up(server.address, 2) == 4
            assert await client.warm_up(server.address, 99) == 6
            await settle(lambda: server.connections == 6)
            with pytest.raises(CannotConnect, match=r"cannot connect to 127.0.0.1:1: "):
                await client.warm_up("127.0.0.1:1", 3)
            async with raw_server(closes) as address:
                # It comes to an end, though not one connection stays open.
                with suppress(CannotConnect):
                    assert await client.warm_up(address, 5) <= 5

    run(main())


def test_addresses_that_do_not_parse_or_resolve():
    async def main():
        async with TcpConnectionPool(retries=1, backoff=0.001) as client:
            for wrong in ("", "nowhere", "host:port", "::1:80", "udp://h:1", "h:0", "h:70000", "256.1.1.1:80", "a b:1"):
                with pytest.raises(AddressError):
                    await client.request(wrong, "x")
                with pytest.raises(AddressError):
                    await client.warm_up(wrong)
            assert not client._hosts
            with pytest.raises(CannotConnect, match=r"no-such-host.invalid:80"):
                await client.request("no-such-host.invalid:80", "x", timeout=20)
            assert client.metrics.unreachable == 2

    run(main())


def test_a_connect_that_hangs_is_given_up():
    async def main():
        async with TcpConnectionPool(connect_timeout=0.05, retries=0) as client:

            async def hang(*args, **options):
                await asyncio.sleep(30)

            asyncio.get_running_loop().create_connection = hang
            with pytest.raises(CannotConnect, match=r"within 0.05 s"):
                await client.request("127.0.0.1:9", "x")
            with pytest.raises(RequestTimeout) as caught:
                await client.request("127.0.0.1:9", "x", timeout=0.01)
            assert not caught.value.maybe_handled

    run(main())


def test_names_of_endpoints_may_be_many():
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool() as client:
            server.register("session/1", lambda request: b"by path")
            assert await client.request(f"tcp://{server.address}/session/1") == b"by path"
            for n in range(5000):
                client._known(f"{server.address}/session/{n}")
            assert len(client._by_text) <= 4096
            assert len(client._hosts) == 1

    run(main())
