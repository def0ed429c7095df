"""What every combination of host and disk size would give and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.cache.replay import run_jobs
from dynalab.cache.stack import Tier
from dynalab.cache.tiers import replay_tiers
from dynalab.workload import HardwareSpec, ModelSpec, Trace

if TYPE_CHECKING:
    import xarray as xr

_GIB = float(2**30)
#: Filters in front of the disk that a KVBM deployment can switch between.
DISK_FILTERS = ("all", "frequency")


@dataclass(frozen=True)
class Stack:
    """Sizes of the tiers in blocks, and the rules that they run under.

    Attributes
    ----------
    device, host, disk : int
        Blocks; 0 for no such tier.
    policy : str
    disk_filter : str
        Admission to the disk.
    """

    device: int
    host: int
    disk: int
    policy: str = "lru"
    disk_filter: str = "all"

    def tiers(self) -> list[Tier]:
        """Return the tiers as :func:`~dynalab.cache.replay_tiers` takes them."""
        return [
            Tier("device", self.device, self.policy),
            Tier("host", self.host, self.policy),
            Tier("disk", self.disk, self.policy, self.disk_filter),
        ]

    def replay(self, trace: Trace, model: ModelSpec, hardware: HardwareSpec) -> xr.Dataset:
        """Replay `trace` against this stack, written through as KVBM does."""
        return replay_tiers(trace, self.tiers(), model=model, hardware=hardware)


@dataclass(frozen=True)
class DiskNeed:
    """How many disks a disk tier takes, and why.

    Attributes
    ----------
    disks : int
        The largest of the needs below; 0 without a disk tier.
    capacity, write, read, endurance : int
        Disks needed to hold the blocks, to sustain the mean write and read bandwidth, and to stay within the rated
        drive writes per day.
    configured : int
        Disks that the hardware stripes the tier over: those that the loading times assume have to be bought.
    """

    disks: int
    capacity: int
    write: int
    read: int
    endurance: int
    configured: int

    @property
    def reason(self) -> str:
        """The need that binds, the first of equals; "none" without a disk tier."""
        needs = {name: getattr(self, name) for name in ("capacity", "write", "read", "endurance", "configured")}
        return max(needs, key=lambda name: needs[name]) if self.disks else "none"


def disk_need(ds: xr.Dataset, hardware: HardwareSpec) -> DiskNeed:
    """Return the disks that the traffic of a tier replay needs.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`~dynalab.cache.replay_tiers`, with a model.
    hardware : HardwareSpec
        Facts of one disk, and how many there are.
    """
    size = float(ds.capacity_bytes.sel(tier="disk"))
    if size == 0:
        return DiskNeed(0, 0, 0, 0, 0, 0)
    mean = ds.bandwidth_mean
    write = float(mean.sel(edge=["host_to_disk", "device_to_disk"]).sum())
    read = float(mean.sel(edge=["disk_to_host", "disk_to_device"]).sum())
    per_day = float(ds.disk_tb_per_day) * 1e12
    needs = (
        math.ceil(size / hardware.disk_bytes),
        math.ceil(write / hardware.host_to_disk),
        math.ceil(read / hardware.disk_to_host),
        math.ceil(per_day / (hardware.disk_bytes * hardware.disk_dwpd)),
        hardware.disks,
    )
    return DiskNeed(max(needs), *needs)


def stack_cost(host_bytes: float, disks: int, hardware: HardwareSpec) -> float:
    """Return the price in US$ of host memory and disks: whole disks, as many as their traffic needs."""
    return host_bytes / _GIB * hardware.price_host + disks * hardware.disk_bytes / _GIB * hardware.price_disk


def size_grid(limit: int, points: int, smallest: int = 1) -> npt.NDArray[np.int64]:
    """Return 0, `limit` and sizes between `smallest` and `limit` that grow geometrically (blocks, rising)."""
    if limit <= 0:
        return np.zeros(1, np.int64)
    sizes = np.geomspace(min(max(smallest, 1), limit), limit, max(points, 1)).round().astype(np.int64)
    return np.unique(np.concatenate([[0], sizes, [limit]]))


def stack_at(candidates: xr.Dataset, index: int) -> Stack:
    """Return the stack that a row of :func:`evaluate` describes."""
    row = candidates.isel(stack=index)
    admission = "all" if str(row.disk_filter.values) == "none" else str(row.disk_filter.values)
    device, host, disk = (int(row[name]) for name in ("device_blocks", "host_blocks", "disk_blocks"))
    return Stack(device, host, disk, str(row.policy.values), admission)


def evaluate(
    trace: Trace, model: ModelSpec, hardware: HardwareSpec, stacks: Iterable[Stack], progress: bool | None = None
) -> xr.Dataset:
    """Replay every stack and return what it gives and costs.

    Parameters
    ----------
    trace, model, hardware
    stacks : iterable of Stack
    progress : bool, optional

    Returns
    -------
    xarray.Dataset
        Over ``stack``: sizes in blocks and bytes, policy and filter, hit ratios, TTFT, disk wear, disks needed, cost
        (US$).
    """
    import xarray as xr

    candidates = list(stacks)

    def one(stack: Stack) -> dict[str, float | str]:
        ds = stack.replay(trace, model, hardware)
        need = disk_need(ds, hardware)
        host_bytes = float(ds.capacity_bytes.sel(tier="host"))
        return {
            "device_blocks": stack.device,
            "host_blocks": stack.host,
            "disk_blocks": stack.disk,
            "host_bytes": host_bytes,
            "disk_bytes": float(ds.capacity_bytes.sel(tier="disk")),
            "policy": stack.policy,
            "disk_filter": stack.disk_filter if stack.disk else "none",
            # One division, where the sum over tiers rounds: stacks with equal hits must compare equal.
            "hit_ratio": int(ds.hits.sum()) / max(trace.n_accesses, 1),
            "token_hit_ratio": float(ds.token_hit_ratio),
            "ttft_mean": float(ds.ttft_mean),
            "ttft_saved_mean": float(ds.ttft_saved_mean),
            "disk_tb_per_day": float(ds.disk_tb_per_day),
            "disk_dwpd": float(ds.disk_dwpd),
            "disks": need.disks,
            "disks_because": need.reason,
            "cost": stack_cost(host_bytes, need.disks, hardware),
        }

    rows = run_jobs(one, candidates, "tier sizes", progress)
    data = {key: ("stack", np.array([row[key] for row in rows]), _UNITS[key]) for key in rows[0]}
    return xr.Dataset(data, coords={"stack": np.arange(len(rows))})


_UNITS = {
    "device_blocks": {"units": "blocks", "long_name": "device tier"},
    "host_blocks": {"units": "blocks", "long_name": "host tier"},
    "disk_blocks": {"units": "blocks", "long_name": "disk tier"},
    "host_bytes": {"units": "bytes", "long_name": "host tier"},
    "disk_bytes": {"units": "bytes", "long_name": "disk tier"},
    "policy": {"long_name": "replacement policy of every tier"},
    "disk_filter": {"long_name": "admission to the disk"},
    "hit_ratio": {"units": "1", "long_name": "share of blocks served by any tier"},
    "token_hit_ratio": {"units": "1", "long_name": "share of input tokens reused"},
    "ttft_mean": {"units": "s", "long_name": "mean unloaded TTFT"},
    "ttft_saved_mean": {"units": "s", "long_name": "mean TTFT saved against recomputing"},
    "disk_tb_per_day": {"units": "TB/day", "long_name": "written to disk per day"},
    "disk_dwpd": {"units": "1/day", "long_name": "drive writes per day, on the disks configured"},
    "disks": {"units": "disks", "long_name": "disks needed for capacity, bandwidth and endurance"},
    "disks_because": {"long_name": "the need that sets the number of disks"},
    "cost": {"units": "US$", "long_name": "price of host memory and disks"},
}
