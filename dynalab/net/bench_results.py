"""The figures of a benchmark of the network as one Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.net.bench_plan import Case, NetBenchPlan

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.net.bench import Limit, Sample

#: Of latencies.
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
CONVENTION: Final = (
    "closed loop: a caller asks again when it has its reply; latencies as callers see them, waiting included; "
    "limit: a bare echo over a connection for each caller, or what the handlers' time allows, whichever is less"
)
_SPREAD: Final = {"": 50.0, "_p10": 10.0, "_p90": 90.0}
_NAMES: Final = {"": "median", "_p10": "10th percentile", "_p90": "90th percentile"}
_COORDS: Final = {
    "loop": {"long_name": "event loop of client and server"},
    "payload_bytes": {"units": "B", "long_name": "bytes of a request, and of its reply"},
    "concurrency": {"units": "1", "long_name": "callers with one request under way each"},
    "pool_size": {"units": "1", "long_name": "most connections of the client"},
    "channel_buffer": {"units": "1", "long_name": "most requests in flight on a connection"},
    "server_concurrency": {"units": "1", "long_name": "handlers that the server runs at a time"},
    "handler_seconds": {"units": "s", "long_name": "time that a handler waits"},
    "percentile": {"units": "%", "long_name": "percentile of the requests of a round"},
}


def bench_dataset(plan: NetBenchPlan, samples: Mapping[Case | Limit, Sequence[Sample]], seconds: float) -> xr.Dataset:
    """Gather measurements.

    Parameters
    ----------
    plan : NetBenchPlan
    samples : mapping
        Of every case, and of the bare echo: one for each round.
    seconds : float
        How long a measurement lasted.

    Returns
    -------
    xarray.Dataset
        As :func:`dynalab.net.bench.bench_net` says.
    """
    import xarray as xr

    coords: dict[str, Any] = {
        name: (name, list(getattr(plan, "loops" if name == "loop" else name)), _COORDS[name]) for name in Case._fields
    }
    coords["percentile"] = ("percentile", list(PERCENTILES), _COORDS["percentile"])
    ds = xr.Dataset(coords=coords)
    over, shared = Case._fields, Case._fields[:3]
    ours = [samples[case] for case in plan.cases]
    bare = [found for job, found in samples.items() if not isinstance(job, Case)]

    def add(name: str, dims: Sequence[str], values: Any, units: str, what: str) -> None:
        shape = [ds.sizes[dim] for dim in dims]
        ds[name] = (dims, np.asarray(values, float).reshape(shape), {"units": units, "long_name": what})

    for name, dims, jobs, who in (("request_rate", over, ours, ""), ("limit", shared, bare, " of the bare echo")):
        for suffix, percentile in _SPREAD.items():
            values = [np.percentile([s.load.rate for s in found], percentile) for found in jobs]
            add(name + suffix, dims, values, "1/s", f"requests/s{who}, {_NAMES[suffix]} over rounds")
    for name, dims, jobs, who in (("latency", over, ours, ""), ("limit_latency", shared, bare, " of the bare echo")):
        values = [_middle(np.percentile(s.load.latencies, PERCENTILES) for s in found) for found in jobs]
        add(name, (*dims, "percentile"), values, "s", f"time from asking to the reply{who}, median over rounds")
    values = [_middle(s.load.cpu_seconds / len(s.load.latencies) for s in found) for found in ours]
    add("client_cpu", over, values, "s", "CPU time of a request, thread of the client")
    values = [_middle(s.server_cpu_seconds / len(s.load.latencies) for s in found) for found in ours]
    add("server_cpu", over, values, "s", "CPU time of a request, process of the server")
    values = [_middle(s.connections for s in found) for found in ours]
    add("connections", over, values, "1", "connections of the client at the end, median over rounds")
    values = [sum(len(s.load.latencies) for s in found) for found in ours]
    add("requests", over, values, "1", "requests that were measured")
    times = {
        loop: [s.connect_seconds for case in plan.cases if case.loop == loop for s in samples[case]]
        for loop in plan.loops
    }
    values = [np.percentile(found, PERCENTILES) for found in times.values()]
    add("connect_time", ("loop", "percentile"), values, "s", "time until a first connection is open")

    handlers = np.minimum(ds.concurrency, ds.server_concurrency) / ds.handler_seconds.where(ds.handler_seconds > 0)
    share = (ds.request_rate / np.fmin(ds.limit, handlers)).transpose(*over)
    ds["share_of_limit"] = share.assign_attrs(units="1", long_name="requests/s over what bare echo and handlers allow")
    return ds.assign_attrs(
        convention=CONVENTION,
        checked="every reply's length and ends, the first and last one of each caller whole",
        rounds=len(ours[0]),
        measurement_seconds=seconds,
        parameters=plan.model_dump_json(),
    )


def _middle(values: Iterable[Any]) -> Any:
    """Return the median over rounds."""
    return np.median(list(values), axis=0)
