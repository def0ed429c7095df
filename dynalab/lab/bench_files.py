"""What benchmarks have in common: dated files of results, tables, and temporary files on a disk worth measuring."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dynalab.errors import ConfigError
from dynalab.lab import probes

if TYPE_CHECKING:
    import xarray as xr

#: File systems that are no disk of this machine: memory, other machines', or views of either.
_NOT_LOCAL: Final = {
    *("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "proc", "sysfs", "squashfs", "iso9660", "autofs"),
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "lustre", "beegfs", "gpfs", "afs", "glusterfs"),
}


def begin(name: str, suffix: str, out: str | None) -> tuple[time.struct_time, Path]:
    """Return when a benchmark begins and the file that it is going to write, which can be written.

    Raises
    ------
    ConfigError
        As :func:`require_writable`, before the work that would be lost.
    """
    begun = time.localtime()
    target = dated(name, suffix, begun) if out is None else Path(out)
    require_writable(target)
    return begun, target


def keep(found: xr.Dataset, target: Path, begun: time.struct_time, **facts: Any) -> tuple[Path, xr.Dataset]:
    """Write a benchmark's results with the machine, versions, `facts` and time as attributes; return file and content.

    Raises
    ------
    ReportError
        If it cannot be written after all.
    """
    from dynalab.lab.provenance import save_dataset, stamp

    found = stamp(found.assign_attrs(measured_at=moment(begun), **facts))
    target.parent.mkdir(parents=True, exist_ok=True)
    return save_dataset(found, target), found


def moment(when: time.struct_time) -> str:
    """Write a time as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", when)


def aligned(rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Lay out rows of equal length as lines: so many columns flush left, by default all, the others flush right.

    Examples
    --------
    >>> aligned([["name", "rate"], ["a", "5"]], left=1)
    ['name  rate', 'a        5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) if left is None else left
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def dated(name: str, suffix: str, when: time.struct_time) -> Path:
    """Return where a benchmark's results go by default: ``bench/<name>-<date>-<time><suffix>``."""
    return Path("bench") / f"{name}-{time.strftime('%Y-%m-%d-%H%M%S', when)}{suffix}"


def require_writable(target: Path) -> None:
    """Refuse a file that could not be written, before the work that would be lost.

    Raises
    ------
    ConfigError
        If it is a directory, a device or the like, or its directory can neither be written to nor made.
    """
    if target.is_dir():
        raise ConfigError(f"out: {str(target)!r} is a directory; name a file in it")
    if target.exists() and not target.is_file():
        # The results replace what bears the name: a device would be gone.
        raise ConfigError(f"out: {str(target)!r} is no file but a device or the like; name a file")
    if not probes.may_write(target.absolute().parent):
        raise ConfigError(f"out: no file can be written to {str(target.absolute().parent)!r}; choose another place")


def roomiest_place() -> Path:
    """Return a directory on the local file system with the most free space that can be written to.

    Raises
    ------
    ConfigError
        If there is none.
    """
    rooms: dict[int, tuple[int, Path]] = {}
    for place in _places():
        try:
            if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
                rooms.setdefault(place.stat().st_dev, (shutil.disk_usage(place).free, place))
        except OSError:
            continue
    if not rooms:
        raise ConfigError("path: no local disk can be written to; give one with --path, or --disk 0 for none")
    return max(rooms.values(), key=lambda room: room[0])[1]


def _places() -> Iterator[Path]:
    """Yield directories on local disks: the customary ones for large temporary files first."""
    for place in ("/var/tmp", tempfile.gettempdir(), os.curdir, os.path.expanduser("~")):
        if _is_local(probes.file_system(place)):
            yield Path(place).absolute()
    # What is mounted over a network may hang when it is looked at: its kind is known without a look.
    for point, kind in probes.mounts():
        if _is_local(kind):
            yield from (Path(point), Path(point, "tmp"))


def _is_local(kind: str | None) -> bool:
    return kind is not None and kind not in _NOT_LOCAL and not kind.startswith(("fuse", "cgroup"))
