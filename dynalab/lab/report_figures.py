"""The figures of the tuning report, one function each: data in, matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalab.lab.style import GREY, PAIR, RED, SINGLE, TIER_COLOURS, label_lines, policy_style, size_axis
from dynalab.units import format_size

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dynalab.workload import HardwareSpec, Trace

_TIERS = ("device", "host", "disk")
_EDGE_NAMES = {
    "device_to_host": "device to host",
    "host_to_device": "host to device",
    "host_to_disk": "host to disk",
    "disk_to_host": "disk to host",
    "device_to_disk": "device to disk",
    "disk_to_device": "disk to device",
}


def workload_figure(trace: Trace) -> Figure:
    """Show when requests arrive, and how long they are."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=PAIR, layout="constrained")
    width = max(trace.duration / 60, 1.0)
    edges = np.arange(0, trace.duration + width, width)
    counts, edges = np.histogram(trace.arrival, bins=edges if edges.size > 1 else 1)
    left.stairs(counts / np.diff(edges), edges / 60, fill=True, alpha=0.35)
    left.set(xlabel="time (min)", ylabel="requests per second", title="Arrivals", ylim=(0, None))
    top = int(max(trace.input_tokens.max(), trace.output_tokens.max(), 2))
    bins = np.geomspace(1, top, 60)
    for label, tokens in (("input", trace.input_tokens), ("output", trace.output_tokens)):
        shares, _ = np.histogram(tokens, bins=bins)
        right.stairs(shares / tokens.size, bins, label=f"{label}, mean {tokens.mean():,.0f}", linewidth=1.6)
    right.set(xscale="log", xlabel="tokens", ylabel="share of requests", title="Lengths")
    right.set_ylim(0, right.get_ylim()[1] * 1.25)
    right.legend(loc="upper left", frameon=False)
    return figure


def curve_figure(
    curve: xr.Dataset, knee_blocks: int, tiers: Mapping[str, int], block_bytes: int, belady: Mapping[int, float]
) -> Figure:
    """Show the exact LRU curve over the size of one cache, the limit, the knee, Belady's bound and the tiers given."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=SINGLE, layout="constrained")
    sizes = curve.capacity.values * float(block_bytes)
    ax.plot(sizes, curve.hit_ratio.values, label="LRU", **policy_style("lru"))
    if belady:
        ax.plot(
            np.array(list(belady)) * float(block_bytes), list(belady.values()), label="Belady", **policy_style("belady")
        )
    limit = float(curve.attrs["infinite_hit_ratio"])
    ax.axhline(limit, color=GREY, linewidth=1, linestyle=":")
    ax.text(0.01, limit, f"no limit: {limit:.1%}", transform=ax.get_yaxis_transform(), va="bottom", color=GREY)
    at_knee = float(curve.hit_ratio.sel(capacity=knee_blocks, method="nearest"))
    ax.plot(knee_blocks * block_bytes, at_knee, "o", color=RED, markersize=6, label="_knee")
    ax.annotate(
        f"knee: {format_size(knee_blocks * block_bytes)}",
        (knee_blocks * block_bytes, at_knee),
        xytext=(8, -16),
        textcoords="offset points",
        color=RED,
    )
    for name, blocks in tiers.items():
        if blocks:
            ax.axvline(blocks * block_bytes, color=TIER_COLOURS[name], linewidth=1.2, linestyle="--", label="_tier")
            ax.text(
                blocks * block_bytes,
                0.02,
                f" {name}",
                transform=ax.get_xaxis_transform(),
                color=TIER_COLOURS[name],
                rotation=90,
                va="bottom",
                ha="right",
            )
    ax.set(xscale="log", ylim=(0, limit * 1.12 if limit else 1), xlim=(block_bytes, sizes[-1] * 1.05))
    ax.set(xlabel="size of one cache", ylabel="hit ratio (blocks)", title="What capacity buys (simulated)")
    size_axis(ax.xaxis)
    label_lines(ax)
    return figure


def policy_figure(ds: xr.Dataset) -> Figure:
    """Show how much each policy gains or loses against LRU at each capacity (percentage points)."""
    import matplotlib.pyplot as plt

    names = [str(name) for name in ds.policy.values if name not in ("lru", "belady")]
    gain = (ds.hit_ratio - ds.hit_ratio.sel(policy="lru")) * 100
    capacities = ds.capacity.values
    figure, ax = plt.subplots(figsize=SINGLE, layout="constrained")
    if capacities.size == 1:
        values = [float(gain.sel(policy=name).isel(capacity=0)) for name in names]
        ax.barh(names, values, color=[policy_style(name)["color"] for name in names])
        ax.invert_yaxis()
        ax.set(xlabel="hit ratio against LRU (percentage points)", title=f"One cache of {capacities[0]:,} blocks")
        return figure
    for name in names:
        ax.plot(capacities, gain.sel(policy=name).values, label=name, **policy_style(name))
    ax.axhline(0, color=policy_style("lru")["color"], linewidth=1)
    ax.set(xscale="log", xlabel="size of one cache (blocks)", ylabel="hit ratio against LRU\n(percentage points)")
    ax.set_title("Policies against LRU (simulated)")
    label_lines(ax)
    return figure


def tiers_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    """Show which tier serves which share of blocks, one bar per way of running the stack."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(SINGLE[0], 0.9 + 0.45 * len(runs)), layout="constrained")
    for row, ds in enumerate(runs.values()):
        start = 0.0
        for tier in _TIERS:
            share = float(ds.hit_ratio.sel(tier=tier))
            ax.barh(row, share, left=start, color=TIER_COLOURS[tier], label=tier if row == 0 else f"_{tier}")
            if share > 0.02:
                ax.text(start + share / 2, row, f"{share:.1%}", ha="center", va="center", color="white", fontsize=8)
            start += share
        ax.text(start + 0.004, row, f"{start:.1%}", va="center")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.invert_yaxis()
    longest = max(float(ds.total_hit_ratio) for ds in runs.values())
    ax.set(xlabel="share of all blocks served (simulated)", xlim=(0, max(longest * 1.15, 0.01)))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def bandwidth_figure(ds: xr.Dataset, hardware: HardwareSpec) -> Figure:
    """Show the mean and peak bandwidth that each path needs, as a share of what the machine has."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    have = {
        "device_to_host": hardware.d2h * hardware.gpus,
        "host_to_device": hardware.h2d * hardware.gpus,
        "host_to_disk": hardware.host_to_disk * hardware.disks,
        "disk_to_host": hardware.disk_to_host * hardware.disks,
        "device_to_disk": hardware.host_to_disk * hardware.disks,
        "disk_to_device": hardware.disk_to_host * hardware.disks,
    }
    used = [str(edge) for edge in ds.edge.values if float(ds.moved_blocks.sel(edge=edge)) > 0]
    figure, ax = plt.subplots(figsize=(SINGLE[0], 1.2 + 0.5 * max(len(used), 1)), layout="constrained")
    for row, edge in enumerate(used):
        mean, peak = (float(ds[name].sel(edge=edge)) / 1e9 for name in ("bandwidth_mean", "bandwidth_peak"))
        limit = have[edge] / 1e9
        colour = TIER_COLOURS["disk" if "disk" in edge else "host"]
        ax.barh(row, peak / limit, color=colour, alpha=0.35, label="busiest window" if row == 0 else "_peak")
        ax.barh(row, mean / limit, color=colour, label="mean" if row == 0 else "_mean")
        ax.text(peak / limit + 0.01, row, f" {mean:.3g}, peak {peak:.3g} of {limit:.3g} GB/s", va="center")
    ax.axvline(1.0, color="black", linewidth=1.5)
    ax.set_yticks(range(len(used)), [_EDGE_NAMES[edge] for edge in used])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("needed share of the path's bandwidth (simulated; payload counted once)")
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.0) * 1.45)
    if used:
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
    return figure


def ttft_figure(ds: xr.Dataset) -> Figure:
    """Show the distribution of unloaded TTFT with reuse and without."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=SINGLE, layout="constrained")
    share = (np.arange(ds.sizes["request"]) + 1) / ds.sizes["request"]
    curves: tuple[tuple[str, str, Any], ...] = (
        ("with the tiers", TIER_COLOURS["host"], ds.ttft),
        ("recomputing all", GREY, ds.ttft_recomputed),
    )
    for label, colour, values in curves:
        mean = float(values.mean())
        ax.plot(np.sort(values.values), share, color=colour, label=f"{label}\nmean {mean:.3g} s")
    ax.set(xscale="log", ylim=(0, 1), xlabel="TTFT of an unloaded engine (s, simulated)", ylabel="share of requests")
    ax.legend(loc="upper left", frameon=False)
    return figure


def cost_figure(candidates: xr.Dataset, picked: Mapping[str, float]) -> Figure:
    """Show every combination of sizes as cost against hit ratio, and the one recommended.

    Parameters
    ----------
    candidates : xarray.Dataset
        From :func:`dynalab.cache.sizing.evaluate`.
    picked : mapping
        ``cost`` and ``hit_ratio`` of the recommendation.
    """
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=SINGLE, layout="constrained")
    kinds = {
        "no disk": ("none", TIER_COLOURS["host"], "o"),
        "disk, KVBM filter": ("frequency", TIER_COLOURS["disk"], "s"),
        "disk, every block": ("all", RED, "^"),
    }
    for label, (name, colour, marker) in kinds.items():
        chosen = candidates.disk_filter.values == name
        if chosen.any():
            cost, hit = candidates.cost.values[chosen] / 1e3, candidates.hit_ratio.values[chosen]
            ax.plot(cost, hit, marker, color=colour, alpha=0.7, markersize=5, label=label, linestyle="none")
    _ring(ax, picked["cost"] / 1e3, picked["hit_ratio"])
    ax.set(
        xlabel="price of host memory and disks (1,000 US$)",
        ylabel="hit ratio (blocks, simulated)",
        title="What money buys",
        ylim=(0, None),
    )
    ax.legend(loc="lower right", frameon=False)
    return figure


def _ring(ax: Axes, x: float, y: float) -> None:
    ax.plot(x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor="black", label="_picked")
    ax.annotate("recommended", (x, y), xytext=(10, 8), textcoords="offset points", weight="bold")
