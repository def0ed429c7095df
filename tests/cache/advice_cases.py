"""Traces made by hand, and a question to ask, for the tests of recommendations."""

from __future__ import annotations

from typing import Any

from cache_strategies import BLOCK

from dynalab.cache import Recommendation, recommend
from dynalab.workload import Trace


def ask(trace: Trace, **wish: Any) -> Recommendation:
    options = {"device": "2GiB", "host": "60GiB", "disk": "400GB", **wish}
    return recommend(trace, options.pop("model", "llama-3-8b"), **options)


def small(rows: list[list[int]], tokens: list[int], block: int = BLOCK) -> Trace:
    ids = [block_id for row in rows for block_id in row]
    return Trace.from_columns(range(len(rows)), tokens, [1] * len(rows), ids, block_tokens=block)


def scan_and_hot() -> Trace:
    """One hot block between long scans: LRU loses it, a policy that counts uses does not."""
    rows = [[0] if index % 2 or index < 4 else list(range(10 * index, 10 * index + 8)) for index in range(60)]
    ids = [block for row in rows for block in row]
    return Trace.from_columns(range(60), [4 * len(row) for row in rows], [1] * 60, ids, block_tokens=4)
