"""Time to first token, the length from which loading wins, and wear: by hand, by brute force, at the limits."""

from __future__ import annotations

import numpy as np
import pytest
from cache_strategies import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.cache import break_even_tokens, replay_tiers, wear
from dynalab.cache.ttft import recompute_seconds, ttft_seconds
from dynalab.errors import ConfigError
from dynalab.workload import HARDWARE, MODELS, Trace, hardware_spec, model_spec

MODEL = model_spec("llama-3-8b")
H100 = hardware_spec("h100-sxm")
# Links without latency and, for all that matters, without end.
IDEAL = hardware_spec(
    "h100-sxm",
    h2d=1e30,
    disk_to_host=1e30,
    host_memory_bandwidth=1e30,
    link_latency=0.0,
    disk_latency=0.0,
)
ROW = st.tuples(st.integers(1, 30_000), *[st.integers(0, 12_000)] * 3)


def columns(rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Input tokens, then those reused from device, host and disk, which are never more than the input."""
    table = np.array(rows, np.int64)
    for k in (1, 2, 3):
        table[:, k] = np.minimum(table[:, k], table[:, 0] - table[:, 1:k].sum(axis=1))
    return list(table.T)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_with_ideal_links_only_computing_takes_time(rows):
    inputs, *tokens = columns(rows)
    reused = np.minimum(sum(tokens), inputs - 1)
    pure = H100.prefill_seconds(MODEL, inputs - reused, reused)
    assert np.allclose(ttft_seconds(MODEL, IDEAL, inputs, *tokens), pure, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=8), more=st.integers(0, 5_000), tier=st.integers(1, 3))
def test_with_ideal_links_more_reuse_never_costs(rows, more, tier):
    table = columns(rows)
    richer = [column.copy() for column in table]
    richer[tier] += np.minimum(more, table[0] - sum(table[1:]))
    before, after = (ttft_seconds(MODEL, IDEAL, *t) for t in (table, richer))
    assert (after <= before * (1 + 1e-12)).all()
    assert (after <= recompute_seconds(MODEL, IDEAL, table[0]) * (1 + 1e-12)).all()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_loads_add_latency_and_bytes_over_bandwidth(rows):
    inputs, device, host, disk = columns(rows)
    seconds = ttft_seconds(MODEL, H100, inputs, device, host, disk)
    for n, on_device, on_host, on_disk, got in zip(inputs, device, host, disk, seconds, strict=True):
        reused = min(int(on_device + on_host + on_disk), int(n) - 1)
        expected = H100.prefill_seconds(MODEL, int(n) - reused, reused)
        if on_host:
            expected += H100.link_latency + on_host * 131_072 / H100.h2d
        if on_disk:
            expected += H100.link_latency + H100.disk_latency + on_disk * 131_072 / H100.disk_to_host
        assert got == pytest.approx(expected, rel=1e-12)


def test_reuse_from_the_device_is_free_and_slower_tiers_cost_more():
    inputs = np.array([8_000])
    none, all_of_it = np.array([0]), np.array([4_000])
    device = ttft_seconds(MODEL, H100, inputs, all_of_it, none, none)
    host = ttft_seconds(MODEL, H100, inputs, none, all_of_it, none)
    disk = ttft_seconds(MODEL, H100, inputs, none, none, all_of_it)
    recomputed = recompute_seconds(MODEL, H100, inputs)
    assert device == pytest.approx(H100.prefill_seconds(MODEL, 4_000, 4_000))
    assert device < host < disk
    assert host < recomputed


@settings(max_examples=40, deadline=None)
@given(trace=trees())
def test_replay_without_tiers_recomputes(trace):
    ds = replay_tiers(trace, {}, model=MODEL, per_request=True)
    expected = H100.prefill_seconds(MODEL, trace.input_tokens.astype(np.int64))
    assert np.array_equal(ds.ttft, expected)
    assert float(ds.ttft_mean) == float(ds.ttft_recomputed_mean) == expected.mean()
    assert float(ds.ttft_saved_mean) == 0


@settings(max_examples=60, deadline=None)
@given(trace=trees(), device=st.integers(0, 5), host=st.integers(0, 10), disk=st.integers(0, 20))
def test_replay_with_ideal_links_computes_the_new_tokens(trace, device, host, disk):
    tiers = {"device": device, "host": host, "disk": disk}
    ds = replay_tiers(trace, tiers, model=MODEL, hardware=IDEAL, per_request=True)
    inputs = trace.input_tokens.astype(np.int64)
    # A partial last block counts as the tokens it has.
    reused = ds.request_reused_tokens.sum("tier").values
    assert (reused <= inputs).all()
    reused = np.minimum(reused, inputs - 1)
    assert np.allclose(ds.ttft, IDEAL.prefill_seconds(MODEL, inputs - reused, reused), rtol=1e-12)
    assert float(ds.requests_slowed) == 0
    assert float(ds.ttft_saved_mean) >= -1e-12
    assert int(ds.reused_tokens.sum()) == int(ds.request_reused_tokens.sum())


# ---------------------------------------------------------------------------- break-even


@pytest.mark.parametrize("path", ["host", "disk"])
@pytest.mark.parametrize("hardware", sorted(HARDWARE))
def test_break_even_is_the_threshold_found_by_trying_every_length(hardware, path):
    machine = hardware_spec(hardware)
    for name in MODELS:
        model = model_spec(name)
        tokens = np.arange(1, (model.max_context or 1 << 20) + 1)
        wins = machine.load_seconds(tokens * model.bytes_per_token, path) <= machine.prefill_seconds(model, tokens)
        expected = float(tokens[np.argmax(wins)]) if wins.any() else float("inf")
        assert break_even_tokens(model, machine, path) == expected, name
        # From there on loading stays ahead, which is what makes it a threshold.
        assert not wins.any() or wins[np.argmax(wins) :].all(), name


def test_break_even_moves_with_the_link():
    slow = hardware_spec("h100-sxm", h2d="5GB/s", disk_to_host="0.5GB/s")
    assert break_even_tokens(MODEL, slow, "host") > break_even_tokens(MODEL, H100, "host") >= 1
    assert break_even_tokens(MODEL, hardware_spec("h100-sxm", disk_to_host="1MB/s"), "disk") == float("inf")
    assert break_even_tokens(MODEL, IDEAL, "disk") == 1


# ---------------------------------------------------------------------------- wear


def test_wear_by_hand():
    machine = hardware_spec("h100-sxm", disks=2, disk_bytes="4TB", disk_dwpd=3.0, disk_warranty_years=5.0)
    # 1 TB per hour is 24 TB a day, three times the 8 TB of both disks, which is what they are rated for.
    result = wear(1e12, 3_600.0, machine)
    assert result.bytes_per_second == pytest.approx(1e12 / 3_600)
    assert result.tb_per_day == pytest.approx(24.0)
    assert result.dwpd == pytest.approx(3.0)
    assert result.rated_dwpd == 3.0
    assert result.years == pytest.approx(5.0, rel=1e-3)
    faster = wear(2e12, 3_600.0, machine)
    assert faster.dwpd == pytest.approx(6.0)
    assert faster.years == pytest.approx(2.5, rel=1e-3)
    assert not faster.within_rating
    assert wear(0.99e12, 3_600.0, machine).within_rating


def test_nothing_written_lasts_for_ever():
    result = wear(0, 60.0, H100)
    assert (result.dwpd, result.tb_per_day, result.years) == (0.0, 0.0, float("inf"))
    assert result.within_rating


@pytest.mark.parametrize("duration", [0, -1.0])
def test_a_rate_needs_time(duration):
    with pytest.raises(ConfigError, match=rf"duration: {duration} s"):
        wear(1e9, duration, H100)


def test_replay_reports_traffic_wear_and_bandwidth_by_hand():
    """Six blocks written in 100 s, five of them in the first 10 s; one comes back from disk through the host."""
    rows = [[0, 1], [2, 3], [4], [5], [0]]
    trace = Trace.from_columns(
        [0.0, 4.0, 9.0, 60.0, 100.0],
        [len(row) * 16 for row in rows],
        [1] * len(rows),
        [block for row in rows for block in row],
        block_tokens=16,
    )
    ds = replay_tiers(trace, {"device": 1, "host": 2, "disk": 10}, model=MODEL, hardware=H100, window=10.0)
    block = 16 * 131_072
    moved = ds.moved_bytes.to_series()
    assert moved.device_to_host == moved.host_to_disk == 6 * block
    assert moved.disk_to_host == moved.host_to_device == block
    assert ds.bandwidth_mean.to_series().host_to_disk == pytest.approx(6 * block / 100)
    assert ds.bandwidth_peak.to_series().host_to_disk == pytest.approx(5 * block / 10)
    assert float(ds.disk_tb_per_day) == pytest.approx(6 * block / 100 * 86_400 / 1e12)
    assert float(ds.disk_dwpd) == pytest.approx(6 * block / 100 * 86_400 / 7.68e12)
    assert ds.reused_tokens.values.tolist() == [0, 0, 16]
    assert ds.attrs["block_bytes"] == block
