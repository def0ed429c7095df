"""Grids, costs and needs by hand; evaluation against direct replays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from cache_strategies import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.cache import Tier, replay_tiers
from dynalab.cache.sizing import Stack, disk_need, evaluate, size_grid, stack_at, stack_cost
from dynalab.cache.stack import TIERS
from dynalab.kv.tiering.rules import EDGES
from dynalab.workload import ModelSpec, Trace, hardware_spec, model_spec, synthesize

TB = 1e12


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthesize("conversation", duration=60, seed=1)


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return model_spec("llama-3-8b")


def run(disk_bytes: float, tb_per_day: float, **bandwidth: float) -> xr.Dataset:
    """What `disk_need` reads of a tier replay."""
    return xr.Dataset(
        {
            "capacity_bytes": ("tier", [0.0, 0.0, disk_bytes]),
            "bandwidth_mean": ("edge", [bandwidth.get(edge, 0.0) for edge in EDGES]),
            "disk_tb_per_day": tb_per_day,
        },
        coords={"tier": list(TIERS), "edge": list(EDGES)},
    )


# One disk: 2 TB, writes 2 GB/s, reads 4 GB/s, 3 drive writes per day = 6 TB per day.
DISK = {"disk_bytes": 2e12, "host_to_disk": 2e9, "disk_to_host": 4e9, "disk_dwpd": 3.0}


@pytest.mark.parametrize(
    ("ds", "disks", "reason"),
    [
        (run(0.0, 0.0), 0, "none"),
        (run(1.0, 0.0), 1, "capacity"),
        (run(2 * TB, 6.0), 1, "capacity"),
        (run(2 * TB + 1, 0.0), 2, "capacity"),
        (run(1 * TB, 6.1), 2, "endurance"),
        (run(9 * TB, 60.0), 10, "endurance"),
        (run(1 * TB, 0.0, host_to_disk=3e9, device_to_disk=1.1e9), 3, "write"),
        (run(1 * TB, 0.0, disk_to_host=8.1e9, disk_to_device=8e9), 5, "read"),
        (run(1 * TB, 0.0, device_to_host=9e12, host_to_device=9e12), 1, "capacity"),
    ],
)
def test_disk_need_by_hand(ds: xr.Dataset, disks: int, reason: str) -> None:
    need = disk_need(ds, hardware_spec("h100-sxm", **DISK))
    assert (need.disks, need.reason) == (disks, reason)


def test_configured_disks_are_bought() -> None:
    # Loading times assume four: fewer would not reach them.
    four = hardware_spec("h100-sxm", **DISK, disks=4)
    assert (disk_need(run(TB, 0.0), four).disks, disk_need(run(TB, 0.0), four).reason) == (4, "configured")
    assert (disk_need(run(9 * TB, 0.0), four).disks, disk_need(run(9 * TB, 0.0), four).reason) == (5, "capacity")
    assert disk_need(run(0.0, 0.0), four).disks == 0


def test_stack_cost_by_hand() -> None:
    machine = hardware_spec("h100-sxm", disk_bytes="1TiB", price_host=8.0, price_disk=0.1)
    assert stack_cost(0, 0, machine) == 0
    assert stack_cost(10 * 2**30, 0, machine) == pytest.approx(80)
    assert stack_cost(10 * 2**30, 3, machine) == pytest.approx(80 + 3 * 1024 * 0.1)


@given(st.integers(-5, 10**9), st.integers(0, 30), st.integers(-3, 10**9))
def test_size_grid(limit: int, points: int, smallest: int) -> None:
    grid = size_grid(limit, points, smallest)
    assert grid.dtype == np.int64
    assert grid[0] == 0
    assert grid[-1] == max(limit, 0)
    assert (np.diff(grid) > 0).all()
    assert len(grid) <= max(points, 1) + 2
    assert (grid[1:] >= min(max(smallest, 1), max(limit, 1))).all()


def test_size_grid_is_geometric() -> None:
    assert size_grid(10_000, 5).tolist() == [0, 1, 10, 100, 1000, 10_000]
    assert size_grid(10_000, 3, smallest=100).tolist() == [0, 100, 1000, 10_000]
    assert size_grid(50, 3, smallest=100).tolist() == [0, 50]
    assert size_grid(1, 7).tolist() == [0, 1]


STACKS = [
    Stack(40, 0, 0),
    Stack(40, 0, 300),
    Stack(40, 100, 300),
    Stack(40, 100, 300, disk_filter="frequency"),
    Stack(0, 100, 0, policy="fifo"),
    Stack(40, 100, 300, policy="multilru", disk_filter="frequency"),
]


def test_evaluate_is_a_direct_replay(trace: Trace, model: ModelSpec) -> None:
    machine = hardware_spec("h100-sxm")
    table = evaluate(trace, model, machine, STACKS)
    assert table.sizes["stack"] == len(STACKS)
    for index, stack in enumerate(STACKS):
        row = table.isel(stack=index)
        tiers = [
            Tier("device", stack.device, stack.policy),
            Tier("host", stack.host, stack.policy),
            Tier("disk", stack.disk, stack.policy, stack.disk_filter),
        ]
        ds = replay_tiers(trace, tiers, model=model, hardware=machine)
        assert float(row.hit_ratio) == int(ds.hits.sum()) / trace.n_accesses
        assert float(row.hit_ratio) == pytest.approx(float(ds.total_hit_ratio), rel=1e-14)
        for name in ("token_hit_ratio", "ttft_mean", "ttft_saved_mean", "disk_tb_per_day", "disk_dwpd"):
            assert float(row[name]) == float(ds[name])
        block = model.block_bytes(int(trace.block_tokens or 0))
        assert (float(row.host_bytes), float(row.disk_bytes)) == (stack.host * block, stack.disk * block)
        written = float(ds.moved_bytes.sel(edge=["host_to_disk", "device_to_disk"]).sum())
        per_day = written / max(trace.duration, 10.0) * 86_400
        assert float(row.disk_tb_per_day) == pytest.approx(per_day / TB)
        if stack.disk:
            assert int(row.disks) >= math.ceil(per_day / machine.disk_bytes / machine.disk_dwpd)
        else:
            assert (int(row.disks), str(row.disks_because.values), str(row.disk_filter.values)) == (0, "none", "none")
        assert float(row.cost) == stack_cost(float(row.host_bytes), int(row.disks), machine)
    assert all("long_name" in table[name].attrs for name in table.data_vars)


def test_rows_and_stacks_correspond(trace: Trace, model: ModelSpec) -> None:
    table = evaluate(trace, model, hardware_spec("h100-sxm"), STACKS[:5])
    assert [stack_at(table, index) for index in range(5)] == STACKS[:5]


@settings(max_examples=25, deadline=None)
@given(trees(), st.integers(0, 4), st.integers(0, 6), st.integers(0, 9))
def test_costs_and_needs_are_finite(trace: Trace, device: int, host: int, disk: int) -> None:
    # Every arrival may be at 0: the write rate then counts over one window.
    table = evaluate(trace, model_spec("llama-3-8b"), hardware_spec("h100-sxm"), [Stack(device, host, disk)])
    for name in ("hit_ratio", "ttft_mean", "disk_tb_per_day", "cost"):
        assert np.isfinite(table[name].values).all()
    assert (table.disks.values > 0).all() == (disk > 0)
