"""Queueing formulas against exact arithmetic, linear solves of the birth and death process, tables, and laws."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.pools import queueing
from dynalab.pools.fifo import fifo_waits, in_system
from dynalab.pools.queueing import (
    erlang_b,
    erlang_c,
    little,
    servers_for_wait,
    wait_mean,
    wait_quantile,
    wait_tail,
)
from dynalab.pools.queueing_bounded import BoundedQueue
from dynalab.pools.variability import spread, squared_variation

SERVERS = st.integers(1, 60)
SHARE = st.floats(0.01, 0.99)


def exact_b(servers: int, load: Fraction) -> Fraction:
    """Erlang's loss formula as he wrote it, in fractions."""
    terms = [load**k / math.factorial(k) for k in range(servers + 1)]
    return terms[-1] / sum(terms)


def exact_c(servers: int, load: Fraction) -> Fraction:
    last = load**servers / math.factorial(servers) * Fraction(servers) / (servers - load)
    return last / (sum((load**k / math.factorial(k) for k in range(servers)), Fraction(0)) + last)


def birth_and_death(servers: int, places: int, rate: float, service_s: float) -> np.ndarray:
    """Steady state of the bounded queue: the null space of its generator, by a linear solve."""
    n = servers + places + 1
    generator = np.zeros((n, n))
    for k in range(n - 1):
        generator[k, k + 1] = rate
        generator[k + 1, k] = min(k + 1, servers) / service_s
    generator -= np.diag(generator.sum(axis=1))
    system = np.vstack([generator.T[:-1], np.ones(n)])
    return np.linalg.solve(system, np.r_[np.zeros(n - 1), 1.0])


@given(SERVERS, st.fractions(Fraction(1, 100), 80))
def test_loss_is_that_of_exact_fractions(servers: int, load: Fraction) -> None:
    assert erlang_b(servers, float(load)) == pytest.approx(float(exact_b(servers, Fraction(float(load)))), rel=1e-12)


@given(SERVERS, st.floats(0.001, 0.9999))
def test_delay_is_that_of_exact_fractions(servers: int, utilisation: float) -> None:
    load = servers * utilisation
    expected = exact_c(servers, Fraction(load))
    assert erlang_c(servers, load) == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize(
    ("servers", "load", "blocked"),
    [(10, 4.46, 0.01), (20, 12.03, 0.01), (50, 37.9, 0.01), (100, 84.1, 0.01), (10, 5.08, 0.02), (5, 2.22, 0.05)],
)
def test_loss_is_that_of_the_printed_tables(servers: int, load: float, blocked: float) -> None:
    """Telephone engineers' tables print the load at which 1%, 2% or 5% of calls are lost, to three digits."""
    assert erlang_b(servers, load) == pytest.approx(blocked, rel=0.01)


@pytest.mark.parametrize(("servers", "load"), [(1000, 990.0), (10_000, 9_900.0), (100_000, 99_900.0)])
def test_thousands_of_servers(servers: int, load: float) -> None:
    """Beside the loss formula in logarithms, summed from its largest term."""
    k = np.arange(servers + 1)
    logs = k * math.log(load) - np.array([math.lgamma(n + 1) for n in k])
    blocked = 1 / np.exp(logs - logs[-1]).sum()
    assert erlang_b(servers, load) == pytest.approx(blocked, rel=1e-6)
    delayed = erlang_c(servers, load)
    assert 0 < blocked < delayed < 1
    assert delayed == pytest.approx(blocked / (1 - load / servers * (1 - blocked)), rel=1e-6)


def test_arrays_are_scalars_side_by_side() -> None:
    servers, loads = np.arange(0, 40)[:, None], np.array([0.0, 0.5, 7.0, 39.9, 0.5])
    found = erlang_b(servers, loads)
    assert found.shape == (40, 5)
    assert all(found[i, j] == erlang_b(i, loads[j]) for i in range(40) for j in range(5))
    assert isinstance(erlang_b(3, 1.0), float)
    delayed = erlang_c([[50, 41]], loads[:, None])
    assert delayed.shape == (5, 2)
    assert delayed[2, 1] == erlang_c(41, 7.0)
    assert wait_tail([0.0, 1.0], 3, 2.0, 1.0).shape == (2,)
    assert erlang_b(np.empty(0, int), np.empty(0)).shape == (0,)


@given(SERVERS, SHARE)
def test_laws_of_loss_and_delay(servers: int, utilisation: float) -> None:
    load = servers * utilisation
    blocked, delayed = erlang_b(servers, load), erlang_c(servers, load)
    assert 0 <= blocked <= delayed <= 1, "who loses calls has fewer in its way than who lets them wait"
    assert erlang_b(servers + 1, load) < blocked
    assert erlang_c(servers + 1, load) < delayed
    assert erlang_b(servers, 1.01 * load) > blocked
    mean = wait_mean(servers, load, 1.0)
    assert wait_mean(servers + 1, load, 1.0) < mean
    assert wait_mean(servers, load / 2, 2.0) == pytest.approx(2 * mean), "time has no unit"
    if servers % 2 == 0:
        assert wait_mean(servers // 2, load / 2, 1.0) > mean, "one queue is better than two halves"


@given(SERVERS, SHARE, st.floats(0, 0.9999))
def test_quantiles_invert_the_tail(servers: int, utilisation: float, share: float) -> None:
    rate = servers * utilisation / 0.3
    at = wait_quantile(share, servers, rate, 0.3)
    tail = wait_tail(at, servers, rate, 0.3)
    assert tail <= 1 - share + 1e-12
    if at > 0:
        assert tail == pytest.approx(1 - share, rel=1e-9)
    else:
        assert erlang_c(servers, servers * utilisation) <= 1 - share + 1e-12


@given(st.integers(1, 20), SHARE)
def test_the_mean_is_the_area_below_the_tail(servers: int, utilisation: float) -> None:
    rate = servers * utilisation
    times = np.linspace(0, 60 / (servers - rate), 4001)
    area = np.trapezoid(wait_tail(times, servers, rate, 1.0), times)
    assert area == pytest.approx(wait_mean(servers, rate, 1.0), rel=1e-3)


@given(st.integers(1, 12), st.integers(0, 40), st.floats(0.05, 3.0))
def test_a_bounded_queue_is_the_birth_and_death_process(servers: int, places: int, utilisation: float) -> None:
    service_s = 0.25
    rate = servers * utilisation / service_s
    states = birth_and_death(servers, places, rate, service_s)
    queue = BoundedQueue(servers, places, rate, service_s)
    number = np.arange(states.size)
    length = np.maximum(number - servers, 0) @ states
    assert queue.rejected == pytest.approx(states[-1], abs=1e-9)
    assert queue.queue_length == pytest.approx(length, rel=1e-6, abs=1e-9)
    assert queue.in_use == pytest.approx(np.minimum(number, servers) @ states, rel=1e-6)
    assert queue.waiting == pytest.approx(states[servers:-1].sum() / (1 - states[-1]), rel=1e-6, abs=1e-9)
    assert queue.wait_mean * rate * (1 - queue.rejected) == pytest.approx(length, rel=1e-6, abs=1e-9), "Little"


@given(st.integers(1, 8), st.integers(1, 20), st.floats(0.2, 2.0))
def test_waits_in_a_bounded_queue(servers: int, places: int, utilisation: float) -> None:
    queue = BoundedQueue(servers, places, servers * utilisation, 1.0)
    edges = np.r_[0.0, np.geomspace(1e-3, 60 * (places + 1) / servers, 3000)]
    tails = queue.wait_tail(edges)
    assert tails[0] == pytest.approx(queue.waiting)
    assert np.all(np.diff(tails) <= 1e-15)
    assert np.trapezoid(tails, edges) == pytest.approx(queue.wait_mean, rel=1e-3, abs=1e-9), "the area below the tail"
    for share in (0.0, 0.5, 0.999):
        at = queue.wait_quantile(share)
        assert queue.wait_tail(at) == pytest.approx(min(1 - share, queue.waiting), rel=1e-6) or at == 0


def test_ends_of_a_bounded_queue() -> None:
    assert BoundedQueue(7, 0, 5.0, 1.0).rejected == pytest.approx(erlang_b(7, 5.0)), "no place to wait: Erlang's loss"
    endless = BoundedQueue(7, 5000, 6.5, 1.0)
    assert endless.rejected < 1e-12
    assert endless.wait_mean == pytest.approx(wait_mean(7, 6.5, 1.0)), "no end: Erlang's delay"
    assert endless.wait_quantile(0.99) == pytest.approx(wait_quantile(0.99, 7, 6.5, 1.0))
    over = BoundedQueue(64, 40_000, 640.0, 1.0)
    assert over.rejected == pytest.approx(0.9), "ten times too much: nine of ten go away, and nothing overflows"
    assert over.wait_mean == pytest.approx(40_000 / 64, rel=1e-3)
    assert BoundedQueue(2, 0, 1.0, 1.0).wait_quantile(0.99) == 0.0


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.9])
def test_one_server_and_any_service_is_pollaczek_and_khinchine(utilisation: float) -> None:
    for cv2 in (0.0, 0.5, 1.0, 7.0):
        exact = utilisation * (1 + cv2) / 2 / (1 - utilisation)
        assert wait_mean(1, utilisation, 1.0, cv2_service=cv2) == pytest.approx(exact)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (2, 0.8), (8, 0.7), (8, 0.9)])
@pytest.mark.parametrize(("cv2_arrivals", "cv2_service"), [(1.0, 0.0), (1.0, 0.25), (0.25, 0.25), (4.0, 1.0)])
def test_approximations_beside_a_simulation(
    servers: int, utilisation: float, cv2_arrivals: float, cv2_service: float
) -> None:
    rng, n = np.random.default_rng(3), 200_000
    gaps = rng.gamma(1 / cv2_arrivals, cv2_arrivals, n) / (servers * utilisation)
    holds = np.ones(n) if cv2_service == 0 else rng.gamma(1 / cv2_service, cv2_service, n)
    simulated = fifo_waits(np.cumsum(gaps), holds, servers)[n // 20 :].mean()
    args = (servers, 1 / gaps.mean(), holds.mean(), squared_variation(gaps), squared_variation(holds))
    simple, better = wait_mean(*args) / simulated, wait_mean(*args, method="whitt") / simulated
    assert abs(better - 1) <= abs(simple - 1) + 0.01, "the correction corrects"
    if cv2_arrivals == 1:
        assert better == pytest.approx(1, abs=0.03)
        assert simple == pytest.approx(1, abs=0.13)
    elif cv2_arrivals < 1:
        assert 1 < better < simple, "regular arrivals wait less than either says, the more the more servers there are"
    else:
        assert simple <= better < 1, "bursts wait longer than two moments tell"


@given(SERVERS, SHARE)
def test_approximations_are_exact_for_exponential_times(servers: int, utilisation: float) -> None:
    for method in ("allen-cunneen", "whitt"):
        assert float(spread(1.0, 1.0, servers, utilisation, method)) == 1.0
        assert float(spread(0.0, 0.0, servers, utilisation, method)) == 0.0
    assert float(spread(1.0, 0.0, 1, utilisation, "whitt")) == pytest.approx(0.5), "M/D/1"


def test_without_variation_nobody_waits() -> None:
    assert wait_mean(3, 2.0, 1.0, 0.0, 0.0) == 0.0
    assert wait_tail(0.0, 3, 2.0, 1.0, 0.0, 0.0) == 0.0
    assert wait_quantile(0.9999, 3, 2.0, 1.0, 0.0, 0.0) == 0.0
    assert servers_for_wait(0.0, 0.99, 2.0, 1.0, 0.0, 0.0) == 3


@given(st.floats(0.01, 300), st.floats(0, 2), st.floats(0.5, 0.9999), st.floats(0, 8))
def test_the_least_number_of_servers(load: float, wait_s: float, share: float, cv2: float) -> None:
    found = servers_for_wait(wait_s, share, load, 1.0, cv2_service=cv2)
    assert wait_quantile(share, found, load, 1.0, cv2_service=cv2) <= wait_s + 1e-9
    if found - 1 > load:
        assert wait_quantile(share, found - 1, load, 1.0, cv2_service=cv2) > wait_s - 1e-9


def test_ends_of_sizing() -> None:
    assert servers_for_wait(0.0, 0.99, 0.0, 1.0) == servers_for_wait(0.0, 0.99, 5.0, 0.0) == 1
    assert servers_for_wait(1e9, 0.5, 3.0, 1.0) == 4, "however patient: more than the load"
    big = servers_for_wait(0.0, 0.99, 50_000.0, 1.0)
    assert 50_000 < big < 51_000
    assert erlang_c(big, 50_000.0) <= 0.01 < erlang_c(big - 1, 50_000.0)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.integers(1, 6), st.randoms())
def test_exact_waits_are_those_of_a_list_of_servers(gaps: list[float], servers: int, random: object) -> None:
    arrivals = np.cumsum(gaps)
    services = np.array([random.uniform(0, 9) for _ in gaps])  # type: ignore[attr-defined]
    free, waits = [0.0] * servers, []
    for arrival, service in zip(arrivals, services, strict=True):
        free.sort()
        begin = max(arrival, free[0])
        free[0] = begin + service
        waits.append(begin - arrival)
    assert fifo_waits(arrivals, services, servers) == pytest.approx(waits)
    assert all(a >= b - 1e-9 for a, b in pairwise(fifo_waits(arrivals, services, k).sum() for k in range(1, 6)))
    there = [
        sum(a <= now < a + s for a, s in zip(arrivals[: i + 1], services, strict=False))
        for i, now in enumerate(arrivals)
    ]
    if np.all(np.diff(arrivals) > 0) and np.all(services > 0):
        assert in_system(arrivals, services).tolist() == there


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: erlang_c(4, 4.0), ["servers: 4", "4 Erlangs", "grows for ever", "give 5 or more"]),
        (lambda: wait_mean([4, 2], 9.0, 0.25), ["servers: 2", "2.25 Erlangs", "give 3 or more"]),
        (lambda: erlang_b(-1, 1.0), ["servers: -1", "from 0 to"]),
        (lambda: erlang_c(0, 0.0), ["servers: 0", "from 1 to"]),
        (lambda: erlang_b(2.5, 1.0), ["servers: 2.5", "whole"]),
        (lambda: erlang_b(10**9, 1.0), ["servers: 1000000000", "1,000,000"]),
        (lambda: erlang_b("many", 1.0), ["servers: 'many'", "whole"]),
        (lambda: erlang_b(2, -1.0), ["load: -1", "from 0 up"]),
        (lambda: erlang_b(2, float("nan")), ["load: nan", "finite"]),
        (lambda: erlang_b(2, "heavy"), ["load: 'heavy'", "number"]),
        (lambda: wait_mean(2, float("inf"), 1.0), ["rate: inf"]),
        (lambda: wait_quantile(1.0, 2, 1.0, 1.0), ["share: 1", "below 1"]),
        (lambda: wait_mean(2, 1.0, 1.0, cv2_service=-1.0), ["cv2_service: -1.0", "exponential"]),
        (lambda: wait_mean(2, 1.0, 1.0, method="alen-cunneen"), ["method", "did you mean 'allen-cunneen'?"]),
        (lambda: servers_for_wait(-1.0, 0.9, 1.0, 1.0), ["wait_s: -1"]),
        (lambda: servers_for_wait(1.0, 1.5, 1.0, 1.0), ["share: 1.5"]),
        (lambda: servers_for_wait(1.0, 0.9, 1e9, 1.0), ["1e+09/s", "check the units"]),
        (lambda: little(-1.0, 1.0), ["rate: -1"]),
        (lambda: BoundedQueue(2, -1, 1.0, 1.0), ["places: -1"]),
        (lambda: BoundedQueue(2, True, 1.0, 1.0), ["places: True"]),
        (lambda: BoundedQueue(2, 1, 0.0, 1.0), ["rate: 0.0", "above 0"]),
        (lambda: BoundedQueue(0, 1, 1.0, 1.0), ["servers: 0"]),
        (lambda: BoundedQueue(2, 1, 1.0, 1.0).wait_quantile(1.0), ["share: 1.0"]),
        (lambda: BoundedQueue(2, 1, 1.0, 1.0).wait_tail(-1.0), ["seconds: -1.0"]),
        (lambda: fifo_waits([1.0, 0.0], [1.0, 1.0], 1), ["arrivals: not sorted"]),
        (lambda: fifo_waits([0.0], [-1.0], 1), ["services", "below 0"]),
        (lambda: fifo_waits([0.0], [1.0, 2.0], 1), ["services: shape (2,)", "(1,)"]),
        (lambda: fifo_waits([0.0], [1.0], 0), ["servers: 0"]),
    ],
)
def test_what_makes_no_queue_is_refused_in_one_line(call: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_limit_of_servers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing, "MOST_SERVERS", 20)
    assert servers_for_wait(0.0, 0.5, 15.0, 1.0) <= 20
    with pytest.raises(ConfigError, match="more than 20 servers"):
        servers_for_wait(0.0, 0.99, 30.0, 1.0)
