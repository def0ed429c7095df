"""Victim selection on the CPU: the same victims in the same order as sorting everything, ties and extremes included."""

from __future__ import annotations

import threading
import time
from functools import cmp_to_key

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynalab.errors import ConfigError
from dynalab.kernels.victims import select_victims

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def by_sorting(columns: Columns, k: int) -> np.ndarray:
    """The definition, by sorting all blocks that are not pinned."""
    priority, last_use, position, pinned = columns
    free = np.flatnonzero(pinned == 0)
    order = np.lexsort((free, -position[free].astype(np.int64), last_use[free], priority[free]))
    return free[order][:k].astype(np.int32)


def by_comparing(columns: Columns, k: int) -> list[int]:
    """The definition in words of plain Python, one comparison at a time."""
    priority, last_use, position, pinned = (column.tolist() for column in columns)

    def sooner(a: int, b: int) -> int:
        if priority[a] != priority[b]:
            return -1 if priority[a] < priority[b] else 1
        if last_use[a] != last_use[b]:
            return -1 if last_use[a] < last_use[b] else 1
        if position[a] != position[b]:
            return -1 if position[a] > position[b] else 1
        return a - b

    return sorted((i for i in range(len(priority)) if not pinned[i]), key=cmp_to_key(sooner))[:k]


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    """Columns of any allowed types, with few distinct values or the extremes, so that ties are heavy."""
    n = draw(st.integers(0, 60))

    def column(*kinds: str) -> np.ndarray:
        dtype = np.dtype(draw(st.sampled_from(kinds)))
        ends = np.iinfo(dtype)
        values = st.one_of(
            st.integers(0, 2),
            st.sampled_from([ends.min, ends.min + 1, ends.max - 1, ends.max]),
            st.integers(ends.min, ends.max),
        )
        return draw(hnp.arrays(dtype, n, elements=values, fill=values))

    pinned = draw(st.sampled_from(["none", "all", "some"]))
    kind = draw(st.sampled_from(["bool", "uint8", "int32"]))
    held = {"none": np.zeros(n), "all": np.full(n, 7), "some": draw(hnp.arrays(np.int8, n, elements=st.integers(0, 1)))}
    return column("i4", "u4"), column("i8", "u8"), column("i4", "u4"), held[pinned].astype(kind)


@given(columns(), st.integers(0, 70))
def test_equals_sorting_one_comparison_at_a_time(blocks: Columns, k: int) -> None:
    found = select_victims(*blocks, k)
    assert found.dtype == np.int32
    assert found.tolist() == by_comparing(blocks, k) == by_sorting(blocks, k).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(0, 33), st.integers(0, 65), st.integers(0, 33), st.floats(0, 1))
@example(seed=1, bits_p=32, bits_u=64, bits_q=32, share=0.5)
@example(seed=2, bits_p=0, bits_u=64, bits_q=32, share=0.0)
@example(seed=3, bits_p=1, bits_u=64, bits_q=0, share=0.0)
@example(seed=4, bits_p=0, bits_u=0, bits_q=0, share=0.1)
def test_equals_sorting_for_every_width_of_fields(
    seed: int, bits_p: int, bits_u: int, bits_q: int, share: float
) -> None:
    """Fields of 0 to all bits, at a random offset: the packing into a head and a tail must lose nothing."""
    rng = np.random.default_rng(seed)

    def column(bits: int, dtype: str) -> np.ndarray:
        whole = np.dtype(dtype).itemsize * 8
        values = rng.integers(0, 2 ** min(bits, whole) - 1, 3000, dtype=np.uint64, endpoint=True)
        # Half of them are equal in the upper bits, so that ties are broken by what follows.
        values[::2] &= np.uint64(2 ** (min(bits, whole) // 2) - 1)
        return (values + rng.integers(0, 2**whole - 2 ** min(bits, whole), dtype=np.uint64, endpoint=True)).astype(
            dtype
        )

    blocks = column(bits_p, "u4"), column(bits_u, "u8"), column(bits_q, "u4"), (rng.random(3000) < share).astype("u1")
    for k in (1, 40, 1500, 3000):
        assert np.array_equal(select_victims(*blocks, k), by_sorting(blocks, k))


def realistic(n: int, kind: str, seed: int = 5) -> Columns:
    """Blocks as an engine has them: four priorities, nanosecond time stamps within an hour, chains, a tenth pinned."""
    rng = np.random.default_rng(seed)
    priority = rng.integers(0, 4, n).astype(np.uint32)
    last_use = 1_700_000_000_000_000_000 + rng.integers(0, 3600 * 10**9, n)
    position = rng.integers(0, 1000, n).astype(np.uint32)
    pinned = (rng.random(n) < 0.1).astype(np.uint8)
    if kind == "one ancient block":  # leading digits tell nothing about all the others
        last_use[n // 3] = 0
    elif kind == "ticks":
        last_use = rng.integers(0, 50, n)
    elif kind == "all equal":
        priority[:], last_use[:], position[:] = 7, -3, 9
    elif kind == "nested lumps":  # every digit leaves almost everything in one bin
        last_use = np.repeat(2 ** np.arange(60, dtype=np.int64), -(-n // 60))[:n]
    return priority, last_use, position, pinned


@pytest.mark.parametrize("kind", ["spread", "one ancient block", "ticks", "all equal", "nested lumps"])
def test_equals_sorting_on_many_blocks(kind: str) -> None:
    blocks = realistic(50_000, kind)
    for k in (0, 1, 999, 20_000, 50_000, 10**9):
        assert np.array_equal(select_victims(*blocks, k), by_sorting(blocks, k))


def test_children_go_before_their_parents() -> None:
    """Chains that were used as wholes: whatever k, what stays of every chain is a prefix."""
    chain, position = np.divmod(np.random.default_rng(3).permutation(40 * 25), 25)
    last_use, nothing = chain.astype(np.int64) % 10, np.zeros(1000, np.uint32)
    for k in range(0, 1000, 7):
        stays = np.ones(1000, bool)
        stays[select_victims(nothing, last_use, position.astype(np.uint32), nothing.astype(bool), k)] = False
        for c in range(40):
            kept = np.sort(position[stays & (chain == c)])
            assert np.array_equal(kept, np.arange(len(kept)))


def test_columns_may_be_slices_and_are_left_alone() -> None:
    blocks = realistic(4000, "ticks")
    wide = [np.repeat(column, 2)[::2] for column in blocks]
    before = [column.copy() for column in wide]
    assert not wide[0].flags.c_contiguous
    assert np.array_equal(select_victims(*wide, 100), by_sorting(blocks, 100))
    assert all(map(np.array_equal, wide, before))


def test_pins_of_any_kind_count() -> None:
    nothing = np.zeros(4, np.uint32)
    for pinned in (
        np.array([0, 256, -1, 0], np.int32),
        np.array([0, 128, 255, 0], np.uint8),
        np.array([0, 1, 1, 0], bool),
    ):
        assert select_victims(nothing, np.zeros(4, np.int64), nothing, pinned, 4).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        ("priority", np.zeros(3, np.int64), "priority: dtype int64 cannot be; pass int32 or uint32"),
        ("last_use", np.zeros(3), "last_use: dtype float64 cannot be; pass int64 or uint64"),
        ("last_use", np.zeros(3, "m8[s]"), "last_use: dtype timedelta64"),
        ("position", np.zeros(4, np.int32), r"position: shape \[4\] does not fit \[3\] priorities"),
        ("position", np.zeros((3, 1), np.int32), r"position: shape \[3, 1\]"),
        ("pinned", np.zeros(3, np.int64), "pinned: dtype int64 cannot be; pass bool, uint8 or int32"),
        ("pinned", np.zeros(2, bool), r"pinned: shape \[2\]"),
    ],
)
def test_columns_that_do_not_fit_are_named(field: str, column: np.ndarray, message: str) -> None:
    good = {
        "priority": np.zeros(3, np.uint32),
        "last_use": np.zeros(3, np.int64),
        "position": np.zeros(3, np.uint32),
        "pinned": np.zeros(3, bool),
    }
    with pytest.raises(ConfigError, match=message):
        select_victims(**(good | {field: column}), k=1)
    with pytest.raises(ConfigError, match="k: -1 victims"):
        select_victims(**good, k=-1)


def test_the_interpreter_runs_on_meanwhile() -> None:
    blocks = realistic(1_000_000, "spread")
    select_victims(*blocks, 1)
    worker = threading.Thread(target=lambda: [select_victims(*blocks, 1) for _ in range(10)])
    ticks = 0
    worker.start()
    while worker.is_alive():
        ticks += 1
        time.sleep(0)
    assert ticks > 100
