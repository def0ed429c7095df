"""All benchmarks of a GPU's copy paths in one call, and what the project demands of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from dynalab.kernels import gpu
from dynalab.kernels.gpu_bench import CHUNK, Record, bench_choice, bench_device_copies, bench_link_copies
from dynalab.kernels.paths_gpu import GPU_PATHS

#: Least share of one large copy's rate: chunks of 64 KiB inside the device, pieces of 64 KiB and more over the link.
SHARE_BAR: Final = 0.9
#: Least lead of the kernel over a batch of copies, for pages of 4 KiB from host to device.
BATCH_BAR: Final = 5.0
#: Most that choices may cost, on average and at worst.
REGRET_BARS: Final = (0.02, 0.10)


def _least(found: Iterable[float], bar: float) -> dict[str, Any]:
    worst = min(found, default=float("nan"))
    return {"value": worst, "bar": bar, "met": bool(worst >= bar)}


def bars(records: Sequence[Record], choice: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Hold the figures to the project's bars.

    Parameters
    ----------
    records : sequence of Record
        From both benchmarks of copies.
    choice : mapping
        The first that `dynalab.kernels.gpu_bench.bench_choice` returns.

    Returns
    -------
    dict of str to dict
        For each bar the worst ``value``, the ``bar`` and whether it was ``met``; NaN and False where nothing was
        measured. Over the link, "best" takes the best path for each size, "kernel" the kernel alone.
    """
    pieces = [r for r in records if r.case == "pieces"]
    rates = {(r.direction, r.path, r.piece_bytes): r.bytes_per_second for r in pieces}
    ours, theirs = rates.get(("h2d", "kernel", 4096)), rates.get(("h2d", "batch", 4096))
    large = [r for r in pieces if r.piece_bytes >= CHUNK and r.path in GPU_PATHS]
    best: dict[tuple[str, int], float] = {}
    for r in large:
        best[r.direction, r.piece_bytes] = max(best.get((r.direction, r.piece_bytes), 0.0), r.of_large_copy)
    inside = [r.of_large_copy for r in records if (r.direction, r.path) == ("d2d", "kernel")]
    mean, worst = REGRET_BARS
    return {
        "d2d_64KiB": _least(inside, SHARE_BAR),
        "link_64KiB_and_up_best": _least(best.values(), SHARE_BAR),
        "link_64KiB_and_up_kernel": _least((r.of_large_copy for r in large if r.path == "kernel"), SHARE_BAR),
        "h2d_4KiB_kernel_over_batch": _least([ours / theirs] if ours and theirs else [], BATCH_BAR),
        "regret": {
            "value": {name: [found["mean"], found["worst"]] for name, found in choice.items()},
            "bar": list(REGRET_BARS),
            "met": bool(choice) and all(f["mean"] <= mean and f["worst"] <= worst for f in choice.values()),
        },
    }


def bench_gpu(*, rounds: int = 15, seed: int = 0, nbytes: int = 1 << 30) -> dict[str, Any]:
    """Check and time all copy paths of this machine's GPU.

    Parameters
    ----------
    rounds, seed : int
        As in `dynalab.kernels.gpu_bench.bench_device_copies`.
    nbytes : int
        Bytes of the copies inside the device; those over the link are an eighth of it.

    Returns
    -------
    dict
        ``facts`` of the device, ``records`` (a dict for each), ``choice``, the ``calibration`` behind it, and ``bars``:
        lists, texts and numbers only.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    TransferError
        If any path copied wrongly: nothing is reported then.
    """
    facts = gpu.device_facts()
    records = bench_device_copies(nbytes, rounds=rounds, seed=seed)
    records += bench_link_copies(nbytes // 4, rounds=rounds, seed=seed)
    choice, table = bench_choice()
    return {
        "facts": dict(facts),
        "records": [asdict(record) for record in records],
        "choice": choice,
        "calibration": table,
        "bars": bars(records, choice),
    }
