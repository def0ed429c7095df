"""Synthetic prefixes for traces that have only lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError, TraceError
from dynalab.workload import Trace
from dynalab.workload.synth import with_prefixes

requests = st.lists(
    st.tuples(st.floats(0, 300), st.integers(1, 400), st.integers(0, 200)),
    min_size=1,
    max_size=60,
)


def bare(rows) -> Trace:
    gaps, prompts, answers = zip(*rows, strict=True)
    return Trace.from_columns(np.cumsum(gaps), prompts, answers, source="test")


def random_trace(n: int, seed: int = 0, rate: float = 5.0) -> Trace:
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(7.0, 1.2, n), 1, 30_000).astype(int)
    return Trace.from_columns(np.cumsum(rng.exponential(1 / rate, n)), prompts, rng.integers(1, 600, n), source="test")


@settings(deadline=None)
@given(requests, st.integers(1, 64), st.integers(0, 3), st.integers(0, 100), st.floats(1, 20), st.integers(0, 9))
def test_every_shared_block_could_have_been_shared(rows, size, prompts, system_tokens, turns, seed):
    trace = bare(rows)
    made = with_prefixes(
        trace, block_tokens=size, system_prompts=prompts, system_tokens=system_tokens, turns=turns, seed=seed
    )
    assert np.array_equal(made.arrival, trace.arrival)
    assert np.array_equal(made.input_tokens, trace.input_tokens)
    assert np.array_equal(made.output_tokens, trace.output_tokens)
    assert np.array_equal(np.diff(made.offsets), -(-trace.input_tokens // size))
    last: dict[int, int] = {}
    parent: dict[int, int] = {}
    for r in range(trace.n_requests):
        ids = made.block_ids[made.offsets[r] : made.offsets[r + 1]].tolist()
        before = -1
        for block in ids:  # one parent, hence one position and one prefix
            assert parent.setdefault(block, before) == before
            before = block
        known = [block for block in ids if block in last]
        assert known == ids[: len(known)]
        if len(known) > system_tokens // size:
            # Beyond a system prompt, sharing needs an earlier request whose prompt and answer fit into this prompt.
            earlier = last[known[-1]]
            assert trace.input_tokens[earlier] + trace.output_tokens[earlier] <= trace.input_tokens[r]
            assert len(known) == trace.input_tokens[earlier] // size
        if trace.input_tokens[r] % size:
            assert ids[-1] not in last
        last.update(dict.fromkeys(ids, r))


def test_repeats_by_seed():
    trace = random_trace(500)
    assert with_prefixes(trace, seed=3).equals(with_prefixes(trace, seed=3))
    assert with_prefixes(trace, seed=3).sha256 != with_prefixes(trace, seed=4).sha256


def test_nothing_is_shared_without_system_prompts_and_with_one_turn():
    made = with_prefixes(random_trace(2000), turns=1, system_prompts=0)
    assert made.n_blocks == made.n_accesses
    assert made.attrs["prefix_parameters"]["turns_achieved"] == 1.0


def test_more_turns_share_more():
    trace = random_trace(3000)
    shares = [
        1 - t.n_blocks / t.n_accesses for t in (with_prefixes(trace, turns=m, system_prompts=0) for m in (1, 1.5, 3, 8))
    ]
    assert shares[0] == 0
    assert all(b > a + 0.02 for a, b in pairwise(shares))


def test_mean_turns_come_near_what_was_asked_where_prompts_allow():
    """With equal prompts longer than any context, almost every session that wants to go on finds its next request."""
    n = 20_000
    trace = Trace.from_columns(np.arange(n) * 1.0, 100 + np.arange(n), np.full(n, 0), source="growing")
    made = with_prefixes(trace, turns=3.5, system_prompts=0)
    assert made.attrs["prefix_parameters"]["turns_achieved"] == pytest.approx(3.5, rel=0.05)


def test_system_prompts_are_shared_by_sessions_that_are_long_enough():
    trace = Trace.from_columns(np.arange(400.0), [1024] * 200 + [1025] * 200, [1] * 400, source="test")
    made = with_prefixes(trace, turns=1, system_prompts=3, system_tokens=1024)
    first = made.block_ids[made.offsets[:-1]]
    assert len(set(first[:200].tolist())) == 200  # not longer than the system prompt: cannot hold it
    heads, uses = np.unique(first[200:], return_counts=True)
    assert len(heads) == 3
    assert sorted(uses / 200) == pytest.approx([2 / 11, 3 / 11, 6 / 11], abs=0.12)  # in proportion to 1, 1/2, 1/3


def test_says_that_it_is_invented():
    made = with_prefixes(random_trace(100), seed=5)
    assert made.source == "test + synthetic prefixes (seed 5)"
    assert made.attrs["prefixes"].startswith("synthetic")
    assert made.attrs["prefix_parameters"]["seed"] == 5
    assert made.attrs["source_sha256"] == random_trace(100).sha256


def test_method_of_the_trace_is_the_same():
    trace = random_trace(100)
    assert trace.with_prefixes(seed=2).equals(with_prefixes(trace, seed=2))


def test_measured_blocks_are_not_replaced():
    made = with_prefixes(random_trace(10))
    with pytest.raises(TraceError, match="has block ids of its own"):
        with_prefixes(made)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_tokens", 0),
        ("block_tokens", 1.5),
        ("system_prompts", -1),
        ("system_tokens", "many"),
        ("turns", 0.5),
        ("turns", float("nan")),
        ("turns", float("inf")),
        ("turns", True),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_named(field, value):
    with pytest.raises(ConfigError) as error:
        with_prefixes(random_trace(5), **{field: value})
    assert str(error.value).startswith(f"{field}: {value!r}")
    assert "\n" not in str(error.value)


def test_a_hundred_thousand_requests():
    assert with_prefixes(random_trace(100_000, rate=50.0)).prefix_consistent


def test_a_real_trace_keeps_its_lengths(shared_data):
    from dynalab.workload import read_trace

    trace = read_trace(shared_data / "azure_llm_2023_conv.csv")
    made = with_prefixes(trace)
    assert np.array_equal(made.input_tokens, trace.input_tokens)
    assert made.prefix_consistent
    assert 0.05 < 1 - made.n_blocks / made.n_accesses < 0.8
