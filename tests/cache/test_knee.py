"""The knee of a curve: where analysis puts it, and what is returned where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dynalab.cache import knee, lru_curve
from dynalab.cache.curve import knee_index
from dynalab.workload import Trace


def curve(hit_ratio: np.ndarray) -> xr.Dataset:
    capacity = np.arange(1, len(hit_ratio) + 1)
    return xr.Dataset({"hit_ratio": ("capacity", np.asarray(hit_ratio, float))}, coords={"capacity": capacity})


def test_square_root_has_its_knee_at_a_quarter() -> None:
    # sqrt(x) - x over 0..1 is greatest where its slope 1 / (2 sqrt(x)) is 1.
    x = np.linspace(0, 1, 10_001)
    assert x[knee_index(x, np.sqrt(x))] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("rate", [2.0, 5.0, 20.0])
def test_saturating_exponential(rate: float) -> None:
    # y = (1 - exp(-r x)) / (1 - exp(-r)) has slope 1 at x = log(r / (1 - exp(-r))) / r.
    x = np.linspace(0, 1, 100_001)
    expected = np.log(rate / (1 - np.exp(-rate))) / rate
    assert x[knee_index(x, 1 - np.exp(-rate * x))] == pytest.approx(expected, abs=1e-4)


def test_two_straight_lines_meet_in_the_knee() -> None:
    y = np.concatenate([np.linspace(0.01, 0.6, 60), np.linspace(0.602, 0.8, 100)])
    assert knee(curve(y)) == 60


def test_a_flat_end_does_not_move_the_knee() -> None:
    y = np.concatenate([np.linspace(0.01, 0.6, 60), np.linspace(0.602, 0.8, 100)])
    assert knee(curve(np.concatenate([y, np.full(100_000, 0.8)]))) == knee(curve(y))


@given(st.floats(0.1, 1e9), st.floats(-5, 5), st.floats(0.01, 100))
def test_scale_and_origin_do_not_matter(stretch: float, shift: float, height: float) -> None:
    x = np.arange(50.0)
    y = np.minimum(x / 10, 1 + x / 500)
    assert knee_index(x * stretch, y * height + shift) == knee_index(x, y) == 10


def test_all_at_once_needs_one_block() -> None:
    assert knee(curve(np.full(100, 0.5))) == 1


def test_few_points() -> None:
    assert knee(curve(np.array([0.3]))) == 1
    assert knee(curve(np.array([0.1, 0.3]))) == 2
    assert knee_index(np.zeros(3), np.array([0.0, 1.0, 2.0])) == 2


def test_no_reuse_needs_no_capacity() -> None:
    trace = Trace.from_columns([0, 1], [8, 8], [1, 1], [1, 2, 3, 4], block_tokens=4)
    assert knee(lru_curve(trace)) == 1


def test_everything_reused_at_one_capacity() -> None:
    # A loop over 6 blocks: LRU finds nothing below 6 and everything from 6 on.
    trace = Trace.from_columns(range(10), [24] * 10, [1] * 10, list(range(6)) * 10, block_tokens=4)
    assert lru_curve(trace).hit_ratio.values.tolist() == [0, 0, 0, 0, 0, 0.9]
    assert knee(lru_curve(trace)) == 6
