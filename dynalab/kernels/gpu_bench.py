"""How fast a GPU's copy paths are, beside one large copy of the same device: checked first, then timed.

Conventions. A rate from device to device counts bytes read and bytes written; over the link, the payload once. A time
is that between two CUDA events around four calls in a row, as an engine issues them, divided by four: making and
sending the tables of addresses is within it, waiting for an idle GPU is not. Rounds visit all cases in shuffled order;
medians and quartiles are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dynalab.kernels.calibrate import calibrate
from dynalab.kernels.copy_device import LINK_BLOCKS, copy_pairs_device, copy_table
from dynalab.kernels.copy_tables import default_ring
from dynalab.kernels.paths import regret
from dynalab.kernels.paths_gpu import DIRECTIONS, GPU_PATHS, GpuRig

#: Pieces over the link: from a page of one layer to a block of a large model.
PIECES: Final = (4096, 16384, 65536, 262_144, 1 << 20, 4 << 20)
#: Chunks inside the device.
CHUNK: Final = 65536
_CALLS: Final = 4


@dataclass(frozen=True)
class Record:
    """One case of a benchmark.

    Parameters
    ----------
    case : str
        What was done: "large copy", "gather", "scatter", "permute", "pieces".
    direction, path : str
        Endpoints ("d2d", "h2d", "d2h") and what copied.
    piece_bytes, count : int
        Bytes of a piece, and pieces.
    seconds, seconds_low, seconds_high : float
        Median and quartiles of a call.
    bytes_per_second : float
        Device to device: read and written; over the link: payload.
    of_large_copy : float
        That, over the rate of one large copy in the same run.
    """

    case: str
    direction: str
    path: str
    piece_bytes: int
    count: int
    seconds: float
    seconds_low: float
    seconds_high: float
    bytes_per_second: float
    of_large_copy: float


class _Case:
    """Something to check and time: what copies, and what must come of it."""

    def __init__(
        self,
        name: tuple[str, str, str],
        offsets: tuple[NDArray[np.int64], NDArray[np.int64]],
        nbytes: int,
        run: Callable[[], object],
    ) -> None:
        self.case, self.direction, self.path = name
        self.offsets, self.nbytes, self.run = offsets, nbytes, run


def _timed(rig: GpuRig, cases: Sequence[_Case], rounds: int, seed: int) -> list[Record]:
    """Check all cases, then time them in turns; the first case of each direction is its large copy."""
    runtime = rig.runtime
    for case in cases:
        rig.clear(case.direction)
        case.run()
        runtime.streamSynchronize(rig.stream)
        rig.compare(case.direction, case.offsets, case.nbytes, f"{case.case} by {case.path}")
    begin, end = (runtime.eventCreateWithFlags(0) for _ in range(2))
    seconds = np.empty((len(cases), rounds))
    rng = np.random.default_rng(seed)
    for i in range(rounds):
        for c in rng.permutation(len(cases)).tolist():
            runtime.eventRecord(begin, rig.stream)
            for _ in range(_CALLS):
                cases[c].run()
            runtime.eventRecord(end, rig.stream)
            runtime.eventSynchronize(end)
            seconds[c, i] = runtime.eventElapsedTime(begin, end) / 1e3 / _CALLS
    runtime.eventDestroy(begin)
    runtime.eventDestroy(end)
    records: list[Record] = []
    large: dict[str, float] = {}
    for case, measured in zip(cases, seconds, strict=True):
        low, median, high = np.quantile(measured, [0.25, 0.5, 0.75]).tolist()
        moved = case.nbytes * case.offsets[0].size * (2 if case.direction == "d2d" else 1)
        rate = moved / median
        large.setdefault(case.direction, rate)
        records.append(
            Record(
                case.case,
                case.direction,
                case.path,
                case.nbytes,
                case.offsets[0].size,
                median,
                low,
                high,
                rate,
                rate / large[case.direction],
            )
        )
    return records


def _large_copy(rig: GpuRig, direction: str, nbytes: int) -> _Case:
    zero = np.zeros(1, np.int64)
    src, dst = rig.arena(direction)

    def run() -> None:
        rig.runtime.memcpyAsync(dst, src, nbytes, 4, rig.stream)

    return _Case(("large copy", direction, "one call"), (zero, zero), nbytes, run)


def bench_device_copies(
    nbytes: int = 1 << 30, *, blocks: Iterable[int | None] = (None,), rounds: int = 15, seed: int = 0
) -> list[Record]:
    """Gather, scatter and permute chunks of 64 KiB inside the device, beside one large copy of as many bytes.

    Parameters
    ----------
    nbytes : int
        Bytes to copy, several times the second-level cache.
    blocks : iterable of int or None
        Bounds on the thread blocks to try.
    rounds, seed : int
        Rounds, and their order and that of the chunks.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    TransferError
        If bytes are wrong.
    """
    rig = GpuRig(nbytes, seed)
    rng = np.random.default_rng(seed)
    n = nbytes // CHUNK
    straight = np.arange(n) * CHUNK
    order = {
        "gather": (rng.permutation(n) * CHUNK, straight),
        "scatter": (straight, rng.permutation(n) * CHUNK),
        "permute": (rng.permutation(n) * CHUNK, rng.permutation(n) * CHUNK),
    }
    cases = [_large_copy(rig, "d2d", n * CHUNK)]

    def add(name: str, offsets: tuple[NDArray, NDArray], bound: int | None) -> None:
        tables = rig.tables("d2d", offsets)
        label = "kernel" if bound is None else f"kernel, {bound} blocks"

        def uploaded() -> None:
            copy_pairs_device(*tables, CHUNK, stream=rig.stream, max_blocks=bound)

        resident = default_ring().resident(*tables, CHUNK, rig.stream)

        def there() -> None:
            copy_table(resident, stream=rig.stream, max_blocks=bound)

        cases.append(_Case((name, "d2d", label), offsets, CHUNK, uploaded))
        cases.append(_Case((name, "d2d", f"{label}, resident table"), offsets, CHUNK, there))

    for name, offsets in order.items():
        for bound in blocks:
            add(name, offsets, bound)
    try:
        return _timed(rig, cases, rounds, seed)
    finally:
        rig.close()


def bench_link_copies(
    nbytes: int = 256 << 20,
    *,
    pieces: Sequence[int] = PIECES,
    most: int = 10_000,
    blocks: Sequence[int] = (LINK_BLOCKS,),
    rounds: int = 9,
    seed: int = 0,
) -> list[Record]:
    """Copy pieces between pinned and device memory by every path, beside one large asynchronous copy.

    Parameters
    ----------
    nbytes : int
        Size of the arenas; at most half of it is copied at once.
    pieces : sequence of int
        Bytes of a piece.
    most : int
        Most pieces of one call.
    blocks : sequence of int
        Bounds on the kernel's thread blocks to try.
    rounds, seed : int
        As in `bench_device_copies`.

    Raises
    ------
    ConfigError, TransferError
        As in `bench_device_copies`.
    """
    rig = GpuRig(nbytes, seed)
    cases = []

    def kernel(tables: tuple[NDArray, NDArray], size: int, bound: int) -> Callable[[], object]:
        return lambda: copy_pairs_device(*tables, size, stream=rig.stream, max_blocks=bound)

    def other(path: str, tables: tuple[NDArray, NDArray], size: int, direction: str) -> Callable[[], object]:
        return lambda: GPU_PATHS[path](*tables, size, direction, rig.stream)

    for direction in ("h2d", "d2h"):
        cases.append(_large_copy(rig, direction, nbytes // 2))
        for size in pieces:
            count = max(min(nbytes // 2 // size, most), 1)
            offsets = rig.offsets(size, count)
            tables = rig.tables(direction, offsets)
            for bound in blocks:
                name = ("pieces", direction, "kernel" if bound == LINK_BLOCKS else f"kernel, {bound} blocks")
                cases.append(_Case(name, offsets, size, kernel(tables, size, bound)))
            for path in rig.paths[direction]:
                if path != "kernel":
                    run = other(path, tables, size, direction)
                    cases.append(_Case(("pieces", direction, path), offsets, size, run))
    try:
        return _timed(rig, cases, rounds, seed)
    finally:
        rig.close()


def bench_choice(budget: float = 3.0, truth_budget: float = 20.0) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Calibrate as a user would, measure again at length, and tell what the choices cost.

    Returns
    -------
    choice : dict of str to dict
        For each direction the fields of `dynalab.kernels.paths.Regret`, and ``seconds`` that the calibration took.
    table : dict
        The long calibration, as `dynalab.kernels.paths.PathTable.to_json` gives it.
    """
    rig = GpuRig(seed=0)
    begin = time.perf_counter()
    table = calibrate(rig, budget=budget, seed=0)
    spent = time.perf_counter() - begin
    rig.close()
    rig = GpuRig(seed=1)
    truth = calibrate(rig, budget=truth_budget, seed=1)
    rig.close()
    choice = {name: {**asdict(regret(table, truth, name)), "seconds": spent} for name in DIRECTIONS}
    return choice, truth.to_json()
