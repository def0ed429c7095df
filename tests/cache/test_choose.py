"""Choices on tables made by hand: a target, a budget, the knee; harmful combinations and ties."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dynalab.cache._advice import (
    choose,
    front,
    harmful,
)


def table(*rows: tuple[float, float, int, int, float, float]) -> xr.Dataset:
    """Candidates of (hit ratio, cost, host, disk, TTFT, TB per day)."""
    names = ("hit_ratio", "cost", "host_blocks", "disk_blocks", "ttft_mean", "disk_tb_per_day")
    data = {name: ("stack", np.array(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return xr.Dataset(data | {"policy": ("stack", np.array(["lru"] * len(rows)))})


#: Neither sorted nor on one line: the knee over cost is row 3.
TABLE = table(
    (0.10, 0, 0, 0, 1.0, 0),
    (0.42, 5000, 20, 40, 0.7, 9),
    (0.20, 400, 10, 0, 0.9, 0),
    (0.35, 900, 0, 20, 0.8, 5),
    (0.30, 1000, 20, 0, 0.85, 0),
    (0.40, 3000, 10, 40, 0.7, 9),
)


@pytest.mark.parametrize(
    ("target", "row", "met"),
    [
        (0.05, 0, True),
        (0.2, 2, True),
        (0.21, 3, True),
        (0.35, 3, True),
        (0.36, 5, True),
        (0.42, 1, True),
        (0.5, 1, False),
    ],
)
def test_target_takes_the_cheapest_that_reaches_it(target: float, row: int, met: bool) -> None:
    assert choose(TABLE, target, 0.0) == (row, f"a hit ratio of at least {target:g}", met)


@pytest.mark.parametrize(
    ("budget", "row"), [(1, 0), (399.99, 0), (400, 2), (899, 2), (900, 3), (2999, 3), (3000, 5), (1e9, 1)]
)
def test_budget_takes_the_most_hits_that_it_pays_for(budget: float, row: int) -> None:
    index, wish, met = choose(TABLE, 0.0, budget)
    assert (index, met) == (row, True)
    assert wish.endswith(" US$")


def test_budget_below_everything_takes_the_cheapest() -> None:
    rows = table((0.3, 500, 5, 0, 1.0, 0), (0.2, 400, 2, 0, 1.0, 0))
    index, wish, met = choose(rows, 0.0, 100)
    assert (index, wish, met) == (1, "the highest hit ratio for at most 100 US$", False)


def test_knee_of_a_table() -> None:
    assert front(TABLE) == [0, 2, 3, 5, 1]
    assert choose(TABLE, 0.0, 0.0) == (3, "the knee of hit ratio over cost", True)


def test_knee_ignores_gains_within_the_noise() -> None:
    # Two expensive rows that gain next to nothing would stretch the axis of cost and move the knee.
    rows = table((0.1, 0, 0, 0, 1, 0), (0.3, 100, 1, 0, 1, 0), (0.4, 1000, 2, 0, 1, 0), (0.4005, 1e6, 3, 0, 1, 0))
    assert front(rows) == [0, 1, 2, 3]
    assert front(rows, 0.002) == [0, 1, 2]
    assert choose(rows, 0.0, 0.0)[0] == 1


def test_no_gain_costs_nothing() -> None:
    rows = table((0.1, 0, 0, 0, 1, 0), (0.1, 100, 1, 0, 1, 0), (0.101, 1e6, 0, 5, 1, 1))
    assert choose(rows, 0.0, 0.0) == (0, "the knee of hit ratio over cost", True)


def test_rising_returns_have_no_knee() -> None:
    rows = table((0.1, 0, 0, 0, 1, 0), (0.15, 1000, 1, 0, 1, 0), (0.2, 2000, 2, 0, 1, 0), (0.6, 3000, 3, 0, 1, 0))
    assert choose(rows, 0.0, 0.0) == (3, "the knee of hit ratio over cost", False)


def test_a_single_step_is_taken() -> None:
    assert choose(table((0.1, 0, 0, 0, 1, 0), (0.2, 10, 1, 0, 1, 0)), 0.0, 0.0)[::2] == (1, True)


HARM = table(
    (0.10, 0, 0, 0, 1.0, 0),  # nothing
    (0.20, 100, 10, 0, 1.1, 0),  # host slower than computing
    (0.30, 200, 0, 40, 1.2, 1),  # disk slower than computing
    (0.40, 300, 10, 40, 0.9, 1),  # both together pay
    (0.50, 400, 20, 0, 0.8, 0),  # a larger host pays
    (0.60, 500, 20, 40, 0.85, 1),  # but not with the disk
)


def test_tiers_that_slow_down_are_harmful() -> None:
    assert harmful(HARM).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("target", "budget"), [(0.15, 0), (0.3, 0), (0.55, 0), (0.9, 0), (0, 150), (0, 250), (0, 1e6), (0, 0)]
)
def test_harmful_ones_are_never_chosen(target: float, budget: float) -> None:
    assert not harmful(HARM)[choose(HARM, target, budget)[0]]


def test_ties_go_to_the_cheaper_then_the_less_worn_then_the_first() -> None:
    rows = table(
        (0.1, 0, 0, 0, 1, 0),
        (0.5, 200, 4, 0, 1, 0),
        (0.5, 100, 0, 9, 1, 7),
        (0.5, 100, 0, 8, 1, 3),
        (0.5, 100, 0, 7, 1, 3),
    )
    assert [choose(rows, *wish)[0] for wish in ((0.5, 0), (0.9, 0), (0, 150), (0, 1000), (0, 0))] == [3] * 5


@st.composite
def tables(draw: st.DrawFn) -> xr.Dataset:
    number = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9])
    row = st.tuples(number, st.integers(0, 9), st.integers(0, 2), st.integers(0, 2), number, st.integers(0, 3))
    return table((draw(number), 0, 0, 0, draw(number), 0), *draw(st.lists(row, max_size=12)))


@given(tables(), st.lists(st.integers(1, 10), min_size=2, max_size=2))
def test_more_budget_never_brings_fewer_hits(rows: xr.Dataset, budgets: list[int]) -> None:
    (less, _, enough), (more, _, met) = (choose(rows, 0.0, budget) for budget in sorted(budgets))
    assert met or not enough
    if enough:
        assert rows.hit_ratio.values[less] <= rows.hit_ratio.values[more]
    # Where even the cheapest combination costs more, that one is given, and said not to meet the wish.
    assert met == (rows.cost.values[more] <= max(budgets))


@given(tables(), st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.4, 0.8]), min_size=2, max_size=2))
def test_a_higher_target_never_costs_less(rows: xr.Dataset, targets: list[float]) -> None:
    (low, _, _), (high, _, met) = (choose(rows, target, 0.0) for target in sorted(targets))
    if met:
        assert float(rows.cost[low]) <= float(rows.cost[high])
        assert float(rows.hit_ratio[high]) >= max(targets)


@given(tables())
def test_the_knee_is_on_the_front(rows: xr.Dataset) -> None:
    points = front(rows)
    assert choose(rows, 0.0, 0.0)[0] in points
    assert (np.diff(rows.cost.values[points]) > 0).all()
    assert (np.diff(rows.hit_ratio.values[points]) > 0).all()
