"""Run by test_victims_simulated.py in the CUDA simulator: victim selection, thread by thread, against its CPU twin."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from simulator import Checks

from dynalab.errors import ConfigError
from dynalab.kernels import victims_device
from dynalab.kernels.victims import select_victims
from dynalab.kernels.victims_device import SelectPlan, select_victims_device, victims_workspace_bytes

check = Checks()
RNG = np.random.default_rng(8)
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def blocks(n: int, values: int = 3, share: float = 0.3, pins: str = "u1") -> Columns:
    """Columns of few distinct values, so that ties go through all fields."""
    return (
        RNG.integers(0, values, n).astype("u4"),
        RNG.integers(-values, values, n).astype("i8"),
        RNG.integers(0, values, n).astype("i4"),
        (RNG.random(n) < share).astype(pins),
    )


def equals_twin(columns: Columns, k: int, plan: SelectPlan | None = None) -> None:
    """Select with thread blocks of 8, groups of 2 threads, and compare with the twin and with sorting."""
    with patch.multiple(victims_device, _THREADS=8, _SAMPLE_THREADS=4, WARP=2, _MOST_BLOCKS=2):
        found = select_victims_device(*columns, k, stream=0, plan=plan)
    expected = select_victims(*columns, k)
    assert found.dtype == np.int32
    assert found.shape == (min(k, len(columns[0])),)
    np.testing.assert_array_equal(found[: expected.size], expected)
    assert (found[expected.size :] == -1).all()
    free = np.flatnonzero(columns[3] == 0)
    order = np.lexsort((free, -columns[2][free].astype(np.int64), columns[1][free], columns[0][free]))
    np.testing.assert_array_equal(expected, free[order][:k])


@check
def ties_of_every_field() -> None:
    for n, k in ((1, 1), (7, 3), (32, 32), (70, 6), (90, 20)):
        equals_twin(blocks(n), k)


@check
def everything_equal() -> None:
    equals_twin((np.full(40, 5, "u4"), np.full(40, -7, "i8"), np.full(40, 3, "u4"), np.zeros(40, "u1")), 10)


@check
def a_sample_that_errs_costs_time_only() -> None:
    """Bounds far below the k-th victim: what was dropped must come back, ordered and whole."""
    columns = blocks(50, values=9)
    for bounds, keep_all in ((1, 0), (2, 0), (1, 1)):
        equals_twin(columns, 25, SelectPlan(samples=8, bounds=bounds, keep_all=keep_all))


@check
def a_sample_of_pinned_blocks_only() -> None:
    columns = blocks(32, share=0.0, pins="i4")
    columns[3][:28] = 2
    for plan in (SelectPlan(8, 1, 0), SelectPlan(8, 8, 1), SelectPlan(4, 2, 0)):
        equals_twin(columns, 5, plan)


@check
def fewer_free_than_wanted() -> None:
    equals_twin(blocks(40, share=0.9), 20)
    equals_twin(blocks(20, share=1.1), 7)


@check
def nothing_wanted_and_nothing_there() -> None:
    assert select_victims_device(*blocks(9), 0, stream=0).shape == (0,)
    assert select_victims_device(*blocks(0), 5, stream=0).shape == (0,)


@check
def extremes_of_every_type() -> None:
    """All pairs of least, greatest and middle values, for all signs of the types: 27 blocks each."""
    for p, u, q in (("u4", "i8", "u4"), ("i4", "u8", "i4")):
        ends = [np.array([np.iinfo(t).min, np.iinfo(t).max, np.iinfo(t).max // 2 + 1], t) for t in (p, u, q)]
        grid = np.meshgrid(np.arange(3), np.arange(3), np.arange(3))
        columns = [end[index.ravel()] for end, index in zip(ends, grid, strict=True)]
        equals_twin((columns[0], columns[1], columns[2], np.zeros(27, bool)), 27)


@check
def low_and_high_halves_of_the_last_use() -> None:
    """Times that differ in one half of their 64 bits only, which the keys put into different words."""
    times = np.array([2**32, 2**32 - 1, 2**31, 2**31 - 1, 2**33, 1, 0, -1, -(2**32), -(2**31) - 1], "i8")
    zero = np.zeros(10, "u4")
    equals_twin((zero, times, zero, zero.astype("u1")), 10)


@check
def pins_of_four_bytes_count_in_every_byte() -> None:
    columns = blocks(20, share=0.0, pins="i4")
    columns[3][:4] = [1, 256, 65536, -(2**31)]
    equals_twin(columns, 20)


@check
def a_workspace_and_a_result_that_are_used_again() -> None:
    """Whatever the last selection left in them."""
    out, workspace = np.empty(12, np.int32), np.empty(victims_workspace_bytes(30), np.uint8)
    for seed in range(2):
        workspace[:] = 255 - seed
        columns = blocks(30, values=2 + seed)
        with patch.multiple(victims_device, _THREADS=8, _SAMPLE_THREADS=4, WARP=2):
            found = select_victims_device(*columns, 12, stream=0, out=out, workspace=workspace)
        assert found is out
        np.testing.assert_array_equal(out, select_victims(*columns, 12))


@check
def what_does_not_fit_is_refused() -> None:
    good = blocks(10)
    small = np.empty(victims_workspace_bytes(10) - 1, np.uint8)
    for arguments, message in (
        ({"k": -1}, "k: -1 victims"),
        ({"priority": good[0].astype("i8")}, "priority: dtype int64"),
        ({"last_use": np.repeat(good[1], 2)[::2]}, "last_use: its elements do not lie side by side"),
        ({"position": [1] * 10}, "position: list is not in GPU memory"),
        ({"pinned": good[3][:9]}, r"pinned: shape \[9\] does not fit \[10\]"),
        ({"out": np.empty(4, np.int32)}, r"out: int32\[4\] does not fit; pass int32\[5\]$"),
        ({"out": np.empty(5, np.int64)}, r"out: int64\[5\] does not fit"),
        ({"workspace": small}, "workspace: uint8.* does not fit; pass .* or more, 8-aligned"),
    ):
        given = dict(zip(("priority", "last_use", "position", "pinned"), good, strict=True)) | {"k": 5, "stream": 0}
        with pytest.raises(ConfigError, match=message):
            select_victims_device(**(given | arguments))


if __name__ == "__main__":
    check.run()
