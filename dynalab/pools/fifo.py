"""Exact waits of given arrivals and services at a pool: no distribution is assumed, every request is followed.

First come, first served, over `servers` equal items: the recursion of J. Kiefer and J. Wolfowitz ("On the theory of
queues with many servers", 1955). An arrival takes the item that is free first.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError


def fifo_waits(arrivals: npt.ArrayLike, services: npt.ArrayLike, servers: int) -> npt.NDArray[np.float64]:
    """Return the seconds that each arrival waits.

    Parameters
    ----------
    arrivals : array_like of float, shape (n,)
        Seconds; sorted.
    services : array_like of float, shape (n,)
        Seconds that each holds its item.
    servers : int
        1 or more.

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    ConfigError
        For arrivals that are not sorted, services below 0, shapes that differ, or no server.

    Examples
    --------
    >>> fifo_waits([0.0, 1.0, 2.0], [5.0, 5.0, 5.0], 2).tolist()
    [0.0, 0.0, 3.0]
    """
    times, holds = checked(arrivals, services)
    if servers < 1:
        raise ConfigError(f"servers: {servers!r} is not 1 or more; give at least one")
    waits = np.zeros(times.size)
    # More servers than arrivals are never needed: the first ones serve each its own.
    free = [-np.inf] * min(int(servers), times.size)
    heapify(free)
    for index, (arrival, hold) in enumerate(zip(times.tolist(), holds.tolist(), strict=True)):
        begin = max(arrival, free[0])
        heapreplace(free, begin + hold)
        waits[index] = begin - arrival
    return waits


def in_system(arrivals: npt.ArrayLike, stays: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return how many are there at each arrival, itself included; who stays for no time is not there at all.

    Parameters
    ----------
    arrivals : array_like of float, shape (n,)
        Sorted.
    stays : array_like of float, shape (n,)

    Examples
    --------
    >>> in_system([0.0, 1.0, 2.0], [1.5, 5.0, 5.0]).tolist()
    [1, 2, 2]
    """
    times, holds = checked(arrivals, stays)
    gone = np.searchsorted(np.sort(times + holds), times, side="right")
    return np.arange(1, times.size + 1) - gone


def checked(
    arrivals: npt.ArrayLike, services: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return arrivals and services as arrays of one shape, or refuse them."""
    times, holds = np.asarray(arrivals, np.float64), np.asarray(services, np.float64)
    if times.ndim != 1 or times.shape != holds.shape:
        raise ConfigError(f"services: shape {holds.shape} for arrivals of shape {times.shape}; give one for each")
    if not (np.isfinite(times).all() and np.all(np.diff(times) >= 0)):
        raise ConfigError("arrivals: not sorted, or not finite; give times in seconds that never fall")
    if not (np.isfinite(holds).all() and np.all(holds >= 0)):
        raise ConfigError("services: one is below 0 or not finite; give seconds from 0 up")
    return times, holds
