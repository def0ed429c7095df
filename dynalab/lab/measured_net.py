"""What a request over TCP costs, from a file that `dynalab bench net` has written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalab.errors import ConfigError
from dynalab.lab.measured import load_measured
from dynalab.units import format_duration, format_size

if TYPE_CHECKING:
    import xarray as xr

_CURE = "give a file that `dynalab bench net` has written"
_DIMS = {"payload_bytes", "concurrency", "handler_seconds"}


@dataclass(frozen=True)
class MeasuredNet:
    """A file of measured requests.

    Attributes
    ----------
    path : pathlib.Path
    sha256 : str
        Of the file's bytes.
    dataset : xarray.Dataset
        As :func:`dynalab.net.bench.bench_net` returns it.
    """

    path: Path
    sha256: str
    dataset: xr.Dataset

    @property
    def facts(self) -> dict[str, str]:
        """What was measured, where and when, for the attributes of results."""
        attrs = self.dataset.attrs
        machine = f"{attrs.get('machine_cpu', 'unknown CPU')}, {attrs.get('machine_cores', '?')} cores"
        return {
            "measured_net_file": self.path.name,
            "measured_net_sha256": self.sha256,
            "measured_net_at": str(attrs.get("measured_at", "unknown")),
            "measured_net_machine": machine,
        }

    def costs(self) -> dict[str, tuple[float, str]]:
        """Return what :func:`~dynalab.net.sizing.recommend_tcp` takes of a connection, each value with its source.

        Handlers that return at once, the best of everything else that was varied: ``rtt_s``, the median request of the
        smallest payload with the fewest callers; ``per_request_s``, the time between requests at the highest rate of
        that payload; ``bandwidth``, payload bytes per second of the largest.
        """
        quick = self.dataset.isel(handler_seconds=int(np.argmin(self.dataset.handler_seconds.values)))
        small, large = (quick.sel(payload_bytes=pick(quick.payload_bytes.values)) for pick in (np.min, np.max))
        alone = small.isel(concurrency=int(np.argmin(small.concurrency.values)))
        rtt = float(alone.latency.sel(percentile=50.0).min())
        rate = float(small.request_rate.max())
        nbytes = int(large.payload_bytes)
        facts = self.facts
        where = f"{facts['measured_net_machine']}, over 127.0.0.1 (no network between)"
        of = f"{where}, {facts['measured_net_at']} ({self.path.name})"
        return {
            "rtt_s": (rtt, f"measured here: median of {format_size(int(small.payload_bytes))} requests alone, {of}"),
            "per_request_s": (1 / rate, f"measured here: {rate:,.0f} requests/s of that size at most, {of}"),
            "bandwidth": (
                nbytes * float(large.request_rate.max()),
                f"measured here: requests of {format_size(nbytes)} and replies of that size, {of}",
            ),
        }


def read_measured_net(path: str | os.PathLike[str]) -> MeasuredNet:
    """Read a file that ``dynalab bench net`` has written.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds no requests over a network.
    """
    place, sha256, dataset = load_measured(path, "measured_net", _CURE)
    for name, units in (("request_rate", "1/s"), ("latency", "s")):
        found: Any = dataset.get(name)
        if found is None or not set(found.dims) >= _DIMS or not set(found.dims) <= set(dataset.coords):
            raise ConfigError(f"measured_net: {str(path)!r} holds no requests over a network; {_CURE}")
        sound = found.dtype.kind == "f" and found.attrs.get("units") == units
        if not sound or not (np.isfinite(found.values).all() and found.values.min() > 0):
            raise ConfigError(f"measured_net: {str(path)!r}: {name} is none (in {units}, above 0); {_CURE}")
    if 50.0 not in dataset.get("percentile", np.empty(0)) or dataset.payload_bytes.dtype.kind not in "iu":
        raise ConfigError(f"measured_net: {str(path)!r} holds no median latencies by payload; {_CURE}")
    return MeasuredNet(place, sha256, dataset)


def assumed_costs() -> dict[str, tuple[float, str]]:
    """Return what is taken of a connection where nothing was measured, each value with its source."""
    return {
        "rtt_s": (200e-6, f"assumed: {format_duration(200e-6)}, two machines of one rack"),
        "per_request_s": (100e-6, f"assumed: {format_duration(100e-6)} of one process's time for a request"),
        "bandwidth": (1.25e9, f"assumed: {format_size(1.25e9, binary=False)}/s, a network of 10 Gbit/s"),
    }
