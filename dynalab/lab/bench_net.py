"""`dynalab bench net`: measure requests over TCP, say in a table what came out, and keep it with all that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.lab.bench_files import aligned, begin, keep
from dynalab.units import format_duration, format_size

if TYPE_CHECKING:
    import xarray as xr

#: What `--quick` takes instead of the defaults.
QUICK: Final[Mapping[str, Any]] = {
    "loops": ("asyncio",),
    "payload_bytes": ("64", "1MiB"),
    "concurrency": (1, 64),
    "pool_size": (8,),
    "seconds": 8.0,
}
#: What a row of the table stands for; the best of all else is shown.
_ROWS: Final = ("loop", "payload_bytes", "concurrency", "server_concurrency", "handler_seconds")


def measure_net(
    options: Mapping[str, Any],
    out: str | None = None,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, xr.Dataset]:
    """Measure requests and replies on this machine, and save what was found.

    Parameters
    ----------
    options : mapping
        Fields of :class:`~dynalab.net.bench.NetBenchPlan`.
    out : str, optional
        File to write; by default ``bench/net-<date>.nc`` below the working directory.
    progress : bool
        Show a bar on a terminal.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    path : pathlib.Path
        The file, absolute.
    dataset : xarray.Dataset
        As :func:`dynalab.net.bench.bench_net` returns it, with the machine, versions and parameters as attributes.

    Raises
    ------
    DynalabError
        If an option cannot be used, the servers cannot be had, or the file cannot be written: the last is found out
        before anything is measured.
    """
    from dynalab.lab import probes
    from dynalab.net.bench import NetBenchPlan, bench_net

    begun, target = begin("net", ".nc", out)
    plan = NetBenchPlan(**options)
    say(f"measuring for about {format_duration(plan.seconds)}, client and server on this machine ...")
    found = bench_net(plan, progress=progress)
    return keep(found, target, begun, uvloop_version=probes.version("uvloop") or "")


def table(found: xr.Dataset) -> str:
    """Write a benchmark of the network as text: a row for each load, at the smallest pool that is as fast as the best.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`measure_net`.
    """
    # What is the same in every row, and nothing out of the ordinary, is not shown.
    varied = [name for name in _ROWS[3:] if found.sizes[name] > 1]
    if "handler_seconds" not in varied and found.handler_seconds.values.any():
        varied.append("handler_seconds")
    head = ["loop", "payload", "callers", *(_HEADS[name] for name in varied)]
    rows = [[*head, "requests/s", "p10-p90", "p50", "p99", "pool", "CPU client+server", "echo/s", "of limit"]]
    for values in product(*(found[name].values for name in _ROWS)):
        part = best(found.sel(dict(zip(_ROWS, values, strict=True))))
        p50, p99 = (format_duration(float(f"{float(part.latency.sel(percentile=q)):.3g}")) for q in (50, 99))
        rows.append(
            [
                str(part.loop.values),
                format_size(int(part.payload_bytes)),
                str(int(part.concurrency)),
                *(_SHOWN[name](part[name].item()) for name in varied),
                _count(part.request_rate),
                f"{_count(part.request_rate_p10)}-{_count(part.request_rate_p90)}",
                p50,
                p99,
                f"{int(part.pool_size)} x {int(part.channel_buffer)}",
                f"{float(part.client_cpu) * 1e6:.0f}+{float(part.server_cpu) * 1e6:.0f} us",
                _count(part.limit),
                f"{float(part.share_of_limit):.0%}",
            ]
        )
    return "\n".join([*_heading(found), "", *aligned(rows, left=1)])


def best(part: xr.Dataset) -> xr.Dataset:
    """Return the smallest pool that is as fast as the fastest one, as far as the rounds can tell them apart.

    Parameters
    ----------
    part : xarray.Dataset
        Over pool_size and channel_buffer, beside percentile. Of those whose 90th percentile reaches the highest median
        request rate, the one with the fewest connections is taken, then the one with the smallest buffer.
    """
    names = ("pool_size", "channel_buffer")
    part = part.sortby(list(names))
    as_fast = (part.request_rate_p90 >= part.request_rate.max()).transpose(*names)
    pool, buffer = np.argwhere(as_fast.values)[0]
    return part.isel(pool_size=int(pool), channel_buffer=int(buffer))


def _heading(found: xr.Dataset) -> list[str]:
    """Say what was measured, and how the figures count."""
    attrs = found.attrs
    connect = ", ".join(
        f"{format_duration(float(f'{float(found.connect_time.sel(loop=loop, percentile=50)):.3g}'))} ({loop})"
        for loop in found.loop.values
    )
    return [
        f"{attrs['machine_cpu']}, {attrs['machine_cores']} cores: a client and a server process, over 127.0.0.1",
        f"callers ask again when they have their reply, which is compared; medians of {attrs['rounds']} rounds",
        "pool: connections x requests in flight on each, the smallest as fast as the best; p50, p99: as callers see it",
        "echo/s: a bare asyncio echo with a connection for each caller, without frames, pool or handlers",
        f"a connection is open after {connect}",
    ]


def _count(value: Any) -> str:
    """Write a rate with three digits."""
    return f"{float(f'{float(value):.3g}'):,.0f}" if float(value) >= 100 else f"{float(value):.3g}"


_HEADS: Final = {"server_concurrency": "server", "handler_seconds": "handler"}
_SHOWN: Final[dict[str, Callable[[Any], str]]] = {"server_concurrency": str, "handler_seconds": format_duration}
