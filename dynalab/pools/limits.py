"""How much memory this process can still have: what the machine has left, and what its control group allows.

Linux promises more memory than it has and kills a process that takes the promise at its word. Whoever is about to take
gigabytes therefore asks here first.
"""

from __future__ import annotations

from pathlib import Path

_FILES = {  # per control group version: limit, use, statistics, and the page cache that gives way without pain
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def available_memory(root: str | Path = "/") -> int:
    """Return the bytes of memory that this process can take without swapping or being killed.

    Parameters
    ----------
    root : path
        Directory under which ``proc`` and ``sys`` are looked up.

    Returns
    -------
    int
        The least of ``MemAvailable`` and of what is left in every control group above this process, where page cache
        counts as free.

    Examples
    --------
    >>> available_memory() > 0
    True
    """
    root = Path(root)
    left = [_field(root / "proc/meminfo", "MemAvailable:") * 1024]
    for version, group in _groups(root):
        limit_name, use_name, cache = _FILES[version]
        for place in (group, *group.parents):
            try:
                limit = (place / limit_name).read_text().strip()
                used = int((place / use_name).read_text())
            except (OSError, ValueError):  # the root has no limit, and a container may not see its group by its name
                continue
            if limit != "max":
                left.append(int(limit) - used + sum(_field(place / "memory.stat", name) for name in cache))
    return max(0, min(left))


def _groups(root: Path) -> list[tuple[int, Path]]:
    """Return the control groups that may limit this process's memory, as (version, directory)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found.append((1, root / "sys/fs/cgroup/memory" / path.lstrip("/")))
        elif not controllers:
            found.append((2, root / "sys/fs/cgroup" / path.lstrip("/")))
    return found


def _field(file: Path, name: str) -> int:
    """Return the number behind a name in a file of ``name value`` lines; zero where there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(words[1]) for line in lines if (words := line.split()) and words[0] == name), 0)
