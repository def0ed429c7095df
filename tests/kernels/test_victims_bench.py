"""The GPU benchmark of victims: its data, its verdicts, and all of it where there is a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynalab.errors import ConfigError
from dynalab.kernels import gpu
from dynalab.kernels.victims import select_victims
from dynalab.kernels.victims_bench import OURS, bench_checksums, bench_columns, bench_victims, victims_bars


@pytest.mark.parametrize("kind", ["spread", "ties"])
def test_rivals_sort_by_a_key_that_means_the_same(kind: str) -> None:
    """Where positions do not matter, the smallest keys are those of the victims: the comparison is fair."""
    (priority, last_use, position, pinned), keys = bench_columns(100_000, kind)
    assert (keys >= 0).all()
    assert len(np.unique(keys)) == len(keys)
    by_key = np.argsort(keys)[:500]
    coarse = (last_use - last_use.min()) >> (1 if kind == "spread" else 0)
    found = select_victims(priority, coarse, np.zeros_like(position), pinned, 500)
    assert np.array_equal(priority[by_key], priority[found])
    assert np.abs(last_use[by_key] - last_use[found]).max() <= 2
    assert len(np.unique(last_use)) == 1000 if kind == "ties" else len(np.unique(last_use)) > 99_000


def test_bars_take_the_worst_data_and_the_better_rival() -> None:
    seconds = {"a": {OURS: 20e-6, "x": 100e-6, "y": 80e-6}, "b": {OURS: 99e-6, "x": 400e-6, "y": 900e-6}}
    found = victims_bars(seconds)
    assert found["victims_seconds"] == {"value": 99e-6, "bar": 100e-6, "met": True}
    assert found["victims_lead"]["value"] == pytest.approx(4.0)
    assert found["victims_lead"]["met"]
    seconds["b"][OURS] = 101e-6
    assert not victims_bars(seconds)["victims_seconds"]["met"]
    seconds["b"]["y"] = 300e-6
    assert not victims_bars(seconds)["victims_lead"]["met"]


def test_without_rivals_there_is_no_lead() -> None:
    found = victims_bars({"a": {OURS: 20e-6}})["victims_lead"]
    assert math.isnan(found["value"])
    assert not found["met"]


def test_without_a_gpu_it_says_why() -> None:
    if gpu.gpu_available():
        pytest.skip("there is a GPU")
    for bench in (bench_victims, bench_checksums):
        with pytest.raises(ConfigError, match=f"{bench.__name__} needs an NVIDIA GPU: "):
            bench()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if why := gpu.why_no_gpu():
        pytest.skip(why)
    found = bench_victims(n=100_000, k=500, rounds=3)
    assert set(found["seconds"]) == {"spread", "ties"}
    assert all(seconds > 0 for sides in found["seconds"].values() for seconds in sides.values())
    assert set(bench_checksums(nbytes=64 << 20, rounds=3)) == {"65536", "1048576", "16777216"}
