"""`dynalab bench pools`: measure object pools, say in a table what came out, and keep it with all that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dynalab.lab.bench_files import aligned, begin, keep
from dynalab.units import format_duration

if TYPE_CHECKING:
    import xarray as xr

#: What `--quick` takes instead of the defaults.
QUICK: Final[Mapping[str, Any]] = {"items": (8,), "threads": (1, 4), "tasks": (1, 64), "seconds": 2.0}


def measure_pools(
    options: Mapping[str, Any],
    out: str | None = None,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, xr.Dataset]:
    """Measure object pools on this machine, and save what was found.

    Parameters
    ----------
    options : mapping
        Fields of :class:`~dynalab.pools.bench.PoolBenchPlan`.
    out : str, optional
        File to write; by default ``bench/pools-<date>.nc`` below the working directory.
    progress : bool
        Show a bar on a terminal.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    path : pathlib.Path
        The file, absolute.
    dataset : xarray.Dataset
        As :func:`dynalab.pools.bench.bench_pools` returns it, with the machine, versions and parameters as attributes.

    Raises
    ------
    DynalabError
        If an option cannot be used, or the file cannot be written: the latter is found out before anything is measured.
    """
    from dynalab.pools.bench import PoolBenchPlan, bench_pools

    begun, target = begin("pools", ".nc", out)
    plan = PoolBenchPlan(**options)
    say(f"measuring for about {format_duration(plan.seconds)} ...")
    return keep(bench_pools(plan, progress=progress), target, begun)


def table(found: xr.Dataset) -> str:
    """Write a benchmark of pools as text: for each kind and number of items the cost by borrowers, and the hand-over.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`measure_pools`.
    """
    rows = [["pool", "items", *(str(n) for n in found.concurrency.values), "hand-over p50", "p99"]]
    for kind, items in product(found.kind.values, found["items"].values):
        part = found.sel(kind=kind, items=items)
        rows.append(
            [
                "SyncPool, threads" if kind == "threads" else f"Pool, {kind}",
                str(int(items)),
                *(_time(cost) for cost in part.cost.values),
                *(_time(part.handover.sel(percentile=q)) for q in (50, 99)),
            ]
        )
    attrs = found.attrs
    return "\n".join(
        [
            f"{attrs['machine_cpu']}, {attrs['machine_cores']} cores, Python {attrs['python']}"
            f"{'' if attrs['gil'] else ' without the GIL'}",
            f"an acquire and release, by threads or tasks that borrow at a time; medians of {attrs['rounds']} rounds",
            "hand-over: from a release until who waits has the item",
            "",
            *aligned(rows, left=1),
        ]
    )


def _time(value: Any) -> str:
    return "-" if float(value) != float(value) else format_duration(float(f"{float(value):.3g}"))
