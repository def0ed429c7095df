"""The benchmark of the network: what it measures, that it sees wrong bytes, and that no process outlives it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from dynalab.errors import ConfigError, ConnectionLost, NetError
from dynalab.net import bench, bench_plan
from dynalab.net.bench import NetBenchPlan, bench_net
from dynalab.net.bench_echo import EchoClient, EchoServer
from dynalab.net.bench_load import closed_loop, together
from dynalab.net.bench_server import BenchServer

SMALL = {"loops": "asyncio", "payload_bytes": 64, "concurrency": 2, "pool_size": 1, "seconds": 0.3}


def children() -> set[str]:
    """Processes of benchmarks' servers that this process has started and that run."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if (
                f"\nPPid:\t{os.getpid()}\n" in status.read_text()
                and b"bench_server" in (status.parent / "cmdline").read_bytes()
            ):
                found.add(status.parent.name)
        except OSError:
            continue
    return found


def test_every_combination_is_measured_and_adds_up() -> None:
    plan = NetBenchPlan(
        **SMALL | {"payload_bytes": "64,128KiB", "pool_size": "1,2", "channel_buffer": 1, "concurrency": "1,4"}
    )
    found = bench_net(plan, progress=False)
    assert dict(found.sizes) == {
        "loop": 1,
        "payload_bytes": 2,
        "concurrency": 2,
        "pool_size": 2,
        "channel_buffer": 1,
        "server_concurrency": 1,
        "handler_seconds": 1,
        "percentile": 4,
    }
    for name, variable in found.data_vars.items():
        assert bool(variable.notnull().all()), name
        assert {"units", "long_name"} <= set(variable.attrs), name
    assert bool((found.latency.diff("percentile") >= 0).all())
    # Four callers share one place in flight, or two of them.
    assert found.connections.sel(concurrency=4).values.flatten().tolist() == [1, 2, 1, 2]
    assert bool((found.requests >= 3 * found.concurrency).all()), "three rounds, a request of every caller in each"
    np.testing.assert_allclose(found.share_of_limit, found.request_rate / found.limit)
    assert children() == set()


def test_handlers_that_take_time_bound_the_rate_and_the_limit() -> None:
    more = {"handler_seconds": "20ms", "server_concurrency": "1,4", "concurrency": 4, "seconds": 0.5}
    found = bench_net(NetBenchPlan(**SMALL | more), progress=False).squeeze()
    assert found.latency.sel(server_concurrency=1, percentile=90) > 0.06, "three others are served before"
    allowed = found.server_concurrency / 0.02
    assert bool((found.request_rate <= allowed * 1.05).all())
    np.testing.assert_allclose(found.share_of_limit, found.request_rate / np.minimum(found.limit, allowed))


def test_it_runs_where_a_loop_runs_already() -> None:
    async def notebook() -> float:
        return bench_net(NetBenchPlan(**SMALL), progress=False).request_rate.item()

    assert asyncio.run(notebook()) > 0


def test_both_kinds_of_loop_echo_large_payloads() -> None:
    pytest.importorskip("uvloop")
    plan = NetBenchPlan(**SMALL | {"loops": "asyncio,uvloop", "payload_bytes": "1MiB", "concurrency": 3})
    assert bool((bench_net(plan, progress=False).limit > 0).all())


@pytest.mark.parametrize("seen_at", ["first", "middle", "last"])
def test_a_reply_that_is_not_what_was_sent_is_an_error(seen_at: str) -> None:
    calls = 0

    async def forge(payload: bytes) -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if seen_at == "first":
            # Length and ends are right.
            return payload if calls > 1 else payload[:50] + bytes([payload[50] ^ 1]) + payload[51:]
        if seen_at == "middle":
            return payload if calls != 3 else payload[::-1]
        return payload if calls < 3 else payload[:50] + b"??" + payload[52:]

    with pytest.raises(NetError, match="not"):
        asyncio.run(closed_loop([forge], [os.urandom(100)], 0.05))


def test_replies_that_swap_callers_are_seen() -> None:
    async def swapped() -> None:
        first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        second: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def one(payload: bytes) -> bytes:
            second.set_result(payload)
            return await first

        async def other(payload: bytes) -> bytes:
            first.set_result(payload)
            return await second

        await closed_loop([one, other], [b"a" * 64, b"b" * 64], 0.0)

    with pytest.raises(NetError, match="not the 64 bytes"):
        asyncio.run(swapped())


def test_where_one_caller_fails_none_goes_on() -> None:
    left = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            left.append("waits")

    async def fails() -> None:
        raise NetError("no")

    async def all_of_them() -> set[asyncio.Task[None]]:
        with pytest.raises(NetError, match="no"):
            await together([waits(), fails(), waits()])
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert asyncio.run(all_of_them()) == set()
    assert left == ["waits", "waits"]


def test_the_server_ends_with_its_input_and_tells_why_it_ended_before() -> None:
    with BenchServer("asyncio", [(1, 0.0)], queue=1) as server:
        (pid,) = children()
        assert server.cpu_seconds() > 0
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(NetError, match=r"servers has ended: it was killed"):
            server.cpu_seconds()
    with pytest.raises(NetError, match=r"has ended: .*max_concurrency"):
        BenchServer("asyncio", [(-1, 0.0)], queue=1)
    assert children() == set()


def test_a_server_that_is_killed_in_the_middle_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench._Side.measure
    rounds = 0

    def killing(self: bench._Side, *given: object) -> bench.Sample:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            threading.Timer(0.05, lambda: [os.kill(int(pid), signal.SIGKILL) for pid in children()]).start()
            given = (*given[:-1], 60.0)
        return measure(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(bench._Side, "measure", killing)
    with pytest.raises(NetError):
        bench_net(NetBenchPlan(**SMALL), progress=False)
    assert children() == set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dynalab bench")]


def test_the_bare_echo_tells_when_its_server_goes() -> None:
    async def gone(nbytes: int) -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EchoClient(address, 1, nbytes) as client:
            reply = client.callers[0].call(bytes(nbytes))
            await asyncio.sleep(0.01)
            client.callers[0].close()
            with pytest.raises(ConnectionLost):
                await reply
        server.close()

    asyncio.run(gone(64))
    asyncio.run(gone(1 << 20))


def test_the_bare_echo_returns_payloads_in_any_number_of_pieces() -> None:
    async def echo(nbytes: int) -> None:
        server = await asyncio.get_running_loop().create_server(EchoServer, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        payload = os.urandom(nbytes)
        async with EchoClient(address, 2, nbytes) as client:
            for _ in range(3):
                assert await asyncio.gather(*(caller.call(payload) for caller in client.callers)) == [payload] * 2
        server.close()

    for nbytes in (1, 64 << 10, (1 << 20) + 1):
        asyncio.run(echo(nbytes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loops": "trio"}, ["loops.0: 'trio'"]),
        ({"payload_bytes": "much"}, ["payload_bytes: 'much' is not a size"]),
        ({"payload_bytes": "0"}, ["payload_bytes.0: '0'"]),
        ({"payload_bytes": "32MiB"}, ["payload_bytes.0: '32MiB'"]),
        ({"concurrency": "0"}, ["concurrency.0: '0'"]),
        ({"pool_size": "-1"}, ["pool_size.0: '-1'"]),
        ({"channel_buffer": "1.5"}, ["channel_buffer.0: '1.5'"]),
        ({"server_concurrency": ""}, ["server_concurrency: ''"]),
        ({"handler_seconds": "later"}, ["handler_seconds: 'later' is not a duration"]),
        ({"handler_seconds": "1s"}, ["handler_seconds", "3 s in all", "more time"]),
        ({"payload_bytes": "16MiB", "concurrency": 4096}, ["4096 requests of 16 MiB", "more than 1 GiB"]),
        ({"seconds": "0"}, ["seconds: '0'"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_line(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        NetBenchPlan(**SMALL | changes)
    told = str(refused.value)
    assert "\n" not in told
    assert [word for word in words if word not in told] == [], told


def test_what_the_machine_lacks_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    with pytest.raises(ConfigError, match=r"256 callers .* may open 256 files; raise ulimit -n"):
        NetBenchPlan(**SMALL | {"concurrency": 256})
    monkeypatch.undo()
    monkeypatch.setattr(bench_plan, "find_spec", lambda name: None)
    assert NetBenchPlan(seconds=9).loops == ("asyncio",)
    with pytest.raises(ConfigError, match=r"uvloop is not installed; pip install 'dynalab\[uvloop\]'"):
        NetBenchPlan(loops="uvloop")
