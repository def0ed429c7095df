"""Which way to copy: a pure function of seconds that were measured on the machine at hand.

Where one way overtakes another is a surface over the bytes of a piece and the number of pieces, different for each
device and direction; no single threshold holds it. So a calibration measures every path over a grid of both, and a
choice looks its times up in between: bilinear in the logarithms of bytes, pieces and seconds, in which times are
straight lines both where calls dominate (constant per piece) and where bytes do. Less than the grid's least costs as
much as that; more than its most costs in proportion.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dynalab.errors import ConfigError, unknown

if TYPE_CHECKING:
    import xarray as xr

#: Changes when tables of old files cannot be read any more.
FORMAT: Final = 1


@dataclass(frozen=True)
class PathTable:
    """Seconds that each path took on one machine.

    Parameters
    ----------
    facts : mapping of str to str
        What the times hold for: ``device`` (a GPU's name, or "host-emulated"), versions of driver and package.
    piece_bytes : sequence of int, shape (sizes,)
        Bytes of a piece, ascending.
    counts : sequence of int, shape (counts,)
        Pieces copied in one call, ascending.
    seconds : mapping of direction to mapping of path to ndarray, shape (sizes, counts)
        From the call to the last byte's arrival. NaN where nothing was measured, at the far end of a row or column:
        taken in proportion to the last measured number of pieces, or bytes. A path without any time is left out.

    Raises
    ------
    ConfigError
        If shapes differ, an axis does not ascend, or a time is not above zero.

    Examples
    --------
    A batch costs 5 us and 1 us per piece, the kernel 20 us and almost nothing per small piece:

    >>> counts = np.array([1, 10, 100])
    >>> kernel, batch = np.full((2, 3), 20e-6), np.array([5e-6 + 1e-6 * counts] * 2)
    >>> table = PathTable({"device": "example"}, (4096, 8192), counts, {"h2d": {"kernel": kernel, "batch": batch}})
    >>> choose_path(table, "h2d", 4096, 3), choose_path(table, "h2d", 4096, 300)
    ('batch', 'kernel')
    """

    facts: Mapping[str, str]
    piece_bytes: Sequence[int]
    counts: Sequence[int]
    seconds: Mapping[str, Mapping[str, NDArray[np.float64]]]
    _log_seconds: dict[str, dict[str, list[list[float]]]] = field(init=False, repr=False, compare=False)
    _log_bytes: list[float] = field(init=False, repr=False, compare=False)
    _log_counts: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        logs = {}
        for name in ("piece_bytes", "counts"):
            axis = [int(value) for value in getattr(self, name)]
            if not axis or axis[0] < 1 or any(a >= b for a, b in itertools.pairwise(axis)):
                raise ConfigError(f"{name}: {axis} does not ascend from 1 or more")
            object.__setattr__(self, name, tuple(axis))
            logs[name] = [math.log(value) for value in axis]
        shape = len(self.piece_bytes), len(self.counts)
        seconds: dict[str, dict[str, NDArray[np.float64]]] = {}
        for direction, paths in self.seconds.items():
            seconds[direction] = {}
            for path, given in paths.items():
                times = np.array(given, np.float64)
                if times.shape != shape or (times <= 0).any() or np.isinf(times).any():
                    raise ConfigError(f"seconds: {direction} by {path} is not {shape} times above zero")
                if not np.isnan(times[0, 0]):
                    seconds[direction][path] = times
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "_log_bytes", logs["piece_bytes"])
        object.__setattr__(self, "_log_counts", logs["counts"])
        filled = {d: {p: np.log(self._filled(t)).tolist() for p, t in paths.items()} for d, paths in seconds.items()}
        object.__setattr__(self, "_log_seconds", filled)

    def _filled(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        times = times.copy()
        for i, row in enumerate(times):
            if i > 0 and np.isnan(row[0]):
                row[0] = times[i - 1, 0] * self.piece_bytes[i] / self.piece_bytes[i - 1]
            for j in range(1, row.size):
                if np.isnan(row[j]):
                    row[j] = row[j - 1] * self.counts[j] / self.counts[j - 1]
        return times

    @property
    def directions(self) -> tuple[str, ...]:
        """Directions that were measured, such as "h2d", "d2h", "d2d", or "host_to_host"."""
        return tuple(self.seconds)

    def paths(self, direction: str) -> tuple[str, ...]:
        """Paths that exist for a direction.

        Raises
        ------
        ConfigError
            For a direction that was not measured.
        """
        if direction not in self.seconds:
            raise unknown("direction", direction, self.directions)
        return tuple(self.seconds[direction])

    def predict(self, direction: str, path: str, nbytes: float, count: float) -> float:
        """Seconds to copy `count` pieces of `nbytes` bytes, between the measured times or beyond them."""
        if path not in self.paths(direction):
            raise unknown("path", path, self.paths(direction))
        x, y = math.log(max(nbytes, 1.0)), math.log(max(count, 1.0))
        i, j = _cell(self._log_bytes, x), _cell(self._log_counts, y)
        rows = self._log_seconds[direction][path][i : i + 2]
        between = [_along(self._log_counts[j : j + 2], row[j : j + 2], y) for row in rows]
        return math.exp(_along(self._log_bytes[i : i + 2], between, x))

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, NaN as None."""
        return {
            "format": FORMAT,
            "facts": dict(self.facts),
            "piece_bytes": list(self.piece_bytes),
            "counts": list(self.counts),
            "seconds": {
                direction: {
                    path: [[None if math.isnan(t) else t for t in row] for row in times.tolist()]
                    for path, times in paths.items()
                }
                for direction, paths in self.seconds.items()
            },
        }

    @classmethod
    def from_json(cls, told: Any) -> PathTable:
        """Read what `to_json` wrote.

        Raises
        ------
        ConfigError
            If it is anything else.
        """
        try:
            if told["format"] != FORMAT:
                raise ConfigError(f"format: {told['format']!r} is not {FORMAT}")
            seconds = {
                str(direction): {str(path): np.array(times, np.float64) for path, times in paths.items()}
                for direction, paths in told["seconds"].items()
            }
            facts = {str(name): str(value) for name, value in told["facts"].items()}
            return cls(facts, told["piece_bytes"], told["counts"], seconds)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"no table of copy paths: {error}") from error

    def to_dataset(self) -> xr.Dataset:
        """Return the times as ``seconds(direction, path, piece_bytes, count)``, NaN where there is none."""
        import xarray as xr

        paths = sorted({path for known in self.seconds.values() for path in known})
        missing = np.full((len(self.piece_bytes), len(self.counts)), np.nan)
        data = [[known.get(path, missing) for path in paths] for known in self.seconds.values()]
        return xr.Dataset(
            {
                "seconds": (
                    ("direction", "path", "piece_bytes", "count"),
                    np.array(data),
                    {"units": "s", "long_name": "time from the call to the last byte"},
                )
            },
            {
                "direction": list(self.directions),
                "path": paths,
                "piece_bytes": ("piece_bytes", list(self.piece_bytes), {"units": "B", "long_name": "bytes of a piece"}),
                "count": ("count", list(self.counts), {"units": "1", "long_name": "pieces in one call"}),
            },
            attrs=dict(self.facts),
        )


def _cell(axis: list[float], at: float) -> int:
    """Index of the interval that holds `at`, or the nearest; 0 for an axis of one point."""
    return max(min(bisect_right(axis, at) - 1, len(axis) - 2), 0)


def _along(ends: list[float], values: list[float], at: float) -> float:
    """Interpolate between two ends (or one); before the first hold its value, after the last grow in proportion.

    The slopes of the outermost intervals would go on with their noise, and times cross that never do.
    """
    if at <= ends[0]:
        return values[0]
    if at >= ends[-1]:
        return values[-1] + at - ends[-1]
    return values[0] + (values[1] - values[0]) / (ends[1] - ends[0]) * (at - ends[0])


def choose_path(table: PathTable, direction: str, nbytes: float, n_pairs: int, runs: int | None = None) -> str:
    """Choose the path that a table promises to be quickest.

    Parameters
    ----------
    table : PathTable
        Times of this machine.
    direction : str
        Endpoints of the copy: "h2d", "d2h", "d2d", or "host_to_host".
    nbytes : float
        Bytes of a pair, or their mean.
    n_pairs : int
        Pairs of addresses.
    runs : int, optional
        Pieces that are left when neighbours on both sides are merged; by default none are.

    Returns
    -------
    str
        One of the table's paths for this direction; the first of them if there are equals or nothing to copy.

    Raises
    ------
    ConfigError
        For a direction that was not measured, or without any path.
    """
    paths = table.paths(direction)
    if not paths:
        raise ConfigError(f"direction: no path was measured for {direction!r}")
    if n_pairs <= 0 or nbytes <= 0:
        return paths[0]
    pieces = n_pairs if runs is None else max(runs, 1)
    piece_bytes = nbytes * n_pairs / pieces
    return min(paths, key=lambda path: table.predict(direction, path, piece_bytes, pieces))


@dataclass(frozen=True)
class Regret:
    """What choices by one table cost on a second one, relative to the best path each time.

    Parameters
    ----------
    mean, worst : float
        Over the grid: 0.02 stands for 2% more time than the best path's.
    cells : int
        Grid points with times of at least two paths.
    wrong : int
        Of those, points at which another path was quicker than the chosen one.
    """

    mean: float
    worst: float
    cells: int
    wrong: int


def regret(table: PathTable, truth: PathTable, direction: str) -> Regret:
    """Compare the choices of `table` with measured times, at every grid point of `truth`.

    Parameters
    ----------
    table, truth : PathTable
        The second one measured apart from the first: its own noise must not have made the choice.
    direction : str
        A direction of both.
    """
    lost = []
    for i, nbytes in enumerate(truth.piece_bytes):
        for j, count in enumerate(truth.counts):
            times = {path: truth.seconds[direction][path][i, j] for path in truth.paths(direction)}
            times = {path: time for path, time in times.items() if not math.isnan(time)}
            chosen = choose_path(table, direction, nbytes, count)
            if len(times) > 1 and chosen in times:
                lost.append(times[chosen] / min(times.values()) - 1)
    if not lost:
        raise ConfigError(f"direction: no grid point of {direction!r} has times of two paths")
    return Regret(float(np.mean(lost)), float(np.max(lost)), len(lost), int(np.count_nonzero(lost)))
