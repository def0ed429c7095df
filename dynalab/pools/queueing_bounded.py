"""A queue of bounded length: permits and places to wait in, as a server has that refuses what it cannot take.

The M/M/c/K queue (K = permits + places) as the birth and death process of Erlang (1917): Poisson arrivals, exponential
services, and an arrival that finds all permits and all places taken is refused. Unlike an endless queue it always
settles, also where more arrives than can be served. Of those that are accepted the wait is a mixture of Erlang
distributions: who finds `j` waiting is served after `j + 1` departures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.pools.queueing import erlang_b

#: Longest queue: its state probabilities are held in memory.
MOST_PLACES = 10_000_000


@dataclass(frozen=True)
class BoundedQueue:
    """Steady state of a bounded queue.

    Parameters
    ----------
    servers : int
        Permits; 1 or more.
    places : int
        Places to wait in; 0 or more.
    rate : float
        Arrivals per second, above 0.
    service_s : float
        Mean seconds of a service, above 0.

    Attributes
    ----------
    rejected : float
        Share of arrivals that is refused.
    waiting : float
        Share of the accepted that waits at all.
    wait_mean : float
        Seconds, of the accepted.
    queue_length : float
        Mean number waiting.
    in_use : float
        Mean number of permits in use.

    Raises
    ------
    ConfigError
        For values out of range.

    Examples
    --------
    >>> queue = BoundedQueue(servers=2, places=0, rate=1.0, service_s=1.0)
    >>> round(queue.rejected, 6), queue.wait_mean
    (0.2, 0.0)
    """

    servers: int
    places: int
    rate: float
    service_s: float
    rejected: float = field(init=False)
    waiting: float = field(init=False)
    wait_mean: float = field(init=False)
    queue_length: float = field(init=False)
    in_use: float = field(init=False)
    _found: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.places, bool) or not isinstance(self.places, int) or not 0 <= self.places <= MOST_PLACES:
            raise ConfigError(f"places: {self.places!r} is not a whole number from 0 to {MOST_PLACES:,}; give one")
        for name in ("rate", "service_s"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: {value!r} is not a finite number above 0; give one")
        if self.servers < 1:
            raise ConfigError(f"servers: {self.servers!r} is not 1 or more; give at least one")
        load = self.rate * self.service_s
        blocked = erlang_b(self.servers, load)
        rho = load / self.servers
        # States "all permits busy and j waiting" against the states below them, which together weigh 1: B rho^j. Scaled
        # by the largest of them, so that an overload of thousands of places does not overflow.
        powers = np.arange(self.places + 1) * np.log(rho)
        top = max(0.0, float(powers[-1]))
        weights = blocked * np.exp(powers - top)
        # The state "all busy, none waiting" is among those that weigh 1: count it once.
        total = np.exp(-top) * (1 - blocked) + weights.sum()
        states = weights / total
        rejected = float(states[-1])
        accepted = states[:-1] / (1 - rejected)
        length = float(np.arange(self.places + 1) @ states)
        found = {
            "rejected": rejected,
            "waiting": float(accepted.sum()),
            "wait_mean": length / (self.rate * (1 - rejected)),
            "queue_length": length,
            "in_use": load * (1 - rejected),
            "_found": accepted,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def wait_tail(self, seconds: npt.ArrayLike) -> Any:
        """Return the share of the accepted that waits longer than `seconds` (float, or ndarray of one dimension)."""
        from scipy.special import gammaincc

        times = np.asarray(seconds, np.float64)
        if not np.all(times >= 0):
            raise ConfigError(f"seconds: {seconds!r} is below 0; give 0 or more")
        drained = times[..., None] * self.servers / self.service_s
        tail = np.asarray(gammaincc(np.arange(1, self.places + 1), drained) @ self._found)
        return float(tail) if tail.ndim == 0 else tail

    def wait_quantile(self, share: float) -> float:
        """Return the seconds that a `share` (0 to below 1) of the accepted does not exceed, to nine digits."""
        if not 0 <= share < 1:
            raise ConfigError(f"share: {share!r} is not from 0 to below 1; give one such as 0.99")
        if self.waiting <= 1 - share:
            return 0.0
        low, high = 0.0, self.service_s
        while self.wait_tail(high) > 1 - share:
            low, high = high, 2 * high
        while high - low > 1e-10 * high:
            middle = (low + high) / 2
            if self.wait_tail(middle) > 1 - share:
                low = middle
            else:
                high = middle
        return high
