"""Reuse statistics, held to counts in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError, TraceError
from dynalab.lab.reuse import popularity, reuse_chance, uses_so_far, waits
from dynalab.workload import Trace


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Requests of one to three blocks (2 tokens each) from a small alphabet."""
    requests = draw(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=25))
    gaps = draw(st.lists(st.integers(0, 9), min_size=len(requests), max_size=len(requests)))
    tokens = [2 * len(blocks) for blocks in requests]
    ids = [block for blocks in requests for block in blocks]
    return Trace.from_columns(np.cumsum(gaps), tokens, [1] * len(requests), ids, block_tokens=2)


def accesses(trace: Trace) -> list[tuple[float, int]]:
    owner = np.repeat(np.arange(len(trace)), np.diff(trace.offsets))
    return [(float(trace.arrival[r]), int(x)) for r, x in zip(owner, trace.block_ids, strict=True)]


@given(traces())
def test_waits_and_counts(trace: Trace) -> None:
    steps = accesses(trace)
    wait, uses = waits(trace), uses_so_far(trace)
    for i, (time, block) in enumerate(steps):
        later = [t for t, x in steps[i + 1 :] if x == block]
        assert wait[i] == (later[0] - time if later else math.inf)
        assert uses[i] == sum(x == block for _, x in steps[: i + 1])


@given(traces())
def test_popularity_shares_out_everything(trace: Trace) -> None:
    table = popularity(trace)
    hits = trace.n_accesses - trace.n_blocks
    np.testing.assert_allclose(table.sum(), [1, 1, 1 if hits else 0])
    uses = np.bincount(trace.block_ids)
    assert table.blocks["1"] == pytest.approx((uses == 1).mean())
    assert table.hits["2"] == pytest.approx((uses == 2).sum() / max(hits, 1))


@given(traces(), st.integers(1, 20), st.integers(1, 10))
def test_chance_of_reuse(trace: Trace, age: int, within: int) -> None:
    if trace.duration <= age + within:
        with pytest.raises(ConfigError, match="shorter than age and window"):
            reuse_chance(trace, [age], within)
        return
    table = reuse_chance(trace, [0, age], within, at_least=1)
    steps = accesses(trace)
    for column in (0, age):
        rested = used = 0
        for i, (time, block) in enumerate(steps):
            first = sum(x == block for _, x in steps[: i + 1]) == 1
            if block == 0 or not first or time + age + within > trace.duration:
                continue
            wait = next((t - time for t, x in steps[i + 1 :] if x == block), math.inf)
            rested += wait > column
            used += column < wait <= column + within
        expected = used / rested if rested else math.nan
        assert table.loc["1", column] == pytest.approx(expected, nan_ok=True)


def test_few_blocks_give_no_chance() -> None:
    trace = Trace.from_columns([0, 1, 100], [4, 4, 2], [1, 1, 1], [0, 1, 0, 1, 2], block_tokens=2)
    assert np.isnan(reuse_chance(trace, [0.0], 5).to_numpy()).all()
    assert reuse_chance(trace, [0.0], 5, at_least=1).loc["1", 0.0] == 1.0


def test_a_trace_without_blocks_is_refused() -> None:
    trace = Trace.from_columns([0, 1], [5, 5], [1, 1])
    for function in (waits, uses_so_far, popularity):
        with pytest.raises(TraceError, match="with_prefixes"):
            function(trace)
