"""`dynalab bench tiers`: choose a disk, measure, say in a table what came out, and keep it with all that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.lab import probes
from dynalab.lab.bench_files import aligned, begin, keep, roomiest_place
from dynalab.lab.measured import no_disk
from dynalab.units import format_duration, format_size

if TYPE_CHECKING:
    import xarray as xr

#: What `--quick` takes instead of the defaults.
QUICK: Final[Mapping[str, Any]] = {
    "device": "128MiB",
    "host": "64MiB",
    "disk": "512MiB",
    "block_bytes": ("64KiB", "1MiB"),
    "batches": (4, 16),
    "seconds": 10.0,
}


def measure_tiers(
    options: Mapping[str, Any],
    out: str | None = None,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, xr.Dataset]:
    """Measure this machine's tiers, and save what was found.

    Parameters
    ----------
    options : mapping
        Fields of :class:`~dynalab.tiers.bench.BenchPlan`. Without a ``path``: the roomiest local file system that can
        be written to.
    out : str, optional
        File to write; by default ``bench/tiers-<date>.nc`` below the working directory.
    progress : bool
        Show bars on a terminal.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    path : pathlib.Path
        The file, absolute.
    dataset : xarray.Dataset
        As :func:`dynalab.tiers.bench.bench_tiers` returns it, with the machine, versions and parameters as attributes.

    Raises
    ------
    DynalabError
        If an option cannot be used, the tiers cannot be had, or the file cannot be written: the last is found out
        before anything is measured.
    """
    from dynalab.tiers.bench import BenchPlan, bench_tiers

    begun, target = begin("tiers", ".nc", out)
    plan = BenchPlan(**options)
    if plan.disk and "path" not in options:
        plan = BenchPlan(path=roomiest_place(), **options)
    plan.check_space()
    where = f", disk files without a name in {plan.path}" if plan.disk else ""
    say(f"measuring for about {format_duration(plan.seconds)}{where} ...")
    found = bench_tiers(plan, progress=progress)
    facts = {}
    if plan.disk:
        facts = {"disk_path": str(plan.path), "disk_file_system": probes.file_system(str(plan.path)) or "unknown"}
    return keep(found, target, begun, **facts)


def table(found: xr.Dataset) -> str:
    """Write a benchmark of tiers as text: for each direction and layout GB/s by block size, at the best batch.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`measure_tiers`.
    """
    sizes = [format_size(size) for size in found.block_bytes.values]
    rows = [["from tier to tier", "layout", *sizes, "batch", "best, p10-p90", "limit", "best/limit"]]
    for direction, layout in product(found.direction.values, found.layout.values):
        part = found.sel(direction=direction, layout=layout)
        if bool(part.bandwidth.notnull().any()):
            part = part.sel(batch=best_batch(part.bandwidth))
            best = part.isel(block_bytes=int(np.nanargmax(part.bandwidth.values)))
            rows.append(
                [
                    str(direction).replace("_", " "),
                    str(layout).replace("_", "-"),
                    *(_gb(value) for value in part.bandwidth.values),
                    str(int(part.batch)),
                    f"{_gb(best.bandwidth_p10)}-{_gb(best.bandwidth_p90)}",
                    _gb(best.limit),
                    f"{float(best.share_of_limit):.0%}",
                ]
            )
    return "\n".join([*_heading(found), "", *aligned(rows, left=2)])


def best_batch(bandwidth: xr.DataArray) -> int:
    """Return the batch with the highest geometric mean over the block sizes that every batch was measured with.

    Parameters
    ----------
    bandwidth : xarray.DataArray
        Over (block_bytes, batch) [B/s]; NaN where nothing was measured.
    """
    rates = bandwidth.transpose("block_bytes", "batch").values
    whole = rates[~np.isnan(rates).any(axis=1)]
    score = np.log(whole).mean(axis=0) if len(whole) else np.nan_to_num(rates).max(axis=0)
    return int(bandwidth.batch[int(np.argmax(score))])


def _heading(found: xr.Dataset) -> list[str]:
    """Say what was measured, and how the figures count."""
    attrs = found.attrs
    parts = [f"host memory {attrs['host_pages']}"]
    if "device_label" in attrs:
        emulated = attrs["device_label"] == "host-emulated"
        parts.insert(0, "device host-emulated, no GPU" if emulated else f"{attrs['device']} ({attrs['device_label']})")
    if "disk_engine" in attrs:
        fault = no_disk(attrs)
        cache = f"NO FIGURES OF A DISK, BUT OF {fault.upper()}" if fault else "past the page cache"
        where = f"{attrs['disk_file_system']} at {attrs['disk_path']}"
        parts.append(f"disk on {where} by {attrs['disk_engine']}, {cache}")
    lines = [
        "; ".join(parts),
        f"GB/s (10^9 bytes), median of {attrs['rounds']} rounds at the best batch; {attrs['convention']}",
        "every case was compared bit by bit first; limit: the same bytes in one large piece",
    ]
    if attrs["cases_left_out"]:
        lines.append(f"{attrs['cases_left_out']} cases left out: one batch has no room, or takes too long")
    return lines


def _gb(value: Any) -> str:
    return "-" if np.isnan(float(value)) else f"{float(value) / 1e9:.3g}"
