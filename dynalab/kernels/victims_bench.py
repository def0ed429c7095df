"""How fast a GPU selects victims and sums up blocks, beside what CuPy and PyTorch offer: checked first, then timed.

A selection's time is that between two CUDA events around one call on an idle GPU, launches included. CuPy and PyTorch
are given one 64-bit key per block, packed beforehand and not timed; they neither heed pins nor break ties by number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import TransferError
from dynalab.kernels import gpu

#: Most seconds for a million blocks, and least lead over the better of CuPy and PyTorch.
SECONDS_BAR: Final = 100e-6
LEAD_BAR: Final = 3.0
OURS: Final = "kernels"

Columns = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]


def bench_columns(n: int, kind: str, seed: int = 0) -> tuple[Columns, npt.NDArray[np.int64]]:
    """Make blocks as an engine has them, and the one key that the rivals sort by.

    Parameters
    ----------
    n : int
        Blocks.
    kind : str
        "spread" (nanosecond time stamps within an hour) or "ties" (1,000 ticks); with four priorities and chains of
        1,000, and none pinned.

    Returns
    -------
    columns : tuple of arrays [n]
        As for `select_victims`.
    keys : int64 array [n]
        2 bits of priority, 41 of time, 20 of block number: equal to the columns' order but for position.
    """
    rng = np.random.default_rng(seed)
    span = 3600 * 10**9 if kind == "spread" else 1000
    priority = rng.integers(0, 4, n).astype(np.uint32)
    since = rng.integers(0, span, n)
    keys = priority.astype(np.int64) << 61 | since >> max(0, span.bit_length() - 41) << 20 | np.arange(n) & (2**20 - 1)
    position = rng.integers(0, 1000, n).astype(np.uint32)
    return (priority, 1_700_000_000 * 10**9 + since, position, np.zeros(n, np.uint8)), keys


def victims_bars(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Hold the medians to the project's bars.

    Parameters
    ----------
    seconds : mapping
        For each kind of data the seconds of each side, ours by the name of `OURS`.

    Returns
    -------
    dict of str to dict
        For each bar the worst ``value``, the ``bar`` and whether it was ``met``; NaN and False without rivals.

    Examples
    --------
    >>> victims_bars({"spread": {OURS: 50e-6, "cupy": 2e-4, "torch": 1e-4}})["victims_lead"]
    {'value': 2.0, 'bar': 3.0, 'met': False}
    """
    slowest = max(sides[OURS] for sides in seconds.values())
    leads = [
        min((other for name, other in sides.items() if name != OURS), default=float("nan")) / sides[OURS]
        for sides in seconds.values()
    ]
    lead = float(np.min(leads))
    return {
        "victims_seconds": {"value": slowest, "bar": SECONDS_BAR, "met": bool(slowest < SECONDS_BAR)},
        "victims_lead": {"value": lead, "bar": LEAD_BAR, "met": bool(lead >= LEAD_BAR)},
    }


def _rivals(keys: Any, k: int) -> dict[str, Callable[[], Any]]:
    """Return what else selects the k smallest keys on the GPU: CuPy, and PyTorch if it is there and sees the GPU."""
    import cupy

    sides: dict[str, Callable[[], Any]] = {"cupy.argpartition": lambda: cupy.argpartition(keys, k)[:k]}
    try:
        import torch
    except ImportError:
        return sides
    if torch.cuda.is_available():
        tensor = torch.as_tensor(keys, device="cuda")
        sides["torch.topk"] = lambda: torch.topk(tensor, k, largest=False).indices
    return sides


def median_seconds(sides: Mapping[str, Callable[[], Any]], rounds: int, seed: int) -> dict[str, float]:
    """Return the median time of each side on the GPU, one call at a time, in shuffled order."""
    import cupy

    runtime = gpu.cuda_runtime()
    begin, end = (runtime.eventCreateWithFlags(0) for _ in range(2))
    stream = gpu.stream_handle(None)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in rng.permutation(list(sides)).tolist():
            cupy.cuda.Device().synchronize()
            runtime.eventRecord(begin, stream)
            sides[name]()
            runtime.eventRecord(end, stream)
            runtime.eventSynchronize(end)
            seconds[name].append(runtime.eventElapsedTime(begin, end) / 1e3)
    for event in (begin, end):
        runtime.eventDestroy(event)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def bench_victims(*, n: int = 1_000_000, k: int = 1000, rounds: int = 50, seed: int = 0) -> dict[str, Any]:
    """Check and time the selection of k victims among n blocks.

    Returns
    -------
    dict
        ``blocks``, ``victims``, ``seconds`` (for each kind of data, the median of each side), ``bars``.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    TransferError
        If the GPU selects other victims than the CPU; nothing is timed then.
    """
    gpu.require_gpu("bench_victims")
    import cupy

    from dynalab.kernels.victims import select_victims
    from dynalab.kernels.victims_device import select_victims_device, victims_workspace_bytes

    out, workspace = cupy.empty(k, cupy.int32), cupy.empty(victims_workspace_bytes(n), cupy.uint8)
    seconds = {}
    for kind in ("spread", "ties"):
        columns, keys = bench_columns(n, kind, seed)
        p, u, q, pins = map(cupy.asarray, columns)

        def ours(p: Any = p, u: Any = u, q: Any = q, pins: Any = pins) -> Any:
            return select_victims_device(p, u, q, pins, k, out=out, workspace=workspace)

        if not np.array_equal(cupy.asnumpy(ours()), select_victims(*columns, k)):
            raise TransferError(f"victims ({kind}): the GPU selects others than the CPU; do not use it on this machine")
        sides = {OURS: ours, **_rivals(cupy.asarray(keys), k)}
        for side in sides.values():
            side()
        seconds[kind] = median_seconds(sides, rounds, seed)
    return {"blocks": n, "victims": k, "seconds": seconds, "bars": victims_bars(seconds)}


def bench_checksums(*, nbytes: int = 1 << 30, rounds: int = 15, seed: int = 0) -> dict[str, float]:
    """Check and time the checksums of blocks of 64 KiB, 1 MiB and 16 MiB that fill `nbytes` of device memory.

    Returns
    -------
    dict of str to float
        Bytes read per second, by size of block.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    TransferError
        If the GPU finds other checksums than the CPU.
    """
    gpu.require_gpu("bench_checksums")
    import cupy

    from dynalab.kernels.checksum import checksum_blocks
    from dynalab.kernels.checksum_device import checksum_blocks_device

    memory = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    device = cupy.asarray(memory)
    sides = {}
    for size in (64 << 10, 1 << 20, 16 << 20):
        starts = np.arange(nbytes // size) * size
        addresses = device.data.ptr + starts

        def ours(addresses: npt.NDArray[np.int64] = addresses, size: int = size) -> Any:
            return checksum_blocks_device(addresses, size)

        if not np.array_equal(cupy.asnumpy(ours()), checksum_blocks(memory.ctypes.data + starts, size)):
            raise TransferError(f"checksums of {size} bytes: the GPU finds others than the CPU; do not use it here")
        sides[str(size)] = ours
    return {name: nbytes / took for name, took in median_seconds(sides, rounds, seed).items()}
