"""Figures show the numbers that they were given."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.cache import replay
from dynalab.errors import ConfigError
from dynalab.lab.plots import (
    COUNTED,
    cache_steps,
    capacity_axis,
    caption,
    draw_steps,
    efficient,
    heat_table,
    policy_lines,
)
from dynalab.lab.style import policy_style
from dynalab.workload import Trace, synthesize

ACCESSES = st.lists(st.integers(0, 7), min_size=1, max_size=60)


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


@pytest.fixture
def ratios() -> xr.DataArray:
    values = [[0.1, 0.2], [0.15, 0.18]]
    coords = {"policy": ["lru", "lfu"], "capacity": [10, 100]}
    return xr.DataArray(values, coords, ("policy", "capacity"), attrs={"long_name": "token hit ratio"})


def single_block_trace(ids: list[int]) -> Trace:
    return Trace.from_columns(np.arange(len(ids)), [4] * len(ids), [1] * len(ids), ids, block_tokens=4)


@settings(deadline=None)  # the first example compiles
@given(
    ACCESSES, st.integers(1, 5), st.sampled_from(["fifo", "lru", "lfu", "sieve", "s3fifo", "arc", "lirs", "wtinylfu"])
)
def test_steps_tell_what_the_cache_holds(accesses: list[int], capacity: int, policy: str) -> None:
    before: tuple[int, ...] = (-1,) * capacity
    for access, step in zip(accesses, cache_steps(policy, accesses, capacity), strict=True):
        assert step.block == access
        assert step.hit == (access in before)
        assert access in step.slots
        if step.hit:
            assert step.slots == before
        else:
            # One slot changes: the one that was free, or the victim's.
            (changed,) = [i for i in range(capacity) if step.slots[i] != before[i]]
            assert before[changed] == step.victim
        before = step.slots


@settings(deadline=None)  # the first example compiles
@given(ACCESSES, st.integers(1, 5), st.sampled_from(["lru", "belady"]))
def test_steps_hit_as_often_as_the_replay(accesses: list[int], capacity: int, policy: str) -> None:
    steps = cache_steps(policy, accesses, capacity)
    ds = replay(single_block_trace(accesses), policy, capacity)
    assert sum(step.hit for step in steps) / len(steps) == pytest.approx(float(ds.hit_ratio.squeeze()))


def test_steps_pass_on_the_facts_that_a_policy_needs() -> None:
    # 1 continues 0: lineage keeps 0 while 1 is held, although 0 is older.
    lineage = cache_steps("lineage", [0, 1, 2], 2, parent=[-1, 0, -1], position=[0, 1, 0])
    assert lineage[-1].victim == 1
    assert cache_steps("lru", [0, 1, 2], 2, parent=[-1, 0, -1])[-1].victim == 0


def test_a_drawn_cache_names_blocks_and_counts_hits(ax) -> None:
    draw_steps(ax, cache_steps("lru", [0, 1, 0], 2), ["A", "B"], "LRU")
    words = [text.get_text() for text in ax.texts]
    assert words == ["A", "A", "B", "A", "B", "A", "A", "B"], "access, then slots, column by column"
    assert ax.get_title(loc="left") + ax.get_title() == "LRU: 1 hits"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_efficient_points_are_those_that_nothing_beats(points: list[tuple[int, int]]) -> None:
    cost, gain = [p[0] for p in points], [p[1] for p in points]
    marks = efficient(cost, gain)
    for i, (c, g) in enumerate(points):
        beaten = any((cc <= c and gg >= g) and (cc, gg) != (c, g) for cc, gg in points)
        repeated = (c, g) in points[:i]
        assert marks[i] == (not beaten and not repeated)


def test_lines_show_percent(ax, ratios: xr.DataArray) -> None:
    policy_lines(ax, ratios)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert set(lines) == {"lru", "lfu"}
    np.testing.assert_allclose(lines["lfu"].get_ydata(), [15, 18])
    assert lines["lfu"].get_color() == policy_style("lfu")["color"]
    assert ax.get_ylabel() == "token hit ratio (%)"
    assert ax.get_xscale() == "log"


def test_lines_show_points_above_the_baseline(ax, ratios: xr.DataArray) -> None:
    policy_lines(ax, ratios, "lru")
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["lfu"], [5, -2])
    np.testing.assert_array_equal(lines["lru"], [0, 0])
    assert "pp" in ax.get_ylabel()
    with pytest.raises(ConfigError, match=r"'arc' was not replayed; choose from lru, lfu"):
        policy_lines(ax, ratios, "arc")


def test_capacities_are_written_out(ax) -> None:
    ax.plot([100, 50_000], [0, 1])
    capacity_axis(ax, 512)
    ax.figure.canvas.draw()
    labels = {label.get_text() for label in ax.get_xticklabels()}
    assert {"1,000", "3,000", "10,000"} <= labels
    assert ax.get_xlabel() == "cache capacity (blocks of 512 tokens)"
    ax.set_xlim(1, 1e6)
    capacity_axis(ax, None)
    ax.figure.canvas.draw()
    labels = {label.get_text() for label in ax.get_xticklabels()}
    assert "1,000" in labels
    assert "3,000" not in labels


@pytest.mark.parametrize("centre", [None, 0.0])
def test_a_heat_table_writes_every_finite_value(ax, centre: float | None) -> None:
    table = pd.DataFrame([[1.0, -2.0], [np.nan, 4.0]], index=["lru", "lfu"], columns=[1000, 30000])
    heat_table(ax, table, "{:+.0f}".format, centre=centre)
    cells = {text.get_position(): text for text in ax.texts}
    assert {place: text.get_text() for place, text in cells.items()} == {(0, 0): "+1", (1, 0): "-2", (1, 1): "+4"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1,000", "30,000"]
    assert cells[1, 1].get_color() == "white", "the largest value is the darkest"


def test_captions_say_how_and_from_what(ax) -> None:
    trace = single_block_trace([1, 2, 1])
    caption(ax.figure, trace, COUNTED)
    assert ax.figure.get_supxlabel() == "Counted in the trace. Trace: memory (3 requests)"
    caption(ax.figure, synthesize("conversation", duration=30, seed=3), "word " * 40)
    lines = ax.figure.get_supxlabel().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("word")
    assert "Trace: synthetic conversation, seed 3 (" in lines[1]
