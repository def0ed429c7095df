"""Admission filters against the plain reference, against Dynamo's published cases, and against their own laws."""

from __future__ import annotations

import pytest
from admission_reference import FrequencyFilter, UseCountFilter
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.kv.admission import ADMISSIONS, AdmissionState

# (block, seconds since the last query, is it in the target already)
queries = st.lists(
    st.tuples(
        st.integers(0, 11),
        st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 3.0, 10.0, 25.0]),
        st.sampled_from([False] * 5 + [True]),
    ),
    max_size=120,
)


def asked(count: int, state: AdmissionState, block: int = 0, now: float = 0.0) -> list[bool]:
    return [state.admit(block, now) for _ in range(count)]


@settings(max_examples=200, deadline=None)
@given(queries, st.integers(1, 20), st.sampled_from([1.0, 2.5, 10.0, 600.0]), st.integers(1, 14))
def test_frequency_agrees_with_the_reference(steps, min_frequency, flush_interval, max_entries):
    options = {"min_frequency": min_frequency, "flush_interval": flush_interval, "max_entries": max_entries}
    state, plain, now = AdmissionState("frequency", 12, **options), FrequencyFilter(**options), 0.0
    for block, wait, present in steps:
        now += wait
        assert state.admit(block, now, present=present) == plain.admit(block, now, present=present)


@pytest.mark.parametrize(
    ("min_frequency", "expected"),
    [
        (1, [True, True]),
        (2, [False, True, True]),
        (3, [False, False, True]),
        (4, [False, False, True, True]),
        (5, [False, False, False, True]),
    ],
)
def test_a_count_doubles_at_every_query(min_frequency, expected):
    """KVBM's own cases: minimum 2 says no, yes; minimum 4 says no, no, yes (counts 1, 2, 4)."""
    state = AdmissionState("frequency", 1, min_frequency=min_frequency)
    assert asked(len(expected), state) == expected


def test_defaults_are_those_of_kvbm():
    """Minimum 2, 600 s: the second query admits, one interval later the first one is forgotten."""
    assert asked(2, AdmissionState("frequency", 3)) == [False, True]
    state = AdmissionState("frequency", 3)
    assert not state.admit(0, 0.0)
    assert state.admit(0, 599.0)
    state = AdmissionState("frequency", 3)
    assert not state.admit(0, 0.0)
    assert not state.admit(0, 600.0)
    assert state.admit(0, 600.0)


@pytest.mark.parametrize(
    ("intervals", "admitted"),
    [(0, True), (1, True), (2, True), (3, False), (4, False), (1_000_000_000, False)],
)
def test_counts_decay_by_one_per_interval(intervals, admitted):
    """A count of 4 becomes 3, 2, 1, nothing; the next query doubles what is left and must reach 4."""
    state = AdmissionState("frequency", 1, min_frequency=4, flush_interval=0.25)
    assert asked(3, state) == [False, False, True]
    assert state.admit(0, 0.25 * intervals) is admitted


def test_many_decays_at_once_equal_as_many_single_ones():
    at_once = AdmissionState("frequency", 2, min_frequency=9, flush_interval=1.0)
    one_by_one = AdmissionState("frequency", 2, min_frequency=9, flush_interval=1.0)
    for state in (at_once, one_by_one):
        assert asked(4, state) == [False] * 4  # the count is 8 now
    for second in range(1, 4):
        one_by_one.admit(1, float(second))
    assert at_once.admit(0, 3.5) == one_by_one.admit(0, 3.5) is True  # 8 - 3 = 5, doubled


def test_an_oversized_table_decays_until_it_fits():
    """KVBM's own case: bound 2, three entries of count 1 empty the table; an entry added then stays."""
    state = AdmissionState("frequency", 4, max_entries=2)
    assert [state.admit(block, 0.0) for block in (0, 1, 2)] == [False, False, False]
    assert [state.admit(block, 0.0) for block in (3, 3)] == [False, True]
    assert [state.admit(block, 0.0) for block in (0, 0)] == [False, True]


def test_an_oversized_table_keeps_what_is_frequent_and_restarts_the_timer():
    state = AdmissionState("frequency", 4, min_frequency=2, flush_interval=10.0, max_entries=2)
    assert asked(3, state, block=0) == [False, True, True]  # the count is 4
    state.admit(1, 9.0)
    state.admit(2, 9.0)  # the third entry: 4, 1, 1 becomes 3
    assert state.admit(1, 18.0) is False  # forgotten at 9 s, new with count 1; no decay before 19 s
    assert state.admit(1, 18.5) is True


def test_a_count_never_overflows():
    state = AdmissionState("frequency", 1, min_frequency=2)
    assert asked(500, state) == [False] + [True] * 499


@settings(max_examples=100, deadline=None)
@given(queries, st.integers(1, 5))
def test_after_counts_uses(steps, min_frequency):
    state, plain = AdmissionState("after", 12, min_frequency=min_frequency), UseCountFilter(min_frequency)
    for block, _, present in steps:
        state.observe(block)
        plain.observe(block)
        for other in range(12):
            assert state.admit(other, 0.0, present=present) == plain.admit(other, present)


@pytest.mark.parametrize("kind", [kind for kind in ADMISSIONS if kind != "all"])
def test_what_the_target_holds_is_not_copied_again(kind):
    state = AdmissionState(kind, 2, min_frequency=1, min_priority=0)
    state.observe(1)
    assert state.admit(1, 0.0, present=True) is False
    assert state.admit(1, 0.0, present=False) is True


def test_a_query_about_a_present_block_does_not_count():
    state = AdmissionState("frequency", 1)
    assert state.admit(0, 0.0, present=True) is False
    assert asked(2, state) == [False, True]


def test_all_admits_everything():
    assert AdmissionState("all", 1).admit(0, 0.0, present=True) is True


@pytest.mark.parametrize(("priority", "admitted"), [(0, False), (49, False), (50, True), (100, True)])
def test_priority_admits_from_its_minimum(priority, admitted):
    assert AdmissionState("priority", 1, min_priority=50).admit(0, 0.0, priority=priority) is admitted


@pytest.mark.parametrize(
    ("kind", "options", "culprit"),
    [
        ("frequncy", {}, "'frequncy' does not exist; did you mean 'frequency'"),
        ("frequency", {"min_frequency": 0}, "min_frequency: 0"),
        ("frequency", {"flush_interval": 0.0}, "flush_interval: 0.0 s"),
        ("frequency", {"flush_interval": float("nan")}, "flush_interval: nan s"),
        ("frequency", {"max_entries": 0}, "max_entries: 0"),
    ],
)
def test_bad_options_are_refused(kind, options, culprit):
    with pytest.raises(ConfigError, match=culprit):
        AdmissionState(kind, 3, **options)
