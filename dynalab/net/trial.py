"""Requests that come at their own times, whatever becomes of the others; and what became of each, on both sides."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, NetError
from dynalab.net.observed import OK, ObservedPool, outcome
from dynalab.net.trial_server import REPLY, work

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.net.client import Retry
    from dynalab.net.connection import ClientConnection

#: What :func:`open_loop` tells of each request: units and meaning.
_TOLD: Final = {
    "asked": ("s", "when it was asked for"),
    "ended": ("s", "when it had its outcome"),
    "latency": ("s", "time from asking to the outcome"),
    "service": ("s", "how long its handler was told to take"),
    "outcome": ("1", "how it ended"),
    "attempts": ("1", "attempts that were made"),
    "connection": ("1", "connection of its last attempt, in the order of first use; -1: none"),
}


async def open_loop(
    client: ObservedPool,
    address: str,
    times: npt.ArrayLike,
    services: npt.ArrayLike,
    *,
    path: str = REPLY,
    payload_bytes: int = 64,
    timeout: float | None = None,
    retry: Retry = "safe",
    first: int = 0,
    until: asyncio.Event | None = None,
    origin: float | None = None,
) -> xr.Dataset:
    """Send requests to a :class:`~dynalab.net.trial_server.TrialServer`, each at its time.

    In an open loop nobody waits for the answer of another: a server that falls behind meets as many requests as
    before, unlike in the closed loop of a benchmark.

    Parameters
    ----------
    client : ObservedPool
        It may be used before and after; nothing else may use it meanwhile.
    address : str
    times : array_like of float, shape (n,)
        Seconds from `origin` on, sorted.
    services : array_like of float, shape (n,), or float
        Seconds that each is to be handled for.
    path : str
        ``REPLY`` or ``ACKNOWLEDGE`` of the server.
    payload_bytes : int
    timeout, retry
        As for :meth:`~dynalab.net.client.TcpConnectionPool.request`.
    first : int
        Number of the first request: numbers must differ among all that goes to a server.
    until : asyncio.Event, optional
        Once it is set, what has not been asked for yet is left out.
    origin : float, optional
        Zero of all times [s, ``time.monotonic()``], so that several loads can share it; by default, now.

    Returns
    -------
    xarray.Dataset
        Over ``request`` (its number): ``asked``, ``ended``, ``latency``, ``service`` [s], ``outcome``, ``attempts``,
        ``connection``. ``attrs["origin"]`` is the zero of its times [s, ``time.monotonic()``].

    Raises
    ------
    NetError
        If a reply is not what was sent.
    """
    at = np.asarray(times, float)
    holds = np.broadcast_to(np.asarray(services, float), at.shape)
    if at.ndim != 1 or not at.size or not np.isfinite(at).all() or (np.diff(at, prepend=0.0) < 0).any():
        raise ConfigError("times: give the seconds of one request at least, sorted, from 0 up")
    payloads = [work(first + k, hold, payload_bytes) for k, hold in enumerate(holds.tolist())]
    asked, ended = np.empty(at.size), np.empty(at.size)
    outcomes = [""] * at.size
    wrong: list[int] = []

    async def ask(k: int) -> None:
        asked[k] = time.monotonic()
        error: BaseException | None = None
        try:
            reply = await client.request(address, path, payloads[k], timeout=timeout, retry=retry)
            if reply and reply != payloads[k]:
                wrong.append(first + k)
        except NetError as failed:
            error = failed
        ended[k] = time.monotonic()
        outcomes[k] = outcome(error)

    seen = len(client.attempts)
    with _no_long_collections():
        n = at.size
        if origin is None:
            origin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for k, due in enumerate(at.tolist()):
                pause = origin + due - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                if until is not None and until.is_set():
                    n = k
                    break
                group.create_task(ask(k))
    if wrong:
        raise NetError(f"requests {wrong} got replies of others")
    attempts, connection = _attempts(client, seen, payloads)
    columns = {
        "asked": asked - origin,
        "ended": ended - origin,
        "latency": ended - asked,
        "service": holds,
        "outcome": np.array(outcomes),
        "attempts": attempts,
        "connection": connection,
    }
    return _dataset({name: values[:n] for name, values in columns.items()}, first + np.arange(n), origin)


@contextmanager
def _no_long_collections() -> Iterator[None]:
    """Take what is in memory out of garbage collection: in a notebook, walking all of it stops a client for long."""
    freeze = not gc.get_freeze_count()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()


def _attempts(
    client: ObservedPool, seen: int, payloads: list[bytes]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many attempts each request took, and over which connection its last one went."""
    # By identity: what an attempt was for is the very payload that was asked with.
    places = {id(payload): k for k, payload in enumerate(payloads)}
    attempts, connection = np.zeros(len(payloads), int), np.full(len(payloads), -1)
    order: dict[ClientConnection, int] = {}
    for attempt in client.attempts[seen:]:
        k, used = places[id(attempt.payload)], attempt.connection
        attempts[k] += 1
        connection[k] = -1 if used is None else order.setdefault(used, len(order))
    return attempts, connection


def _dataset(columns: dict[str, Any], numbers: npt.NDArray[np.int64], origin: float) -> xr.Dataset:
    import xarray as xr

    data = {
        name: ("request", values, {"units": _TOLD[name][0], "long_name": _TOLD[name][1]})
        for name, values in columns.items()
    }
    return xr.Dataset(data, {"request": ("request", numbers, {"long_name": "number"})}, {"origin": origin})


def with_handling(requests: xr.Dataset, handlings: npt.NDArray[np.void]) -> xr.Dataset:
    """Say of each request what its handler did, beside what its client was told.

    Parameters
    ----------
    requests : xarray.Dataset
        From :func:`open_loop`.
    handlings : ndarray
        From :meth:`~dynalab.net.trial_server.TrialServer.handlings`; those of other requests are left out.

    Returns
    -------
    xarray.Dataset
        With ``handled`` (how often a handler began), ``began`` and ``done`` (of the first such handler, on the
        clock of `requests` [s]; NaN: never).
    """
    numbers = requests.request.values
    begun = {int(row["number"]): row for row in handlings[::-1]}
    counts = dict(zip(*np.unique(handlings["number"], return_counts=True), strict=True))
    origin = requests.attrs["origin"]

    def of(name: str) -> npt.NDArray[np.float64]:
        return np.array([begun[n][name] - origin if n in begun else np.nan for n in numbers.tolist()])

    seconds = {"units": "s"}
    return requests.assign(
        handled=("request", [int(counts.get(n, 0)) for n in numbers], {"units": "1", "long_name": "handlings"}),
        began=("request", of("began"), {**seconds, "long_name": "when its handler began"}),
        done=("request", of("ended"), {**seconds, "long_name": "when its handler was done"}),
    )


def balance(requests: xr.Dataset) -> dict[str, int]:
    """Hold what clients were told against what was done; every count but the first must be zero.

    Parameters
    ----------
    requests : xarray.Dataset
        From :func:`with_handling`.

    Returns
    -------
    dict of str to int
        ``requests``; ``without outcome``; ``handled twice``; ``ok, not handled``; ``refused, yet handled``: the client
        was told that the handler did not run, and it ran.
    """
    told, handled = requests.outcome.values, requests.handled.values
    never = np.isin(told, ("could not connect", "overloaded", "unavailable"))
    return {
        "requests": len(told),
        "without outcome": int((told == "").sum()),
        "handled twice": int((handled > 1).sum()),
        "ok, not handled": int(((told == OK) & (handled == 0)).sum()),
        "refused, yet handled": int((never & (handled > 0)).sum()),
    }
