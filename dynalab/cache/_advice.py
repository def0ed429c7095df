"""The single decisions behind a recommendation, each a pure function of replays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalab.cache.curve import knee_index
from dynalab.cache.replay import replay, run_jobs
from dynalab.cache.sizing import Stack
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
    allowed = ~_harmful(candidates)
    order = np.lexsort((candidates.disk_tb_per_day.values, -hit, cost))
    if target:
        wish = f"a hit ratio of at least {target:.3g}"
        for index in order:
            if allowed[index] and hit[index] >= target:
                return int(index), wish, True
        return _highest(hit, cost, allowed), wish, False
    if budget:
        wish = f"the highest hit ratio for at most {budget:,.0f} US$"
        affordable = allowed & (cost <= budget)
        if affordable.any():
            return _highest(hit, cost, affordable), wish, True
        return int(order[0]), wish, False
    front = _front(hit, cost, order, allowed)
    return front[knee_index(cost[front], hit[front])], "the knee of hit ratio over cost", True


def _harmful(candidates: xr.Dataset) -> np.ndarray:
    """Mark combinations whose disk makes TTFT worse than the same device and host without a disk."""
    host, disk = candidates.host_blocks.values, candidates.disk_blocks.values
    ttft = candidates.ttft_mean.values
    without = {int(h): float(t) for h, d, t in zip(host, disk, ttft, strict=True) if d == 0}
    return np.array([d > 0 and t > without[int(h)] for h, d, t in zip(host, disk, ttft, strict=True)])


def _highest(hit: np.ndarray, cost: np.ndarray, allowed: np.ndarray) -> int:
    """Return the allowed combination with the highest hit ratio, the cheapest among equals."""
    ranked = np.lexsort((cost, -np.where(allowed, hit, -1.0)))
    return int(ranked[0])


def _front(hit: np.ndarray, cost: np.ndarray, order: np.ndarray, allowed: np.ndarray) -> list[int]:
    """Return the combinations that no cheaper one matches, by rising cost."""
    front: list[int] = []
    for index in order:
        if allowed[index] and (not front or hit[index] > hit[front[-1]]):
            front.append(int(index))
    return front


def best_policy(
    trace: Trace, model: ModelSpec, hardware: HardwareSpec, stack: Stack, policies: Sequence[str]
) -> tuple[Stack, str, dict[str, Any]]:
    """Choose among the policies that can be deployed, and tell what the others and perfect foresight would reach.

    Returns
    -------
    stack : Stack
        With the chosen policy.
    reason : str
    evidence : dict
        Hit ratio of the whole stack per deployable policy; the best policy of the registry and Belady's bound on one
        cache as large as the largest tier.
    """

    def total(name: str) -> float:
        return float(replace(stack, policy=name).replay(trace, model, hardware).total_hit_ratio)

    ratios = dict(zip(policies, run_jobs(total, list(policies), "policies"), strict=True))
    best = max(ratios, key=lambda name: ratios[name])
    baseline = "lru" if "lru" in ratios else best
    if ratios[best] - ratios[baseline] < WORTH_A_CHANGE:
        best = baseline
    largest = max(stack.device, stack.host, stack.disk)
    single = replay(trace, "all", [largest]).hit_ratio.isel(capacity=0)
    online = single.sel(policy=[name for name in POLICIES if not POLICIES[name].offline])
    top = str(online.policy.values[int(np.argmax(online.values))])
    evidence = {
        "deployable": {name: round(value, 4) for name, value in ratios.items()},
        "largest_tier_blocks": int(largest),
        "best_of_registry": {"policy": top, "hit_ratio": round(float(online.max()), 4)},
        "belady_bound": round(float(single.sel(policy="belady")), 4),
    }
    runner_up = max((name for name in ratios if name != best), key=lambda name: ratios[name], default=best)
    reason = (
        f"{ratios[best]:.1%} of blocks served, {runner_up} {ratios[runner_up]:.1%}; "
        f"perfect foresight would reach {evidence['belady_bound']:.1%} in the largest tier"
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
    reason = f"{ratios[best]:.1%} of input tokens reused at equal bytes ({others})"
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
        gains[name] = {
            "hit_ratio_per_gib": float(f"{(float(run.total_hit_ratio) - float(runs[0].total_hit_ratio)) / gib:.3g}"),
            "ttft_saved_s_per_gib": float(f"{(float(runs[0].ttft_mean) - float(run.ttft_mean)) / gib:.3g}"),
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
