"""Why a TCP recommendation is what it is, in sentences that hold in every case, and what must not be overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynalab.units import format_duration, format_size

#: Beyond so many connections to one address the limit of open files is to be looked at.
_MANY_CONNECTIONS = 512
#: Refusals at the peak that are worth a warning.
_MANY_REFUSED = 0.01


def reasons(settings: Mapping[str, str], evidence: Mapping[str, Any]) -> dict[str, str]:
    """Return one sentence for every setting.

    Parameters
    ----------
    settings : mapping of str to str
        ``DYN_TCP_*`` variables.
    evidence : mapping
        Of the recommendation.
    """
    e = evidence
    reply = e["mode"].startswith("reply")
    connections, slots, permits, queue, timeout = (
        int(settings[f"DYN_TCP_{name}"])
        for name in ("POOL_SIZE", "CHANNEL_BUFFER", "WORKER_POOL_SIZE", "WORK_QUEUE_SIZE", "REQUEST_TIMEOUT")
    )
    wait, share = _time(e["wait_target_s"]), _percent(e["wait_share"])
    peak = f"{e['rate_peak']:,.4g} requests/s in the busiest {_time(e['window_s'])}"
    formula = "peak concurrency stands for a formula:" if e["shorter_than_window"] else "G/G/c needs"
    return {
        "DYN_TCP_POOL_SIZE": _connections(e, connections) if reply else _carriers(e, connections, peak),
        "DYN_TCP_CHANNEL_BUFFER": (
            f"{connections} x {slots} in flight hold the {e['in_flight']} that a worker takes on (permits and queue)"
            if reply
            else f"a request is in flight for about {_time(e['rtt_s'] + e['connection_s'])}, until it is "
            f"acknowledged: at most {e['in_flight']} at once in the trace, and {connections} x {slots} leave room for "
            "twice as many"
        ),
        "DYN_TCP_WORKER_POOL_SIZE": (
            f"{peak}, {_time(e['service_mean_s'])} each, keep {e['load_peak']:,.4g} permits in use; for "
            f"{share} of requests to wait {wait} at most, {formula} {e['permits_by_formula']} and the trace itself "
            f"{e['permits_by_replay']}; with {permits} it is {_time(e['wait_replayed_s'])}; with "
            f"{e['concurrency_peak']}, its peak concurrency, nobody in it would have waited"
        ),
        "DYN_TCP_WORK_QUEUE_SIZE": (
            f"{permits} permits at {_time(e['service_mean_s'])} each serve {e['queue_useful']} in the "
            f"{_time(e['patience_s'])} that a wait is of use: a longer queue only keeps requests that nobody "
            f"waits for; {queue} take {format_size(e['queue_bytes'])}; the longest queue of the trace is "
            f"{e['queue_longest']}, and at a lasting peak {_chance(e['rejected_at_peak'])} of the requests would be "
            "refused"
        ),
        "DYN_TCP_REQUEST_TIMEOUT": (
            f"a reply may take {_time(e['slowest_answer_s'])}: the longest useful wait, and the service that "
            "one in a thousand exceeds"
            if reply
            else f"an acknowledgement takes {_time(e['slowest_answer_s'])} at most (1 in 1,000 longer), "
            f"handling not included; {timeout} s leave room for a pause of a process"
        ),
    }


def _connections(e: Mapping[str, Any], connections: int) -> str:
    if connections == e["in_flight"]:
        return "one connection for each request in flight: with fewer, replies in order would wait for slower ones"
    return (
        f"replies leave in the order of requests: with {connections} connections {_percent(e['wait_share'])} of them "
        f"are held up behind a slower one for {_time(e['blocked_s'])} at most"
    )


def _carriers(e: Mapping[str, Any], connections: int, peak: str) -> str:
    return (
        f"{peak}, each on a connection for {_time(e['connection_s'])}: {connections} are "
        f"{100 * e['connection_load']:.2g}% busy; two at least, so that one may break"
    )


def warnings(settings: Mapping[str, str], evidence: Mapping[str, Any]) -> list[str]:
    """Return what the reader must not overlook; the parameters are those of :func:`reasons`."""
    e = evidence
    permits, queue = int(settings["DYN_TCP_WORKER_POOL_SIZE"]), int(settings["DYN_TCP_WORK_QUEUE_SIZE"])
    found = [
        "service times are taken as they are: where a worker slows down with concurrency, permits beyond its knee only "
        "slow it down"
    ]
    if e["shorter_than_window"]:
        found.append(
            f"all requests came in less than the {_time(e['window_s'])} over which a peak is taken: too short to tell "
            "a rate that lasts, so that permits are their peak concurrency"
        )
    if e["requests_left_out"]:
        found.append(
            f"only the {e['requests'] * e['workers']:,} requests that follow each other most closely were looked at, "
            f"{e['requests_left_out']:,} were left out"
        )
    if e["queue_longest"] > queue:
        found.append(f"the longest queue of the trace, {e['queue_longest']}, does not fit: some requests are refused")
    if e["rejected_at_peak"] > _MANY_REFUSED:
        found.append(
            f"a peak that lasts would refuse {e['rejected_at_peak']:.1%}: {permits} permits are near their limit there"
        )
    if int(settings["DYN_TCP_POOL_SIZE"]) > _MANY_CONNECTIONS:
        found.append(
            f"{settings['DYN_TCP_POOL_SIZE']} connections to one address: see to the limit of open files, or let the "
            "worker acknowledge instead of reply"
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.6g}%"


def _time(seconds: float) -> str:
    return format_duration(float(f"{seconds:.3g}"))


def _chance(share: float) -> str:
    return "practically none" if share < 1e-6 else f"{share:.2g}"
