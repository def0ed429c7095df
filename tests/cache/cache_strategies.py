"""Random traces for property tests of replays."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dynalab.workload import Trace

BLOCK = 8


@st.composite
def trees(draw: st.DrawFn, max_requests: int = 25, max_new: int = 5) -> Trace:
    """Prompts that continue a part of an earlier one: a block stands for its whole prefix, as in an engine."""
    rows: list[list[int]] = []
    fresh = 0
    for number in range(draw(st.integers(1, max_requests))):
        shared: list[int] = []
        if number and draw(st.booleans()):
            earlier = rows[draw(st.integers(0, number - 1))]
            shared = earlier[: draw(st.integers(0, len(earlier)))]
        new = draw(st.integers(0 if shared else 1, max_new))
        rows.append(shared + list(range(fresh, fresh + new)))
        fresh += new
    # The last block of a prompt has the same number of tokens in every prompt that ends with it.
    tails = draw(st.lists(st.integers(1, BLOCK), min_size=fresh, max_size=fresh))
    inner = {block for row in rows for block in row[:-1]}
    tokens = [BLOCK * (len(row) - 1) + (BLOCK if row[-1] in inner else tails[row[-1]]) for row in rows]
    return _trace(draw, rows, tokens)


@st.composite
def tangles(draw: st.DrawFn, max_requests: int = 20, n_blocks: int = 8) -> Trace:
    """Blocks in any order, some twice in one prompt: what ids without a prefix rule look like."""
    rows = draw(
        st.lists(st.lists(st.integers(0, n_blocks - 1), min_size=1, max_size=6), min_size=1, max_size=max_requests)
    )
    return _trace(draw, rows, [BLOCK * len(row) - draw(st.integers(0, BLOCK - 1)) for row in rows])


def traces() -> st.SearchStrategy[Trace]:
    """Trees mostly, tangles sometimes."""
    return st.one_of(trees(), trees(max_requests=50, max_new=2), tangles())


def _trace(draw: st.DrawFn, rows: list[list[int]], tokens: list[int]) -> Trace:
    gaps = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0, 40.0]), min_size=len(rows), max_size=len(rows)))
    # Raw ids are spread out: dense ids are the package's own business.
    ids = [block * 7919 + 13 for row in rows for block in row]
    return Trace.from_columns(np.cumsum(gaps), tokens, [1] * len(rows), ids, block_tokens=BLOCK)


def requests(trace: Trace) -> list[list[int]]:
    """The block ids of every request."""
    return [trace.block_ids[low:high].tolist() for low, high in zip(trace.offsets[:-1], trace.offsets[1:], strict=True)]
