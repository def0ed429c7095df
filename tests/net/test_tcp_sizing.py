"""Recommended sizes of the TCP pool and its endpoint: what they promise is checked on the trace, by a plain walk."""

from __future__ import annotations

import json
import re
from heapq import heappop, heappush
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.net import TcpClientConfig, TcpServerConfig
from dynalab.net import demand as module
from dynalab.net.demand import Demand
from dynalab.net.sizing import TcpAdvice, recommend_tcp
from dynalab.pools.queueing import servers_for_wait


def sizes(advice: TcpAdvice) -> dict[str, int]:
    return {name.removeprefix("DYN_TCP_").lower(): int(value) for name, value in advice.settings.items()}


def walk(arrivals: np.ndarray, services: np.ndarray, permits: int) -> tuple[np.ndarray, int]:
    """Waits and longest queue, event by event: nothing shared with what is tested."""
    busy: list[float] = []
    begins: list[float] = []
    waits, longest = [], 0
    for arrival, service in zip(arrivals.tolist(), services.tolist(), strict=True):
        while busy and busy[0] <= arrival:
            heappop(busy)
        begin = arrival if len(busy) < permits else sorted(busy)[len(busy) - permits]
        heappush(busy, begin + service)
        begins.append(begin)
        waits.append(begin - arrival)
        longest = max(longest, sum(other > arrival for other in begins))
    return np.array(waits), longest


def trace(seed: int, n: int = 400, rate: float = 4.0, service: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Calm, then three times as many, then calm again."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, n)
    gaps[n // 3 : n // 2] /= 3
    return 1e5 + np.cumsum(gaps), rng.gamma(2.0, service / 2, n)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 2.0]), st.sampled_from([0.5, 0.9, 0.99]), st.booleans())
@settings(max_examples=30)
def test_the_promise_is_kept_on_the_trace(seed: int, wait_s: float, share: float, reply: bool) -> None:
    arrivals, services = trace(seed)
    advice = recommend_tcp(arrivals, services, wait_s=wait_s, share=share, reply=reply)
    given_, e = sizes(advice), advice.evidence
    waits, longest = walk(arrivals - arrivals[0], services, given_["worker_pool_size"])
    assert np.quantile(waits, share) <= wait_s + 1e-9
    assert e["queue_longest"] == longest
    fewer = e["permits_by_replay"] - 1
    if fewer:
        assert np.quantile(walk(arrivals - arrivals[0], services, fewer)[0], share) > wait_s - 1e-9
    assert given_["worker_pool_size"] == max(e["permits_by_formula"], e["permits_by_replay"])
    assert given_["pool_size"] * given_["channel_buffer"] >= e["in_flight"]
    last = given_["work_queue_size"] * e["service_mean_s"] / given_["worker_pool_size"]
    assert last <= e["patience_s"] * 1.001 or given_["work_queue_size"] == 1, "nobody queues longer than is of use"


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.5]))
@settings(max_examples=20)
def test_replies_are_not_held_up(seed: int, wait_s: float) -> None:
    """Requests go round the connections; each replies in order."""
    arrivals, services = trace(seed)
    advice = recommend_tcp(arrivals, services, wait_s=wait_s, reply=True)
    waits, _ = walk(arrivals, services, sizes(advice)["worker_pool_size"])
    done = arrivals + waits + services
    connections = sizes(advice)["pool_size"]
    last, held = [0.0] * connections, []
    for index, own in enumerate(done.tolist()):
        last[index % connections] = max(last[index % connections], own)
        held.append(last[index % connections] - own)
    if connections < advice.evidence["in_flight"]:
        assert np.quantile(held, 0.99) <= wait_s + 1e-6
    else:
        assert sizes(advice)["channel_buffer"] == 1
    assert sizes(advice)["request_timeout"] >= 5 + np.quantile(services, 0.999), "the slowest that is no failure"


def test_acknowledging_takes_a_round_trip_and_replying_the_whole_time() -> None:
    arrivals, services = trace(1)
    acknowledging, replying = (recommend_tcp(arrivals, services, reply=reply) for reply in (False, True))
    assert acknowledging.evidence["in_flight"] < 10 < replying.evidence["in_flight"]
    assert sizes(acknowledging)["pool_size"] == 2
    assert sizes(acknowledging)["pool_size"] < sizes(replying)["pool_size"]
    assert sizes(acknowledging)["request_timeout"] == 5
    for name in ("worker_pool_size", "work_queue_size"):
        assert sizes(acknowledging)[name] == sizes(replying)[name], "the worker does the same"


def test_a_rate_is_sized_as_erlang_would() -> None:
    advice = recommend_tcp(100.0, 0.1, wait_s=0.02)
    e = advice.evidence
    assert e["arrivals"] == "made up: Poisson"
    assert e["load_mean"] == pytest.approx(10, rel=0.02)
    assert e["cv2_arrivals"] == pytest.approx(1, abs=0.1)
    assert e["cv2_service"] == pytest.approx(1, abs=0.1)
    least = servers_for_wait(0.02, 0.99, 100.0, 0.1)
    assert least <= sizes(advice)["worker_pool_size"] <= least + 2, "a peak is a little more than the mean"
    drawn = recommend_tcp(100.0, [0.05, 0.15], wait_s=0.02)
    assert drawn.evidence["cv2_service"] == pytest.approx(0.25, abs=0.02)


def test_more_of_anything_needs_no_less() -> None:
    arrivals, services = trace(3)

    def permits(**more: Any) -> int:
        return sizes(recommend_tcp(**{"arrivals": arrivals, "service_s": services} | more))["worker_pool_size"]

    base = permits()
    assert permits(service_s=2 * services) > base
    assert permits(arrivals=arrivals / 2) > base
    assert permits(wait_s=3.0) < base < permits(wait_s=0.0, share=0.999)
    assert permits(workers=4) < base < 4 * permits(workers=4), "one queue is better than four"


def test_peaks_count_and_means_hide_them() -> None:
    calm, busy = np.arange(0, 600, 1.0), np.arange(600, 660, 0.1)
    arrivals = np.r_[calm, busy, 660 + calm]
    e = recommend_tcp(arrivals, np.full(arrivals.size, 2.0)).evidence
    assert e["rate_peak"] == pytest.approx(10, rel=0.05)
    assert e["rate_mean"] < 2
    assert e["permits_by_formula"] >= 20
    assert e["concurrency_peak"] == pytest.approx(20, abs=1)


def test_connections_carry_bytes() -> None:
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1e-3, 20_000))
    small = recommend_tcp(arrivals, 0.01, payload_bytes=64)
    large = recommend_tcp(arrivals, 0.01, payload_bytes=1 << 20, bandwidth="1GB/s", wait_s=0.05)
    assert sizes(small)["pool_size"] == 2
    assert sizes(large)["pool_size"] >= 3, "1 GB/s on connections of 1 GB/s, half busy"
    assert large.evidence["connection_load"] <= 0.51
    slow = recommend_tcp(arrivals, 0.01, rtt_s="40ms")
    assert sizes(slow)["pool_size"] * sizes(slow)["channel_buffer"] >= 2 * 40, "a long way holds more"
    patient = recommend_tcp(arrivals, 0.01, payload_bytes=1 << 20, queue_bytes="16MiB")
    assert sizes(patient)["work_queue_size"] == 16
    assert "16 MiB" in patient.reasons["DYN_TCP_WORK_QUEUE_SIZE"]


def test_settings_are_what_client_and_endpoint_read() -> None:
    for reply in (False, True):
        advice = recommend_tcp(*trace(7), reply=reply)
        client, server = TcpClientConfig.from_env(advice.settings), TcpServerConfig.from_env(advice.settings)
        assert (client.size, client.channel_buffer) == (sizes(advice)["pool_size"], sizes(advice)["channel_buffer"])
        assert client.request_timeout == sizes(advice)["request_timeout"]
        assert (server.max_concurrency, server.queue) == (
            sizes(advice)["worker_pool_size"],
            sizes(advice)["work_queue_size"],
        )


def test_each_setting_has_a_reason_with_its_numbers() -> None:
    advice = recommend_tcp(*trace(7))
    assert set(advice.reasons) == set(advice.settings)
    assert all(re.search(r"\d", text) and "\n" not in text for text in advice.reasons.values())
    assert str(advice.evidence["permits_by_replay"]) in advice.reasons["DYN_TCP_WORKER_POOL_SIZE"]
    plain = advice.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["method"].startswith("calculated")
    assert recommend_tcp(*trace(7)).to_dict() == plain, "the same twice"


def test_order_and_origin_do_not_matter() -> None:
    arrivals, services = trace(5)
    shuffled = np.random.default_rng(0).permutation(arrivals.size)
    again = recommend_tcp(arrivals[shuffled] - 1e5, services[shuffled])
    assert again.settings == recommend_tcp(arrivals, services).settings


def test_what_does_not_fit_is_told() -> None:
    arrivals = np.r_[np.zeros(50), np.arange(1, 2000, 10.0)]
    advice = recommend_tcp(arrivals, np.full(arrivals.size, 4.0), share=0.5, patience_s=1.0, window_s=1900)
    assert any("does not fit" in text for text in advice.warnings)
    services = np.random.default_rng(0).exponential(2.0, 4000)
    crowded = recommend_tcp(np.cumsum(np.full(4000, 0.001)), services, reply=True, wait_s=0.0)
    assert any("limit of open files" in text for text in crowded.warnings)


def test_a_short_trace_tells_no_rate_that_lasts() -> None:
    advice = recommend_tcp([0.0, 0.001, 0.002, 0.003], 30.0)
    assert advice.evidence["rate_peak"] > 900
    assert sizes(advice)["worker_pool_size"] == 4, "as many as there are, not what a thousand a second would need"
    assert any("too short" in text for text in advice.warnings)
    assert "peak concurrency stands" in advice.reasons["DYN_TCP_WORKER_POOL_SIZE"]
    assert not any("too short" in text for text in recommend_tcp(*trace(7)).warnings)


def test_of_a_long_trace_the_densest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REQUESTS", 100)
    arrivals = np.r_[np.arange(0, 300, 1.0), 300 + np.arange(0, 50, 0.5), 350 + np.arange(0, 300, 1.0)]
    found = Demand.of(arrivals, 1.0, 1.0, 1, 0.0)
    assert found.left_out == 600
    assert found.rate == pytest.approx(2.0)
    advice = recommend_tcp(arrivals, 1.0)
    assert any("600 were left out" in text for text in advice.warnings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"arrivals": 0.0}, ["arrivals", "rate of 0.0", "above 0"]),
        ({"arrivals": float("nan")}, ["arrivals", "nan"]),
        ({"arrivals": [1.0]}, ["arrivals", "at least two"]),
        ({"arrivals": [1.0, float("inf")]}, ["arrivals", "finite"]),
        ({"arrivals": [1.0, 1.0]}, ["arrivals", "tell no rate"]),
        ({"arrivals": [1.0, 2.0, 3.0], "workers": 2}, ["arrivals", "2 workers"]),
        ({"service_s": 0.0}, ["service_s", "above 0"]),
        ({"service_s": [-1.0, 1.0]}, ["service_s"]),
        ({"payload_bytes": [1.0, 2.0, 3.0], "arrivals": [0.0, 1.0], "service_s": 1.0}, ["payload_bytes", "(3,)"]),
        ({"workers": 0}, ["workers: 0"]),
        ({"workers": 1.5}, ["workers: 1.5"]),
        ({"share": 1.0}, ["share: 1.0", "0.99"]),
        ({"wait_s": -1}, ["wait_s", "negative"]),
        ({"wait_s": "soon"}, ["wait_s", "'soon'"]),
        ({"bandwidth": "fast"}, ["bandwidth", "'fast'"]),
        ({"queue_bytes": "much"}, ["queue_bytes", "'much'"]),
    ],
)
def test_what_cannot_be_sized_is_refused_in_one_line(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        recommend_tcp(**{"arrivals": 10.0, "service_s": 1.0} | values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
