"""Arrival processes: the rate they promise, and the unevenness."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynalab.workload.synth.arrivals import ARRIVALS, arrival_times
from dynalab.workload.synth.spec import WorkloadSpec


def draw(seed: int = 0, **fields) -> np.ndarray:
    return arrival_times(WorkloadSpec(name="test", **fields), np.random.default_rng(seed))


def counts(times: np.ndarray, width: float, duration: float) -> np.ndarray:
    return np.histogram(times, np.arange(0.0, duration + width / 2, width))[0]


def dispersion(times: np.ndarray, width: float, duration: float) -> float:
    """Index of dispersion of counts: variance over mean, 1 for Poisson."""
    found = counts(times, width, duration)
    return float(found.var() / found.mean())


@pytest.mark.parametrize("process", ARRIVALS)
@pytest.mark.parametrize("seed", range(3))
def test_times_are_sorted_and_inside_the_window(process, seed):
    times = draw(seed, arrivals=process, rate=7.0, duration=123.4)
    assert times.size > 100
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 123.4


@pytest.mark.parametrize("process", ARRIVALS)
def test_mean_rate_is_kept(process):
    # Variance of the count over its mean. Bursts: rates 20 and 1.25/s with shares .2 and .8 have a variance of 56.25,
    # and forget themselves in 1 / (1/30 + 1/120) = 24 s: 1 + 2 * 56.25 * 24 / 5.
    spread = {"poisson": 1.0, "constant": 0.01, "gamma": 4.0, "sinusoidal": 1.0, "bursty": 541.0}[process]
    n_seeds, expected = 30, 5.0 * 20_000
    total = sum(draw(seed, arrivals=process, rate=5.0, duration=20_000.0).size for seed in range(n_seeds))
    bound = 4 * np.sqrt(n_seeds * expected * spread)
    assert abs(total - n_seeds * expected) < bound


def test_constant_arrivals_are_a_grid():
    times = draw(arrivals="constant", rate=4.0, duration=10.0)
    assert times.tolist() == [i / 4 for i in range(40)]


def test_constant_arrivals_of_a_rate_that_does_not_divide_the_window():
    assert draw(arrivals="constant", rate=0.3, duration=10.0).tolist() == pytest.approx([0, 1 / 0.3, 2 / 0.3])


def test_poisson_gaps_are_exponential_and_counts_uniform():
    times = draw(1, arrivals="poisson", rate=10.0, duration=2000.0)
    assert stats.kstest(np.diff(times), "expon", args=(0, 0.1)).pvalue > 0.01
    assert stats.chisquare(counts(times, 100.0, 2000.0)).pvalue > 0.01
    assert dispersion(times, 1.0, 2000.0) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_wanted_variation(cv):
    times = draw(2, arrivals="gamma", arrival_cv=cv, rate=20.0, duration=10_000.0)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    # Times of some thousand seconds cannot hold gaps of picoseconds, so compare the law of the gaps above a
    # microsecond.
    law = stats.gamma(cv**-2, scale=0.05 * cv**2)
    rank = (law.cdf(gaps[gaps > 1e-6]) - law.cdf(1e-6)) / law.sf(1e-6)
    assert stats.kstest(rank, "uniform").pvalue > 0.01
    assert np.mean(gaps <= 1e-6) == pytest.approx(law.cdf(1e-6), abs=4 * 0.5 / np.sqrt(gaps.size))


def test_gamma_with_variation_one_is_poisson():
    times = draw(3, arrivals="gamma", arrival_cv=1.0, rate=20.0, duration=2000.0)
    assert stats.kstest(np.diff(times), "expon", args=(0, 0.05)).pvalue > 0.01


def test_gamma_process_starts_in_equilibrium():
    """The first second sees the mean rate too, not a process that has just been switched on."""
    n = [
        np.count_nonzero(draw(seed, arrivals="gamma", arrival_cv=3.0, rate=2.0, duration=20.0) < 1.0)
        for seed in range(4000)
    ]
    assert np.mean(n) == pytest.approx(2.0, abs=4 * np.std(n) / np.sqrt(len(n)))


def test_sinusoid_peaks_a_quarter_into_its_wave():
    times = draw(4, arrivals="sinusoidal", amplitude=0.8, period=100.0, rate=50.0, duration=2000.0)
    angle = 2 * np.pi * times / 100.0
    # For the density (1 + A sin x) / 2 pi the means of sin and cos are A / 2 and 0.
    slack = 4 / np.sqrt(2 * times.size)
    assert np.sin(angle).mean() == pytest.approx(0.4, abs=slack)
    assert np.cos(angle).mean() == pytest.approx(0.0, abs=slack)


def test_sinusoid_is_one_wave_of_the_trace_by_default():
    times = draw(5, arrivals="sinusoidal", amplitude=1.0, rate=50.0, duration=1000.0)
    rising = np.count_nonzero(times < 500.0) / times.size
    assert rising == pytest.approx(0.5 + 1 / np.pi, abs=4 * 0.5 / np.sqrt(times.size))


def test_bursts_are_bursty_and_quiet_times_quiet():
    fields = {"arrivals": "bursty", "burst_factor": 5.0, "burst_seconds": 20.0, "quiet_level": 0.2, "rate": 20.0}
    times = draw(6, **fields, duration=40_000.0)
    assert dispersion(times, 10.0, 40_000.0) > 10
    per_second = counts(times, 1.0, 40_000.0)
    # One second lies in a burst (mean 100) for a share of (1 - .2) / (5 - .2) = 1/6 of the time, else the mean is 4.
    assert np.mean(per_second > 40) == pytest.approx(1 / 6, abs=0.03)
    assert per_second[per_second <= 15].mean() == pytest.approx(4.0, rel=0.1)


def test_unevenness_is_ordered():
    found = [
        dispersion(draw(7, arrivals=p, rate=20.0, duration=3000.0), 5.0, 3000.0)
        for p in ("constant", "poisson", "gamma", "bursty")
    ]
    assert found == sorted(found)
    assert found[0] < 0.01
    assert found[3] > 5


def test_there_is_always_a_request():
    assert all(draw(seed, arrivals="poisson", rate=1.0, duration=1.0).size >= 1 for seed in range(50))
