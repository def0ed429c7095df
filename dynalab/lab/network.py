"""Connections, permits and queue for a trace: the part of a tuning report that sizes the request plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.lab.measured_net import assumed_costs
from dynalab.net.sizing import TcpAdvice, recommend_tcp
from dynalab.pools.fifo import in_system
from dynalab.units import format_duration, format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dynalab.lab.measured_net import MeasuredNet
    from dynalab.workload import Trace

#: Bytes of a request: its token ids as decimal digits with a comma (six digits for a vocabulary of 128 thousand), and
#: its fields and headers.
_TOKEN_BYTES: Final = 7
_ENVELOPE_BYTES: Final = 1024
#: Share of requests that waits for a permit no longer than this part of its unloaded TTFT, on average.
_SHARE, _WAIT_OF_TTFT = 0.99, 0.1


@dataclass(frozen=True, eq=False)
class NetworkAdvice:
    """Settings of the request plane for a trace, and what they rest on.

    Attributes
    ----------
    advice : TcpAdvice
    assumptions : dict of str to tuple of str
        Value and source of everything that the trace does not tell.
    arrivals, services : ndarray of float, shape (n,)
        Seconds at which requests come and for which they are handled.
    """

    advice: TcpAdvice
    assumptions: dict[str, tuple[str, str]]
    arrivals: npt.NDArray[np.float64]
    services: npt.NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in the order in which a reader wants them."""
        told = {name: f"{value} ({source})" for name, (value, source) in self.assumptions.items()}
        return {**self.advice.to_dict(), "assumptions": told}


def network_advice(
    trace: Trace, ttft: npt.NDArray[np.float64], itl_ms: float, measured: MeasuredNet | None = None
) -> NetworkAdvice:
    """Size connections, permits and queue of one worker that serves a whole trace and acknowledges what it accepts.

    A request holds a permit for its TTFT and, for each further output token, the ITL.

    Parameters
    ----------
    trace : Trace
    ttft : ndarray of float, shape (n_requests,)
        Seconds to the first token of each request, unloaded.
    itl_ms : float
        Milliseconds between output tokens.
    measured : MeasuredNet, optional
        What a request costs on a connection; assumed otherwise.
    """
    services = np.asarray(ttft, np.float64) + itl_ms / 1e3 * np.maximum(trace.output_tokens - 1, 0)
    payloads = _ENVELOPE_BYTES + _TOKEN_BYTES * np.asarray(trace.input_tokens, np.float64)
    wait = _WAIT_OF_TTFT * float(np.mean(ttft))
    costs = assumed_costs() if measured is None else measured.costs()
    assumptions = {
        "time a permit is held": (
            f"mean {format_duration(_round(services.mean()))}",
            f"TTFT of an unloaded engine, simulated, and {itl_ms:g} ms (parameter itl_ms, assumed) for each token more",
        ),
        "wait for a permit": (
            f"{format_duration(_round(wait))} for {_SHARE:.0%} of requests",
            f"a choice: {_WAIT_OF_TTFT:.0%} of the mean unloaded TTFT",
        ),
        "payload": (
            f"mean {format_size(_round(payloads.mean()))}",
            f"assumed: {_TOKEN_BYTES} bytes for each input token, and {_ENVELOPE_BYTES}",
        ),
        "round trip": (format_duration(_round(costs["rtt_s"][0])), costs["rtt_s"][1]),
        "time on a connection": (format_duration(_round(costs["per_request_s"][0])), costs["per_request_s"][1]),
        "bandwidth": (f"{format_size(_round(costs['bandwidth'][0]), binary=False)}/s", costs["bandwidth"][1]),
        "workers": ("1", "all requests at one address; with more, sizes are for each, from its share of the trace"),
    }
    if trace.n_requests < 2 or trace.duration <= 0:
        nothing = TcpAdvice({}, {}, {}, ["no two requests at different times: there is no rate to size for"])
        return NetworkAdvice(nothing, assumptions, trace.arrival, services)
    advice = recommend_tcp(
        trace.arrival,
        services,
        payload_bytes=payloads,
        wait_s=wait,
        share=_SHARE,
        rtt_s=costs["rtt_s"][0],
        per_request_s=costs["per_request_s"][0],
        bandwidth=costs["bandwidth"][0],
    )
    return NetworkAdvice(advice, assumptions, np.asarray(trace.arrival, np.float64), services)


def network_figure(found: NetworkAdvice) -> Figure:
    """Show how many requests are handled at once over the trace, and how many permits are recommended for them."""
    import matplotlib.pyplot as plt

    from dynalab.lab.style import BLUE, RED, WIDTH

    figure, ax = plt.subplots(figsize=(WIDTH, 2.9), layout="constrained")
    order = np.argsort(found.arrivals, kind="stable")
    arrivals, services = found.arrivals[order] - found.arrivals.min(), found.services[order]
    there = in_system(arrivals, services)
    width = max(60.0, float(arrivals[-1]) / 400)
    starts = np.unique((arrivals // width).astype(int), return_index=True)
    ax.step(
        starts[0] * width / 60,
        np.maximum.reduceat(there, starts[1]),
        where="post",
        color=BLUE,
        label=f"most at once, in {format_duration(width)}",
    )
    permits = found.advice.settings.get("DYN_TCP_WORKER_POOL_SIZE")
    if permits:
        ax.axhline(int(permits), color=RED, linestyle="--", label=f"permits: {permits}")
        mean = found.advice.evidence["load_mean"]
        if not found.advice.evidence["shorter_than_window"]:
            ax.axhline(mean, color=BLUE, linewidth=1, linestyle=":", label=f"mean: {mean:.3g}")
    ax.set(
        xlabel="time (min)",
        ylabel="requests handled at once\n(simulated, no waiting)",
        ylim=(0, None),
        title="Concurrency over the trace",
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0)
    return figure


def _round(value: Any) -> float:
    return float(f"{float(value):.3g}")
