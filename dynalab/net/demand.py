"""What a client asks of its workers over the network: arrivals, services and payloads, and their peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.pools.variability import squared_variation

_Floats = npt.NDArray[np.float64]
#: Requests of a longer trace that are looked at: those that follow each other most closely.
MOST_REQUESTS: Final = 100_000
#: Requests made up where only a rate is known, and their seed.
_MADE_UP, _SEED = 20_000, 0
#: A peak is the mean over so many service times, and never over less than so many seconds: chance alone then makes
#: little of it, and a queue has the time to settle.
_WINDOW_SERVICES, _LEAST_WINDOW_S = 10, 10.0


@dataclass(frozen=True, eq=False)
class Demand:
    """Requests as they come to one worker.

    Attributes
    ----------
    arrivals, services, payloads : ndarray of float, shape (n,)
        Seconds, sorted; seconds that each is handled for; bytes of each.
    window_s : float
        Over which the peak was taken.
    rate, rate_peak : float
        Requests per second, over all and in the busiest window.
    cv2_arrivals : float
        Squared coefficient of variation of the intervals in the busiest window.
    made_up : bool
        Whether a rate alone was given: Poisson arrivals then, with a fixed seed.
    left_out : int
        Requests of a long trace that were not looked at.
    """

    arrivals: _Floats
    services: _Floats
    payloads: _Floats
    window_s: float
    rate: float
    rate_peak: float
    cv2_arrivals: float
    made_up: bool
    left_out: int

    @property
    def service_s(self) -> float:
        """Mean seconds of handling."""
        return float(self.services.mean())

    @property
    def short(self) -> bool:
        """Whether the requests came in less time than the window is long."""
        return bool(self.arrivals[-1] - self.arrivals[0] < self.window_s)

    @property
    def cv2_service(self) -> float:
        """Squared coefficient of variation of the seconds of handling."""
        return squared_variation(self.services)

    @classmethod
    def of(
        cls,
        arrivals: float | npt.ArrayLike,
        service_s: float | npt.ArrayLike,
        payload_bytes: float | npt.ArrayLike,
        workers: int,
        window_s: float,
    ) -> Self:
        """Check what is known of the requests, and take the share of the busiest worker, requests going round.

        Raises
        ------
        ConfigError
            For values that are no requests.
        """
        given = np.asarray(arrivals, np.float64)
        made_up = given.ndim == 0
        if made_up:
            times, holds = _poisson(float(given), service_s)
        else:
            times, holds = given, np.broadcast_to(_checked("service_s", service_s), given.shape)
        if times.ndim != 1 or times.size < 2 or not np.isfinite(times).all():
            raise ConfigError("arrivals: give a rate in requests/s, or at least two finite times in seconds")
        sizes = _checked("payload_bytes", payload_bytes)
        if sizes.ndim and (made_up or sizes.shape != times.shape):
            raise ConfigError(f"payload_bytes: shape {sizes.shape} for {times.size} requests; give one each, or one")
        sizes = np.broadcast_to(sizes, times.shape)
        order = np.argsort(times, kind="stable")
        rows = [np.asarray(values)[order] for values in (times, holds, sizes)]
        rows[0] = rows[0] - rows[0][0]
        left_out = max(0, times.size - MOST_REQUESTS)
        if left_out:
            first = int(np.argmin(rows[0][MOST_REQUESTS - 1 :] - rows[0][: left_out + 1]))
            rows = [values[first : first + MOST_REQUESTS] for values in rows]
        if rows[0].size < 2 * workers or rows[0][-1] <= rows[0][0]:
            raise ConfigError(f"arrivals: {rows[0].size} requests at one time or for {workers} workers tell no rate")
        shares = [[values[worker::workers] for values in rows] for worker in range(workers)]
        window = window_s or max(_WINDOW_SERVICES * float(rows[1].mean()), _LEAST_WINDOW_S)
        peaks = [_busiest(share[0], window) for share in shares]
        busiest = int(np.argmax([rate for rate, _ in peaks]))
        own = shares[busiest]
        rate = (own[0].size - 1) / float(own[0][-1] - own[0][0])
        peak, cv2 = peaks[busiest]
        return cls(own[0], own[1], own[2], window, rate, max(rate, peak), cv2, made_up, left_out)


def _poisson(rate: float, service_s: float | npt.ArrayLike) -> tuple[_Floats, _Floats]:
    """Make up requests: Poisson arrivals; services drawn from those given, or exponential around the one given."""
    if not (np.isfinite(rate) and rate > 0):
        raise ConfigError(f"arrivals: a rate of {rate!r} requests/s; give one above 0, or the times of a trace")
    rng = np.random.default_rng(_SEED)
    times = np.cumsum(rng.exponential(1 / rate, _MADE_UP))
    known = _checked("service_s", service_s)
    return times, rng.choice(known, _MADE_UP) if known.ndim else rng.exponential(1.0, _MADE_UP) * float(known)


def _checked(name: str, values: float | npt.ArrayLike) -> _Floats:
    found = np.asarray(values, np.float64)
    if found.ndim > 1 or not found.size or not (np.isfinite(found).all() and (found >= 0).all() and found.max() > 0):
        raise ConfigError(f"{name}: give one finite number above 0, or one from 0 up for each request")
    return found


def _busiest(arrivals: _Floats, window: float) -> tuple[float, float]:
    """Return rate and variation of the intervals in the window with most arrivals."""
    ends = np.searchsorted(arrivals, arrivals + window, side="right")
    counts = ends - np.arange(arrivals.size)
    first = int(np.argmax(counts))
    inside = arrivals[first : ends[first]]
    span = min(window, float(arrivals[-1] - arrivals[0]))
    return counts[first] / span, squared_variation(np.diff(inside))
