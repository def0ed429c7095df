"""Queueing theory for pools: how long one waits for one of `servers` equal items, and how many items a load needs.

A pool of `servers` items; arrivals at `rate` per second that hold an item for `service_s` seconds on average, in order
of arrival, and wait as long as it takes: an M/M/c queue where arrivals are Poisson and holds exponential, G/G/c
otherwise. ``load = rate * service_s`` (in Erlangs) is the mean number of items in use; it must stay below `servers`.

The exact results are those of A. K. Erlang ("Solution of some problems in the theory of probabilities of significance
in automatic telephone exchanges", 1917) and J. D. C. Little ("A proof for the queuing formula L = lambda W", 1961);
what other distributions do to the wait is in :mod:`dynalab.pools.variability`.

All functions broadcast over numpy arrays, and return a float for scalars.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.pools.variability import spread

Method = Literal["allen-cunneen", "whitt"]
#: Recursions run over all numbers of servers below the one asked for: this many take a second or two.
MOST_SERVERS: Final = 1_000_000


def erlang_b(servers: npt.ArrayLike, load: npt.ArrayLike) -> Any:
    """Return the probability that all servers are busy where nobody waits: Erlang's loss formula.

    Computed by ``B(c) = a B(c-1) / (c + a B(c-1))``, ``B(0) = 1``, which damps rounding errors for any size.

    Parameters
    ----------
    servers : array_like of int
        0 or more.
    load : array_like of float
        Erlangs; arrivals per second times seconds per service.

    Returns
    -------
    float or ndarray

    Raises
    ------
    ConfigError
        For a number of servers that is not whole or beyond `MOST_SERVERS`, or a load that is negative or not finite.

    Examples
    --------
    >>> round(erlang_b(10, 5.0), 6)
    0.018385
    """
    c, a = np.broadcast_arrays(_servers(servers, least=0), _amounts("load", load))
    if not c.size:
        return np.ones(c.shape)
    loads, which = np.unique(a.ravel(), return_inverse=True)
    wanted, flat = c.ravel(), np.ones(c.size)
    order = np.argsort(wanted, kind="stable")
    steps, first = np.unique(wanted[order], return_index=True)
    groups = dict(zip(steps.tolist(), np.split(order, first[1:]), strict=True))
    blocked = np.ones(loads.size)
    for k in range(1, int(steps[-1]) + 1):
        offered = loads * blocked
        blocked = offered / (k + offered)
        if k in groups:
            flat[groups[k]] = blocked[which[groups[k]]]
    return _plain(flat.reshape(c.shape))


def erlang_c(servers: npt.ArrayLike, load: npt.ArrayLike) -> Any:
    """Return the probability that an arrival has to wait where everyone waits: Erlang's delay formula.

    Parameters
    ----------
    servers : array_like of int
        1 or more.
    load : array_like of float
        Erlangs, below `servers`.

    Returns
    -------
    float or ndarray

    Raises
    ------
    ConfigError
        As :func:`erlang_b`; and where the load is not below the servers, since the queue then grows for ever.

    Examples
    --------
    >>> round(erlang_c(10, 5.0), 6)
    0.036105
    """
    c, a = np.broadcast_arrays(_servers(servers), _amounts("load", load))
    _check_stable(c, a)
    blocked = erlang_b(c, a)
    # Not 1 - rho (1 - B): near saturation c - a keeps the digits that the quotient would lose.
    return _plain(c * blocked / ((c - a) + a * blocked))


def wait_mean(
    servers: npt.ArrayLike,
    rate: npt.ArrayLike,
    service_s: npt.ArrayLike,
    cv2_arrivals: float = 1.0,
    cv2_service: float = 1.0,
    method: Method = "allen-cunneen",
) -> Any:
    """Return the mean seconds that an arrival waits, those who need not included.

    Exact for M/M/c (both `cv2` 1): ``C(c, a) service_s / (c - a)``. For others that times
    :func:`~dynalab.pools.variability.spread`, an approximation.

    Parameters
    ----------
    servers : array_like of int
    rate : array_like of float
        Arrivals per second.
    service_s : array_like of float
        Mean seconds that an item is held.
    cv2_arrivals, cv2_service : float
        Squared coefficients of variation (variance over squared mean) of the intervals between arrivals and of the
        services: 0 for a clockwork, 1 for exponential ones, more for bursts and heavy tails.
    method : {"allen-cunneen", "whitt"}
        Which approximation to take where a `cv2` is not 1.

    Raises
    ------
    ConfigError
        For values that make no queue, or one that grows for ever.

    Examples
    --------
    >>> wait_mean(1, 0.5, 1.0), wait_mean(1, 0.5, 1.0, cv2_service=0.0)
    (1.0, 0.5)
    """
    c, a, s = _queue(servers, rate, service_s)
    return _plain(erlang_c(c, a) * s / (c - a) * spread(cv2_arrivals, cv2_service, c, a / c, method))


def wait_tail(
    seconds: npt.ArrayLike,
    servers: npt.ArrayLike,
    rate: npt.ArrayLike,
    service_s: npt.ArrayLike,
    cv2_arrivals: float = 1.0,
    cv2_service: float = 1.0,
    method: Method = "allen-cunneen",
) -> Any:
    """Return the probability of waiting longer than `seconds`.

    Exact for M/M/c: ``C exp(-(c mu - lambda) t)``. For others the wait of those who wait is taken as exponential, too,
    which it is in heavy traffic, with the mean that :func:`wait_mean` gives; as many wait as in M/M/c.

    Examples
    --------
    >>> round(wait_tail(0.0, 2, 1.0, 1.0), 4), round(wait_tail(1.0, 2, 1.0, 1.0), 4)
    (0.3333, 0.1226)
    """
    c, a, s = _queue(servers, rate, service_s)
    scale = s / (c - a) * spread(cv2_arrivals, cv2_service, c, a / c, method)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without any variation nobody waits, not even 0 s.
        lasting = np.where(scale > 0, np.exp(-_amounts("seconds", seconds) / scale), 0.0)
    return _plain(erlang_c(c, a) * lasting)


def wait_quantile(
    share: npt.ArrayLike,
    servers: npt.ArrayLike,
    rate: npt.ArrayLike,
    service_s: npt.ArrayLike,
    cv2_arrivals: float = 1.0,
    cv2_service: float = 1.0,
    method: Method = "allen-cunneen",
) -> Any:
    """Return the seconds that a `share` of arrivals does not exceed: the inverse of :func:`wait_tail`.

    Parameters
    ----------
    share : array_like of float
        From 0 to below 1, as in 0.99.

    Examples
    --------
    >>> round(wait_quantile(0.99, 2, 1.0, 1.0), 4), wait_quantile(0.5, 2, 1.0, 1.0)
    (3.5066, 0.0)
    """
    p = _amounts("share", share)
    if np.any(p >= 1):
        raise ConfigError(f"share: {float(np.max(p)):g} is not below 1; give one from 0 up, as in 0.99")
    c, a, s = _queue(servers, rate, service_s)
    scale = s / (c - a) * spread(cv2_arrivals, cv2_service, c, a / c, method)
    with np.errstate(divide="ignore"):
        return _plain(np.maximum(np.log(erlang_c(c, a)) - np.log1p(-p), 0.0) * scale)


def little(rate: npt.ArrayLike, seconds: npt.ArrayLike) -> Any:
    """Return how many are present on average: ``L = lambda W``, whatever the distributions and the order of service.

    Of the waits, it is the length of the queue; of the services, the items in use; of both, all who are there.

    Parameters
    ----------
    rate : array_like of float
        Arrivals per second.
    seconds : array_like of float
        Mean seconds that each stays.

    Examples
    --------
    >>> little(200.0, 0.05)
    10.0
    """
    return _plain(_amounts("rate", rate) * _amounts("seconds", seconds))


def servers_for_wait(
    wait_s: float,
    share: float,
    rate: float,
    service_s: float,
    cv2_arrivals: float = 1.0,
    cv2_service: float = 1.0,
    method: Method = "allen-cunneen",
) -> int:
    """Return the least number of servers with which a `share` of arrivals waits `wait_s` at most.

    Parameters
    ----------
    wait_s : float
        Seconds; 0 or more.
    share : float
        From 0 to below 1, as in 0.99.
    rate, service_s, cv2_arrivals, cv2_service, method
        As :func:`wait_mean` takes them.

    Raises
    ------
    ConfigError
        Also where more than `MOST_SERVERS` would be needed.

    Examples
    --------
    >>> servers_for_wait(0.01, 0.99, rate=200.0, service_s=0.05)
    17
    """
    load = float(_amounts("rate", rate)) * float(_amounts("service_s", service_s))
    patience = float(_amounts("wait_s", wait_s))
    if not 0 <= share < 1:
        raise ConfigError(f"share: {share!r} is not from 0 to below 1; give one such as 0.99")
    if service_s == 0 or rate == 0:
        return 1
    for c, waiting in _erlang_c_upwards(load):
        factor = float(spread(cv2_arrivals, cv2_service, c, load / c, method))
        if waiting <= 1 - share or factor == 0:
            return c
        if np.log(waiting / (1 - share)) * factor * service_s / (c - load) <= patience:
            return c
    raise ConfigError(
        f"rate, service_s: {rate:g}/s of {service_s:g} s each need more than {MOST_SERVERS:,} servers; check the units"
    )


def _erlang_c_upwards(load: float) -> Iterator[tuple[int, float]]:
    """Yield every number of servers above the load with its probability of waiting, from one recursion."""
    blocked = 1.0
    for c in count(1):
        if c > MOST_SERVERS:
            return
        blocked = load * blocked / (c + load * blocked)
        if c > load:
            yield c, c * blocked / ((c - load) + load * blocked)


def _queue(servers: npt.ArrayLike, rate: npt.ArrayLike, service_s: npt.ArrayLike) -> tuple[Any, Any, Any]:
    """Return servers, load and service time, broadcast and checked."""
    c, r, s = np.broadcast_arrays(_servers(servers), _amounts("rate", rate), _amounts("service_s", service_s))
    a = r * s
    _check_stable(c, a)
    return c, a, s


def _check_stable(servers: npt.NDArray[np.int64], load: npt.NDArray[np.float64]) -> None:
    over = np.flatnonzero(load >= servers)
    if over.size:
        c, a = int(servers.ravel()[over[0]]), float(load.ravel()[over[0]])
        raise ConfigError(
            f"servers: {c} for a load of {a:g} Erlangs (arrivals/s times seconds of service): the queue grows for "
            f"ever; give {int(a) + 1} or more, or a lower rate"
        )


def _servers(value: npt.ArrayLike, least: int = 1) -> npt.NDArray[np.int64]:
    found = np.asarray(value)
    if found.dtype.kind not in "iu" and not (found.dtype.kind == "f" and np.all(found == np.floor(found))):
        raise ConfigError(f"servers: {value!r} is not a whole number; give one from {least} up")
    bad = found[(found < least) | (found > MOST_SERVERS)] if found.size else found
    if bad.size:
        raise ConfigError(f"servers: {bad.ravel()[0]} is not from {least} to {MOST_SERVERS:,}; give one that is")
    return found.astype(np.int64)


def _amounts(name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {value!r} is not a number; give one from 0 up") from None
    bad = found[~((found >= 0) & np.isfinite(found))]
    if bad.size:
        raise ConfigError(f"{name}: {bad.ravel()[0]:g} is not a finite number from 0 up; give one that is")
    return found


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
