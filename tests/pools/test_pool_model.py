"""The model of the stream-ordered pool: the programming guide's cases, and laws that hold for any row of calls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_pool_runtime import FakeRuntime
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynalab.errors import BlockStateError, ConfigError, DeviceMemoryError
from dynalab.pools import CudaMemoryPool, PoolEvent, PoolModel, _cuda, measure_pool, predict_pool

MIB = 1 << 20


def reserved(pool: PoolModel) -> int:
    return pool.stats()["reserved"]


def test_the_same_stream_uses_freed_memory_again_at_once() -> None:
    pool = PoolModel()
    pool.work(1, 10)
    for _ in range(5):
        pool.free(pool.allocate(4 * MIB, 1))
    assert reserved(pool) == 4 * MIB


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("opportunistic", [False, True])
@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("synchronized", [False, True])
def test_another_stream_uses_it_by_the_rules_of_the_guide(
    busy: bool, follow: bool, opportunistic: bool, event: bool, synchronized: bool
) -> None:
    pool = PoolModel(
        "1GiB", reuse_follow_event_dependencies=follow, reuse_allow_opportunistic=opportunistic, capacity="8MiB"
    )
    first = pool.allocate(4 * MIB, 1)
    if busy:
        pool.work(1, 5.0)
    pool.free(first)
    if event:
        pool.wait(2, 1)
    if synchronized:
        pool.synchronize(1)
    pool.allocate(4 * MIB, 2)
    again = (event and follow) or synchronized or (opportunistic and not busy)
    assert reserved(pool) == (4 * MIB if again else 8 * MIB)


def test_an_event_covers_only_what_came_before_it() -> None:
    pool = PoolModel("1GiB", reuse_allow_opportunistic=False)
    early, late = pool.allocate(2 * MIB, 1), pool.allocate(2 * MIB, 1)
    pool.free(early)
    pool.wait(2, 1)
    pool.free(late)
    pool.allocate(2 * MIB, 2)
    assert reserved(pool) == 4 * MIB
    pool.allocate(2 * MIB, 2)
    assert reserved(pool) == 6 * MIB


def test_dependencies_reach_through_a_third_stream_and_to_the_host() -> None:
    pool = PoolModel("1GiB", reuse_allow_opportunistic=False)
    pool.free(pool.allocate(2 * MIB, 1))
    pool.wait(2, 1)
    pool.wait(3, 2)
    third = pool.allocate(2 * MIB, 3)
    assert reserved(pool) == 2 * MIB
    pool.free(third)
    pool.wait(4, 3)
    pool.synchronize(4)  # the host now knows what streams 1 to 3 did, too
    pool.allocate(2 * MIB, 9)
    assert reserved(pool) == 2 * MIB


def test_time_lets_the_gpu_pass_the_free() -> None:
    pool = PoolModel("1GiB")
    first = pool.allocate(2 * MIB, 1)
    pool.work(1, 5.0)
    pool.free(first)
    pool.now = 4.9
    pool.free(pool.allocate(2 * MIB, 2))
    assert reserved(pool) == 4 * MIB
    pool.now = 5.0
    pool.allocate(2 * MIB, 2)
    pool.allocate(2 * MIB, 2)
    assert reserved(pool) == 4 * MIB


@pytest.mark.parametrize("internal", [False, True])
def test_when_memory_runs_out_the_pool_waits_for_another_stream(internal: bool) -> None:
    pool = PoolModel(capacity="4MiB", reuse_allow_opportunistic=False, reuse_allow_internal_dependencies=internal)
    first = pool.allocate(4 * MIB, 1)
    pool.work(1, 7.0)
    pool.free(first)
    if not internal:
        with pytest.raises(DeviceMemoryError, match="4 MiB asked, 4 MiB of 4 MiB reserved; free memory"):
            pool.allocate(4 * MIB, 2)
        return
    pool.allocate(4 * MIB, 2)
    pool.synchronize(2)
    assert pool.now == 7.0, "the second stream was made to wait for the first"
    with pytest.raises(DeviceMemoryError):
        pool.allocate(1, 1)


@pytest.mark.parametrize(("threshold", "stays"), [(0, 0), (1, 2), (4 * MIB, 4), (5 * MIB, 6), (64 * MIB, 10)])
def test_synchronising_releases_down_to_the_threshold(threshold: int, stays: int) -> None:
    pool = PoolModel(threshold)
    held = [pool.allocate(2 * MIB, 1) for _ in range(5)]
    for allocation in held:
        pool.free(allocation)
    assert reserved(pool) == 10 * MIB, "not before the host synchronises"
    pool.synchronize(2)
    assert reserved(pool) == 10 * MIB, "not by another stream"
    pool.synchronize(1)
    assert reserved(pool) == stays * MIB
    assert pool.stats()["reserved_high"] == 10 * MIB


def test_one_large_allocation_is_released_in_part_and_its_rest_used() -> None:
    pool = PoolModel("6MiB")
    pool.free(pool.allocate(16 * MIB, 1))
    pool.synchronize()
    assert reserved(pool) == 6 * MIB
    pool.allocate(6 * MIB, 1)
    assert reserved(pool) == 6 * MIB
    pool.trim()
    assert reserved(pool) == 6 * MIB, "what is used stays"


def test_a_small_allocation_keeps_its_granule_only() -> None:
    pool = PoolModel()
    small, large = pool.allocate(512, 1), pool.allocate(10 * MIB, 1)
    pool.free(large)
    pool.synchronize()
    assert reserved(pool) == 2 * MIB
    pool.free(small)
    pool.synchronize()
    assert reserved(pool) == 0


def test_fragments_do_not_join_over_what_is_in_use() -> None:
    pool = PoolModel("1GiB")
    held = [pool.allocate(MIB, 1) for _ in range(6)]  # three granules of two
    for allocation in held[::2]:
        pool.free(allocation)
    pool.synchronize()
    pool.allocate(2 * MIB, 1)
    assert reserved(pool) == 8 * MIB, "3 MiB are free, no two of them side by side"
    pool.free(held[1])
    pool.allocate(2 * MIB, 1)
    assert reserved(pool) == 8 * MIB


def test_misuse_is_named() -> None:
    pool = PoolModel()
    held = pool.allocate(1, 1)
    pool.free(held)
    with pytest.raises(BlockStateError, match="1 B is freed twice"):
        pool.free(held)
    with pytest.raises(ConfigError, match="nbytes: 0"):
        pool.allocate(0, 1)
    with pytest.raises(ConfigError, match="granularity: 1000"):
        PoolModel(granularity=1000)


class Books(RuleBasedStateMachine):
    """Any row of calls: the model's books beside sums over what is held, and its map without overlaps."""

    @initialize(
        threshold=st.sampled_from([0, MIB, 7 * MIB, 1 << 30]),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        capacity=st.sampled_from([None, 12 * MIB]),
    )
    def build(self, threshold: int, flags: tuple[bool, bool, bool], capacity: int | None) -> None:
        self.pool = PoolModel(
            threshold,
            capacity=capacity,
            reuse_follow_event_dependencies=flags[0],
            reuse_allow_opportunistic=flags[1],
            reuse_allow_internal_dependencies=flags[2],
        )
        self.held: list = []
        self.most = {"used": 0, "reserved": 0}

    @rule(nbytes=st.sampled_from([1, 513, MIB, 2 * MIB, 3 * MIB + 1, 5 * MIB]), stream=st.integers(0, 2))
    def allocate(self, nbytes: int, stream: int) -> None:
        try:
            self.held.append(self.pool.allocate(nbytes, stream))
        except DeviceMemoryError:
            assert self.pool.capacity is not None
            assert reserved(self.pool) + nbytes > self.pool.capacity - 2 * MIB

    @precondition(lambda self: self.held)
    @rule(data=st.data(), stream=st.none() | st.integers(0, 2))
    def free(self, data: st.DataObject, stream: int | None) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))), stream)

    @rule(stream=st.integers(0, 2), other=st.integers(0, 2), seconds=st.sampled_from([0.0, 1.0]))
    def order(self, stream: int, other: int, seconds: float) -> None:
        self.pool.work(other, seconds)
        if stream != other:
            self.pool.wait(stream, other)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.now += seconds

    @rule(stream=st.none() | st.integers(0, 2))
    def synchronize(self, stream: int | None) -> None:
        self.pool.synchronize(stream)
        if stream is None:
            floor = {
                2 * MIB * ((a._span.begin + n) // (2 * MIB)) for a in self.held for n in range(0, a._span.size, 512)
            }
            unit = 2 * MIB
            assert reserved(self.pool) <= max(len(floor) * unit, -(-self.pool.release_threshold // unit) * unit)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        assert stats["used"] == sum(-(-a.nbytes // 512) * 512 for a in self.held)
        assert stats["used"] <= stats["reserved"]
        assert stats["reserved"] % (2 * MIB) == 0
        for name in ("used", "reserved"):
            self.most[name] = max(self.most[name], stats[name])
            assert stats[f"{name}_high"] >= self.most[name]
        assert stats["used_high"] == self.most["used"]
        segments = self.pool._segments
        assert stats["reserved"] == sum(segment[-1].end - segment[0].begin for segment in segments)
        for segment in segments:
            assert segment[0].begin % (2 * MIB) == 0 == segment[-1].end % (2 * MIB)
            assert all(a.end == b.begin for a, b in itertools.pairwise(segment))
            assert all(span.size > 0 for span in segment)
        spans = [span for segment in segments for span in segment if span.allocated]
        assert {id(span) for span in spans} == {id(a._span) for a in self.held}


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30)


@st.composite
def traces(draw: st.DrawFn) -> list[PoolEvent]:
    """A row of calls in which every name is allocated before it is freed, on up to three streams."""
    events, names, time = [], list[str](), 0.0
    for n in range(draw(st.integers(1, 25))):
        time += draw(st.sampled_from([0.0, 0.5, 2.0]))
        kind = draw(st.sampled_from(["allocate", "allocate", "free", "work", "wait", "synchronize"]))
        stream = draw(st.integers(0, 2))
        if kind == "free" and not names:
            continue
        if kind == "allocate":
            names.append(f"a{n}")
            nbytes = draw(st.sampled_from([100, MIB, 2 * MIB, 5 * MIB]))
            events.append(PoolEvent(time, kind, stream, names[-1], nbytes))
        elif kind == "free":
            events.append(PoolEvent(time, kind, name=names.pop(draw(st.integers(0, len(names) - 1)))))
        else:
            events.append(PoolEvent(time, kind, stream, other=(stream + 1) % 3, seconds=1.0))
    return events


@given(traces(), st.integers(0, 12))
def test_what_is_used_does_not_depend_on_the_threshold(events: list[PoolEvent], threshold: int) -> None:
    some, all_kept = predict_pool(events, PoolModel(threshold * MIB)), predict_pool(events, PoolModel("1GiB"))
    assert np.array_equal(some.used, all_kept.used)
    assert np.array_equal(some.used_high, all_kept.used_high)
    assert np.array_equal(all_kept.reserved, all_kept.reserved_high), "nothing below the threshold is ever released"


@given(traces())
def test_one_stream_alone_needs_no_dependencies(events: list[PoolEvent]) -> None:
    alone = [PoolEvent(e.time, e.kind, 1, e.name, e.nbytes, 1, e.seconds) for e in events if e.kind != "wait"]
    results = [
        predict_pool(alone, PoolModel("1GiB", reuse_follow_event_dependencies=flag, reuse_allow_opportunistic=flag))
        for flag in (False, True)
    ]
    assert results[0].reserved.equals(results[1].reserved)


def test_datasets_have_units_and_say_what_they_are() -> None:
    events = [PoolEvent(0, "allocate", 1, "a", 100), PoolEvent(1.5, "synchronize"), PoolEvent(2, "trim", nbytes=0)]
    result = predict_pool(events, PoolModel("1MiB"))
    assert set(result.data_vars) == {"used", "reserved", "used_high", "reserved_high"}
    assert result.time.values.tolist() == [0.0, 1.5, 2.0]
    assert result.time.attrs["units"] == "s"
    assert all(result[name].attrs["units"] == "bytes" for name in result)
    assert result.used.values.tolist() == [512] * 3
    assert result.attrs == {"device": "model", "release_threshold": MIB, "granularity": 2 * MIB}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([PoolEvent(1, "synchronize"), PoolEvent(0, "synchronize")], "event 1: its time 0 lies before"),
        ([PoolEvent(0, "sync")], "event 0: kind 'sync' does not exist"),  # type: ignore[arg-type]
        ([PoolEvent(0, "free", name="a")], "event 0: 'a' is not allocated"),
        ([PoolEvent(0, "allocate", 1, "a", 1)] * 2, "event 1: 'a' is allocated already"),
    ],
)
def test_traces_that_cannot_be_are_named(events: list[PoolEvent], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict_pool(events, PoolModel())


@given(traces())
@settings(max_examples=30)
def test_measuring_makes_the_calls_that_the_model_was_told(events: list[PoolEvent]) -> None:
    """On a runtime played by the model itself, measurement and prediction must agree in every row."""
    events = [PoolEvent(0, e.kind, e.stream, e.name, e.nbytes, e.other, 1e9) for e in events]
    fake = FakeRuntime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "why_no_cuda", lambda: "")
        patch.setattr(_cuda, "runtime", lambda: fake)
        with CudaMemoryPool(release_threshold="3MiB") as pool:
            measured = measure_pool(events, pool)
    assert not fake.live, "what the events left allocated is freed"
    assert not fake.streams
    predicted = predict_pool(events, PoolModel("3MiB", capacity=1 << 30))
    assert measured.drop_attrs().equals(predicted.drop_attrs())
    assert measured.attrs == {"device": "cuda:0", "release_threshold": 3 * MIB}


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", ["0", "64MiB", "1GiB"])
def test_model_agrees_with_a_gpu(threshold: str) -> None:
    """Used bytes exactly; reserved bytes within what the driver takes at once, which is measured first."""
    if why := _cuda.why_no_cuda():
        pytest.skip(why)
    with CudaMemoryPool() as pool:
        probe = measure_pool([PoolEvent(0, "allocate", 1, "a", 1)], pool)
    chunk = int(probe.reserved[0])
    events = [
        *(PoolEvent(0, "allocate", 1, f"a{n}", (n + 1) * 24 * MIB) for n in range(4)),
        *(PoolEvent(0, "free", name=f"a{n}") for n in (1, 3)),
        PoolEvent(0, "allocate", 1, "b", 40 * MIB),
        PoolEvent(0, "wait", 2, other=1),
        PoolEvent(0, "allocate", 2, "c", 90 * MIB),
        *(PoolEvent(0, "free", name=name) for name in ("a0", "a2", "b", "c")),
        PoolEvent(0, "synchronize"),
        PoolEvent(0, "allocate", 3, "d", 30 * MIB),
        PoolEvent(0, "free", name="d"),
        PoolEvent(0, "synchronize"),
    ]
    predicted = predict_pool(events, PoolModel(threshold, granularity=chunk))
    with CudaMemoryPool(release_threshold=threshold) as pool:
        measured = measure_pool(events, pool)
    assert np.array_equal(measured.used, predicted.used)
    assert np.array_equal(measured.used_high, predicted.used_high)
    assert np.abs(measured.reserved - predicted.reserved).max() <= chunk
    assert np.abs(measured.reserved_high - predicted.reserved_high).max() <= chunk
