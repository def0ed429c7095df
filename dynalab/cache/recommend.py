"""From a trace to tier sizes, policy, block size and settings, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalab.cache._advice import (
    best_block_tokens,
    best_policy,
    choose,
    kvbm_settings,
    next_gib,
    with_better_policies,
)
from dynalab.cache._reasons import reasons, warnings
from dynalab.cache.curve import knee, lru_curve
from dynalab.cache.replay import infinite_hit_ratios, policy_names
from dynalab.cache.sizing import DISK_FILTERS, Stack, evaluate, size_grid, stack_at
from dynalab.cache.stack import Tier
from dynalab.errors import ConfigError, TraceError
from dynalab.units import format_size, parse_size
from dynalab.workload import HardwareSpec, ModelSpec, Trace, hardware_spec, model_spec

if TYPE_CHECKING:
    import xarray as xr

#: Policies that a KVBM deployment can run; the others of the registry are research until a manager offers them.
DEPLOYABLE = ("lru", "fifo", "multilru", "lineage")
_GRID_POINTS = 7


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What to deploy for a workload, and why.

    Attributes
    ----------
    sizes : dict of str to int
        Bytes per tier.
    blocks : dict of str to int
        Blocks per tier.
    block_tokens : int
    policy : str
    disk_filter : str
        Admission to the disk: "all", "frequency", or "none" without a disk.
    disks : int
        Disks that the disk tier needs for its capacity, bandwidth and endurance.
    cost : float
        US$ for host memory and disks, at the prices of the hardware.
    settings : dict of str to str
        The matching ``DYN_KVBM_*`` environment variables.
    reasons : dict of str to str
        One sentence per decision.
    evidence : dict
        Figures behind the decisions (hit ratios, TTFT, wear, marginal gains); simulated, see `method`.
    warnings : list of str
        What the reader must not overlook.
    candidates : xarray.Dataset
        Every combination of sizes that was replayed, and those of them that another policy than the usual one improves.
    """

    sizes: dict[str, int]
    blocks: dict[str, int]
    block_tokens: int
    policy: str
    disk_filter: str
    disks: int
    cost: float
    settings: dict[str, str]
    reasons: dict[str, str]
    evidence: dict[str, Any]
    warnings: list[str]
    candidates: xr.Dataset = field(repr=False)

    def tiers(self) -> list[Tier]:
        """Return the recommended tiers as :func:`~dynalab.cache.replay_tiers` takes them."""
        admission = "frequency" if self.disk_filter == "frequency" else "all"
        return Stack(**self.blocks, policy=self.policy, disk_filter=admission).tiers()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in the order in which a reader wants them."""
        return {
            "tiers": {
                name: {"size": format_size(self.sizes[name]), "bytes": self.sizes[name], "blocks": self.blocks[name]}
                for name in self.sizes
            },
            "policy": self.policy,
            "block_tokens": self.block_tokens,
            "disk_filter": self.disk_filter,
            "disks": self.disks,
            "cost_usd": round(self.cost, 2),
            "settings": dict(self.settings),
            "reasons": dict(self.reasons),
            "evidence": self.evidence,
            "warnings": list(self.warnings),
            "method": "simulated: metadata-only replay of the trace, unloaded TTFT from the hardware's figures",
        }

    def to_yaml(self) -> str:
        """Return :meth:`to_dict` as YAML."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def _repr_html_(self) -> str:
        import html

        rows = [(f"{name} tier", f"{format_size(self.sizes[name])}", self.reasons.get(name, "")) for name in self.sizes]
        rows += [
            (title, str(value), self.reasons.get(key, ""))
            for key, title, value in (
                ("policy", "policy", self.policy),
                ("block_tokens", "block size", f"{self.block_tokens} tokens"),
                ("disk_filter", "disk filter", self.disk_filter),
                ("disks", "disks", self.disks),
            )
        ]
        style = ' style="text-align: left; white-space: normal; vertical-align: top"'
        cells = ("".join(f"<td{style}>{html.escape(cell)}</td>" for cell in row) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        head = "".join(f"<th{style}>{title}</th>" for title in ("decision", "value", "why"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def recommend(
    trace: Trace,
    model: str | ModelSpec,
    hardware: str | HardwareSpec = "h100-sxm",
    *,
    device: int | str,
    host: int | str | None = None,
    disk: int | str | None = None,
    target_hit_ratio: float = 0.0,
    budget: float = 0.0,
    policies: Sequence[str] = DEPLOYABLE,
    progress: bool | None = None,
) -> Recommendation:
    """Recommend tier sizes, policy, block size and settings for a trace.

    Every combination of host and disk size on a grid, with and without KVBM's frequency filter in front of the disk, is
    replayed and priced: host memory by the GiB, disks as whole disks, as many as capacity, mean bandwidth and rated
    endurance need. Then

    - with `target_hit_ratio`, the cheapest combination that reaches it is chosen;
    - with `budget`, the one with the highest hit ratio that it pays for;
    - with neither, the knee of the cheapest hit ratio that money buys.

    Combinations whose host or disk makes the mean TTFT worse than leaving it out are never chosen. A policy other than
    LRU is taken where it gains at least 0.002 in hit ratio and costs neither money nor TTFT.

    Parameters
    ----------
    trace : Trace
        With block ids.
    model : str or ModelSpec
    hardware : str or HardwareSpec
        Taken with as many GPUs as the model's weights and `device` need.
    device : int or str
        Bytes of GPU memory for KV blocks; fixed, for it is bought with the GPUs.
    host, disk : int or str, optional
        Bytes at most. By default as much as all distinct blocks of the trace take.
    target_hit_ratio : float
        Share of all blocks, 0 for none.
    budget : float
        US$ for host memory and disks, 0 for none.
    policies : sequence of str
        Policies that the deployment can run.
    progress : bool, optional

    Returns
    -------
    Recommendation

    Raises
    ------
    ConfigError
        For a size above 0 that holds no block, no tier at all, a policy that is unknown or needs the future, a target
        outside 0..1, a negative budget, or both target and budget.
    TraceError
        For a trace without block ids.

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> trace = synthesize("conversation", duration=120, seed=1)
    >>> advice = recommend(trace, "llama-3-8b", device="20GiB", host="100GiB", disk="1TB")
    >>> sorted(advice.sizes)
    ['device', 'disk', 'host']
    """
    spec, machine = model_spec(model), hardware_spec(hardware)
    trace.require_blocks()
    _check_wish(target_hit_ratio, budget)
    machine = machine.fitted(spec, _bytes("device", device))
    names = policy_names(policies)
    block_bytes = spec.block_bytes(int(trace.block_tokens or 0))
    everything = trace.n_blocks * block_bytes
    if not everything:
        raise TraceError(f"{trace.source} has no block at all; give a trace with prompts of a block or more")
    limits = {
        "device": _bytes("device", device),
        "host": everything if host is None else _bytes("host", host),
        "disk": everything if disk is None else _bytes("disk", disk),
    }
    block = f"a block of {format_size(block_bytes)} ({trace.block_tokens} tokens of {spec.name})"
    for name, size in limits.items():
        if 0 < size < block_bytes:
            raise ConfigError(f"{name}: {format_size(size)} does not hold {block}; give more, or 0 for no such tier")
    if not any(limits.values()):
        raise ConfigError(f"device, host, disk: all are 0; give one of them at least {block}")
    limit_blocks = {name: min(size, everything) // block_bytes for name, size in limits.items()}
    usual = "lru" if "lru" in names else names[0]
    candidates = evaluate(trace, spec, machine, _grid(limit_blocks, usual), progress)
    candidates = with_better_policies(trace, spec, machine, candidates, names, progress)
    pick, wish, met = choose(candidates, target_hit_ratio, budget)
    chosen, policy_reason, policy_evidence = best_policy(trace, spec, machine, stack_at(candidates, pick), names)
    other_filter = next(name for name in DISK_FILTERS if name != chosen.disk_filter)
    ends = evaluate(trace, spec, machine, [chosen, replace(chosen, disk_filter=other_filter)])
    row, unlike = ends.isel(stack=0), ends.isel(stack=1)
    block_tokens, block_reason, block_evidence = best_block_tokens(trace, spec, chosen, machine)
    gains = next_gib(trace, spec, machine, chosen)
    curve = lru_curve(trace)
    knee_blocks = knee(curve)
    final = chosen.replay(trace, spec, machine)
    blocks = {"device": chosen.device, "host": chosen.host, "disk": chosen.disk}
    sizes = {name: count * block_bytes for name, count in blocks.items()}
    evidence = {
        "gpus": machine.gpus,
        "hit_ratio": _r(final.total_hit_ratio),
        "hit_ratio_by_tier": {name: _r(final.hit_ratio.sel(tier=name)) for name in blocks},
        "token_hit_ratio": _r(final.token_hit_ratio),
        "infinite_hit_ratio": _r(infinite_hit_ratios(trace)["hit_ratio"]),
        "wish": wish,
        "wish_met": met,
        "ttft_mean_s": _r(final.ttft_mean),
        "ttft_recomputed_mean_s": _r(final.ttft_recomputed_mean),
        "break_even_tokens": {name: _r(final.break_even_tokens.sel(tier=name)) for name in ("host", "disk")},
        "disk_tb_per_day": _r(final.disk_tb_per_day),
        "disks_because": str(row.disks_because.values),
        "lru_knee": {"blocks": knee_blocks, "size": format_size(knee_blocks * block_bytes)},
        "next_gib": gains,
        "policies": policy_evidence,
        "block_tokens": block_evidence,
    }
    disk_filter = str(row.disk_filter.values)
    settings = kvbm_settings(sizes, disk_filter)
    why = reasons(candidates, row, unlike, evidence, limits, settings, machine, target_hit_ratio, budget)
    return Recommendation(
        sizes=sizes,
        blocks=blocks,
        block_tokens=block_tokens,
        policy=chosen.policy,
        disk_filter=disk_filter,
        disks=int(row.disks),
        cost=float(row.cost),
        settings=settings,
        reasons=why | {"policy": policy_reason, "block_tokens": block_reason},
        evidence=evidence,
        warnings=warnings(row, evidence, machine),
        candidates=candidates,
    )


def _check_wish(target_hit_ratio: float, budget: float) -> None:
    for name, value in (("target_hit_ratio", target_hit_ratio), ("budget", budget)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"{name}: {value!r} is not a number; give one, or 0 for none")
    if not 0 <= target_hit_ratio <= 1:
        raise ConfigError(f"target_hit_ratio: {target_hit_ratio} is not a share; give 0 (none) to 1")
    if not (budget >= 0 and np.isfinite(budget)):
        raise ConfigError(f"budget: {budget} US$; give 0 (none) or more")
    if target_hit_ratio and budget:
        raise ConfigError("target_hit_ratio and budget: give one of them, the other follows from it")


def _bytes(name: str, size: int | str) -> int:
    return parse_size(size, field=name)


def _r(value: Any) -> float | str:
    number = float(value)
    return float(f"{number:.4g}") if np.isfinite(number) else "never"


def _grid(limits: Mapping[str, int], policy: str) -> list[Stack]:
    """Return the stacks to try: a lower tier smaller than the one above it only repeats what that one holds."""
    device = limits["device"]
    stacks = []
    for host in size_grid(limits["host"], _GRID_POINTS, max(device, 1)):
        for disk in size_grid(limits["disk"], _GRID_POINTS, max(device, 1)):
            if disk == 0:
                stacks.append(Stack(device, int(host), 0, policy))
            elif host == 0:
                # KVBM's disk filter sits behind the host tier, and does nothing where there is none.
                stacks.append(Stack(device, 0, int(disk), policy))
            elif disk >= host:
                stacks += [Stack(device, int(host), int(disk), policy, name) for name in DISK_FILTERS]
    return stacks
