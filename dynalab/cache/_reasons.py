"""Why a recommendation is what it is, in sentences that hold in every case, and what its reader must not overlook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynalab.cache._advice import harmful
from dynalab.units import format_duration, format_size
from dynalab.workload import HardwareSpec

if TYPE_CHECKING:
    import xarray as xr


def reasons(
    candidates: xr.Dataset,
    row: xr.Dataset,
    unlike: xr.Dataset,
    evidence: Mapping[str, Any],
    limits: Mapping[str, int],
    settings: Mapping[str, str],
    hardware: HardwareSpec,
    target: float,
    budget: float,
) -> dict[str, str]:
    """Return one sentence for every decision but policy and block size, which bring their own.

    Parameters
    ----------
    candidates : xarray.Dataset
        From :func:`dynalab.cache.sizing.evaluate`.
    row : xarray.Dataset
        What was chosen: one row of the same kind.
    unlike : xarray.Dataset
        The same with the other filter in front of the disk.
    evidence : mapping
        Of the recommendation.
    limits : mapping of str to int
        Bytes at most per tier.
    settings, hardware, target, budget
    """
    if float(row.device_blocks):
        found = {"device": f"given, not chosen; {_serves(evidence, 'device')}"}
    else:
        found = {"device": "none was given"}
    for name in ("host", "disk"):
        if float(row[f"{name}_blocks"]):
            found[name] = _serves(evidence, name)
        else:
            found[name] = _left_out(candidates, row, name, limits[name], target, budget)
    if _only_a_passage(row, evidence):
        found["host"] += "; it is there because KVBM's disk filter only works behind a host tier"
    found["disk_filter"] = _filter(row, unlike)
    found["disks"] = _disks(row, hardware)
    found["settings"] = (
        "sizes in whole GB (10**9 bytes) as KVBM reads them, rounded up"
        if settings
        else "none: without a host and a disk tier there is nothing to set"
    )
    return found


def warnings(row: xr.Dataset, evidence: Mapping[str, Any], hardware: HardwareSpec) -> list[str]:
    """Return what the reader must not overlook; the parameters are those of :func:`reasons`."""
    found = []
    if not evidence["wish_met"]:
        found.append(f"not reached: {evidence['wish']}; the best combination within the limits is given instead")
    disks = int(row.disks)
    if str(row.disks_because.values) == "endurance" and disks > hardware.disks:
        found.append(
            f"the write rate of this trace, kept up all day, wears out disks: {float(row.disk_dwpd):.3g} drive writes "
            f"per day on the {hardware.disks} configured; {disks} disks keep within their rating, or fewer of a higher "
            "one"
        )
    elif disks > hardware.disks:
        found.append(f"the machine is configured with {hardware.disks} disks: TTFT is that of so many, not of {disks}")
    if _only_a_passage(row, evidence):
        found.append(
            f"the host tier costs {float(row.host_bytes) / 2**30 * hardware.price_host:,.0f} US$ and serves next to no "
            "block: it lets KVBM filter what is written to disk"
        )
    found.append("TTFT is that of an unloaded engine: no queueing, copies not hidden behind computing")
    return found


def _only_a_passage(row: xr.Dataset, evidence: Mapping[str, Any]) -> bool:
    """Tell whether the host tier serves less than 0.1% of the blocks and is needed for the filter of the disk."""
    filtered = str(row.disk_filter.values) == "frequency"
    return filtered and float(row.host_blocks) > 0 and evidence["hit_ratio_by_tier"]["host"] < 0.001


def _serves(evidence: Mapping[str, Any], name: str) -> str:
    gain = evidence["next_gib"][name]
    hits, saved = 100 * gain["hit_ratio_per_gib"], gain["ttft_saved_s_per_gib"]
    # Small steps of an inclusive stack may lose a little by chance: that is no reason to shrink a tier.
    more = [f"add {hits:.3g} percentage points"] if hits > 0 else []
    more += [f"save {format_duration(saved)} of the mean TTFT"] if saved > 0 else []
    gains = " and ".join(more) or "bring nothing"
    return f"serves {evidence['hit_ratio_by_tier'][name]:.1%} of all blocks; one more GiB would {gains}"


def _left_out(candidates: xr.Dataset, row: xr.Dataset, name: str, limit: int, target: float, budget: float) -> str:
    """Compare what was chosen with the best combination that has the tier."""
    if limit == 0:
        return "none was allowed"
    hit, cost = candidates.hit_ratio.values, candidates.cost.values
    upto = f"up to {format_size(limit)}"
    rest = (candidates[f"{name}_blocks"].values > 0) & ~harmful(candidates)
    if not rest.any():
        return f"left out: every size tried ({upto}) makes the mean TTFT longer than leaving it out"
    if budget:
        if not (rest & (cost <= budget)).any():
            return f"left out: with it ({upto}) {cost[rest].min():,.0f} US$ are needed, more than the budget"
        rest &= cost <= budget
    if target and float(row.hit_ratio) >= target and (rest & (hit >= target)).any():
        least = cost[rest & (hit >= target)].min()
        return f"left out: with it ({upto}) the wish costs {least:,.0f} US$ or more, without it {float(row.cost):,.0f}"
    best = hit[rest].max()
    least = cost[rest & (hit == best)].min()
    return (
        f"left out: the best combination with it ({upto}) serves {best:.1%} of all blocks for {least:,.0f} US$, "
        f"the one chosen {float(row.hit_ratio):.1%} for {float(row.cost):,.0f}"
    )


def _filter(row: xr.Dataset, unlike: xr.Dataset) -> str:
    """Compare with the same stack behind the other filter."""
    if not float(row.disk_blocks):
        return "no disk tier to filter for"
    if not float(row.host_blocks):
        return "every block is written: KVBM's filter sits behind the host tier and does nothing without one"
    here, there = (
        f"{float(each.disk_tb_per_day):.3g} TB written per day, {float(each.hit_ratio):.1%} of blocks served and "
        f"{float(each.cost):,.0f} US$"
        for each in (row, unlike)
    )
    what = (
        "every block is written"
        if str(row.disk_filter.values) == "all"
        else "only blocks offered twice within KVBM's window are written"
    )
    return f"{what}: {here}; the other way {there}"


def _disks(row: xr.Dataset, hardware: HardwareSpec) -> str:
    if not int(row.disks):
        return "no disk tier"
    cause = {
        "capacity": "by their capacity",
        "write": "by the mean bandwidth of writes",
        "read": "by the mean bandwidth of reads",
        "endurance": f"by their endurance (rated {hardware.disk_dwpd:g} drive writes per day)",
        "configured": "as the hardware is configured",
    }[str(row.disks_because.values)]
    disk = format_size(hardware.disk_bytes, binary=False)
    return f"{int(row.disks)} x {disk}, set {cause}: {float(row.disk_tb_per_day):.3g} TB are written per day"
