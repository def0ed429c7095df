"""When requests arrive: point processes with a wanted mean rate and a wanted unevenness.

All processes are stationary (or, for the sinusoid, exact in their phase) from the first second on, so that a short
trace shows the same statistics as a long one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dynalab.workload.synth.spec import WorkloadSpec

Floats = npt.NDArray[np.float64]


def arrival_times(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    """Draw the arrival times of one trace.

    Parameters
    ----------
    spec : WorkloadSpec
        Its fields `arrivals`, `rate`, `duration` and those of the chosen process are used.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float64, shape (n_requests,)
        Seconds, never falling, within ``[0, duration)``; at least one.
    """
    times = _PROCESSES[spec.arrivals](spec, rng)
    # An empty trace is of no use to anyone; a rare empty draw becomes one request.
    return times if times.size else rng.uniform(0.0, spec.duration, 1)


def _poisson(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    return np.sort(rng.uniform(0.0, spec.duration, rng.poisson(spec.rate * spec.duration)))


def _constant(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    times = np.arange(np.ceil(spec.rate * spec.duration)) / spec.rate
    return times[times < spec.duration]


def _gamma(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    """Renewal process with gamma-distributed gaps, the form that vLLM's and AIPerf's `burstiness` made common."""
    shape = spec.arrival_cv**-2
    scale = 1.0 / (shape * spec.rate)
    # The gap that covers time zero is longer than others (it was found by falling into it); we enter it anywhere.
    parts = [np.array([rng.uniform() * rng.gamma(shape + 1.0, scale)])]
    while parts[-1][-1] < spec.duration:
        left = spec.rate * (spec.duration - parts[-1][-1])
        n = int(left + 6.0 * spec.arrival_cv * np.sqrt(left + 1.0)) + 16
        parts.append(parts[-1][-1] + np.cumsum(rng.gamma(shape, scale, n)))
    times = np.concatenate(parts)
    return times[times < spec.duration]


def _sinusoidal(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    """Poisson process with rate ``rate * (1 + amplitude * sin(2 pi t / period))``, by thinning (Lewis, Shedler)."""
    peak = 1.0 + spec.amplitude
    times = np.sort(rng.uniform(0.0, spec.duration, rng.poisson(spec.rate * peak * spec.duration)))
    period = spec.duration if spec.period is None else spec.period
    wanted = 1.0 + spec.amplitude * np.sin(2.0 * np.pi * times / period)
    return times[rng.uniform(0.0, peak, times.size) < wanted]


def _bursty(spec: WorkloadSpec, rng: np.random.Generator) -> Floats:
    """On/off Markov-modulated Poisson process: exponential bursts at `burst_factor` times the rate, quiet between."""
    on_share = (1.0 - spec.quiet_level) / (spec.burst_factor - spec.quiet_level)
    means = np.array([spec.burst_seconds * (1.0 / on_share - 1.0), spec.burst_seconds])  # seconds in state off, on
    levels = spec.rate * np.array([spec.quiet_level, spec.burst_factor])
    state = int(rng.random() < on_share)
    edges, masses = [np.zeros(1)], [np.zeros(1)]
    while edges[-1][-1] < spec.duration:
        n = 2 * int((spec.duration - edges[-1][-1]) / means.sum() + 8)
        states = (state + np.arange(n)) % 2
        stays = rng.exponential(means[states])
        edges.append(edges[-1][-1] + np.cumsum(stays))
        masses.append(masses[-1][-1] + np.cumsum(stays * levels[states]))
        # n is even, so that the next batch starts in the same state as this one.
    edge, mass = np.concatenate(edges), np.concatenate(masses)
    total = np.interp(spec.duration, edge, mass)
    # In the time that counts expected requests the process is plain Poisson; map it back to seconds.
    times = np.interp(np.sort(rng.uniform(0.0, total, rng.poisson(total))), mass, edge)
    return times[times < spec.duration]


_PROCESSES = {
    "poisson": _poisson,
    "gamma": _gamma,
    "sinusoidal": _sinusoidal,
    "bursty": _bursty,
    "constant": _constant,
}

#: Names that the field `arrivals` takes.
ARRIVALS: tuple[str, ...] = tuple(_PROCESSES)
