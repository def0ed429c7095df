"""Blocks of another size: exact or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trace_strategies import any_traces, prefix_traces, renamed, rows_of, shared_tokens

from dynalab.errors import TraceError
from dynalab.workload import Trace


def cut_by_hand(trace, tokens):
    """Every smaller block by what it is: its block, which part of it, how many tokens."""
    rows = []
    for ids, prompt in zip(rows_of(trace), trace.input_tokens.tolist(), strict=True):
        row = []
        for start in range(0, prompt, tokens):
            block, part = divmod(start, trace.block_tokens)
            row.append((ids[block], part, min(tokens, prompt - start)))
        rows.append(row)
    return renamed(rows)


def joined_by_hand(trace, tokens):
    """Every larger block by what it is: all its blocks, all before it, and how many tokens."""
    factor = tokens // trace.block_tokens
    rows = []
    for ids, prompt in zip(rows_of(trace), trace.input_tokens.tolist(), strict=True):
        ends = range(factor, len(ids) + factor, factor)
        rows.append([(tuple(ids[:end]), min(tokens, prompt - n * tokens)) for n, end in enumerate(ends)])
    return renamed(rows)


@given(any_traces(), st.sampled_from((1, 2, 3)))
def test_cutting_agrees_with_plain_python(trace, tokens):
    assume(tokens < trace.block_tokens and trace.block_tokens % tokens == 0)
    small = trace.reblock(tokens)
    assert small.block_tokens == tokens
    assert rows_of(small) == cut_by_hand(trace, tokens)
    assert small.block_lengths().sum() == trace.input_tokens.sum()


@given(prefix_traces(), st.sampled_from((2, 3, 5)))
def test_joining_agrees_with_plain_python(trace, factor):
    tokens = trace.block_tokens * factor
    large = trace.reblock(tokens)
    assert rows_of(large) == joined_by_hand(trace, tokens)
    assert large.prefix_consistent
    assert np.diff(large.offsets).tolist() == [-(-prompt // tokens) for prompt in trace.input_tokens.tolist()]


@given(prefix_traces(), st.sampled_from((1, 2, 4)))
def test_down_and_up_again_changes_nothing(trace, tokens):
    small = trace.reblock(tokens)
    assert small.prefix_consistent
    back = small.reblock(trace.block_tokens)
    assert back.equals(trace)


@given(prefix_traces(sizes=(12,)))
def test_smaller_blocks_share_no_fewer_tokens(trace):
    for chain in ((12, 6, 3, 1), (12, 4, 2, 1)):
        shared = [shared_tokens(trace.reblock(size)) for size in chain]
        assert shared == sorted(shared)


@given(prefix_traces())
def test_larger_blocks_share_no_more_tokens(trace):
    assert shared_tokens(trace.reblock(trace.block_tokens * 3)) <= shared_tokens(trace)


def test_a_partial_block_never_equals_a_full_one():
    trace = Trace.from_columns([0, 1, 2], [8, 6, 6], [0, 0, 0], [1, 2, 1, 2, 1, 2], block_tokens=4)
    assert rows_of(trace.reblock(2)) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert rows_of(trace.reblock(8)) == [[0], [1], [1]]
    odd = Trace.from_columns([0, 1], [8, 7], [0, 0], [1, 2, 1, 2], block_tokens=4)
    assert rows_of(odd.reblock(2)) == [[0, 1, 2, 3], [0, 1, 2, 4]]


def test_the_same_size_changes_nothing():
    trace = Trace.from_columns([0], [9], [0], [1, 2, 3], block_tokens=4)
    assert trace.reblock(4) is trace
    assert trace.reblock(2).attrs["steps"] == ["reblock(2)"]


def test_what_is_not_exact_is_refused():
    trace = Trace.from_columns([0, 1], [12, 12], [0, 0], [1, 2, 3, 4, 2, 3], block_tokens=4)
    with pytest.raises(
        TraceError,
        match=r"cannot join blocks to 8 tokens: block 1 follows block 0 first and block 3 in request 1, so that its id"
        r" does not stand for its prefix; only a divisor of 4 is exact here",
    ):
        trace.reblock(8)
    assert trace.reblock(2).n_accesses == 12
    first = Trace.from_columns([0, 1], [8, 4], [0, 0], [1, 2, 2], block_tokens=4)
    with pytest.raises(TraceError, match="block 1 follows block 0 first and nothing in request 1"):
        first.reblock(8)


@pytest.mark.parametrize("tokens", [3, 6, 1001])
def test_sizes_that_do_not_divide_are_refused(tokens):
    trace = Trace.from_columns([0], [9], [0], [1, 2], block_tokens=8)
    allowed = r"use a divisor \(1, 2, 4\) or a multiple \(16, 24, 32, \.\.\.\)"
    with pytest.raises(TraceError, match=f"cannot make blocks of {tokens} tokens from blocks of 8: {allowed}"):
        trace.reblock(tokens)


@pytest.mark.parametrize("tokens", [0, -4, 2.0, True, "4"])
def test_sizes_that_are_none_are_refused(tokens):
    with pytest.raises(TraceError, match="use a whole number from 1 up"):
        Trace.from_columns([0], [9], [0], [1, 2], block_tokens=8).reblock(tokens)


def test_traces_that_cannot_be_reblocked():
    with pytest.raises(TraceError, match="has no block ids"):
        Trace.from_columns([0], [9], [0]).reblock(4)
    with pytest.raises(TraceError, match=r"cannot re-block a trace without its partial blocks: do that before"):
        Trace.from_columns([0], [9], [0], [1, 2], block_tokens=8).full_blocks().reblock(4)


def test_conversation_down_and_up(conversation):
    small = conversation.reblock(128)
    assert small.n_accesses == 1_137_341
    assert small.reblock(512).equals(conversation)
    assert shared_tokens(small) == shared_tokens(conversation)
    large = conversation.reblock(2048)
    assert shared_tokens(large) < shared_tokens(conversation)
    assert large.block_lengths().sum() == conversation.input_tokens.sum()
