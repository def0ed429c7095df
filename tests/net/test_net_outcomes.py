"""Every request has exactly one outcome, its own, whenever it is given up and whatever the server does."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_peers import open_sockets, raw_server, read_request, request, response, run, settle

from dynalab.errors import (
    CannotConnect,
    ConfigError,
    ConnectionLost,
    FrameError,
    HandlerFailed,
    MessageTooLarge,
    NetClosed,
    NetError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
)
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")

MIB = 2**20


def echo(request):
    return request.payload


async def delayed(request):
    """Wait as many milliseconds as the first byte says."""
    await asyncio.sleep(request.payload[0] / 1000)
    return request.payload


def accounted(client):
    """Whether the counters know one outcome for each request."""
    c = client.metrics
    ended = c.responses + c.timeouts + c.cancelled + c.lost + c.unreachable
    return c.requests + c.retries == ended


#: Of an endpoint that never lacks room, and of some that have less than the requests need.
BOUNDS = [{}, {"connection_bytes": 50_000}, {"total_bytes": 100_000}, {"connection_bytes": 9_000, "total_bytes": 9_000}]
PLAN = st.lists(
    st.tuples(
        st.integers(0, 12),  # milliseconds that the handler takes
        st.sampled_from([1, 50, 3000, 40_000, 200_000]),  # bytes
        st.sampled_from([None, None, 0.001, 0.004, 0.009]),  # timeout
        st.sampled_from([None, None, None, 0.0, 0.002, 0.006]),  # cancelled after
        st.sampled_from([0.0, 0.0, 0.003]),  # asked after
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.slow
@settings(max_examples=60)
@given(PLAN, st.integers(1, 3), st.integers(1, 6), st.sampled_from([1, 3, 50]), st.sampled_from(BOUNDS))
def test_a_late_response_never_answers_another_request(plan, size, room, permits, bounds):
    async def one(client, address, number, step):
        milliseconds, nbytes, timeout, cancelled_after, asked_after = step
        await asyncio.sleep(asked_after)
        payload = bytes([milliseconds]) + number.to_bytes(2, "big") * nbytes
        path = "delayed" if milliseconds else "echo"
        task = asyncio.create_task(client.request(address, path, payload, timeout=timeout))
        if cancelled_after is not None:
            await asyncio.sleep(cancelled_after)
            task.cancel()
        try:
            assert await task == payload
        except RequestTimeout:
            assert timeout is not None
        except asyncio.CancelledError:
            assert cancelled_after is not None
        except ServerOverloaded:
            pass

    async def main():
        async with (
            SharedTcpEndpoint(max_concurrency=permits, queue=20, **bounds) as server,
            TcpConnectionPool(size=size, channel_buffer=room, retries=1) as client,
        ):
            server.register("delayed", delayed)
            server.register("echo", echo)
            await asyncio.gather(*(one(client, server.address, number, step) for number, step in enumerate(plan)))
            (host,) = client._hosts.values()
            # All places in the order are given back, by the responses that nobody waited for.
            await settle(lambda: host.in_flight == 0)
            assert await client.request(server.address, "delayed", b"\0end") == b"\0end"
            assert client.metrics.lost == client.metrics.bad_frames == 0
            assert accounted(client)

    run(main())


def test_large_requests_given_up_half_written_keep_the_order():
    """The peer reads nothing until all were given up or queued; then the rest of each must come whole."""
    go = asyncio.Event()
    seen = []

    async def serve(reader, writer):
        await go.wait()
        while True:
            payload = await read_request(reader)
            seen.append((len(payload), {*payload[:10], *payload[-10:]}))
            writer.write(response(b"\0" + payload[:1]))

    async def main():
        async with raw_server(serve, limit=64) as address, TcpConnectionPool(size=1) as client:
            large = bytearray(b"L" * (8 * MIB))
            with pytest.raises(RequestTimeout) as timeout:
                await client.request(address, "x", large, timeout=0.05)
            assert timeout.value.maybe_handled
            del timeout
            # It is the caller's again: neither the content nor the length of what is on its way may change with it.
            large[:] = b"?" * len(large)
            large.clear()
            queued = asyncio.create_task(client.request(address, "x", bytearray(b"Q" * MIB)))
            small = asyncio.create_task(client.request(address, "x", b"s"))
            never = asyncio.create_task(client.request(address, "x", b"n" * MIB, timeout=0.02))
            with pytest.raises(RequestTimeout) as unsent:
                await never
            assert not unsent.value.maybe_handled
            go.set()
            assert await queued == b"Q"
            assert await small == b"s"
            # What had been handed over was L, what the caller let go of was copied in time.
            assert seen == [(8 * MIB, {ord("L")}), (MIB, {ord("Q")}), (1, {ord("s")})]
            assert client.metrics.late == 1
            assert accounted(client)

    run(main())


def test_a_request_that_is_answered_before_it_is_read_belongs_to_its_caller():
    async def serve(reader, writer):
        head = request("x", bytes(8 * MIB))[: -8 * MIB]
        await reader.readexactly(len(head))
        writer.write(response(b"\0early"))
        rest.append(await reader.readexactly(8 * MIB))
        await read_request(reader)
        writer.write(response(b"\0second"))

    rest = []

    async def main():
        async with raw_server(serve) as address, TcpConnectionPool(size=1) as client:
            large = bytearray(b"L" * (8 * MIB))
            assert await client.request(address, "x", large) == b"early"
            large[:] = b"?" * len(large)
            large.clear()
            assert await client.request(address, "x", b"next") == b"second"
        assert b"?" not in rest[0]

    run(main())


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_given_up_at_every_stage(how):
    hold = asyncio.Event()

    async def held(request):
        await hold.wait()
        return request.payload

    async def give_up(client, address, payload, stage):
        task = asyncio.create_task(client.request(address, "held", payload, timeout=0.03 if how == "timeout" else None))
        if how == "cancel":
            for _ in range(stage):
                await asyncio.sleep(0)
            if stage > 5:
                await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(RequestTimeout if how == "timeout" else asyncio.CancelledError):
            await task

    async def main():
        async with (
            SharedTcpEndpoint(max_concurrency=1, queue=2) as server,
            TcpConnectionPool(size=1, channel_buffer=3, retries=0) as client,
        ):
            server.register("held", held)
            server.register("echo", echo)
            # Connecting, in flight at the handler, in the server's queue; then waiting for room in the client.
            for stage in range(9):
                await give_up(client, server.address, b"%d" % stage, stage)
            (host,) = client._hosts.values()
            assert host.in_flight <= 3 + 6
            hold.set()
            assert await client.request(server.address, "echo", b"on") == b"on"
            await settle(lambda: host.in_flight == 0)
            assert client.metrics.connects == 1
            assert accounted(client)
            assert not client._calls

    run(main())


def test_the_first_to_time_out_is_the_first_to_know_however_many_come_after():
    """Requests with hardly any time come all the while: they must not put off the ends of others."""

    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool(size=4) as client:

            async def hang(_):
                await asyncio.sleep(2)

            server.register("hang", hang)
            first = asyncio.create_task(client.request(server.address, "hang", timeout=0.02))
            others = []
            while not first.done() and len(others) < 1000:
                before = client._wakes_at
                others.append(asyncio.create_task(client.request(server.address, "hang", timeout=0.0001)))
                await asyncio.sleep(0)
                assert client._wakes_at <= before
                await asyncio.sleep(0.001)
            assert first.done()
            outcomes = await asyncio.gather(first, *others, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {RequestTimeout}
            await server.aclose(timeout=0)

    run(main())


def test_no_time_limit_is_one_too():
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool() as client:
            server.register("echo", echo)
            assert await client.request(server.address, "echo", b"x", timeout=math.inf) == b"x"
            for wrong in (0, -1, math.nan):
                with pytest.raises(ConfigError, match="timeout"):
                    await client.request(server.address, "echo", timeout=wrong)

    run(main())


def test_what_cannot_be_sent_is_told_before_anything_is():
    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool(max_message=2048) as client:
            for error, arguments in (
                (MessageTooLarge, {"path": "x", "payload": bytes(3000)}),
                (MessageTooLarge, {"path": "x" * 1025}),
                (FrameError, {"path": "x", "payload": "text"}),
                (FrameError, {"path": "x", "payload": [1, 2]}),
                (FrameError, {"path": "x", "payload": memoryview(b"abc")[::2]}),
                (FrameError, {"path": None}),
                (FrameError, {"path": "x", "headers": {"a": 1}}),
                (ConfigError, {"path": "x", "retry": "sometimes"}),
            ):
                with pytest.raises(error):
                    await client.request(server.address, **arguments)
            assert server.metrics.connections == 0

    run(main())


SERVERS = {
    "lost after it was read": ConnectionLost,
    "lost before it was read": ConnectionLost,
    "refuses connections": CannotConnect,
    "overloaded": ServerOverloaded,
    "unavailable": ServerUnavailable,
    "failed": HandlerFailed,
    "refused": NetError,
}


@pytest.mark.parametrize("retry", ["safe", "always", "never"])
@pytest.mark.parametrize("case", SERVERS)
def test_only_what_is_safe_is_tried_again(case, retry):
    handled = Counter()

    async def serve(reader, writer):
        if case == "lost before it was read":
            await reader.readexactly(1)
            return
        while True:
            payload = await read_request(reader)
            handled[payload] += 1
            if case == "lost after it was read":
                return
            status = {"overloaded": b"\1", "unavailable": b"\2", "failed": b"\3", "refused": b"\4"}[case]
            writer.write(response(status + b"so it is"))

    async def main():
        before = open_sockets()
        async with raw_server(serve) as address, TcpConnectionPool(retries=3, backoff=0.001) as client:
            if case == "refuses connections":
                address = "127.0.0.1:1"
            with pytest.raises(SERVERS[case]) as caught:
                await client.request(address, "x", b"it", retry=retry)
            tried_again = {
                "lost after it was read": retry == "always",
                "lost before it was read": retry == "always",
                "refuses connections": retry != "never",
                "overloaded": retry != "never",
            }.get(case, False)
            assert client.metrics.retries == (3 if tried_again else 0)
            if "before" not in case and "connections" not in case:
                assert handled[b"it"] == 1 + client.metrics.retries
            if isinstance(caught.value, ConnectionLost):
                assert caught.value.maybe_handled
            else:
                assert case == "refuses connections" or "so it is" in str(caught.value)
        await settle(lambda: open_sockets() == before)

    run(main())


def test_what_was_not_begun_goes_elsewhere_and_is_handled_once():
    """A connection that dies with one request on its way and others behind it: those are tried on another."""
    handled = Counter()
    accepted = 0

    async def serve(reader, writer):
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            # It takes a little of the first, and is gone.
            await reader.readexactly(100_000)
            await asyncio.sleep(0.05)
            return
        while True:
            payload = await read_request(reader)
            handled[payload[:1]] += 1
            writer.write(response(b"\0" + payload[:1]))

    async def main():
        async with raw_server(serve, limit=1000) as address, TcpConnectionPool(size=1) as client:
            large = asyncio.create_task(client.request(address, "x", b"L" * (16 * MIB), retry="safe"))
            await settle(lambda: accepted)
            behind = [asyncio.create_task(client.request(address, "x", b"%d" % n, retry="never")) for n in range(5)]
            with pytest.raises(ConnectionLost) as lost:
                await large
            assert lost.value.maybe_handled
            assert await asyncio.gather(*behind) == [b"%d" % n for n in range(5)]
            assert {*handled.values()} == {1}
            assert accounted(client)

    run(main())


def test_whoever_waits_when_the_client_closes_is_told():
    async def main():
        before = open_sockets()
        async with SharedTcpEndpoint() as server:

            async def hang(_):
                await asyncio.sleep(1)

            server.register("hang", hang)
            client = TcpConnectionPool(size=1, channel_buffer=2)
            tasks = [asyncio.create_task(client.request(server.address, "hang")) for _ in range(5)]
            elsewhere = asyncio.create_task(client.request("127.0.0.1:1", "hang"))
            await settle(lambda: server.workers.active == 2)
            warming = asyncio.create_task(client.warm_up(server.address, 1))
            await client.aclose()
            outcomes = await asyncio.gather(*tasks, elsewhere, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [NetClosed] * 6
            with pytest.raises(NetClosed):
                await warming
            for call in (client.request(server.address, "hang"), client.warm_up(server.address)):
                with pytest.raises(NetClosed):
                    await call
            await client.aclose()
            await server.aclose(timeout=0)
        await settle(lambda: open_sockets() == before)

    run(main(), debug=True)


def test_a_client_that_closes_while_it_connects_leaves_nothing_open():
    async def main():
        before = open_sockets()
        async with SharedTcpEndpoint() as server:
            for turns in range(12):
                client = TcpConnectionPool(size=3)
                warming = asyncio.create_task(client.warm_up(server.address, 3))
                asking = asyncio.create_task(client.request(server.address, "x"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await client.aclose()
                assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], NetError)
                await asyncio.gather(warming, return_exceptions=True)
            await settle(lambda: server.connections == 0)
        await settle(lambda: open_sockets() == before)

    run(main(), debug=True)


def test_a_client_of_another_loop_says_so():
    async def use(client, address):
        return await client.request(address, "echo", b"x")

    async def main():
        async with SharedTcpEndpoint() as server, TcpConnectionPool() as client:
            server.register("echo", echo)
            assert await use(client, server.address) == b"x"

            def elsewhere():
                with pytest.raises(NetError, match="another event loop"):
                    asyncio.run(use(client, server.address))
                return client.request_from_thread(server.address, "echo", b"thread").result(5)

            assert await asyncio.to_thread(elsewhere) == b"thread"

    run(main())
