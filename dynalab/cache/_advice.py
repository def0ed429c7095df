"""The single decisions behind a recommendation, each a pure function of replays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.cache.curve import knee_index
from dynalab.cache.replay import policy_names, replay, run_jobs
from dynalab.cache.sizing import Stack, evaluate, stack_at
from dynalab.errors import TraceError
from dynalab.kv.policies import POLICIES
from dynalab.workload import HardwareSpec, ModelSpec, Trace

if TYPE_CHECKING:
    import xarray as xr

_GIB = 2**30
#: Gains in hit ratio below this are not worth a change of policy or block size: the noise of one trace against another.
WORTH_A_CHANGE = 0.002
_STEP = 0.05  # relative growth of a tier from which the value of its next GiB is read


def choose(candidates: xr.Dataset, target: float, budget: float) -> tuple[int, str, bool]:
    """Pick a combination of tier sizes.

    Parameters
    ----------
    candidates : xarray.Dataset
        From :func:`dynalab.cache.sizing.evaluate`.
    target : float
        Hit ratio wanted, 0 for none.
    budget : float
        US$, 0 for none.

    Returns
    -------
    index : int
    wish : str
        What was looked for, in words.
    met : bool
        Whether it was found.
    """
    hit, cost = candidates.hit_ratio.values, candidates.cost.values
    allowed = ~harmful(candidates)
    if target:
        wish = f"a hit ratio of at least {target:g}"
        reaching = allowed & (hit >= target)
        if reaching.any():
            return _first(candidates, reaching, cost, -hit), wish, True
        return _first(candidates, allowed, -hit, cost), wish, False
    if budget:
        wish = f"the highest hit ratio for at most {budget:,.10g} US$"
        affordable = allowed & (cost <= budget)
        if affordable.any():
            return _first(candidates, affordable, -hit, cost), wish, True
        return _first(candidates, allowed, cost, -hit), wish, False
    points = front(candidates, WORTH_A_CHANGE)
    index = knee_index(cost[points], hit[points])
    # Where every dollar buys more than the one before, nothing lies above the straight line and there is no knee.
    met = len(points) < 3 or 0 < index < len(points) - 1
    return points[index if met else -1], "the knee of hit ratio over cost", met


def harmful(candidates: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Mark combinations with a worse TTFT than the same device and host without a disk, or the device alone."""
    host, disk = candidates.host_blocks.values, candidates.disk_blocks.values
    ttft, policy = candidates.ttft_mean.values, candidates.policy.values
    marks = np.zeros(ttft.size, np.bool_)
    for index in range(ttft.size):
        simpler = (disk == 0) & ((host == host[index]) | (host == 0)) & (policy == policy[index])
        marks[index] = bool(np.any(ttft[simpler] < ttft[index]))
    return marks


def front(candidates: xr.Dataset, step: float = 0.0) -> list[int]:
    """Return the combinations that no cheaper one matches, by rising cost; harmful ones never count.

    Parameters
    ----------
    candidates : xarray.Dataset
    step : float
        Leave out those that gain less than this in hit ratio over the cheaper one before.
    """
    hit = candidates.hit_ratio.values
    allowed = ~harmful(candidates)
    points: list[int] = []
    for index in _ranked(candidates, candidates.cost.values, -hit):
        gain = hit[index] - hit[points[-1]] if points else np.inf
        if allowed[index] and gain > 0 and gain >= step:
            points.append(int(index))
    return points


def _ranked(candidates: xr.Dataset, *keys: npt.NDArray) -> npt.NDArray[np.intp]:
    """Sort by `keys`, the first one first; among equals the least wear, then the order in which they were tried."""
    return np.lexsort((candidates.disk_tb_per_day.values, *reversed(keys)))


def _first(candidates: xr.Dataset, mask: npt.NDArray[np.bool_], *keys: npt.NDArray) -> int:
    ranked = _ranked(candidates, *keys)
    return int(ranked[mask[ranked]][0])


def _better_policy(rows: xr.Dataset) -> int:
    """Return the row with the most hits that is worth leaving the first for; a policy must not cost money or time."""
    hit, cost, ttft = rows.hit_ratio.values, rows.cost.values, rows.ttft_mean.values
    better = (hit - hit[0] >= WORTH_A_CHANGE) & (cost <= cost[0]) & (ttft <= ttft[0])
    return int(np.argmax(np.where(better, hit, hit[0])))


def _baseline_first(policies: Sequence[str]) -> list[str]:
    """Return the policies with the one to start from in front: LRU, which every manager offers, if it is there."""
    return sorted(policies, key=lambda name: name != "lru")


def with_better_policies(
    trace: Trace,
    model: ModelSpec,
    hardware: HardwareSpec,
    candidates: xr.Dataset,
    policies: Sequence[str],
    progress: bool | None = None,
) -> xr.Dataset:
    """Add rows for those combinations of the front that another policy improves.

    Done before anything is chosen, so that wishes are measured against what the better policy reaches, and a larger
    budget never ends with fewer hits.
    """
    import xarray as xr

    others = _baseline_first(policies)[1:]
    points = front(candidates)
    stacks = [replace(stack_at(candidates, index), policy=name) for index in points for name in others]
    if not stacks:
        return candidates
    tried = evaluate(trace, model, hardware, stacks, progress)
    added = []
    for place, index in enumerate(points):
        mine = tried.isel(stack=slice(place * len(others), (place + 1) * len(others)))
        best = _better_policy(xr.concat([candidates.isel(stack=[index]), mine], "stack"))
        if best:
            added.append(mine.isel(stack=[best - 1]))
    every = xr.concat([candidates, *added], "stack")
    return every.assign_coords(stack=np.arange(every.sizes["stack"]))


def best_policy(
    trace: Trace, model: ModelSpec, hardware: HardwareSpec, stack: Stack, policies: Sequence[str]
) -> tuple[Stack, str, dict[str, Any]]:
    """Choose among the policies that can be deployed, and tell what the others and perfect foresight would reach.

    LRU stays, if it is among them, unless another gains at least 0.002 in hit ratio at no higher cost and TTFT.

    Returns
    -------
    stack : Stack
        With the chosen policy.
    reason : str
    evidence : dict
        Hit ratio of the whole stack per deployable policy; the chosen policy, the best one of the registry and Belady's
        bound on one cache as large as the largest tier, which no filter and no broken prefix holds back. The latter are
        left out where there is no tier.
    """
    names = _baseline_first(policy_names(policies))
    rows = evaluate(trace, model, hardware, [replace(stack, policy=name) for name in names])
    best = names[_better_policy(rows)]
    ratios = dict(zip(names, rows.hit_ratio.values.tolist(), strict=True))
    largest = max(stack.device, stack.host, stack.disk)
    if not largest:
        evidence: dict[str, Any] = {"deployable": dict.fromkeys(names, 0.0), "largest_tier_blocks": 0}
        return replace(stack, policy=best), "no tier is recommended that would need one", evidence
    single = replay(trace, "all", [largest]).hit_ratio.isel(capacity=0)
    online = single.sel(policy=[name for name in POLICIES if not POLICIES[name].offline])
    top = str(online.policy.values[int(np.argmax(online.values))])
    evidence = {
        "deployable": {name: round(value, 4) for name, value in ratios.items()},
        "largest_tier_blocks": int(largest),
        "alone_in_largest": {"policy": best, "hit_ratio": round(float(single.sel(policy=best)), 4)},
        "best_of_registry": {"policy": top, "hit_ratio": round(float(online.max()), 4)},
        "belady_bound": round(float(single.sel(policy="belady")), 4),
    }
    others = ", ".join(f"{name} {ratio:.1%}" for name, ratio in ratios.items() if name != best)
    # The stack is held back by its filter and its broken prefixes too; policies compare fairly in a cache of their own.
    reason = (
        f"{ratios[best]:.1%} of blocks served by the stack"
        + (f" (with {others})" if others else "")
        + f"; alone in a cache as large as the largest tier it would serve {float(single.sel(policy=best)):.1%}, "
        f"the best of all policies ({top}) {float(online.max()):.1%}, perfect foresight {evidence['belady_bound']:.1%}"
    )
    return replace(stack, policy=best), reason, evidence


def best_block_tokens(
    trace: Trace, model: ModelSpec, stack: Stack, hardware: HardwareSpec
) -> tuple[int, str, dict[str, float]]:
    """Choose the block size, at equal bytes per tier, by the share of input tokens that need no recomputing.

    Smaller blocks than the trace's can only find the sharing that its ids already show: their figure is a lower bound.

    Returns
    -------
    block_tokens : int
    reason : str
    evidence : dict of str to float
        Token hit ratio per block size for which the trace defines it.
    """
    own = int(trace.block_tokens or 0)
    sizes = [size for size in (own // 4, own // 2, own, own * 2) if size >= 1]

    def reused(tokens: int) -> float | None:
        try:
            view = trace.reblock(tokens)
        except TraceError:
            return None
        scaled = replace(
            stack,
            device=stack.device * own // tokens,
            host=stack.host * own // tokens,
            disk=stack.disk * own // tokens,
        )
        return float(scaled.replay(view, model, hardware).token_hit_ratio)

    found = dict(zip(sizes, run_jobs(reused, sizes, "block sizes"), strict=True))
    ratios = {size: ratio for size, ratio in found.items() if ratio is not None}
    best = max(ratios, key=lambda size: (ratios[size], -abs(size - own)))
    if ratios[best] - ratios[own] < WORTH_A_CHANGE:
        best = own
    others = ", ".join(f"{size}: {ratio:.1%}" for size, ratio in ratios.items() if size != best)
    reason = f"{ratios[best]:.1%} of input tokens reused at equal bytes ({others or 'the only size this trace allows'})"
    if min(ratios) < own:
        reason += f"; the trace tells blocks of {own} tokens apart, so that smaller ones may find more than shown"
    if best != own:
        reason += f"; sizes in blocks and all other figures here are for {own}"
    return best, reason, {str(size): round(ratio, 4) for size, ratio in ratios.items()}


def next_gib(trace: Trace, model: ModelSpec, hardware: HardwareSpec, stack: Stack) -> dict[str, dict[str, float]]:
    """Return what the next GiB of each tier would bring: hit ratio and mean TTFT saved, per GiB.

    Read from growing each tier alone by 5% (at least one block).
    """
    block_bytes = model.block_bytes(int(trace.block_tokens or 0))
    steps = {
        "device": max(1, math.ceil(stack.device * _STEP)),
        "host": max(1, math.ceil(stack.host * _STEP)),
        "disk": max(1, math.ceil(stack.disk * _STEP)),
    }
    stacks = [
        stack,
        replace(stack, device=stack.device + steps["device"]),
        replace(stack, host=stack.host + steps["host"]),
        replace(stack, disk=stack.disk + steps["disk"]),
    ]
    runs = run_jobs(lambda each: each.replay(trace, model, hardware), stacks, "next GiB")
    gains = {}
    for name, run in zip(steps, runs[1:], strict=True):
        gib = steps[name] * block_bytes / _GIB
        # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
        gains[name] = {
            "hit_ratio_per_gib": float(f"{int(run.hits.sum() - runs[0].hits.sum()) / trace.n_accesses / gib:.3g}")
            + 0.0,
            "ttft_saved_s_per_gib": float(f"{float(runs[0].ttft_mean - run.ttft_mean) / gib:.3g}") + 0.0,
        }
    return gains


def kvbm_settings(sizes: Mapping[str, int], disk_filter: str) -> dict[str, str]:
    """Return the environment variables that make KVBM run these tiers.

    Sizes are whole gigabytes (10**9 bytes), rounded up: KVBM reads them as decimal, and one of its readers takes
    fractions for unset.
    """
    settings = {}
    if sizes["host"]:
        settings["DYN_KVBM_CPU_CACHE_GB"] = str(math.ceil(sizes["host"] / 1e9))
    if sizes["disk"]:
        settings["DYN_KVBM_DISK_CACHE_GB"] = str(math.ceil(sizes["disk"] / 1e9))
        # The filter sits in front of the host-to-disk path; without a host tier KVBM bypasses it.
        settings["DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER"] = "true" if disk_filter == "all" else "false"
    return settings
