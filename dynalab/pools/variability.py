"""What bursty arrivals and uneven services do to a wait: the factor by which it differs from that of an M/M/c queue.

Two approximations from the first two moments alone. The simple one is by A. O. Allen and W. Cunneen (A. O. Allen,
"Probability, Statistics, and Queueing Theory with Computer Science Applications", 2nd ed., 1990): the wait grows with
the mean of the two squared coefficients of variation, which is exact for M/M/c and M/G/1, and right in heavy traffic.
The other is W. Whitt's ("Approximations for the GI/G/m queue", Production and Operations Management 2, 1993, equations
2.16-2.25), which corrects it for small variation at moderate load. Beside simulations (tests/pools/test_queueing.py):
Poisson arrivals with any regular service within 13% and 3%; regular arrivals at many servers wait less than either
says, bursts wait longer, by a half at eight servers of 70% load. Both take arrivals as independent of each other and of
the services: they know nothing of a rate that varies over time, or of slow spells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, unknown


def squared_variation(values: npt.ArrayLike) -> float:
    """Return the squared coefficient of variation: variance over squared mean; 0 for fewer than two values.

    Examples
    --------
    >>> squared_variation([1.0, 3.0])
    0.25
    """
    found = np.asarray(values, np.float64)
    mean = found.mean() if found.size else 0.0
    return float(found.var() / mean**2) if found.size > 1 and mean else 0.0


def spread(
    cv2_arrivals: float,
    cv2_service: float,
    servers: npt.ArrayLike,
    utilisation: npt.ArrayLike,
    method: str = "allen-cunneen",
) -> Any:
    """Return the mean wait of a G/G/c queue over that of the M/M/c queue with the same means.

    Parameters
    ----------
    cv2_arrivals, cv2_service : float
        Squared coefficients of variation of the intervals between arrivals and of the services.
    servers : array_like of int
    utilisation : array_like of float
        Load per server, below 1.
    method : {"allen-cunneen", "whitt"}

    Returns
    -------
    ndarray
        Shape of `servers` and `utilisation` together; 1 where both `cv2` are 1.

    Raises
    ------
    ConfigError
        For a squared coefficient of variation that is negative or not finite, or an unknown method.

    Examples
    --------
    >>> float(spread(1.0, 0.0, 1, 0.8)), round(float(spread(1.0, 0.0, 16, 0.5, "whitt")), 3)
    (0.5, 0.62)
    """
    for name, value in (("cv2_arrivals", cv2_arrivals), ("cv2_service", cv2_service)):
        if not (np.isfinite(value) and value >= 0):
            raise ConfigError(f"{name}: {value!r} is not a finite number from 0 up; 1 is that of exponential times")
    c, rho = np.broadcast_arrays(np.asarray(servers, np.float64), np.asarray(utilisation, np.float64))
    simple = np.full(c.shape, (cv2_arrivals + cv2_service) / 2)
    if method == "allen-cunneen":
        return simple
    if method == "whitt":
        return simple * _whitt(cv2_arrivals, cv2_service, c, rho)
    raise unknown("method", method, ("allen-cunneen", "whitt"))


def _whitt(ca2: float, cs2: float, servers: npt.NDArray[np.float64], rho: npt.NDArray[np.float64]) -> Any:
    """Return Whitt's correction; his names: gamma, phi_1 to phi_4, psi."""
    if ca2 == cs2 == 0:
        return np.ones(servers.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        gamma = np.where(
            rho > 0, (1 - rho) * (servers - 1) * (np.sqrt(4 + 5 * servers) - 2) / (16 * servers * rho), np.inf
        )
        # An idle queue has a correction without limit, of a wait that is none.
        gamma = np.where(servers == 1, 0.0, np.minimum(0.24, gamma))
        phi1 = 1 + gamma
        phi3 = np.where(rho > 0, (1 - 4 * gamma) * np.exp(-2 * (1 - rho) / (3 * rho)), 0.0)
    phi4 = np.minimum(1.0, (phi1 + phi3) / 2)
    mean = (ca2 + cs2) / 2
    psi = np.ones(servers.shape) if mean >= 1 else phi4 ** (2 * (1 - mean))
    if ca2 >= cs2:
        below = 4 * ca2 - 3 * cs2
        return 4 * (ca2 - cs2) / below * phi1 + cs2 / below * psi
    both = 2 * (ca2 + cs2)
    return (cs2 - ca2) / both * phi3 + (cs2 + 3 * ca2) / both * psi
