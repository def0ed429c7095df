"""Handlers of every kind, and what becomes of what they return, raise, set and never finish."""

from __future__ import annotations

import asyncio
import contextvars

import numpy as np
import pytest
from raw_peers import Peer, request, run, settle

from dynalab.errors import HandlerFailed, NetError
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool

pytestmark = pytest.mark.filterwarnings(
    "error::ResourceWarning",
    "error::RuntimeWarning",
    "error::pytest.PytestUnraisableExceptionWarning",
)


def released():
    view = memoryview(b"gone")
    view.release()
    return view


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Callable:
    async def __call__(self, request):
        await asyncio.sleep(0)
        return b"from an object"


class Later:
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return b"from an awaitable"


def in_future(_):
    future = asyncio.get_running_loop().create_future()
    future.set_result(b"from a future")
    return future


def raises(error):
    def handler(_):
        raise error

    return handler


def returns(what):
    return lambda _: what


GOOD = {
    "bytes": (b"some", b"some"),
    "empty": (b"", b""),
    "none": (None, b""),
    "bytearray": (bytearray(b"some"), b"some"),
    "large bytearray": (bytearray(b"x" * 300_000), b"x" * 300_000),
    "memoryview": (memoryview(b"abcdef")[::1][1:4], b"bcd"),
    "large memoryview": (memoryview(bytearray(b"y" * 200_000))[7:], b"y" * 199_993),
    "array": (np.arange(4, dtype="<u4").reshape(2, 2), np.arange(4, dtype="<u4").tobytes()),
}
BAD = {
    "text": ("some", "returned str, not bytes"),
    "mapping": ({"a": 1}, "returned dict, not bytes"),
    "number": (7, "returned int, not bytes"),
    "objects": (np.array([object()]), "returned ndarray, not bytes"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), "returned ndarray, not bytes"),
    "not contiguous": (memoryview(b"abcdef")[::2], "returned memoryview, not bytes"),
    "released": (released(), "returned memoryview, not bytes"),
    "too large": (bytes(2000), "does not fit into max_message=1024"),
}
RAISED = {
    "plain": (ValueError("no such block"), "ValueError: no such block"),
    "long": (ValueError("é" * 5000), "ValueError: é"),
    "surrogate": (ValueError("\ud800"), r"ValueError: \\ud800"),
    "speechless": (Unspeakable(), "Unspeakable"),
    "cancelled": (asyncio.CancelledError(), "cancelled"),
    "timeout": (TimeoutError(), "TimeoutError"),
    "stop": (StopIteration(3), "StopIteration"),
    "lost": (ConnectionResetError("by a peer of the handler"), "by a peer of the handler"),
}


def kinds(handler):
    """The same as a plain function, as a coroutine that never waits, and as one that does."""

    async def at_once(request):
        return handler(request)

    async def later(request):
        await asyncio.sleep(0.001)
        return handler(request)

    return {"plain": handler, "async": at_once, "later": later}


async def ask(handlers, check, **settings):
    """Register handlers by their names, and have every one checked, all on one connection."""
    async with SharedTcpEndpoint(**settings) as server, TcpConnectionPool(size=1) as client:
        for name, handler in handlers.items():
            server.register(name, handler)
        server.register("echo", lambda request: request.payload)

        async def one(name):
            await check(client, server.address, name)
            # Whatever it was, the connection goes on in step.
            assert await client.request(server.address, "echo", name.encode()) == name.encode()

        await asyncio.gather(*(one(name) for name in handlers))
        assert client.metrics.connects == 1
        assert server.workers.idle
        assert all(not route.under_way for route in server.routes.values())
        await settle(lambda: server.budget.used == 0)
        return server.metrics


@pytest.mark.parametrize("name", GOOD)
def test_what_is_like_bytes_is_the_reply(name):
    value, expected = GOOD[name]

    async def check(client, address, path):
        assert await client.request(address, path) == expected

    counters = run(ask(kinds(returns(value)), check), debug=True)
    assert counters.failed == 0


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_is_a_failure_of_the_handler(name):
    value, told = BAD[name]

    async def check(client, address, path):
        with pytest.raises(HandlerFailed, match=told):
            await client.request(address, path)

    counters = run(ask(kinds(returns(value)), check, max_message=1024), debug=True)
    assert counters.failed == 3


@pytest.mark.parametrize("name", RAISED)
def test_what_a_handler_raises_is_told_to_whoever_asked(name):
    error, told = RAISED[name]
    handlers = kinds(raises(error))
    if isinstance(error, StopIteration):
        told = "StopIteration|coroutine raised"

    async def check(client, address, path):
        with pytest.raises(HandlerFailed, match=told):
            await client.request(address, path)

    counters = run(ask(handlers, check, max_message=1024), debug=True)
    assert counters.failed == counters.handled - 3 == 3


def test_anything_that_can_be_called_and_awaited():
    handlers = {"object": Callable(), "awaitable": lambda _: Later(), "future": in_future, "method": "{}".format}

    async def check(client, address, path):
        if path == "method":
            with pytest.raises(HandlerFailed, match="returned str"):
                await client.request(address, path)
        else:
            assert (await client.request(address, path)).startswith(b"from a")

    run(ask(handlers, check), debug=True)


def test_an_unknown_path_is_told_whatever_it_looks_like():
    async def main():
        async with SharedTcpEndpoint(max_message=1024) as server, TcpConnectionPool() as client:
            server.register("echo", lambda request: request.payload)
            for path in ("x", "é" * 400, "\x00", "a" * 900):
                with pytest.raises(NetError, match="unknown endpoint"):
                    await client.request(server.address, path)
            assert await client.request(server.address, "echo", b"on") == b"on"
            assert client.metrics.connects == 1

    run(main(), debug=True)


USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


@pytest.mark.parametrize("permits", [1, 2, 100])
def test_what_one_handler_sets_no_other_sees(permits):
    async def waits(request):
        before = USER.get()
        USER.set(request.payload.decode())
        await asyncio.sleep(0.001)
        assert USER.get() == request.payload.decode()
        return before.encode()

    def plain(request):
        before = USER.get()
        USER.set(request.payload.decode())
        return before.encode()

    async def main():
        USER.set("the operator")
        async with SharedTcpEndpoint(max_concurrency=permits) as server, TcpConnectionPool(size=2) as client:
            server.register("waits", waits)
            server.register("plain", plain)
            USER.set("a caller")
            answers = await asyncio.gather(
                *(client.request(server.address, ("waits", "plain")[n % 2], b"user %d" % n) for n in range(40))
            )
            assert {*answers} == {b"the operator"}

    run(main())


def test_handlers_that_ask_in_turn():
    async def main():
        async with (
            SharedTcpEndpoint(max_concurrency=30) as server,
            TcpConnectionPool(size=2, request_timeout=0.3) as client,
        ):

            async def factorial(request):
                n = int(request.payload)
                if n == 0:
                    return b"1"
                below = await client.request(server.address, "factorial", b"%d" % (n - 1))
                return b"%d" % (n * int(below))

            server.register("factorial", factorial)
            # Responses of a connection come in order: what is asked on the connection of whoever asks waits for it.
            with pytest.raises(NetError):
                await client.request(server.address, "factorial", b"20")
            async with TcpConnectionPool(size=30, channel_buffer=1) as client:
                assert await client.request(server.address, "factorial", b"20") == b"2432902008176640000"

    run(main())


@pytest.mark.parametrize("moment", ["at once", "running"])
def test_handlers_that_hang_are_cancelled_at_the_end_and_their_callers_told(moment):
    seen = []

    async def hang(request):
        seen.append(bytes(request.payload))
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(b"let go")

    async def main():
        async with TcpConnectionPool() as client:
            server = SharedTcpEndpoint(max_concurrency=2, queue=10)
            await server.start()
            server.register("hang", hang)
            tasks = [asyncio.create_task(client.request(server.address, "hang", b"%d" % n)) for n in range(3)]
            if moment == "running":
                await settle(lambda: len(seen) == 2)
            else:
                await settle(lambda: server.workers.active == 2)
            assert await server.aclose(timeout=0) == 3
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [HandlerFailed] * 3
            assert server.workers.idle
            assert server.metrics.abandoned == 1
            assert seen.count(b"let go") == 2

    run(main(), debug=True)


def test_a_handler_that_was_never_begun_is_closed_not_forgotten():
    async def never(request):
        raise AssertionError("it was cancelled before its first step")

    async def main():
        server = SharedTcpEndpoint()
        await server.start()
        server.register("never", never)
        peer = await Peer.of(server.address)
        peer.send(request("never"))
        ends = []
        submit = server.workers.submit

        def submit_and_end(work):
            taken = submit(work)
            ends.append(server.workers.cancel())
            return taken

        server.workers.submit = submit_and_end
        assert await peer.get() == [b"\3cancelled"]
        assert ends == [1]
        assert server.workers.idle
        await peer.close()
        await server.aclose()

    run(main(), debug=True)


def test_one_who_ignores_that_he_is_cancelled_holds_nobody_up_for_long():
    release = asyncio.Event()

    async def stubborn(_):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return b"late"

    async def main():
        async with TcpConnectionPool() as client:
            server = SharedTcpEndpoint()
            await server.start()
            server.register("stubborn", stubborn)
            task = asyncio.create_task(client.request(server.address, "stubborn", retry="never"))
            await settle(lambda: server.workers.active == 1)
            assert await server.aclose(timeout=0.01) == 1
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            assert isinstance(outcome, NetError)
            release.set()
            await settle(lambda: server.workers.idle)
            assert server.budget.used == 0

    run(main())
