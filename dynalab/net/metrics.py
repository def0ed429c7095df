"""What clients and endpoints count, and how Prometheus is told."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from dynalab.pools.exposition import Histogram, exposition

if TYPE_CHECKING:
    import xarray as xr

#: Upper bounds of the histogram of waits for a worker's permit [s], those of Dynamo's work handler.
WAIT_BUCKETS: Final = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)


def _counter(what: str) -> Any:
    return field(default=0, metadata={"what": what})


@dataclass(slots=True)
class ClientCounters:
    """What a client counts, of one address or of all."""

    requests: int = _counter("requests asked for")
    responses: int = _counter("responses that somebody waited for")
    late: int = _counter("responses that came after their request was given up")
    waited: int = _counter("requests that found no connection with room")
    retries: int = _counter("attempts after the first")
    timeouts: int = _counter("requests not answered in time")
    cancelled: int = _counter("requests given up by their caller")
    rejected: int = _counter("requests that a server turned away: overloaded, unavailable or refused")
    failed: int = _counter("requests whose handler failed")
    lost: int = _counter("requests whose connection ended before the response")
    unreachable: int = _counter("requests for which no connection could be had")
    connects: int = _counter("connections tried")
    connect_failures: int = _counter("connections that could not be made")
    stuck: int = _counter("connections retired because they fell silent")
    bad_frames: int = _counter("connections closed because what came was no response")
    bytes_sent: int = _counter("bytes of requests handed to sockets")
    bytes_received: int = _counter("bytes read from sockets")


@dataclass(slots=True)
class ServerCounters:
    """What an endpoint counts."""

    connections: int = _counter("connections accepted")
    requests: int = _counter("requests decoded")
    accepted: int = _counter("requests that a handler was or will be called for")
    handled: int = _counter("requests whose handler has ended")
    failed: int = _counter("requests whose handler raised")
    enqueue_rejected: int = _counter("requests turned away because permits and queue were full")
    unavailable: int = _counter("requests for a path without handler, or while draining")
    abandoned: int = _counter("requests whose peer left before their turn: not handled")
    bad_frames: int = _counter("connections closed because what came was no request")
    read_timeouts: int = _counter("connections closed because a frame took too long to come")
    write_timeouts: int = _counter("connections closed because their peer does not read")
    handshake_failures: int = _counter("TLS handshakes that failed")
    bytes_sent: int = _counter("bytes of responses handed to sockets")
    bytes_received: int = _counter("bytes read from sockets")


def total(counters: Iterable[ClientCounters]) -> ClientCounters:
    """Return the sums of all counters."""
    several = list(counters)
    return ClientCounters(*(sum(getattr(one, name) for one in several) for name in ClientCounters.__slots__))


def client_dataset(counters: Mapping[str, ClientCounters]) -> xr.Dataset:
    """Return what a client counted over the dimension ``address``.

    Parameters
    ----------
    counters : mapping of str to ClientCounters
        By address.
    """
    import xarray as xr

    data = {
        one.name: (
            "address",
            [getattr(each, one.name) for each in counters.values()],
            {"units": "bytes" if one.name.startswith("bytes") else "1", "long_name": one.metadata["what"]},
        )
        for one in fields(ClientCounters)
    }
    return xr.Dataset(data, coords={"address": list(counters)})


class WaitHistogram:
    """Counts of waits by duration.

    Examples
    --------
    >>> waits = WaitHistogram((0.1, 1.0))
    >>> for seconds in (0.05, 0.1, 0.5, 7.0):
    ...     waits.observe(seconds)
    >>> waits.counts, round(waits.total, 2)
    ([2, 1, 1], 7.65)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = WAIT_BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Add one wait; a bound belongs to the bucket below it."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


def prometheus_text(
    prefix: str,
    counters: ClientCounters | ServerCounters,
    gauges: Mapping[str, tuple[str, float]],
    waits: WaitHistogram | None = None,
) -> str:
    """Write counters, gauges and a histogram in Prometheus' text format.

    Parameters
    ----------
    prefix : str
        First part of every name.
    counters : ClientCounters or ServerCounters
    gauges : mapping
        Name to (help, value).
    waits : WaitHistogram, optional
        Told as ``<prefix>_permit_wait_seconds``.
    """
    histograms = []
    if waits is not None:
        name, text = f"{prefix}_permit_wait_seconds", "waits of queued requests for a permit"
        histograms = [Histogram(name, text, waits.bounds, waits.counts, waits.total)]
    return exposition(
        [(f"{prefix}_{one.name}", one.metadata["what"], getattr(counters, one.name)) for one in fields(counters)],
        [(f"{prefix}_{name}", what, value) for name, (what, value) in gauges.items()],
        histograms,
    )
