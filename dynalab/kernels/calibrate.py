"""Measure the copy paths of a machine, quickly, and keep the times in a file until something changes.

What is measured is behind a `Rig`: the GPU's paths, or the host's where there is none. Every path is checked byte by
byte before it is timed. Rounds visit all paths and sizes in shuffled order, and the median of a cell's rounds counts.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dynalab import __version__
from dynalab.errors import ConfigError
from dynalab.kernels.keyed import sources_digest
from dynalab.kernels.paths import PathTable

#: Both sides of 24-28 KiB, where batches of copies jump on some drivers, and the sizes of pages and blocks.
PIECE_BYTES: Final = (1024, 4096, 8192, 16384, 24576, 28672, 32768, 65536, 262_144, 1 << 20, 4 << 20)
COUNTS: Final = (1, 4, 16, 64, 256, 1024, 4096)
_MOST_ROUNDS: Final = 15


class Rig(ABC):
    """Something that can copy by several paths, and time it."""

    #: Most bytes of one measured copy: beyond it times grow in proportion.
    largest: int = 64 << 20

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """What times hold for; ``device`` among it. A change of any makes old times worthless."""

    @property
    @abstractmethod
    def paths(self) -> Mapping[str, Sequence[str]]:
        """Paths of every direction, those only that work here."""

    @abstractmethod
    def check(self, direction: str, path: str, nbytes: int, count: int) -> None:
        """Copy once, and compare byte by byte; raises `TransferError` for a difference."""

    @abstractmethod
    def measure(self, direction: str, path: str, nbytes: int, count: int) -> float:
        """Copy once, and return the seconds from the call to the last byte's arrival."""

    def close(self) -> None:
        """Give memory back."""
        return


def permuted_offsets(rng: np.random.Generator, arena: int, nbytes: int, count: int) -> NDArray[np.int64]:
    """Offsets of `count` pieces of `nbytes` bytes in an arena, in random order, anywhere in it.

    Neighbours are 64 bytes apart if there is room, so that they do not merge to fewer and larger pieces.
    """
    room = nbytes + 64 if (nbytes + 64) * count <= arena else nbytes
    first = int(rng.integers(arena // room - count + 1))
    return (first + rng.permutation(count)) * room


def measured_facts(rig: Rig) -> dict[str, str]:
    """Return the rig's facts with the versions of what copies."""
    return {**rig.facts, "dynalab": __version__, "kernels": sources_digest()}


def calibrate(
    rig: Rig,
    *,
    piece_bytes: Sequence[int] = PIECE_BYTES,
    counts: Sequence[int] = COUNTS,
    budget: float = 3.0,
    seed: int = 0,
) -> PathTable:
    """Measure all paths of a rig over a grid.

    Parameters
    ----------
    rig : Rig
        What to measure.
    piece_bytes, counts : sequence of int
        The grid. Points of more than ``rig.largest`` bytes are left out.
    budget : float
        Seconds, checks included: no round begins that would end later. At least one is run, and at most 15.
    seed : int
        Of the rounds' order.

    Raises
    ------
    TransferError
        If a path copies wrongly: its times would mean nothing.
    """
    cells = [
        (direction, path, i, j)
        for direction, paths in rig.paths.items()
        for path in paths
        for i, nbytes in enumerate(piece_bytes)
        for j, count in enumerate(counts)
        if nbytes * count <= rig.largest
    ]
    if not cells:
        raise ConfigError(f"piece_bytes, counts: no point of the grid has {rig.largest} bytes or fewer")
    started = last = time.perf_counter()
    corners: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for direction, path, i, j in cells:
        corners[direction, path].append((i, j))
    for (direction, path), points in corners.items():
        # Many small pieces, and the largest. It also warms up.
        many = [point for point in points if point[0] == points[0][0]][-1]
        for i, j in (many, points[-1]):
            rig.check(direction, path, piece_bytes[i], counts[j])
    times: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    rng = np.random.default_rng(seed)
    for done in range(_MOST_ROUNDS):
        begin = time.perf_counter()
        # The round before tells how long this one will take.
        if done and begin - started + (begin - last) > budget:
            break
        last = begin
        for cell in rng.permutation(len(cells)).tolist():
            direction, path, i, j = cells[cell]
            times[cells[cell]].append(rig.measure(direction, path, piece_bytes[i], counts[j]))
    shape = len(piece_bytes), len(counts)
    seconds = {direction: {path: np.full(shape, np.nan) for path in paths} for direction, paths in rig.paths.items()}
    for (direction, path, i, j), measured in times.items():
        seconds[direction][path][i, j] = np.median(measured)
    return PathTable(measured_facts(rig), piece_bytes, counts, seconds)


def cache_folder() -> Path:
    """Return where tables are kept: ``$XDG_CACHE_HOME/dynalab``, or ``~/.cache/dynalab``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynalab"


def _read(file: Path, facts: Mapping[str, str]) -> PathTable | None:
    """Return the table in a file if it can be read and still holds, else None."""
    try:
        table = PathTable.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, RecursionError):  # ConfigError is a ValueError
        return None
    return table if dict(table.facts) == dict(facts) else None


def _write(file: Path, told: Any) -> bool:
    """Write whole or not at all, so that a reader next door never sees half a file; tell whether it worked."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=file.name, suffix=".part", dir=file.parent)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "w") as part:
            json.dump(told, part, indent=1)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        return False
    return True


def calibrated(
    rig: Rig, *, folder: Path | str | None = None, refresh: bool = False, budget: float = 3.0, **grid: Any
) -> PathTable:
    """Return the table of a rig: from its file, or measured now and kept there.

    A file that cannot be read, is incomplete, or was measured with another driver or version is measured again, and
    replaced. Where no file can be written, every process measures for itself.

    Parameters
    ----------
    rig : Rig
        What to measure.
    folder : path, optional
        Where the files are; by default `cache_folder`.
    refresh : bool
        Measure in any case.
    budget : float
        Seconds; see `calibrate`, which also takes the other parameters.
    """
    facts = measured_facts(rig)
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-") or "device"
    file = Path(folder if folder is not None else cache_folder()) / f"copy-paths-{name}.json"
    table = None if refresh else _read(file, facts)
    if table is None:
        table = calibrate(rig, budget=budget, **grid)
        _write(file, table.to_json())
    return table
