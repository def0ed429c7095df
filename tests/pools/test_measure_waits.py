"""Waits measured at the real pool: in virtual time to the last digit, in real time as requests came to pass."""

from __future__ import annotations

import asyncio
import gc
import threading
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError, PoolClosed, PoolError
from dynalab.pools.fifo import fifo_waits
from dynalab.pools.measure import measure_waits
from dynalab.pools.pool import Pool
from dynalab.pools.queueing import erlang_c, little, wait_mean, wait_quantile
from dynalab.pools.virtual_time import VirtualTimeLoop, run_virtual
from dynalab.pools.wait_summary import summarize_waits


def streams(rate: float, service_s: float, shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1 / rate, shape), axis=1), rng.exponential(service_s, shape)


def test_the_clock_jumps() -> None:
    order: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(sleeper("c", 1e6), sleeper("a", 0.25), sleeper("b", 3600))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1e5):
                await asyncio.sleep(1e7)

    run_virtual(main())
    assert order == [("a", 0.25), ("b", 3600.0), ("c", 1e6)]


def test_a_standstill_is_an_error_and_not_a_hang() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(PoolError, match="virtual time stands still: everything waits, and no timer"):
        run_virtual(forever())


def test_a_loop_in_virtual_time_closes_like_any_other() -> None:
    loop = VirtualTimeLoop()
    cancelled = []

    async def left_behind() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(loop.time())
            raise

    async def main() -> str:
        asyncio.ensure_future(left_behind())  # noqa: RUF006
        await asyncio.sleep(1)
        return "done"

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(main()) == "done"
    assert cancelled == [1.0]
    assert loop.is_closed()


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=40),
    st.integers(1, 5),
)
@settings(max_examples=50)
def test_the_pool_serves_as_the_recursion_says(pairs: list[tuple[int, int]], capacity: int) -> None:
    """Times are eighths, which floats add without error: equal to the last bit."""
    arrivals = np.cumsum([gap for gap, _ in pairs]) / 8
    services = np.array([hold for _, hold in pairs]) / 8 + 1 / 16
    found = measure_waits(lambda: Pool(range(capacity)), arrivals, services)
    assert found.wait.values[0].tolist() == fifo_waits(arrivals, services, capacity).tolist()
    assert found.arrival.values[0].tolist() == arrivals.tolist()
    assert found.service.values[0].tolist() == services.tolist()


@pytest.mark.parametrize(("capacity", "utilisation"), [(1, 0.5), (2, 0.7), (8, 0.75)])
def test_waits_are_erlangs_within_a_tenth(capacity: int, utilisation: float) -> None:
    arrivals, services = streams(capacity * utilisation, 1.0, (10, 5000), seed=2)
    found = measure_waits(lambda: Pool(range(capacity)), arrivals, services, sample_s=1.0)
    seen = summarize_waits(found)
    theory = wait_mean(capacity, seen.rate, seen.service_s)
    assert seen.wait_error_at_load < 0.06 * theory, "the tenth is no matter of luck"
    assert seen.wait_error_at_load < seen.wait_error
    assert seen.wait_mean == pytest.approx(theory, rel=0.1)
    assert seen.waited == pytest.approx(erlang_c(capacity, seen.load), rel=0.05)
    late = np.quantile(found.wait.values, 0.95)
    assert late == pytest.approx(wait_quantile(0.95, capacity, seen.rate, seen.service_s), rel=0.1)
    # What the pool tells of itself, seen from outside at times of its own.
    assert float(found.in_use.mean()) == pytest.approx(little(seen.rate, seen.service_s), rel=0.03)
    assert float(found.waiting.mean()) == pytest.approx(little(seen.rate, seen.wait_mean), rel=0.08)
    assert int(found.in_use.max()) == capacity
    assert found.clock == "virtual time"


def test_virtual_time_repeats_itself() -> None:
    arrivals, services = streams(3.0, 1.0, (2, 500), seed=5)
    first, second = (
        measure_waits(lambda: Pool(["a", "b", "c", "d"]), arrivals, services, sample_s=0.5) for _ in range(2)
    )
    assert first.identical(second)


def test_real_time_is_measured_and_not_assumed() -> None:
    arrivals, services = streams(200.0, 0.004, (3, 60), seed=5)
    sizes = count(1)
    found = measure_waits(lambda: Pool(range(next(sizes))), arrivals, services, virtual=False, sample_s=0.01)
    assert found.clock == "real time"
    assert gc.get_freeze_count() == 0, "collections go on as before"
    assert found.capacity.values.tolist() == [1, 2, 3]
    assert np.all(found.arrival.values >= arrivals - 1e-9), "nobody comes early"
    assert np.all(found.service.values >= services - 1e-9)
    assert np.all(found.wait.values >= 0)
    for replica, capacity in enumerate((1, 2, 3)):
        came, held = found.arrival.values[replica], found.service.values[replica]
        # What was measured obeys the recursion, but for what the pool itself takes to hand an item over.
        assert np.all(found.wait.values[replica] >= fifo_waits(came, held, capacity) - 1e-6)
    assert set(found.sizes) == {"replica", "request", "sample"}


def test_a_notebooks_running_loop_is_left_alone() -> None:
    async def main() -> Any:
        return measure_waits(lambda: Pool(["a"]), [0.0, 1.0], [3.0, 1.0])

    assert asyncio.run(main()).wait.values.tolist() == [[0.0, 2.0]]
    assert [thread.name for thread in threading.enumerate()].count("dynalab-measure") == 0


class Failing:
    """A pool that breaks at its third request, on the way out or on the way back."""

    capacity = available = 1

    def __init__(self, on_return: bool) -> None:
        self.on_return, self.asked = on_return, 0

    async def acquire(self) -> Failing:
        self.asked += 1
        if self.asked == 3 and not self.on_return:
            raise PoolClosed("pool: closed while a request waited")
        return self

    def release(self) -> None:
        if self.asked >= 3:
            raise PoolError("pool: broken on the way back")


@pytest.mark.parametrize("on_return", [False, True])
def test_errors_of_the_pool_come_out(on_return: bool) -> None:
    arrivals, services = np.arange(50.0), np.full(50, 3.0)
    with pytest.raises(PoolError, match="broken on the way back" if on_return else "closed while"):
        measure_waits(lambda: Failing(on_return), arrivals, services)


def test_a_factory_that_fails_is_told() -> None:
    def broken() -> Pool[str]:
        raise ConfigError("no items")

    with pytest.raises(ConfigError, match="no items"):
        measure_waits(broken, [0.0], [1.0])


@pytest.mark.parametrize(
    ("arrivals", "services", "more", "words"),
    [
        ([1.0, 0.0], [1.0, 1.0], {}, "arrivals: not sorted"),
        ([0.0, 1.0], [1.0], {}, "services: shape"),
        ([0.0], [-1.0], {}, "services: one is below 0"),
        ([], [], {}, "services: shape"),
        ([0.0, 1.0], [1.0, 1.0], {"sample_s": 1.5}, "sample_s: 1.5 s while requests arrive for 1 s"),
        ([0.0, 1.0], [1.0, 1.0], {"sample_s": -1.0}, "sample_s: -1.0"),
    ],
)
def test_what_cannot_be_is_refused(arrivals: list, services: list, more: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure_waits(lambda: Pool(["a"]), arrivals, services, **more)


def test_an_error_needs_batches() -> None:
    found = measure_waits(lambda: Pool(["a"]), *streams(0.5, 1.0, (1, 12), seed=1))
    assert summarize_waits(found, batches=5, warm_up=0.0).requests == 12
    for batches in (4, 12):
        with pytest.raises(ConfigError, match=f"batches: {batches} of 12 requests"):
            summarize_waits(found, batches=batches, warm_up=0.0)


def test_batch_means_are_honest() -> None:
    """Over many runs the estimated error is what the means of the runs differ by."""
    runs = [
        summarize_waits(measure_waits(lambda: Pool(["a", "b"]), *streams(1.2, 1.0, (1, 1500), seed=s)))
        for s in range(16)
    ]
    ratios = [run.wait_mean / wait_mean(2, run.rate, run.service_s) for run in runs]
    told = np.mean([run.wait_error_at_load / wait_mean(2, run.rate, run.service_s) for run in runs])
    assert 0.6 < told / np.std(ratios) < 1.6
