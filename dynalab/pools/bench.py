"""Measure the pools of this machine: what an acquire and a release take, alone and in a crowd, and a hand-over.

Conventions. A cost is the time by the clock of all acquires and releases over their number, all borrowers together, so
that it is what one of them adds. Where there are more borrowers than items, who holds one lets the others run once
(``time.sleep(0)`` of threads, ``asyncio.sleep(0)`` of tasks), for otherwise they would hardly meet; what that takes
without a pool is taken off. The hand-over is the time from the release until who waits has the item. Rounds visit all
cases in shuffled order; medians over the rounds are given, with their tenth and ninetieth percentiles.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dynalab.pools.bench_cases import Case, Measured, borrow, hand_over
from dynalab.pools.bench_plan import PoolBenchPlan

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PoolBenchPlan", "bench_pools"]

_PERCENTILES: Final = (50.0, 90.0, 99.0)
_LEAST_ROUNDS: Final = 3
_MOST_ROUNDS: Final = 100
#: Rounds that the time is divided among; and how long a measurement lasts at least and at most [s].
_ROUNDS: Final = 5
_SHORTEST, _LONGEST = 0.002, 0.1
#: Acquires of a first try, and hand-overs of each round.
_FIRST: Final = 512
_HAND_OVERS: Final = 100


def bench_pools(plan: PoolBenchPlan, *, progress: bool = True) -> xr.Dataset:
    """Measure this machine's pools.

    Parameters
    ----------
    plan : PoolBenchPlan
    progress : bool
        Show bars on a terminal.

    Returns
    -------
    xarray.Dataset
        Over (kind, items, concurrency): ``cost`` [s] of an acquire and release, the median, with ``cost_p10`` and
        ``cost_p90``; ``waited``, the share of acquires that had to wait; ``seconds`` and ``bare``, what was measured
        with a pool and without, over round too. Over (kind, percentile): ``handover`` [s]. NaN where the plan does not
        ask: concurrency counts threads for the kind "threads" (`SyncPool`), tasks for "asyncio" and "uvloop" (`Pool`).

    Raises
    ------
    ConfigError
        If a kind is not installed.

    Examples
    --------
    >>> plan = PoolBenchPlan(kinds="threads,asyncio", items=[1], threads=[1], tasks=[2], seconds=0.1)
    >>> found = bench_pools(plan, progress=False)
    >>> found.sizes["concurrency"], bool((found.handover > 0).all()), bool(found.waited.sel(kind="asyncio").max() > 0.9)
    (2, True, True)
    """
    import numpy as np
    from tqdm.auto import tqdm

    deadline = time.perf_counter() + plan.seconds
    cases: list[Case] = [
        Case(kind, items, concurrency)
        for kind in plan.kinds
        for items in plan.items
        for concurrency in (plan.threads if kind == "threads" else plan.tasks)
    ]
    jobs: list[Case | str] = [*cases, *plan.kinds]
    target = min(max(plan.seconds / (_ROUNDS + 1) / len(jobs), _SHORTEST), _LONGEST)
    measured: dict[Case, list[Measured]] = {case: [] for case in cases}
    times: dict[str, list[float]] = {kind: [] for kind in plan.kinds}
    disable = None if progress else True
    with tqdm(total=len(jobs) * (_LEAST_ROUNDS + 1), desc="pools", unit="case", leave=False, disable=disable) as bar:
        counts = {}
        for case in cases:
            first = borrow(case, _FIRST)
            counts[case] = max(_FIRST // 4, int(target / (first.seconds + first.bare)))
            bar.update()
        for kind in plan.kinds:
            hand_over(kind, _HAND_OVERS // 10)
            bar.update()
        rng = np.random.default_rng(plan.seed)
        for done in range(_MOST_ROUNDS):
            if done >= _LEAST_ROUNDS and time.perf_counter() >= deadline:
                break
            bar.total = max(bar.total or 0, len(jobs) * (done + 2))
            for number in rng.permutation(len(jobs)).tolist():
                job = jobs[number]
                if isinstance(job, str):
                    times[job] += hand_over(job, _HAND_OVERS)
                else:
                    measured[job].append(borrow(job, counts[job]))
                bar.update()
    return _dataset(plan, measured, times)


def _dataset(
    plan: PoolBenchPlan, measured: Mapping[Case, Sequence[Measured]], times: Mapping[str, Sequence[float]]
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    crowd = {*(plan.threads if "threads" in plan.kinds else ())}
    crowd |= {*(plan.tasks if set(plan.kinds) != {"threads"} else ())}
    axes: tuple[list[Any], ...] = (list(plan.kinds), list(plan.items), sorted(crowd))
    rounds = max(map(len, measured.values()))
    raw = np.full((3, *map(len, axes), rounds), np.nan)
    for case, found in measured.items():
        i, j, k = (axis.index(value) for axis, value in zip(axes, case, strict=True))
        raw[:, i, j, k] = np.transpose(found)
    cost = np.quantile(raw[0] - raw[1], (0.5, 0.1, 0.9), axis=-1)
    dims = ("kind", "items", "concurrency")
    data: dict[str, Any] = {
        name: (dims, values, {"units": "s", "long_name": f"cost of an acquire and release, {what} over rounds"})
        for name, values, what in zip(
            ("cost", "cost_p10", "cost_p90"), cost, ("median", "10th percentile", "90th percentile"), strict=True
        )
    }
    data["waited"] = (dims, np.median(raw[2], axis=-1), {"units": "1", "long_name": "share of acquires that waited"})
    data["seconds"] = ((*dims, "round"), raw[0], {"units": "s", "long_name": "time of an acquire and release as used"})
    data["bare"] = ((*dims, "round"), raw[1], {"units": "s", "long_name": "time of the same use without a pool"})
    latency = np.array([np.percentile(times[kind], _PERCENTILES) for kind in plan.kinds])
    long_name = "time from a release until who waits has the item"
    data["handover"] = (("kind", "percentile"), latency, {"units": "s", "long_name": long_name})
    coords = {
        "kind": ("kind", axes[0], {"long_name": "kind of pool: SyncPool for threads, Pool by its event loop"}),
        "items": ("items", axes[1], {"units": "item", "long_name": "values in the pool"}),
        "concurrency": ("concurrency", axes[2], {"units": "1", "long_name": "threads or tasks that borrow"}),
        "percentile": ("percentile", list(_PERCENTILES), {"units": "%", "long_name": "percentile of hand-overs"}),
    }
    return xr.Dataset(data, coords=coords).assign_attrs(
        convention="time by the clock over acquires, all borrowers together; where there are more of them than items, "
        "they let others run once while they hold, and what that takes is taken off",
        rounds=rounds,
        handovers=len(times[plan.kinds[0]]),
        parameters=plan.model_dump_json(),
        python=platform.python_version(),
        gil=int(getattr(sys, "_is_gil_enabled", lambda: True)()),
        cpus=len(os.sched_getaffinity(0)),
        machine=platform.machine(),
    )
