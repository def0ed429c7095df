"""Measure the tiers of this machine: every direction, block size, batch and layout, beside what the machine can do.

Conventions. A bandwidth counts the payload once; from device to device, bytes read and bytes written. A time is that
from the submission of a transfer to the transfer engine until its last block has arrived. Before anything is timed,
every case has moved blocks that were compared bit by bit. Rounds visit all cases in shuffled order; medians over the
rounds are given, with their tenth and ninetieth percentiles. Disks are read and written at permuted slots past the page
cache, and no slot is read again before all others were.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from dynalab.tiers.bench_cases import PAGE, Case, payloads
from dynalab.tiers.bench_limits import LARGE, PlainCopy, PlainFile
from dynalab.tiers.bench_plan import BenchPlan
from dynalab.tiers.bench_rig import TierRig

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["BenchPlan", "bench_tiers"]

#: How long a measurement should last at least, if the limit were reached [s]; and batches that are enough for it.
_DURATION: Final = 0.01
_MOST_BATCHES: Final = 512
#: Two batches at least, as long as they do not take so long [s].
_LONG: Final = 0.05
#: Blocks that a case is checked with, if a batch is not more.
_CHECKED: Final = 16
#: Rounds that are made whatever time they take, and all that are made however little.
_LEAST_ROUNDS: Final = 3
_MOST_ROUNDS: Final = 100
#: Bytes of a first try at the machine's limits.
_FIRST_BYTES: Final = 32 << 20
#: A case is left out if one batch alone would take this share of the whole time.
_TOO_SLOW: Final = 1 / 40


def bench_tiers(plan: BenchPlan, *, progress: bool = True) -> xr.Dataset:
    """Measure this machine's tiers.

    Parameters
    ----------
    plan : BenchPlan
    progress : bool
        Show bars on a terminal.

    Returns
    -------
    xarray.Dataset
        Over (direction, block_bytes, batch, layout): ``bandwidth`` [B/s], the median, with ``bandwidth_p10`` and
        ``bandwidth_p90``; ``share_of_limit``; ``blocks`` of one measurement; ``seconds`` of each, over round too. Over
        (direction): ``limit`` [B/s] with its percentiles, what the machine does with bytes in one piece. NaN where a
        batch has no room or would take too long. ``attrs`` tell what the tiers are: ``device`` is "host-emulated"
        where there is no GPU.

    Raises
    ------
    TransferError
        If a block arrives as another one, or does not arrive.
    ConfigError, DeviceMemoryError, TierFull
        If the tiers cannot be had.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plan = BenchPlan(path=folder, device="1MiB", host="1MiB", disk="1MiB", block_bytes=["64KiB"], batches=[4],
    ...                      layouts=["block_first"], gpu="host-emulated", seconds=1)
    ...     found = bench_tiers(plan, progress=False)
    >>> found.sizes["direction"], bool((found.bandwidth > 0).all()), found.attrs["device"]
    (7, True, 'host-emulated')
    """
    from dynalab.tiers.bench_results import bench_dataset

    plan.check_space()
    deadline = time.perf_counter() + plan.seconds
    with TierRig(plan) as rig, _Limits(rig, plan) as limits:
        grid = product(rig.directions, plan.block_bytes, plan.batches, plan.layouts)
        cases = [Case(*values) for values in grid]
        blocks: dict[Case, int] = {}
        for case in cases:
            n = _blocks(case, rig.room(case), limits.first_idea[case.direction], _TOO_SLOW * plan.seconds)
            if n:
                blocks[case] = n
        expected: dict[Case, float] = {}
        with _bar("checking", len(blocks), progress) as bar:
            for case, n in blocks.items():
                checked = min(n, rig.room(case), max(case.batch, _CHECKED))
                expected[case] = rig.check(case, checked) * n / checked
                bar.update()
        blocks = _within(blocks, expected, (deadline - time.perf_counter()) / _LEAST_ROUNDS)
        seconds: dict[Case, list[float]] = {case: [] for case in blocks}
        rates: dict[str, list[float]] = {name: [] for name in rig.directions}
        jobs: list[Case | str] = [*blocks, *rig.directions]
        with _bar("measuring", len(jobs) * _LEAST_ROUNDS, progress) as bar:
            for done in range(_MOST_ROUNDS):
                if done >= _LEAST_ROUNDS and time.perf_counter() >= deadline:
                    break
                bar.total = max(bar.total, len(jobs) * (done + 1))
                for number in rig.rng.permutation(len(jobs)).tolist():
                    job = jobs[number]
                    if isinstance(job, Case):
                        seconds[job].append(rig.move(job, blocks[job]))
                    else:
                        rates[job].append(limits.measure(job))
                    bar.update()
        facts = rig.facts() | {"cases_left_out": len(cases) - len(blocks)}
    return bench_dataset(plan, blocks, seconds, rates, facts)


class _Limits:
    """What the machine does with bytes in one piece, from end to end of each direction."""

    def __init__(self, rig: TierRig, plan: BenchPlan) -> None:
        self._rig = rig
        label = rig.device_label
        number = int(label.removeprefix("cuda:")) if label.startswith("cuda:") else -1
        self._file: PlainFile | None = None
        with ExitStack() as undo:
            self._copy = PlainCopy(min(plan.concurrency, len(os.sched_getaffinity(0))), number)
            undo.callback(self._copy.close)
            for disk in list(rig.disks.values())[:1]:
                direct = disk.capabilities.direct_io
                self._file = undo.enter_context(PlainFile(plan.path, plan.plain_bytes, direct=direct))
            # Payload in bytes/s; of two tries the second, for the first one finds everything asleep.
            self.first_idea = {
                name: [self.measure(name, _FIRST_BYTES) for _ in range(2)][1] / payloads(name)
                for name in rig.directions
            }
            self._undo = undo.pop_all()

    def __enter__(self) -> _Limits:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def measure(self, direction: str, nbytes: int = 0) -> float:
        """Move so many bytes, by default what takes no longer than a tenth of a second, and return the bandwidth.

        Returns
        -------
        float
            Bytes/s, counted as those of blocks are.
        """
        nbytes = nbytes or int(min(LARGE, max(_FIRST_BYTES, self.first_idea[direction] / 10)))
        source, _, target = direction.partition("_to_")
        if "disk" in (source, target):
            assert self._file is not None
            seconds, nbytes = self._file.run(nbytes, write=target == "disk")
            return nbytes / seconds
        tiers = self._rig.pages(source), self._rig.pages(target)
        halves = 2 if source == target else 1
        sizes = [tier.capacity * PAGE // halves for tier in tiers]
        nbytes = min(nbytes, *sizes) // PAGE * PAGE
        places = [int(self._rig.rng.integers((size - nbytes) // PAGE + 1)) * PAGE for size in sizes]
        begin = tiers[0].bases[0] + places[0]
        end = tiers[1].bases[0] + places[1] + (sizes[1] // PAGE * PAGE if halves == 2 else 0)
        return nbytes * payloads(direction) / self._copy.seconds(end, begin, nbytes)


def _blocks(case: Case, room: int, rate: float, most_seconds: float) -> int:
    """Return the blocks of one measurement, a multiple of the batch; 0 where a batch has no room or takes too long.

    Parameters
    ----------
    case : Case
    room : int
        Blocks that can be under way at once.
    rate : float
        Payload that the machine moves [B/s].
    most_seconds : float
        What one batch may take.
    """
    one = case.batch * case.block_bytes / rate
    if case.batch > room or one > most_seconds:
        return 0
    batches = min(max(int(_DURATION / one), 2 if 2 * one <= _LONG else 1), _MOST_BATCHES)
    # What is written to a slot of a disk twice at once fails, and what is read twice is not cold.
    return (min(batches, room // case.batch) if "disk" in case.ends else batches) * case.batch


def _within(blocks: dict[Case, int], expected: dict[Case, float], seconds: float) -> dict[Case, int]:
    """Move fewer blocks at a time where a round would take longer than so many seconds."""
    share = max(seconds, 0.0) / max(sum(expected.values()), 1e-9)
    if share >= 1:
        return blocks
    return {case: max(1, int(n * share) // case.batch) * case.batch for case, n in blocks.items()}


def _bar(what: str, total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, unit="case", leave=False, disable=None if progress else True)
