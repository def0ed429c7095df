"""What this machine offers, and what dynalab does with it: one finding per matter, in under two seconds.

No package is imported to be examined: one of CUDA or AIPerf that takes seconds to import, or fails to, is judged by its
metadata. Every check runs in a thread of its own under one deadline, so that a hanging driver or file system costs one
finding instead of the whole answer.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypedDict

from dynalab.lab import probes
from dynalab.units import format_size

Status = Literal["ok", "limited", "missing"]

#: Seconds that the checks together may take; who has not answered by then is reported as such.
DEADLINE: Final = 1.8


class Finding(TypedDict):
    """One matter: what was found, and what follows from it."""

    name: str
    status: Status
    value: str
    consequence: str


_NO_GPU: Final = "replay and reports need none; a device tier is emulated in host memory, and every result says so"

Answer = tuple[Status, str, str]


def python() -> Answer:
    """Judge the interpreter and the platform."""
    import platform

    value = f"{platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return "limited", value, "replay and reports run; real tiers are made for Linux"
    return "ok", value, "everything runs"


def gpu() -> Answer:
    """Look for NVIDIA GPUs through the driver's own tool, then through the driver."""
    found = probes.nvidia_smi() or probes.cuda_driver()
    if not found:
        return "missing", "no NVIDIA GPU or driver", _NO_GPU
    return "ok", "; ".join(found), "a device tier is memory of the first one, if the kernels below run"


def cuda_packages() -> Answer:
    """Look for the packages of the extra "cuda"."""
    wanted = {
        "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "numba-cuda": ("numba-cuda",),
        "cuda-bindings": ("cuda-bindings",),
    }
    found = {name: version for name, options in wanted.items() if (version := probes.version(*options))}
    value = ", ".join(f"{name} {version}" for name, version in found.items()) or "none"
    if len(found) < len(wanted):
        absent = ", ".join(name for name in wanted if name not in found)
        cure = f"replay and reports need none; GPU kernels need {absent}: pip install 'dynalab[cuda]'"
        return ("limited" if found else "missing"), value, cure
    return "ok", value, "GPU kernels are compiled with them"


def kernels() -> Answer:
    """Find out whether GPU kernels can run here, or at least be compiled."""
    from dynalab.kernels.gpu import why_no_compiler, why_no_gpu

    stopped = why_no_gpu()
    if not stopped:
        return "ok", "run on the GPU", "dynalab bench gpu checks and times them"
    unmade = why_no_compiler()
    if unmade:
        return "missing", unmade, "their twins on the CPU move the blocks of emulated device tiers"
    return "limited", f"compile, but do not run: {stopped}", "their twins on the CPU move the blocks"


def pinned_memory() -> Answer:
    """Read the limit of locked memory."""
    limit = probes.memlock_limit()
    if limit is None:
        return "missing", "this platform tells no limit", "host tiers are made for Linux"
    if limit < 0:
        return "ok", "unlimited", "a host tier of any size that fits is pinned for the GPU, or locked without one"
    consequence = "CUDA pins host memory past it; without a GPU a larger host tier may be swapped out: raise ulimit -l"
    return "limited", f"{format_size(limit)} of locked memory", consequence


def memory() -> Answer:
    """Read total and available memory, of the container where there is one."""
    total, available, limit = probes.memory()
    if not total:
        return "limited", "unknown", "traces are read without regard to memory; start with small ones"
    shown = f"{format_size(total)}, {format_size(available)} available"
    if limit is not None and limit < total:
        shown += f", limited to {format_size(limit)} by the container"
        available = min(available, limit)
    if available < 2 * 2**30:
        return "limited", shown, "close other programs before reports or long traces: those want 2 GiB"
    return "ok", shown, f"enough for traces whose columns stay below {format_size(available // 4)}"


def cores() -> Answer:
    """Count the cores that this process may use."""
    usable, quota = probes.cores()
    shown = f"{usable} usable" + ("" if quota is None else f", limited to {quota:g} by the container")
    if min(usable, quota or usable) < 2:
        return "limited", shown, "replay is as fast as ever (one core), reports take longer"
    return "ok", shown, "replays use one core each, sweeps as many as there are"


def disk(directory: str) -> Answer:
    """Examine a directory: space, kind of file system, writing, and unbuffered access with a real file."""
    free, kind = shutil.disk_usage(directory).free, probes.file_system(directory)
    shown = f"{format_size(free)} free on {kind or 'an unknown file system'} ({directory})"
    unbuffered = probes.unbuffered_io(directory)
    if unbuffered is None:
        return (
            "limited",
            f"{shown}, not writable",
            "reports and disk tiers cannot be put here: choose another directory",
        )
    if kind in ("tmpfs", "ramfs"):
        return "limited", f"{shown}, memory rather than disk", "no place for a disk tier: choose a directory on a drive"
    if not unbuffered:
        return "limited", f"{shown}, no O_DIRECT", "a disk tier here measures the page cache, and is labelled so"
    return (
        "ok",
        f"{shown}, O_DIRECT works",
        "reports and disk tiers may be put here",
    )


def disk_engines() -> Answer:
    """Look for what can move the bytes of a disk tier: one engine is our own, two are packages."""
    packages = {"kvikio": ("kvikio-cu13", "kvikio-cu12"), "nixl": ("nixl-cu13", "nixl-cu12", "nixl")}
    there = {name: found for name, options in packages.items() if (found := probes.version(*options))}
    value = ", ".join(["posix", *(f"{name} {found}" for name, found in there.items())])
    if sys.platform != "linux":
        return "missing", "none for this platform", "disk tiers are made for Linux"
    if "kvikio" in there and not (probes.nvidia_smi() or probes.cuda_driver()):
        return "limited", value, "kvikio does nothing without a GPU; posix moves the blocks"
    return "ok", value, "posix moves blocks past the page cache without the GIL; the others are options of DiskTier"


def event_loop() -> Answer:
    """Look for uvloop, which makes requests over TCP cheaper."""
    version = probes.version("uvloop")
    if version is None or find_spec("uvloop") is None:
        cure = "pools, clients and endpoints run on it; requests cost less on uvloop: pip install 'dynalab[uvloop]'"
        return "missing", "asyncio's own, no uvloop", cure
    use = "clients and endpoints run on either, cheaper within uvloop.run(...); dynalab bench net measures both"
    return "ok", f"asyncio's own, and uvloop {version}", use


def aiperf() -> Answer:
    """Look for AIPerf as a package of this Python, then as a command of another."""
    version = probes.version("aiperf")
    if version and find_spec("aiperf") is not None:
        return "ok", f"{version} in this Python", "load tests may replay what Trace.write wrote"
    command = shutil.which("aiperf")
    if command is None:
        cure = "its exports are read all the same; load tests need pip install 'dynalab[aiperf]'"
        return "missing", "neither importable nor on PATH", cure
    told = probes.output([command, "--version"], timeout=DEADLINE - 0.3)
    if told is None:
        return "limited", f"{command} does not tell its version in time", "load tests may use it all the same"
    return (
        "ok",
        f"{told.split()[-1] if told.split() else 'unknown version'} at {command}",
        "load tests may replay what Trace.write wrote",
    )


def numba_cache() -> Answer:
    """Find the first directory that Numba can keep compiled code in."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    package = Path(__file__).resolve().parents[1] / "kv" / "__pycache__"
    candidates = [Path(given)] if given else [package, Path.home() / ".cache" / "numba"]
    writable = next((path for path in candidates if probes.may_write(path)), None)
    if writable is None:
        cure = "policies compile anew in every process; set NUMBA_CACHE_DIR to a writable directory"
        return "limited", f"{' and '.join(map(str, candidates))} not writable", cure
    return "ok", str(writable), "policies compile once and start fast ever after"


def jupyter_kernel() -> Answer:
    """Look for the kernel that notebooks and reports run in."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return "missing", "jupyter_client is not installed", "reports and notebooks need pip install dynalab"
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return "missing", "no kernel 'python3'", "reports and notebooks need pip install ipykernel"
    program = (spec.argv or [""])[0]
    # A kernel of the same name that another environment left in the user's directory wins over this one's.
    here = {"", "python", "python3", sys.executable, os.path.realpath(sys.executable)}
    if program not in here and not os.path.realpath(program).startswith(os.path.realpath(sys.prefix) + os.sep):
        cure = "notebooks would run in that Python: python -m ipykernel install --sys-prefix, or remove that kernel"
        return "limited", f"python3 runs {program}", cure
    return "ok", "python3 runs this Python", "reports and notebooks run"


def _checks() -> dict[str, Callable[[], Answer]]:
    # The directories are asked for within their checks: one that was removed is a finding, too.
    return {
        "Python": python,
        "GPU": gpu,
        "CUDA packages": cuda_packages,
        "GPU kernels": kernels,
        "pinned memory": pinned_memory,
        "memory": memory,
        "cores": cores,
        "disk, working directory": lambda: disk(os.getcwd()),
        "disk, temporary files": lambda: disk(tempfile.gettempdir()),
        "disk engines": disk_engines,
        "event loop": event_loop,
        "AIPerf": aiperf,
        "Numba cache": numba_cache,
        "Jupyter kernel": jupyter_kernel,
    }


def examine() -> list[Finding]:
    """Examine this machine.

    Returns
    -------
    list of Finding
        Plain dictionaries of text, in a fixed order: ``name``, ``status`` (``"ok"``, ``"limited"`` or ``"missing"``),
        ``value`` and ``consequence``. A check that fails or hangs is a ``"limited"`` finding that says so.
    """
    checks = _checks()
    answers: dict[str, Answer] = {}

    def run(name: str) -> None:
        try:
            answers[name] = checks[name]()
        except Exception as error:
            answers[name] = ("limited", f"could not be examined ({type(error).__name__}: {error})", "it is not used")

    # Daemons: one that hangs must keep neither this function nor the interpreter from ending.
    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in checks]
    deadline = time.monotonic() + DEADLINE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    findings: list[Finding] = []
    for name in checks:
        late: Answer = ("limited", f"did not answer within {DEADLINE:g} s", "it is not used before it answers")
        status, value, consequence = answers.get(name, late)
        value = " ".join(value.split())
        findings.append({"name": name, "status": status, "value": value, "consequence": consequence})
    return findings


def render(findings: Iterable[Finding]) -> str:
    """Write findings as a table in text: status, name and value, and what follows in the line below."""
    findings = list(findings)
    width = max((len(finding["name"]) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding['status']:<8} {finding['name']:<{width}}  {finding['value']}")
        lines.append(f"{'':<8} {'':<{width}}  -> {finding['consequence']}")
    return "\n".join(lines)
