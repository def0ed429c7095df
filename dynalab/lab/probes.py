"""Questions to the machine that the doctor asks: small, read-only but for one temporary file, and quick.

Each answers None (or nothing) where it cannot know, and leaves the judgement to `dynalab.lab.doctor`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from dynalab.units import format_size

_PAGE: Final = 4096
#: Number of the capability to lock memory (capabilities(7)).
_CAP_IPC_LOCK: Final = 14
_PROC: Final = Path("/proc")
_CGROUP: Final = Path("/sys/fs/cgroup")


def version(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def output(command: list[str], timeout: float) -> str | None:
    """Run a command and return what it writes, or None if it fails or takes longer than `timeout` seconds."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def nvidia_smi(timeout: float = 1.5) -> list[str]:
    """GPUs as the driver's tool tells them: "name, memory, driver version" each."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    told = output([command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], timeout)
    lines = [line.strip() for line in (told or "").splitlines()]
    # Without a GPU the tool may still end well, with a sentence instead of columns.
    return [line.replace(", ", " with ", 1).replace(", ", ", driver ", 1) for line in lines if line.count(", ") == 2]


def cuda_driver() -> list[str]:
    """GPUs as the CUDA driver tells them, for containers that hold it without its tools."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            return []
        found = []
        for index in range(count.value):
            name, size, device = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
            failed = cuda.cuDeviceGet(ctypes.byref(device), index)
            failed = failed or cuda.cuDeviceGetName(name, len(name), device)
            failed = failed or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
            if not failed:
                found.append(f"{name.value.decode(errors='replace')} with {format_size(size.value)}")
        return found
    except (OSError, AttributeError):  # no such library, or one without these functions
        return []


def memlock_limit() -> int | None:
    """Bytes of memory that this process may lock; -1 for no limit, None where no one tells."""
    try:
        import resource
    except ImportError:
        return None
    for line in _text(_PROC / "self" / "status").splitlines():
        # Root, and whoever else may, locks past the limit.
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1:
            return -1
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return -1 if soft == resource.RLIM_INFINITY else soft


def memory() -> tuple[int, int, int | None]:
    """Total and available bytes of memory, and the container's limit; zeros where no one tells."""
    facts = {}
    for line in _text(_PROC / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if amount and amount[0].isdigit():
            facts[name] = int(amount[0]) * 1024
    limits = (_text(_CGROUP / "memory.max"), _text(_CGROUP / "memory" / "memory.limit_in_bytes"))
    limit = next((int(text) for text in limits if text.isdigit()), None)
    return facts.get("MemTotal", 0), facts.get("MemAvailable", 0), limit


def cores() -> tuple[int, float | None]:
    """Cores that the scheduler may give to this process, and the container's share of time in cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _text(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        return usable, int(quota[0]) / int(quota[1])
    return usable, None


def mounts() -> list[tuple[str, str]]:
    """Mount points and their kinds, such as ("/", "ext4"), in the order of mounting."""
    rows = [line.split() for line in _text(_PROC / "self" / "mounts").splitlines()]
    return [(row[1].replace("\\040", " "), row[2]) for row in rows if len(row) > 2]


def file_system(directory: str) -> str | None:
    """Kind of the file system that a directory lies on, such as "ext4"."""
    target, best, kind = os.path.realpath(directory), "", None
    for point, found in mounts():
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        # The last of equal mount points covers the earlier ones.
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def unbuffered_io(directory: str) -> bool | None:
    """Write and read one page past the page cache; None if not even a plain file can be made here."""
    try:
        handle, path = tempfile.mkstemp(prefix=".dynalab-doctor-", dir=directory)
    except OSError:
        return None
    os.close(handle)
    try:
        return hasattr(os, "O_DIRECT") and _page_survives(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return False
    finally:
        os.unlink(path)


def _page_survives(path: str, flags: int) -> bool:
    # Anonymous maps start on a page boundary, which unbuffered access demands of its buffers.
    with mmap.mmap(-1, _PAGE) as written, mmap.mmap(-1, _PAGE) as read:
        written.write(b"dynalab " * (_PAGE // 8))
        handle = os.open(path, flags)
        try:
            return (
                os.pwritev(handle, [written], 0) == _PAGE
                and os.preadv(handle, [read], 0) == _PAGE
                and read[:] == written[:]
            )
        finally:
            os.close(handle)


def may_write(directory: Path) -> bool:
    """Tell whether files can be put there, or the directory be made, without making it."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)


def _text(path: Path) -> str:
    """Contents of a small file of the system, or nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
