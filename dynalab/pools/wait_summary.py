"""Figures of measured waits: what arrived, how long was waited, and how sure one may be of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.pools.variability import squared_variation

if TYPE_CHECKING:
    import xarray as xr

_Floats = npt.NDArray[np.float64]
#: Batches that leave an error to estimate when two causes are taken out.
_FEWEST = 5


@dataclass(frozen=True)
class WaitSummary:
    """Figures of a measurement, after its warm-up.

    Attributes
    ----------
    requests : int
    rate : float
        Arrivals per second at one pool.
    service_s : float
        Mean seconds that an item was held.
    load : float
        Erlangs.
    cv2_arrivals, cv2_service : float
        Squared coefficients of variation of intervals and holds.
    wait_mean : float
        Seconds.
    wait_error : float
        Standard error of `wait_mean`, by batch means.
    wait_error_at_load : float
        The same beside a formula that is given the measured `rate` and `service_s`: what batches differ by in these two
        is taken out, by least squares.
    waited : float
        Share of requests that waited more than `waited_over`.
    """

    requests: int
    rate: float
    service_s: float
    load: float
    cv2_arrivals: float
    cv2_service: float
    wait_mean: float
    wait_error: float
    wait_error_at_load: float
    waited: float


def summarize_waits(
    found: xr.Dataset, *, warm_up: float = 0.05, batches: int = 30, waited_over: float = 0.0
) -> WaitSummary:
    """Return rate, service time, variation and mean wait with its standard error.

    Waits of neighbours depend on each other, so that their variance tells too little. The requests of each replica are
    cut into long batches, whose means hardly do: the standard error is theirs (batch means; A. M. Law, "Simulation
    Modeling and Analysis").

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`~dynalab.pools.measure.measure_waits`.
    warm_up : float
        Share of the requests of each replica to leave out at the beginning, when the pool is emptier than later.
    batches : int
        In all, 5 at least; rounded up to as many for each replica.
    waited_over : float
        Seconds that count as no wait: in real time a few microseconds pass in any case.

    Raises
    ------
    ConfigError
        For too few requests for so many batches.
    """
    replicas, n = found.wait.shape
    first = int(warm_up * n)
    wait, service = (found[name].values[:, first:] for name in ("wait", "service"))
    each = -(-batches // replicas)
    if batches < _FEWEST or wait.shape[1] < 2 * each:
        raise ConfigError(
            f"batches: {batches} of {wait.size} requests; give {_FEWEST} or more, of two requests each at least"
        )
    intervals = np.diff(found.arrival.values, axis=1, prepend=np.nan)[:, max(first, 1) :]
    means = [_batch_means(values, each) for values in (wait, intervals, service)]
    rest = means[0] - means[0].mean()
    causes = np.column_stack([np.ones(means[0].size), means[1], means[2]])
    left = means[0] - causes @ np.linalg.lstsq(causes, means[0], rcond=None)[0]
    rate, service_s = 1 / float(intervals.mean()), float(service.mean())
    return WaitSummary(
        requests=wait.size,
        rate=rate,
        service_s=service_s,
        load=rate * service_s,
        cv2_arrivals=squared_variation(intervals.ravel()),
        cv2_service=squared_variation(service.ravel()),
        wait_mean=float(wait.mean()),
        wait_error=float(np.sqrt(rest @ rest / (rest.size - 1) / rest.size)),
        wait_error_at_load=float(np.sqrt(left @ left / (left.size - 3) / left.size)),
        waited=float((wait > waited_over).mean()),
    )


def _batch_means(values: _Floats, each: int) -> _Floats:
    """Return the means of `each` consecutive parts of every row."""
    return np.array([part.mean() for row in values for part in np.array_split(row, each)])
