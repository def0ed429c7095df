"""Where benchmarks put files: dated results that can be written, and temporary files on a disk worth measuring."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dynalab.errors import ConfigError
from dynalab.lab import probes

#: File systems that are no disk of this machine: memory, other machines', or views of either.
_NOT_LOCAL: Final = {
    *("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "proc", "sysfs", "squashfs", "iso9660", "autofs"),
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "lustre", "beegfs", "gpfs", "afs", "glusterfs"),
}


def dated(name: str, suffix: str, when: time.struct_time) -> Path:
    """Return where a benchmark's results go by default: ``bench/<name>-<date>-<time><suffix>``."""
    return Path("bench") / f"{name}-{time.strftime('%Y-%m-%d-%H%M%S', when)}{suffix}"


def require_writable(target: Path) -> None:
    """Refuse a file that could not be written, before the work that would be lost.

    Raises
    ------
    ConfigError
        If it is a directory, or its directory can neither be written to nor made.
    """
    if target.is_dir():
        raise ConfigError(f"out: {str(target)!r} is a directory; name a file in it")
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
