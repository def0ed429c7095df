"""Trials tell what was done: on the client's side, on the server's, and through a pause and a kill."""

from __future__ import annotations

import asyncio
import gc
import time

import numpy as np
import pytest

from dynalab.errors import (
    CannotConnect,
    ConfigError,
    ConnectionLost,
    HandlerFailed,
    NetClosed,
    NetError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
)
from dynalab.net import SharedTcpEndpoint
from dynalab.net.loopback import loopback_bandwidth
from dynalab.net.observed import OUTCOMES, ObservedPool, outcome
from dynalab.net.trial import balance, open_loop, with_handling
from dynalab.net.trial_server import ACKNOWLEDGE, HANDLING, REPLY, TrialServer, work


@pytest.fixture(scope="module")
def server():
    with TrialServer(max_concurrency=64, queue=64) as server:
        yield server


def test_every_error_of_a_request_has_its_own_name() -> None:
    errors = [
        *(RequestTimeout("x"), ConnectionLost("x"), CannotConnect("x"), ServerOverloaded("x"), ServerUnavailable("x")),
        *(HandlerFailed("x"), NetClosed("x"), asyncio.CancelledError()),
    ]
    names = [outcome(None), *map(outcome, errors)]
    assert names == list(OUTCOMES)
    with pytest.raises(ZeroDivisionError):
        outcome(ZeroDivisionError())


def test_both_sides_of_each_request_are_told(server: TrialServer) -> None:
    services = np.array([0.03, 0.0, 0.0, 0.0])

    async def ask():
        async with ObservedPool(size=1, channel_buffer=64) as client:
            return await open_loop(client, server.address, [0, 0.001, 0.002, 0.003], services, payload_bytes=100)

    requests = with_handling(asyncio.run(ask()), server.handlings())
    assert requests.outcome.values.tolist() == ["ok"] * 4
    assert requests.attempts.values.tolist() == [1] * 4
    assert requests.connection.values.tolist() == [0] * 4
    assert requests.handled.values.tolist() == [1] * 4
    assert (requests.asked <= requests.began).all()
    assert (requests.began <= requests.done).all()
    assert (requests.done <= requests.ended).all()
    assert np.allclose(requests.latency, requests.ended - requests.asked)
    # Replies leave in the order of requests: the quick ones come after the slow one, though they were done before.
    assert (requests.ended[1:] >= requests.ended[0]).all()
    assert (requests.done[1:] < requests.done[0]).all()
    assert requests.latency.attrs["units"] == "s"
    assert balance(requests) == {
        "requests": 4,
        "without outcome": 0,
        "handled twice": 0,
        "ok, not handled": 0,
        "refused, yet handled": 0,
    }


def test_acknowledgements_come_before_the_work_is_done(server: TrialServer) -> None:
    async def ask():
        async with ObservedPool(size=1) as client:
            return await open_loop(client, server.address, [0, 0], 0.05, path=ACKNOWLEDGE, first=100)

    requests = asyncio.run(ask())
    assert with_handling(requests, server.handlings()).done.isnull().all()
    deadline = time.monotonic() + 10
    while with_handling(requests, server.handlings()).done.isnull().any():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    told = with_handling(requests, server.handlings())
    assert (told.ended < told.done).all()


def test_connections_are_numbered_as_they_are_first_used_and_added_when_all_are_full(server: TrialServer) -> None:
    async def ask():
        async with ObservedPool(size=3, channel_buffer=2) as client, client.watched(0.0005) as glances:
            services = [*[0.6] * 6, 0.0, 0.0]
            found = await open_loop(client, server.address, 0.005 * np.arange(8), services, first=200)
        return found, glances

    requests, glances = asyncio.run(ask())
    assert requests.connection.values.tolist()[:6] == [0, 0, 1, 1, 2, 2]
    assert max(sum(one.in_flight) for one in glances) == 6
    assert max(one.waiting for one in glances) == 2
    assert all(count <= 2 for one in glances for count in one.in_flight)
    assert {len(one.in_flight) for one in glances} <= {0, 1, 2, 3}
    assert [one.at for one in glances] == sorted(one.at for one in glances)


def test_a_load_can_be_ended_early(server: TrialServer) -> None:
    async def ask():
        enough = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, enough.set)
        async with ObservedPool(size=1) as client:
            return await open_loop(client, server.address, 0.01 * np.arange(1000), 0, first=1000, until=enough)

    requests = asyncio.run(ask())
    assert 1 <= requests.sizes["request"] < 1000
    assert (requests.outcome == "ok").all()
    assert requests.request.values[0] == 1000


def test_loads_can_share_the_zero_of_their_times(server: TrialServer) -> None:
    async def ask():
        zero = time.monotonic() + 0.05
        async with ObservedPool(size=1) as one, ObservedPool(size=1) as other:
            return zero, await asyncio.gather(
                open_loop(one, server.address, [0, 0.01], 0, first=4000, origin=zero),
                open_loop(other, server.address, [0.005], 0, first=4100, origin=zero),
            )

    zero, loads = asyncio.run(ask())
    assert [one.attrs["origin"] for one in loads] == [zero, zero]
    assert (loads[0].asked.values >= [0, 0.01]).all()
    assert loads[1].asked.item() >= 0.005


def test_two_loads_of_one_client_do_not_mix(server: TrialServer) -> None:
    async def ask():
        async with ObservedPool(size=1) as client:
            return [await open_loop(client, server.address, [0, 0, 0], 0, first=first) for first in (2000, 3000)]

    assert [one.attempts.values.tolist() for one in asyncio.run(ask())] == [[1, 1, 1]] * 2
    assert gc.get_freeze_count() == 0, "collections go on as before"


@pytest.mark.parametrize("times", [[], [[0.0]], [1.0, 0.5], [-1.0, 0.0], [0.0, np.nan]])
def test_times_that_are_none_are_refused(times: list[float]) -> None:
    async def ask() -> None:
        async with ObservedPool() as client:
            await open_loop(client, "127.0.0.1:1", times, 0)

    with pytest.raises(ConfigError, match="times"):
        asyncio.run(ask())


def test_the_reply_of_another_is_seen() -> None:
    async def ask() -> None:
        async with SharedTcpEndpoint() as endpoint, ObservedPool() as client:
            endpoint.register(REPLY, lambda request: work(99, 0.0, 64))
            await open_loop(client, endpoint.address, [0, 0], 0)

    with pytest.raises(NetError, match=r"\[0, 1\] got replies of others"):
        asyncio.run(ask())


def test_a_handler_that_fails_and_one_that_is_missing_are_outcomes() -> None:
    async def ask(path):
        async with SharedTcpEndpoint() as endpoint, ObservedPool() as client:
            endpoint.register("fails", lambda request: 1 / 0)
            return await open_loop(client, endpoint.address, [0], 0, path=path)

    assert asyncio.run(ask("fails")).outcome.item() == "handler failed"
    assert asyncio.run(ask("missing")).outcome.item() == "unavailable"


def test_nothing_is_handled_twice_through_a_pause_and_a_kill() -> None:
    async def ask(server: TrialServer):
        enough = asyncio.Event()

        async def faults() -> None:
            await asyncio.sleep(0.05)
            server.pause()
            await asyncio.sleep(0.15)
            server.resume()
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            await asyncio.sleep(0.3)
            enough.set()

        async with ObservedPool(size=2, retries=1, backoff=0.01, seed=0) as client:
            load = open_loop(
                client, server.address, 0.002 * np.arange(20_000), 0.02, timeout=0.1, until=enough, first=5000
            )
            requests, _ = await asyncio.gather(load, faults())
            return requests, client.metrics

    with TrialServer(max_concurrency=256, queue=256) as server:
        address = server.address
        server.stand_by()
        requests, metrics = asyncio.run(ask(server))
        assert server.address == address
        handlings = server.handlings()
    requests = with_handling(requests, handlings)
    counts = balance(requests)
    assert counts.pop("requests") == requests.sizes["request"]
    assert set(counts.values()) == {0}, counts
    assert set(np.unique(requests.outcome)) <= {"ok", "timed out", "lost", "could not connect"}
    assert {"ok", "timed out", "could not connect"} <= set(np.unique(requests.outcome))
    assert int((requests.attempts - 1).sum()) == metrics.retries
    assert len(np.unique(handlings["process"])) == 2
    # What was under way when the process was killed began, and never ended.
    first = handlings[handlings["process"] == handlings["process"][0]]
    assert np.isnan(first["ended"]).any()
    assert (handlings["ended"] >= handlings["began"])[~np.isnan(handlings["ended"])].all()


def test_what_is_wrong_is_counted() -> None:
    async def ask():
        async with SharedTcpEndpoint() as endpoint, ObservedPool() as client:
            endpoint.register(REPLY, lambda request: request.payload)
            return await open_loop(client, endpoint.address, [0, 0, 0], 0)

    requests = asyncio.run(ask())
    requests["outcome"] = ("request", np.array(["ok", "ok", "could not connect"]))
    rows = [(1, 7, 1.0, 2.0), (1, 8, 3.0, np.nan), (2, 7, 1.0, 2.0), (9, 7, 0.0, 1.0)]
    told = with_handling(requests, np.array(rows, list(HANDLING)))
    assert told.handled.values.tolist() == [0, 2, 1]
    assert told.began.values[1] == 1.0 - requests.attrs["origin"], "the first one counts"
    assert balance(told) == {
        "requests": 3,
        "without outcome": 0,
        "handled twice": 1,
        "ok, not handled": 1,
        "refused, yet handled": 1,
    }


def test_a_server_that_cannot_start_or_does_not_run_says_so() -> None:
    with pytest.raises(NetError, match="max_concurrency"), TrialServer(max_concurrency=0):
        pass
    server = TrialServer()
    with pytest.raises(NetError, match="start it first"):
        server.kill()
    with server:
        with pytest.raises(NetError, match="kill it first"):
            server.start()
        server.pause()
    with pytest.raises(NetError, match="start it first"):
        server.resume()


def test_loopback_moves_bytes_in_every_round() -> None:
    assert loopback_bandwidth(0.02, rounds=4, chunk=1 << 12) > 0
