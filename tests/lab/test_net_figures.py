"""Figures of requests over connections show what they were given."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.lab.net_figures import OUTCOME_COLOURS, growth_chart, lanes, outcome_bars, outcome_counts, request_chart
from dynalab.lab.style import BLUE, ORANGE
from dynalab.net.observed import OUTCOMES, Glance


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def requests_of(**columns) -> xr.Dataset:
    return xr.Dataset({name: ("request", np.array(values)) for name, values in columns.items()})


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), max_size=40))
def test_lanes_keep_intervals_apart_and_are_as_few_as_can_be(spans: list[tuple[int, int]]) -> None:
    begin = np.array([first for first, _ in spans], float)
    end = begin + np.array([length for _, length in spans], float)
    lane = lanes(begin, end)
    for a in range(len(spans)):
        for b in range(a):
            if lane[a] == lane[b]:
                assert end[a] <= begin[b] or end[b] <= begin[a] or begin[a] == end[a] or begin[b] == end[b]
    # At the beginning of each interval, count those that have begun and not ended; an empty one takes a lane, too.
    longest = max((int(((begin <= t) & (end > t)).sum()) for t in begin), default=0)
    assert longest <= (lane.max() + 1 if len(spans) else 0) <= longest + (1 if (begin == end).any() else 0)


def test_every_outcome_has_a_colour_of_its_own() -> None:
    assert set(OUTCOMES) < set(OUTCOME_COLOURS)
    assert len(set(OUTCOME_COLOURS.values())) == len(OUTCOME_COLOURS)


@settings(deadline=None, max_examples=40)  # crosstab takes milliseconds
@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(OUTCOMES), st.integers(1, 3)), min_size=1, max_size=50))
def test_outcomes_are_counted_where_they_were_asked_for(rows: list[tuple[float, str, int]]) -> None:
    asked, told, attempts = zip(*rows, strict=True)
    requests = requests_of(asked=asked, outcome=told, attempts=attempts)
    counts = outcome_counts(requests, 0.25)
    assert counts.to_numpy().sum() == len(rows)
    assert np.allclose(counts.index, 0.25 * np.arange(len(counts)))
    for at, name, tries in rows:
        shown = "ok after a retry" if name == "ok" and tries > 1 else name
        assert counts[shown].iloc[int(at // 0.25)] > 0
    assert list(counts.columns) == [name for name in OUTCOME_COLOURS if name in set(counts.columns)]
    assert requests.outcome.values.tolist() == list(told), "the Dataset is left alone"


def test_bars_stand_on_each_other(ax) -> None:
    requests = requests_of(asked=[0.01, 0.02, 0.03, 0.15], outcome=["ok", "ok", "lost", "ok"], attempts=[1, 2, 1, 1])
    outcome_bars(ax, requests, 0.1)
    first = [bars[0] for bars in ax.containers]
    assert [bars.get_label() for bars in ax.containers] == ["ok", "ok after a retry", "lost"]
    assert [bar.get_y() for bar in first] == [0, 1, 2]
    assert all(bar.get_height() == 1 and bar.get_x() == 0 for bar in first)
    assert ax.get_ylabel() == "requests in 100 ms"


def test_a_chart_shows_what_is_held_up(ax) -> None:
    requests = requests_of(
        asked=[0.0, 0.001, 0.9],
        began=[0.001, 0.002, 0.901],
        done=[0.101, 0.004, 0.902],
        ended=[0.102, 0.102, 0.903],
        service=[0.1, 0.002, 0.002],
        connection=[0, 0, 0],
    )
    handles = request_chart(ax, requests, {"fast": (0.0, BLUE), "slow": (0.1, ORANGE)}, until=0.5)
    bars = {(round(bar.get_x(), 3), round(bar.get_width(), 3)): bar for bar in ax.patches}
    assert set(bars) == {(0, 1), (1, 1), (1, 100), (2, 2), (4, 98)}, "on its way, handled, held up; the third is late"
    assert matplotlib.colors.to_hex(bars[1, 100].get_facecolor()) == ORANGE
    assert matplotlib.colors.to_hex(bars[2, 2].get_facecolor()) == BLUE
    assert bars[4, 98].get_y() == bars[2, 2].get_y() != bars[1, 100].get_y()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1"]
    assert [handle.get_label() for handle in handles[:2]] == ["fast", "slow"]


def test_requests_that_were_never_done_are_left_out(ax) -> None:
    requests = requests_of(
        asked=[0.0, 0.1],
        began=[0.0, 0.1],
        done=[np.nan, 0.2],
        ended=[0.3, 0.2],
        service=[0.1, 0.1],
        connection=[0, 1],
    )
    request_chart(ax, requests, {"all": (0.0, BLUE)}, until=0.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2"]


def test_growth_is_stacked_with_the_waiting_on_top(ax) -> None:
    glances = [Glance(10.0, (), 1), Glance(10.1, (2,), 0), Glance(10.2, (2, 1), 3), Glance(10.3, (2, 2), 0)]
    growth_chart(ax, glances, 10.0)
    assert [area.get_label() for area in ax.collections] == ["connection 1", "connection 2", "waiting"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in ax.collections]
    assert tops == [2, 4, 6]
    assert ax.get_xlim() == (0, pytest.approx(300))
