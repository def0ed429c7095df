"""Choosing 1,000 victims among a million blocks: the radix select beside what NumPy offers, in one process.

Run with ``python -m pytest tests/benchmarks/test_victim_speed.py --benchmark-only -s``; the GPU's part is in
``dynalab bench gpu``.

Both sides run in turns, and what is asserted are ratios of medians. NumPy's quick way has the keys packed by hand into
64 bits, which works for these columns and not for any; its sure way sorts everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from dynalab.kernels.victims import select_victims

BLOCKS, VICTIMS, ROUNDS = 1_000_000, 1000, 9
SORT_BAR, PARTITION_BAR = 20.0, 1.0

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def columns(ancient: bool) -> Columns:
    """Four priorities, time stamps within an hour, chains of 1,000, a tenth pinned; maybe one block of old."""
    rng = np.random.default_rng(0)
    last_use = 1_700_000_000_000_000_000 + rng.integers(0, 3600 * 10**9, BLOCKS)
    if ancient:
        last_use[BLOCKS // 3] = 0
    return (
        rng.integers(0, 4, BLOCKS).astype(np.uint32),
        last_use,
        rng.integers(0, 1000, BLOCKS).astype(np.uint32),
        (rng.random(BLOCKS) < 0.1).astype(np.uint8),
    )


def by_sorting(blocks: Columns) -> np.ndarray:
    priority, last_use, position, pinned = blocks
    free = np.flatnonzero(pinned == 0)
    order = np.lexsort((-position[free].astype(np.int64), last_use[free], priority[free]))
    return free[order[:VICTIMS]]


def by_partition(blocks: Columns) -> np.ndarray:
    """Two bits of priority, 52 of microseconds, 10 of position: victims but for ties within a microsecond."""
    priority, last_use, position, pinned = blocks
    free = np.flatnonzero(pinned == 0)
    keys = priority[free].astype(np.uint64) << np.uint64(62)
    keys |= (last_use[free] // 1000).astype(np.uint64) << np.uint64(10)
    keys |= np.uint64(1023) - position[free]
    first = np.argpartition(keys, VICTIMS)[:VICTIMS]
    return free[first[np.argsort(keys[first], kind="stable")]]


def median_seconds(benchmark, sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Run all sides once a round, the first by the benchmark's own clock as well."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        sides[name]()
        seconds[name].append(time.perf_counter() - begin)

    ours, *others = sides
    for name in sides:
        sides[name]()
    benchmark.pedantic(lambda: timed(ours), setup=lambda: [timed(name) for name in others] and None, rounds=ROUNDS)
    return {name: float(np.median(values)) for name, values in seconds.items()}


@pytest.mark.parametrize("ancient", [False, True], ids=["an hour", "one ancient block"])
def test_a_thousand_among_a_million(benchmark, ancient):
    blocks = columns(ancient)
    found = select_victims(*blocks, VICTIMS)
    assert np.array_equal(found, by_sorting(blocks))
    took = median_seconds(
        benchmark,
        {
            "ours": lambda: select_victims(*blocks, VICTIMS),
            "lexsort": lambda: by_sorting(blocks),
            "argpartition": lambda: by_partition(blocks),
        },
    )
    benchmark.extra_info.update(took)
    ratios = {name: took[name] / took["ours"] for name in ("lexsort", "argpartition")}
    print(
        f"\n{took['ours'] * 1e3:.2f} ms, {took['ours'] / BLOCKS * 1e9:.1f} ns a block; lexsort {ratios['lexsort']:.0f} "
        f"times as long, argpartition {ratios['argpartition']:.1f} times"
    )
    assert ratios["lexsort"] > SORT_BAR
    assert ratios["argpartition"] > PARTITION_BAR
