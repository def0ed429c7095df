"""`dynalab bench gpu`: check and time every kernel on this machine's GPU, and hold the figures to the project's bars.

It runs where nothing but NumPy, Numba and CuPy is installed, as on a machine that is lent for an hour: nothing here
imports what reports need.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dynalab import __version__
from dynalab.errors import ReportError
from dynalab.lab import probes
from dynalab.lab.bench_files import aligned, begin, moment
from dynalab.lab.provenance import git_revision, machine_facts
from dynalab.units import format_duration, format_size

#: What NVIDIA's tool tells of a GPU: field and its name here.
_SMI: Final = {
    "name": "name",
    "driver_version": "driver",
    "pstate": "performance_state",
    "clocks.sm": "clock_sm",
    "clocks.mem": "clock_memory",
    "clocks.max.sm": "clock_sm_max",
    "clocks.max.mem": "clock_memory_max",
    "pcie.link.gen.current": "pcie_generation",
    "pcie.link.width.current": "pcie_width",
    "power.limit": "power_limit",
    "ecc.mode.current": "ecc",
}
#: Distributions whose versions decide how fast kernels are.
_PACKAGES: Final = ("numpy", "numba", "numba-cuda", "cupy-cuda13x", "cuda-bindings", "cuda-core", "torch")


def measure_gpu(
    out: str | None = None, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, dict[str, Any]]:
    """Check and time the kernels on the first GPU, and write one JSON file.

    Parameters
    ----------
    out : str, optional
        The file; by default ``bench/gpu-<date>.json`` below the working directory.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    path : pathlib.Path
        The file, absolute.
    found : dict
        Its content: ``machine``, ``gpu_before`` and ``gpu_after`` (clocks), ``versions``, ``copies``, ``victims``,
        ``checksums`` [B/s by bytes of a block], and ``bars``, those of all together.

    Raises
    ------
    ConfigError
        Where there is no GPU, or the file cannot be written.
    TransferError
        If a kernel does something else than its twin on the CPU: nothing is written then.
    """
    from dynalab.kernels import require_gpu

    require_gpu("the benchmark of kernels")
    begun, target = begin("gpu", ".json", out)
    from dynalab.kernels.gpu_report import bench_gpu
    from dynalab.kernels.victims_bench import bench_checksums, bench_victims

    found: dict[str, Any] = {
        "measured_at": moment(begun),
        "dynalab_version": __version__,
        "dynalab_revision": git_revision(),
        "machine": machine_facts(),
        "versions": {name: version for name in _PACKAGES if (version := probes.version(name))},
        "gpu_before": gpu_state(),
    }
    for name, what, function in (
        ("copies", "copies", bench_gpu),
        ("victims", "selections of victims", bench_victims),
        ("checksums", "checksums", bench_checksums),
    ):
        say(f"checking and timing {what} ...")
        found[name] = function()
    found["gpu_after"] = gpu_state()
    found["bars"] = {**found["copies"].get("bars", {}), **found["victims"].get("bars", {})}
    return write_json(found, target), found


def gpu_state() -> dict[str, str]:
    """Return driver, clocks, link and power limit of the first GPU, as NVIDIA's tool tells them; nothing without it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    told = probes.output([command, f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "--id=0"], timeout=10)
    cells = [cell.strip() for cell in (told or "").split(",")]
    return dict(zip(_SMI.values(), cells, strict=True)) if len(cells) == len(_SMI) else {}


def write_json(found: Mapping[str, Any], target: Path) -> Path:
    """Write a result whole or not at all; figures that are none become null.

    Raises
    ------
    ReportError
        If it cannot be written.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            draft = Path(scratch) / target.name
            draft.write_text(json.dumps(_plain(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(draft, target)
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _plain(value: Any) -> Any:
    """Return what JSON has a form for."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(found: Mapping[str, Any]) -> str:
    """Write the bars and the figures behind them as text.

    Parameters
    ----------
    found : mapping
        From :func:`measure_gpu`.
    """
    facts, state = found["copies"].get("facts", {}), found["gpu_after"]
    clocks = f"{state.get('clock_sm', '?')} and {state.get('clock_memory', '?')}"
    lines = [f"{facts.get('device', 'GPU')}, driver {state.get('driver', 'unknown')}, clocks {clocks} right after", ""]
    bars = [["bar", "asked", "found", ""]]
    for name, bar in found["bars"].items():
        bars.append([name, _short(bar["bar"]), _short(bar["value"]), "met" if bar["met"] else "MISSED"])
    copies = [["copies", "path", "piece", "GB/s", "of large copy"]]
    for record in found["copies"].get("records", []):
        case = record["direction"] if record["case"] == "pieces" else f"{record['direction']} {record['case']}"
        rate, share = f"{record['bytes_per_second'] / 1e9:.4g}", f"{record['of_large_copy']:.0%}"
        copies.append([case, record["path"], format_size(record["piece_bytes"]), rate, share])
    rest = [["victims", "side", "time"]]
    for kind, sides in found["victims"].get("seconds", {}).items():
        rest += [[kind, side, format_duration(seconds)] for side, seconds in sides.items()]
    for size, rate in found["checksums"].items():
        rest.append(["checksums", f"{format_size(int(size))} blocks", f"{rate / 1e9:.4g} GB/s"])
    return "\n".join([*lines, *aligned(bars), "", *aligned(copies), "", *aligned(rest)])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return "/".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
