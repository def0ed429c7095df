"""A benchmark of tiers whose figures are known, as `dynalab bench tiers` would have saved it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

DIRECTIONS = ("device_to_host", "host_to_device", "host_to_disk", "disk_to_host")


def dataset(**attrs: Any) -> xr.Dataset:
    """Bandwidths that are told apart: direction in GB/s, plus 0.1 for the larger blocks, 0.01 for the larger batch."""
    shape = (4, 2, 2, 2)
    d, size, batch, layout = np.meshgrid(*map(np.arange, shape), indexing="ij")
    rates = 1e9 * (d + 1 + 0.1 * size + 0.01 * batch - 0.5 * layout)
    dims = ("direction", "block_bytes", "batch", "layout")
    coords = {
        "direction": list(DIRECTIONS),
        "block_bytes": [1 << 16, 1 << 20],
        "batch": [4, 16],
        "layout": ["block_first", "layer_first"],
    }
    ds = xr.Dataset({"bandwidth": (dims, rates, {"units": "B/s"})}, coords)
    ds["bandwidth_p10"], ds["bandwidth_p90"] = ds.bandwidth * 0.9, ds.bandwidth * 1.1
    ds["limit"] = ("direction", [2e9, 4e9, 6e9, 8e9])
    ds["share_of_limit"] = ds.bandwidth / ds.limit
    usual = {
        "device": "host-emulated",
        "device_label": "host-emulated",
        "host_pages": "locked",
        "disk_direct_io": 1,
        "disk_engine": "posix",
        "disk_file_system": "ext4",
        "disk_path": "/mnt/nvme",
        "machine_cpu": "A CPU",
        "machine_cores": 8,
        "measured_at": "2026-11-22T16:00:00+0000",
        "convention": "payload once",
        "rounds": 5,
        "cases_left_out": 0,
    }
    return ds.assign_attrs(usual | attrs)


def saved(path: Path, ds: xr.Dataset | None = None, **attrs: Any) -> Path:
    """Write such a benchmark, or one like it."""
    (dataset(**attrs) if ds is None else ds).to_netcdf(path, engine="h5netcdf")
    return path


def on_gpu(path: Path) -> Path:
    """Write one that was measured on a GPU."""
    return saved(path, device="NVIDIA H200", device_label="cuda:0")
