"""Event loops by name, and a loop in a thread for programs without one."""

from __future__ import annotations

import asyncio
import threading
import time
from importlib.util import find_spec

import pytest

from dynalab.errors import ConfigError, HandlerFailed, NetClosed
from dynalab.net import LoopThread, SharedTcpEndpoint, TcpConnectionPool, loop_factory

KINDS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_asked_for_is_made(kind) -> None:
    with asyncio.Runner(loop_factory=loop_factory(kind)) as runner:
        assert type(runner.get_loop()).__module__.startswith("uvloop") == (kind == "uvloop")


def test_a_kind_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="'trio' does not exist; choose from auto, asyncio, uvloop"):
        loop_factory("trio")


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_share_one_client(kind) -> None:
    before = set(threading.enumerate())
    with LoopThread(kind) as loop:
        server = loop.enter(SharedTcpEndpoint())
        client = loop.enter(TcpConnectionPool(size=2, channel_buffer=4))
        server.register("echo", lambda request: request.payload)
        wrong = []

        def work(k: int) -> None:
            for i in range(50):
                told = f"{k}:{i}".encode()
                if client.request_from_thread(server.address, "echo", told).result(10) != told:
                    wrong.append(told)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert client.metrics.responses == 400
        assert server.connections <= 2
    assert set(threading.enumerate()) == before


def test_errors_and_timeouts_reach_the_thread() -> None:
    async def hang(request):
        await asyncio.sleep(60)

    def fail(request):
        raise ValueError("no such block")

    begun = time.monotonic()
    with LoopThread() as loop:
        server, client = loop.enter(SharedTcpEndpoint(drain_timeout=0.05)), loop.enter(TcpConnectionPool())
        server.register("hang", hang)
        server.register("fail", fail)
        with pytest.raises(HandlerFailed, match="ValueError: no such block"):
            loop.run(client.request(server.address, "fail"))
        with pytest.raises(TimeoutError):
            loop.run(client.request(server.address, "hang"), timeout=0.05)
    assert time.monotonic() - begun < 10


def test_a_loop_is_not_waited_for_from_within() -> None:
    async def inside(loop: LoopThread) -> None:
        loop.run(asyncio.sleep(0))

    with LoopThread() as loop, pytest.raises(NetClosed, match="it is this one"):
        loop.run(inside(loop))
    with pytest.raises(NetClosed):
        loop.run(asyncio.sleep(0))
