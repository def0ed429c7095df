"""The exact LRU curve equals replay at every capacity, and the sampled one knows how wrong it is."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from cache_strategies import requests, traces
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynalab.cache import infinite_hit_ratios, lru_curve, replay, sampled_curve
from dynalab.errors import ConfigError, TraceError
from dynalab.workload import Trace, synthesize


@pytest.fixture(scope="module")
def twin() -> Trace:
    """Some 50,000 accesses."""
    return synthesize("conversation", duration=600, seed=11)


# ---------------------------------------------------------------------------- exact


@settings(max_examples=120, deadline=None)
@given(
    trace=traces(),
    blocks=st.sampled_from(["all", "full"]),
    order=st.sampled_from(["forward", "leaf_first"]),
)
def test_equals_lru_replay_at_every_capacity(trace, blocks, order):
    used = trace.full_blocks() if blocks == "full" else trace
    assume(used.n_blocks)
    curve = lru_curve(trace, blocks=blocks, order=order)
    assert list(curve.capacity.values) == list(range(1, used.n_blocks + 1))
    ds = replay(trace, "lru", curve.capacity.values, blocks=blocks, order=order, progress=False)
    assert np.array_equal(curve.hit_ratio, ds.hit_ratio.sel(policy="lru"))
    limit = infinite_hit_ratios(trace, blocks=blocks)["hit_ratio"]
    assert curve.attrs["infinite_hit_ratio"] == limit == float(curve.hit_ratio[-1])
    assert (curve.hit_ratio.diff("capacity") >= 0).all()


def test_prompts_shorter_than_a_block_have_no_full_blocks():
    trace = Trace.from_columns([0.0, 1.0], [5, 5], [1, 1], [1, 1], block_tokens=8)
    assert replay(trace, "lru", 10, blocks="full").hit_ratio.item() == 0
    assert lru_curve(trace, 10, blocks="full").hit_ratio.item() == 0


@settings(max_examples=60, deadline=None)
@given(trace=traces())
def test_distances_by_counting(trace):
    """An access hits at capacity c if at most c different blocks were used since, itself included."""
    stream = [block for row in requests(trace) for block in row]
    hits = np.zeros(trace.n_blocks + 1, int)
    for i, block in enumerate(stream):
        before = [j for j in range(i) if stream[j] == block]
        if before:
            hits[len(set(stream[before[-1] : i]))] += 1
    assert np.allclose(lru_curve(trace).hit_ratio * len(stream), np.cumsum(hits)[1:], atol=1e-9)


@given(trace=traces(), capacities=st.lists(st.integers(1, 500), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_chosen_capacities_are_points_of_the_whole_curve(trace, capacities):
    whole = lru_curve(trace)
    some = lru_curve(trace, capacities)
    assert list(some.capacity.values) == sorted(set(capacities))
    for capacity in capacities:
        expected = whole.hit_ratio.values[min(capacity, trace.n_blocks) - 1]
        assert float(some.hit_ratio.sel(capacity=capacity)) == expected


def test_equals_lru_replay_on_the_conversation_trace(conversation):
    sizes = np.unique(np.geomspace(1, conversation.n_blocks, 20).round().astype(int))
    curve = lru_curve(conversation)
    ds = replay(conversation, "lru", sizes, progress=False)
    assert np.array_equal(curve.hit_ratio.sel(capacity=sizes), ds.hit_ratio.sel(policy="lru"))
    assert (curve.hit_ratio.diff("capacity") >= 0).all()
    assert curve.attrs["infinite_hit_ratio"] == pytest.approx(0.3664, abs=5e-5)


@pytest.mark.parametrize(("capacities", "message"), [(0, "give at least 1"), ([1.5], "whole"), ([], "none given")])
def test_bad_capacities(twin, capacities, message):
    for function in (lru_curve, sampled_curve):
        with pytest.raises(ConfigError, match=f"capacities: .*{message}"):
            function(twin, capacities=capacities)


def test_bad_choices_and_traces_without_ids(twin):
    with pytest.raises(ConfigError, match="order: 'sideways'"):
        lru_curve(twin, order="sideways")
    with pytest.raises(ConfigError, match="blocks: 'some'"):
        lru_curve(twin, blocks="some")
    bare = Trace.from_columns([0.0], [100], [1])
    for function in (lru_curve, sampled_curve):
        with pytest.raises(TraceError, match="with_prefixes"):
            function(bare)


# ---------------------------------------------------------------------------- sampled


@settings(max_examples=60, deadline=None)
@given(trace=traces(), seed=st.integers(0, 1000))
def test_rate_one_is_exact_and_sure(trace, seed):
    sizes = range(1, trace.n_blocks + 3)
    ds = sampled_curve(trace, 1.0, seed, sizes)
    assert np.allclose(ds.hit_ratio, lru_curve(trace, sizes).hit_ratio, rtol=0, atol=1e-12)
    assert (ds.standard_error == 0).all()


def test_seeds_repeat_and_differ(twin):
    first, again, other = (sampled_curve(twin, 0.1, seed) for seed in (5, 5, 6))
    xr.testing.assert_identical(first, again)
    assert not np.array_equal(sampled_curve(twin, 0.1, 6, first.capacity.values).hit_ratio, first.hit_ratio)
    assert other.attrs["seed"] == 6


@pytest.mark.parametrize("chunk", [997, 10**9])
def test_chunks_give_the_same_as_the_whole_trace(twin, chunk):
    sizes = [100, 1000, 5000]
    chunks = (twin.block_ids[i : i + chunk] for i in range(0, twin.n_accesses, chunk))
    streamed, whole = sampled_curve(chunks, 0.2, 3, sizes), sampled_curve(twin, 0.2, 3, sizes)
    assert np.array_equal(streamed.hit_ratio, whole.hit_ratio)
    assert np.array_equal(streamed.standard_error, whole.standard_error)
    assert streamed.attrs["n_accesses"] == twin.n_accesses


def test_chunks_may_hold_64_bit_hashes(twin):
    hashes = (twin.block_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    assert int(hashes.max()) > 2**63
    ds = sampled_curve([hashes], 1.0, 0, [100, 3000])
    assert np.allclose(ds.hit_ratio, lru_curve(twin, [100, 3000]).hit_ratio, atol=1e-12)
    # The same bits read as signed numbers are the same blocks.
    signed = sampled_curve([hashes.view(np.int64)], 0.3, 1, [100, 3000])
    assert np.array_equal(signed.hit_ratio, sampled_curve([hashes], 0.3, 1, [100, 3000]).hit_ratio)


def test_a_sample_is_its_rate_of_the_blocks(twin):
    for rate in (0.05, 0.3):
        kept = [sampled_curve(twin, rate, seed, [100]).attrs["sampled_accesses"] for seed in range(20)]
        assert np.mean(kept) == pytest.approx(rate * twin.n_accesses, rel=0.1)


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_bad_rates(twin, rate):
    with pytest.raises(ConfigError, match=r"rate: .* fraction of blocks; give a value above 0 and up to 1"):
        sampled_curve(twin, rate)


def test_empty_samples_are_refused(twin):
    with pytest.raises(ConfigError, match="samples none"):
        sampled_curve(twin.head(1), 1e-9)
    with pytest.raises(TraceError, match="no block accesses"):
        sampled_curve([], 0.5)
    with pytest.raises(TraceError, match="no block accesses"):
        sampled_curve([np.empty(0, np.int64)], 0.5)


def zipf(exponent: float) -> Trace:
    rng = np.random.default_rng(1)
    weights = np.arange(1, 20_001) ** -exponent
    ids = rng.choice(20_000, 100_000, p=weights / weights.sum())
    return Trace.from_columns(
        np.arange(ids.size) * 0.1, np.full(ids.size, 8), np.ones(ids.size, int), ids, block_tokens=8
    )


def check_errors(trace: Trace, rate: float) -> None:
    """Compare estimates and standard errors with the truth, from 30 sampled blocks up.

    Over 40 seeds, rates of 0.01 to 0.3 and these four traces, 96-100% of the errors lie within 4 standard errors and
    87-98% within 2, and the root mean square error is 0.65-1.4 standard errors. Where the cache holds but a few sampled
    blocks (capacity < 30 / rate) the error is up to 8 times the stated one: the sample knows nothing of such caches.
    """
    sizes = np.unique(np.geomspace(30 / rate, trace.n_blocks, 10).astype(int))
    exact = lru_curve(trace, sizes).hit_ratio.values
    runs = [sampled_curve(trace, rate, seed, sizes) for seed in range(20)]
    errors = np.array([run.hit_ratio.values - exact for run in runs])
    stated = np.array([run.standard_error.values for run in runs])
    assert (stated > 0).all()
    assert np.mean(np.abs(errors) <= 4 * stated) > 0.95
    assert np.mean(np.abs(errors) <= 2 * stated) > 0.8
    ratio = np.sqrt((errors**2).mean(axis=0) / (stated**2).mean(axis=0))
    assert ratio.min() > 0.5
    assert ratio.max() < 1.7


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_errors_are_honest_where_few_blocks_are_hot(exponent, rate):
    check_errors(zipf(exponent), rate)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_errors_are_honest_on_the_twin(twin, rate):
    check_errors(twin, rate)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_errors_are_honest_on_the_conversation_trace(conversation, rate):
    check_errors(conversation, rate)


def test_larger_samples_err_less(conversation):
    sizes = [1_000, 10_000, 30_000]
    exact = lru_curve(conversation, sizes).hit_ratio.values
    mean_error = [
        np.mean([np.abs(sampled_curve(conversation, rate, seed, sizes).hit_ratio - exact).mean() for seed in range(10)])
        for rate in (0.01, 0.1, 1.0)
    ]
    assert mean_error[0] > 1.5 * mean_error[1]
    assert mean_error[1] > mean_error[2] == pytest.approx(0, abs=1e-12)
    assert mean_error[1] < 0.015
