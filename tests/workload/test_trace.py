"""The columnar trace: its invariants and every way to make one from another."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import any_traces, prefix_traces, renamed, rows_of

from dynalab.errors import ConfigError, TraceError
from dynalab.workload import Trace


def small(**changes):
    columns = {
        "arrival": [0.0, 1.0, 1.0, 5.0],
        "input_tokens": [10, 4, 8, 9],
        "output_tokens": [1, 0, 3, 4],
        "block_ids": [70, 71, 72, 70, 70, 71, 70, 80, 81],
        "block_tokens": 4,
    }
    return Trace.from_columns(**{**columns, **changes})


def test_ids_are_dense_in_order_of_first_appearance():
    trace = small()
    assert rows_of(trace) == [[0, 1, 2], [0], [0, 1], [0, 3, 4]]
    assert (len(trace), trace.n_requests, trace.n_accesses, trace.n_blocks, trace.duration) == (4, 4, 9, 5, 5.0)
    assert trace.block_ids.dtype == np.int32
    assert trace.offsets.dtype == np.int64
    assert trace.block_lengths().tolist() == [4, 4, 2, 4, 4, 4, 4, 4, 1]


def test_first_arrival_becomes_zero():
    assert small(arrival=[7.5, 8, 8, 9]).arrival.tolist() == [0, 0.5, 0.5, 1.5]


def test_unsigned_hashes_keep_their_identity():
    ids = np.array([2**64 - 1, 2**63, 5, 2**64 - 1, 2**64 - 1, 2**63, 2**64 - 1, 7, 8], np.uint64)
    assert rows_of(small(block_ids=ids)) == rows_of(small())


def test_sha256_tells_columns_apart():
    assert small().sha256 == small().sha256
    assert len({small().sha256, small(output_tokens=[1, 0, 3, 5]).sha256, small(arrival=[0, 1, 2, 5]).sha256}) == 3
    assert small(sha256="abc").sha256 == "abc"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival": []}, "at least one request"),
        ({"arrival": ["soon", 1, 2, 3]}, "arrival must be numbers"),
        ({"arrival": [0, 2, 1, 5]}, r"request 2: arrival runs backwards, from 2.0 to 1.0"),
        ({"arrival": [-1, 2, 2, 5]}, r"request 0: arrival is -1.0"),
        ({"arrival": [0, 2, np.nan, 5]}, r"request 2: arrival is nan"),
        ({"arrival": [0, 2, 3, np.inf]}, r"request 3: arrival is inf"),
        ({"input_tokens": [10, 4, 8]}, r"input_tokens has shape \(3,\), arrival \(4,\)"),
        ({"input_tokens": [10, 0, 8, 9]}, r"request 1: input_tokens is 0"),
        ({"input_tokens": [10, 4, 8, 2**31]}, r"request 3: input_tokens is 2147483648"),
        ({"input_tokens": [10, 4, 8, 9.5]}, r"input_tokens must be whole numbers, not float64"),
        ({"output_tokens": [1, 0, -3, 4]}, r"request 2: output_tokens is -3"),
        ({"output_tokens": [True, False, True, True]}, r"output_tokens must be whole numbers, not bool"),
        ({"block_ids": [70, 71, 72]}, r"3 block ids for requests that need 9 blocks of 4 tokens"),
        ({"offsets": [0, 3, 4, 9]}, r"offsets must be 5 numbers from 0 to 9"),
        ({"offsets": [0, 2, 4, 6, 9]}, r"request 0: 2 block_ids for 10 input tokens: blocks of 4 tokens need 3"),
        ({"block_tokens": None}, r"block_ids need block_tokens"),
        ({"block_tokens": 0}, r"block_ids need block_tokens"),
        ({"block_ids": None}, r"block_tokens go with block_ids"),
    ],
)
def test_bad_columns_are_refused(changes, message):
    with pytest.raises(TraceError, match=message):
        small(**changes)


def test_a_trace_without_blocks_says_how_to_get_some():
    trace = small(block_ids=None, block_tokens=None)
    assert not trace.has_blocks
    assert trace.offsets.tolist() == [0] * 5
    assert trace.n_blocks == 0
    for ask in (trace.require_blocks, trace.parents, trace.positions, trace.block_lengths, trace.full_blocks):
        with pytest.raises(TraceError, match=r"has no block ids; give it synthetic ones with trace.with_prefixes"):
            ask()


def test_with_prefixes_gives_blocks():
    trace = small(block_ids=None, block_tokens=None).with_prefixes(block_tokens=4, system_tokens=4, seed=3)
    assert trace.require_blocks() == 4
    assert trace.block_lengths().sum() == 31
    assert trace.prefix_consistent


@given(any_traces())
def test_parents_and_positions_are_those_of_the_first_appearance(trace):
    parents, positions, consistent = {}, {}, True
    for row in rows_of(trace):
        for position, block in enumerate(row):
            parent = row[position - 1] if position else -1
            consistent &= parents.setdefault(block, parent) == parent
            positions.setdefault(block, position)
    blocks = range(trace.n_blocks)
    assert trace.parents().tolist() == [parents[block] for block in blocks]
    assert trace.positions().tolist() == [positions[block] for block in blocks]
    assert trace.prefix_consistent == consistent


@given(any_traces())
def test_block_lengths_cover_every_prompt(trace):
    covered = np.add.reduceat(trace.block_lengths(), trace.offsets[:-1])
    assert covered.tolist() == trace.input_tokens.tolist()


@given(any_traces(), st.data())
def test_filter_keeps_what_the_mask_says(trace, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(trace), max_size=len(trace))))
    if not mask.any():
        with pytest.raises(TraceError, match="keeps no request"):
            trace.filter(mask)
        return
    part = trace.filter(mask)
    kept = np.flatnonzero(mask)
    assert part.arrival.tolist() == (trace.arrival[kept] - trace.arrival[kept[0]]).tolist()
    assert part.input_tokens.tolist() == trace.input_tokens[kept].tolist()
    assert part.output_tokens.tolist() == trace.output_tokens[kept].tolist()
    assert rows_of(part) == renamed([rows_of(trace)[row] for row in kept])


@pytest.mark.parametrize("mask", [[True, False], [1, 0, 1, 0], [[True, True, True, True]]])
def test_filter_refuses_what_is_no_mask(mask):
    with pytest.raises(TraceError, match=r"a mask is one bool per request, shape \(4,\)"):
        small().filter(mask)


def test_slice_by_time_and_by_index():
    trace = small()
    assert trace.slice(1, 5).output_tokens.tolist() == [0, 3]
    assert trace.slice(1).arrival.tolist() == [0, 0, 4]
    assert trace.slice(stop=1).output_tokens.tolist() == [1]
    assert trace.slice().equals(trace)
    assert trace.slice(-1, by="index").output_tokens.tolist() == [4]
    assert trace.slice(1, 2, by="index").output_tokens.tolist() == [0]
    assert trace.head(3).output_tokens.tolist() == [1, 0, 3]
    assert trace.head(99).equals(trace)
    with pytest.raises(
        TraceError, match=r"no request lies between 2 and 5 \(time\); the trace has 4 requests over 5 s"
    ):
        trace.slice(2, 5)
    with pytest.raises(ConfigError, match="by: 'bytes'"):
        trace.slice(0, 1, by="bytes")
    with pytest.raises(ConfigError, match="n: 0"):
        trace.head(0)


def test_derived_traces_tell_their_origin():
    whole = small()
    part = whole.slice(1).speedup(2)
    assert part.attrs["source_sha256"] == whole.sha256
    assert part.attrs["steps"] == ["slice(1, None, by='time')", "speedup(2)"]
    assert part.sha256 not in (whole.sha256, "")
    assert whole.attrs == {}


def test_speedup_changes_nothing_but_time():
    trace = small()
    fast = trace.speedup(4)
    assert fast.arrival.tolist() == [0, 0.25, 0.25, 1.25]
    assert rows_of(fast) == rows_of(trace)
    for factor in (0, -1, np.inf, np.nan):
        with pytest.raises(ConfigError, match="factor: "):
            trace.speedup(factor)


@given(any_traces(), any_traces())
def test_merge_interleaves_and_keeps_blocks_apart(left, right):
    if left.block_tokens != right.block_tokens:
        with pytest.raises(TraceError, match=r"use reblock\(\)"):
            left.merge(right)
        return
    both = left.merge(right)
    tagged = [(at, 0, n, 0) for n, at in enumerate(left.arrival)] + [
        (at, 1, n, 1) for n, at in enumerate(right.arrival)
    ]
    tagged.sort()
    parts = (rows_of(left), rows_of(right))
    assert both.arrival.tolist() == [at for at, *_ in tagged]
    assert rows_of(both) == renamed([[(side, block) for block in parts[side][n]] for _, side, n, _ in tagged])
    assert both.n_blocks == left.n_blocks + right.n_blocks


@given(prefix_traces(), st.data())
def test_parts_of_one_trace_share_their_blocks_again(trace, data):
    cut = data.draw(st.integers(1, len(trace)))
    first = trace.slice(0, cut, by="index")
    last = trace.slice(len(trace) - cut, by="index").speedup(3)
    both = first.merge(last, shared_blocks=True)
    names = [rows_of(trace)[n] for n in range(cut)], [rows_of(trace)[n] for n in range(len(trace) - cut, len(trace))]
    tagged = sorted(
        [(at, 0, n) for n, at in enumerate(first.arrival)] + [(at, 1, n) for n, at in enumerate(last.arrival)]
    )
    assert rows_of(both) == renamed([names[side][n] for _, side, n in tagged])
    again = both.head(1).merge(trace, shared_blocks=True)
    assert again.n_blocks == trace.n_blocks


def test_blocks_of_different_traces_are_never_shared():
    with pytest.raises(TraceError, match="needs two parts of one trace"):
        small().merge(small(output_tokens=[9, 9, 9, 9]), shared_blocks=True)
    with pytest.raises(TraceError, match="needs two parts of one trace"):
        small().head(2).reblock(2).merge(small().head(3).reblock(2), shared_blocks=True)
    plain = small(block_ids=None, block_tokens=None)
    assert len(plain.merge(plain)) == 8
    with pytest.raises(TraceError, match="blocks of 4 tokens and one with no block ids"):
        small().merge(plain)


def test_full_blocks_drop_partial_tails_only():
    trace = small().full_blocks()
    assert rows_of(trace) == [[0, 1], [0], [0, 1], [0, 2]]
    assert trace.input_tokens.tolist() == [10, 4, 8, 9]
    assert trace.block_lengths().tolist() == [4] * 7
    assert trace.full_blocks().equals(trace)
    short = small(input_tokens=[10, 3, 8, 9]).full_blocks()
    assert rows_of(short) == [[0, 1], [], [0, 1], [0, 2]]
    assert short.parents().tolist() == [-1, 0, 0]
    assert short.positions().tolist() == [0, 1, 1]
    assert short.prefix_consistent


def test_summary_has_units_in_its_names():
    figures = small().summary()
    assert figures["requests_per_s"] == 0.8
    assert (figures["input_tokens_total"], figures["input_tokens_mean"], figures["input_tokens_max"]) == (31, 7.75, 10)
    assert (figures["output_tokens_p50"], figures["block_tokens"]) == (2.0, 4)
    assert (figures["block_accesses"], figures["blocks"], figures["blocks_reused"]) == (9, 5, 2)
    assert figures["infinite_cache_hit_ratio"] == pytest.approx(4 / 9)
    assert np.isnan(small().head(1).summary()["requests_per_s"])
    assert "blocks" not in small(block_ids=None, block_tokens=None).summary()


def test_repr_is_one_line_and_html_is_safe():
    trace = small(source="a<b>.jsonl")
    assert repr(trace) == "<Trace 'a<b>.jsonl': 4 requests over 5 s, 9 accesses to 5 blocks of 4 tokens>"
    page = trace._repr_html_()
    assert "a&lt;b&gt;.jsonl" in page
    assert "<b>" not in page
    assert page.count("<svg") == 1
    # Four bins of 1.25 s, of which the second and the third are empty and draw no bar.
    assert page.count("v-") == 2
    for other in (trace.head(1), small(block_ids=None, block_tokens=None)):
        assert "<svg" in other._repr_html_()


def test_dataset_carries_units_and_provenance(tmp_path):
    xr = pytest.importorskip("xarray")
    trace = small(attrs={"format": "made", "parameters": {"rate": 3}}).slice(1)
    data = trace.to_dataset()
    assert dict(data.sizes) == {"request": 3, "access": 6}
    assert data["arrival"].attrs == {"units": "s", "long_name": "arrival since the first request"}
    assert data["owner"].values.tolist() == [0, 1, 1, 2, 2, 2]
    assert data["block_id"].values.tolist() == trace.block_ids.tolist()
    assert data.attrs["sha256"] == trace.sha256
    data.to_netcdf(tmp_path / "trace.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "trace.nc", engine="h5netcdf") as back:
        assert back.attrs["block_tokens"] == 4
        assert back["input_tokens"].values.tolist() == [4, 8, 9]
    assert dict(small(block_ids=None, block_tokens=None).to_dataset().sizes) == {"request": 4}


def test_importing_is_cheap():
    code = (
        "import sys, dynalab.workload as w; assert 'numpy' not in sys.modules; w.Trace; w.read_trace;"
        "print([m for m in ('pandas', 'xarray', 'numba', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Traces'"):
        __import__("dynalab.workload").workload.Traces  # noqa: B018


def test_conversation_trace_is_what_its_authors_describe(conversation):
    figures = conversation.summary()
    assert (figures["requests"], figures["block_accesses"], figures["blocks"]) == (12031, 288500, 182790)
    assert figures["blocks_reused"] == 44144
    assert figures["duration_s"] == 3536.999
    assert round(figures["input_tokens_mean"], 1) == 12035.1
    assert round(figures["output_tokens_mean"], 1) == 342.6
    assert [figures[f"input_tokens_{what}"] for what in ("p50", "p90", "max")] == [6909, 27367, 126195]
    assert round(figures["infinite_cache_hit_ratio"], 4) == 0.3664
    assert round(conversation.full_blocks().summary()["infinite_cache_hit_ratio"], 4) == 0.3819
    assert conversation.sha256 == "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df"
    assert conversation.prefix_consistent
    assert len(np.unique(conversation.arrival)) == 1180
    assert (conversation.output_tokens < 2).sum() == 72
