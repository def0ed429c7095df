"""Random traces for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dynalab.workload import Trace


def _arrivals(draw: st.DrawFn, n: int) -> np.ndarray:
    gaps = draw(st.lists(st.integers(0, 5000), min_size=n, max_size=n))
    return np.cumsum([0, *gaps[1:]]) / 1000


@st.composite
def prefix_traces(draw: st.DrawFn, sizes: tuple[int, ...] = (4, 8, 12)) -> Trace:
    """Traces whose block ids stand for their prefix and always cover the same number of tokens."""
    size = draw(st.sampled_from(sizes))
    n = draw(st.integers(1, 12))
    prompts: list[int] = []
    rows: list[list[int]] = []
    fresh = iter(draw(st.permutations(range(200))))
    for number in range(n):
        other = draw(st.integers(-1, number - 1))
        if other >= 0 and draw(st.booleans()) and draw(st.booleans()):
            prompts.append(prompts[other])
            rows.append(rows[other])
            continue
        shared = draw(st.integers(0, prompts[other] // size)) if other >= 0 else 0
        own = draw(st.integers(0 if shared else 1, 4 * size))
        prompts.append(shared * size + own)
        rows.append((rows[other][:shared] if shared else []) + [next(fresh) for _ in range(-(-own // size))])
    outputs = draw(st.lists(st.integers(1, 99), min_size=n, max_size=n))
    ids = [block * 7919 for row in rows for block in row]
    return Trace.from_columns(_arrivals(draw, n), prompts, outputs, ids, block_tokens=size)


@st.composite
def any_traces(draw: st.DrawFn) -> Trace:
    """Traces with ids that repeat without rule: anywhere, at any length."""
    size = draw(st.sampled_from((1, 2, 4, 6)))
    prompts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    counts = [-(-prompt // size) for prompt in prompts]
    ids = draw(st.lists(st.integers(-3, 9), min_size=sum(counts), max_size=sum(counts)))
    outputs = draw(st.lists(st.integers(1, 99), min_size=len(prompts), max_size=len(prompts)))
    return Trace.from_columns(_arrivals(draw, len(prompts)), prompts, outputs, ids, block_tokens=size)


def rows_of(trace: Trace) -> list[list[int]]:
    """Block ids of every request."""
    return [trace.block_ids[low:high].tolist() for low, high in zip(trace.offsets[:-1], trace.offsets[1:], strict=True)]


def renamed(rows: list[list[object]]) -> list[list[int]]:
    """Plain Python: any hashable names replaced by their order of first appearance."""
    names: dict[object, int] = {}
    return [[names.setdefault(block, len(names)) for block in row] for row in rows]


def shared_tokens(trace: Trace) -> int:
    """Tokens that an infinite cache would not compute again."""
    lengths = trace.block_lengths()
    first = trace._first_accesses()
    return int(lengths.sum() - lengths[first].sum())
