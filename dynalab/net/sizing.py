"""From arrivals and service times to the sizes of a TCP pool and of the endpoint behind it, each with its reason.

What is sized, with the semantics of Dynamo's request plane:

- **Permits** (``DYN_TCP_WORKER_POOL_SIZE``): a worker handles so many requests at a time; each holds a permit until it
  is done. They are the servers of a G/G/c queue.
- **Queue** (``DYN_TCP_WORK_QUEUE_SIZE``): who waits for a permit. A place is useless where the wait for its turn is
  longer than anybody would wait; who finds no place is refused at once and can go elsewhere.
- **Connections** (``DYN_TCP_POOL_SIZE``) and **requests in flight on each** (``DYN_TCP_CHANNEL_BUFFER``): a connection
  carries many requests and answers them in their order. Where the worker acknowledges what it accepts, a request is in
  flight for a round trip; where it replies when it has finished, for its whole time, and a slow one holds up the
  replies to all that were sent after it on the same connection (head-of-line blocking).
- **Timeout** (``DYN_TCP_REQUEST_TIMEOUT``): longer than the slowest answer that is not a failure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.net._sizing_reasons import reasons, warnings
from dynalab.net.demand import Demand
from dynalab.pools.fifo import fifo_waits, in_system
from dynalab.pools.queueing import servers_for_wait, wait_quantile
from dynalab.pools.queueing_bounded import BoundedQueue
from dynalab.pools.variability import squared_variation
from dynalab.units import parse_bandwidth, parse_duration, parse_size

_Floats = npt.NDArray[np.float64]
#: Of the wait allowed for a permit, the share that a request may wait for its connection.
_SHARE_OF_CONNECTION: Final = 0.1
#: A connection beyond this load is not counted on, however short the waits of the formula.
_BUSIEST_CONNECTION: Final = 0.5
#: Two connections at least: one that breaks does not stop the others.
_FEWEST_CONNECTIONS: Final = 2
#: Slots for a burst twice that of the trace; and never fewer on a connection.
_SLACK, _FEWEST_SLOTS = 2, 16
#: Seconds below which a timeout would take a pause of a process for a failure, and its multiple of the slowest answer.
_LEAST_TIMEOUT_S, _TIMEOUT_MARGIN = 5.0, 10


@dataclass(frozen=True, eq=False)
class TcpAdvice:
    """What to set for a client and its workers, and why.

    Attributes
    ----------
    settings : dict of str to str
        ``DYN_TCP_*`` variables.
    reasons : dict of str to str
        One sentence for each of them, with its numbers.
    evidence : dict
        Figures behind the decisions; calculated from the trace, not measured.
    warnings : list of str
        What the reader must not overlook.
    """

    settings: dict[str, str]
    reasons: dict[str, str]
    evidence: dict[str, Any]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in the order in which a reader wants them."""
        return {
            "settings": dict(self.settings),
            "reasons": dict(self.reasons),
            "evidence": dict(self.evidence),
            "warnings": list(self.warnings),
            "method": "calculated: the trace through a first-come-first-served queue, and G/G/c formulas at its peak",
        }


def recommend_tcp(
    arrivals: float | npt.ArrayLike,
    service_s: float | npt.ArrayLike,
    *,
    payload_bytes: float | npt.ArrayLike = 4096,
    workers: int = 1,
    reply: bool = False,
    wait_s: float | str = 0.1,
    share: float = 0.99,
    patience_s: float | str = 5.0,
    rtt_s: float | str = 200e-6,
    per_request_s: float | str = 100e-6,
    bandwidth: float | str = "1.25GB/s",
    queue_bytes: int | str = "1GiB",
    window_s: float | str = 0.0,
) -> TcpAdvice:
    """Recommend sizes for the TCP pool of one client and the endpoint of each of its workers.

    Permits are those that G/G/c needs at the peak rate, or those that the trace itself needs when it is replayed
    through a first-come-first-served queue: the larger number. The rest follows from them.

    Parameters
    ----------
    arrivals : array_like of float, or float
        Seconds at which requests come, of all workers together; or their rate, taken as Poisson.
    service_s : array_like of float, or float
        Seconds that each request is handled for. With a rate: what to draw from, or the mean of exponential ones.
    payload_bytes : array_like of float, or float
    workers : int
        Workers that requests go round, each with an address, and a pool, of its own.
    reply : bool
        Whether the worker replies after handling, or acknowledges after acceptance, as Dynamo's does.
    wait_s, share : float
        That `share` of requests shall wait for a permit for `wait_s` at most.
    patience_s : float
        Longest wait for a permit that is still of use.
    rtt_s, per_request_s, bandwidth : float
        Of a connection: seconds of a round trip; seconds that each request occupies it beside its bytes; bytes per
        second. Measured best.
    queue_bytes : int
        Memory for the payloads that wait.
    window_s : float
        Over which the peak rate is taken; 0: ten mean services, and 10 s at least.

    Returns
    -------
    TcpAdvice

    Raises
    ------
    ConfigError
        For values out of range.

    Examples
    --------
    >>> advice = recommend_tcp(200.0, 0.05, wait_s=0.01)
    >>> advice.settings["DYN_TCP_WORKER_POOL_SIZE"], advice.settings["DYN_TCP_POOL_SIZE"]
    ('18', '2')
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers: {workers!r} is not a whole number from 1 up; give one")
    if not 0 < share < 1:
        raise ConfigError(f"share: {share!r} is not between 0 and 1; give one such as 0.99")
    wait, patience, rtt, per_request, window = (
        parse_duration(value, field=name)
        for name, value in (
            ("wait_s", wait_s),
            ("patience_s", patience_s),
            ("rtt_s", rtt_s),
            ("per_request_s", per_request_s),
            ("window_s", window_s),
        )
    )
    demand = Demand.of(arrivals, service_s, payload_bytes, workers, window)
    serial = per_request + demand.payloads / parse_bandwidth(bandwidth, field="bandwidth")

    by_formula, by_replay = _permits(demand, wait, share)
    permits = max(by_formula, by_replay)
    waits = fifo_waits(demand.arrivals, demand.services, permits)
    memory = parse_size(queue_bytes, field="queue_bytes")
    useful = math.floor(permits * patience / demand.service_s)
    queue = max(1, min(useful, int(memory // max(float(demand.payloads.mean()), 1.0))))
    bounded = BoundedQueue(permits, queue, demand.rate_peak, demand.service_s)

    if reply:
        done = demand.arrivals + waits + demand.services
        connections, blocked = _unblocked(done, permits + queue, wait, share)
        in_flight = permits + queue
        slots = math.ceil(in_flight / connections)
        slowest = patience + float(np.quantile(demand.services, 0.999)) + rtt
        timeout = math.ceil(slowest)
    else:
        connections, blocked = _for_bytes(demand, serial, wait, share), 0.0
        in_flight = int(in_system(demand.arrivals, rtt + serial).max())
        slots = _power_of_two(max(_SLACK * in_flight / connections, _FEWEST_SLOTS))
        slowest = rtt + _connection_wait(demand, serial, connections, 0.999) + float(serial.max())
        timeout = math.ceil(max(_LEAST_TIMEOUT_S, _TIMEOUT_MARGIN * slowest))

    evidence = {
        "mode": "reply after handling" if reply else "acknowledge after acceptance",
        "workers": workers,
        "requests": demand.arrivals.size,
        "requests_left_out": demand.left_out,
        "arrivals": "made up: Poisson" if demand.made_up else "as in the trace",
        "rate_mean": _r(demand.rate),
        "rate_peak": _r(demand.rate_peak),
        "window_s": _r(demand.window_s),
        "shorter_than_window": demand.short,
        "cv2_arrivals": _r(demand.cv2_arrivals),
        "service_mean_s": _r(demand.service_s),
        "service_p99_s": _r(np.quantile(demand.services, 0.99)),
        "cv2_service": _r(demand.cv2_service),
        "load_mean": _r(demand.rate * demand.service_s),
        "load_peak": _r(demand.rate_peak * demand.service_s),
        "concurrency_peak": int(in_system(demand.arrivals, demand.services).max()),
        "permits_by_formula": by_formula,
        "permits_by_replay": by_replay,
        "wait_share": share,
        "wait_target_s": wait,
        "wait_replayed_s": _r(np.quantile(waits, share)),
        "wait_longest_s": _r(waits.max()),
        "queue_useful": useful,
        "queue_longest": int(in_system(demand.arrivals, waits).max()),
        "queue_bytes": int(queue * demand.payloads.mean()),
        "rejected_at_peak": _r(bounded.rejected),
        "patience_s": patience,
        "connection_s": _r(serial.mean()),
        "connection_load": _r(demand.rate_peak * serial.mean() / connections),
        "in_flight": in_flight,
        "blocked_s": _r(blocked),
        "slowest_answer_s": _r(slowest),
        "payload_bytes": _r(demand.payloads.mean()),
        "rtt_s": rtt,
        "per_request_s": per_request,
    }
    settings = {
        "DYN_TCP_POOL_SIZE": str(connections),
        "DYN_TCP_CHANNEL_BUFFER": str(slots),
        "DYN_TCP_WORKER_POOL_SIZE": str(permits),
        "DYN_TCP_WORK_QUEUE_SIZE": str(queue),
        "DYN_TCP_REQUEST_TIMEOUT": str(timeout),
    }
    return TcpAdvice(settings, reasons(settings, evidence), evidence, warnings(settings, evidence))


def _permits(demand: Demand, wait: float, share: float) -> tuple[int, int]:
    """Return the least permits by the formula at the peak rate, and by replaying the requests.

    A trace that is shorter than the window tells no rate that lasts: there its peak concurrency stands for the formula.
    """
    peak = int(in_system(demand.arrivals, demand.services).max())
    formula = peak
    if not demand.short:
        formula = servers_for_wait(
            wait, share, demand.rate_peak, demand.service_s, demand.cv2_arrivals, demand.cv2_service, "whitt"
        )
    few, enough = 0, peak
    while enough - few > 1:
        middle = (few + enough) // 2
        if np.quantile(fifo_waits(demand.arrivals, demand.services, middle), share) <= wait:
            enough = middle
        else:
            few = middle
    return formula, enough


def _unblocked(done: _Floats, in_flight: int, wait: float, share: float) -> tuple[int, float]:
    """Return the fewest connections, doubling, on which replies in order delay a `share` of them by `wait` at most."""
    connections = _FEWEST_CONNECTIONS
    while connections < in_flight:
        delays = np.concatenate(
            [np.maximum.accumulate(done[k::connections]) - done[k::connections] for k in range(connections)]
        )
        delay = float(np.quantile(delays, share))
        if delay <= wait:
            return connections, delay
        connections *= 2
    # A connection for each request: nobody is behind another.
    return max(in_flight, _FEWEST_CONNECTIONS), 0.0


def _for_bytes(demand: Demand, serial: _Floats, wait: float, share: float) -> int:
    """Return the fewest connections that carry the bytes of the peak without making requests wait for each other."""
    connections = max(_FEWEST_CONNECTIONS, math.ceil(demand.rate_peak * float(serial.mean()) / _BUSIEST_CONNECTION))
    while _connection_wait(demand, serial, connections, share) > _SHARE_OF_CONNECTION * wait:
        if demand.rate_peak / connections * float(serial.mean()) < 0.01:
            # What is left is the burst itself: more connections do not spread one request.
            break
        connections += 1
    return connections


def _connection_wait(demand: Demand, serial: _Floats, connections: int, share: float) -> float:
    """Return a quantile of the wait at one of the connections: G/G/1 with its share of the requests."""
    return float(
        wait_quantile(
            share,
            1,
            demand.rate_peak / connections,
            float(serial.mean()),
            demand.cv2_arrivals,
            squared_variation(serial),
        )
    )


def _power_of_two(least: float) -> int:
    return 1 << max(0, math.ceil(math.log2(least)))


def _r(value: Any) -> float:
    return float(f"{float(value):.4g}")
