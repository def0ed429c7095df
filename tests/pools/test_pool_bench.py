"""The benchmark of pools: its plan, and the form of what it finds."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from dynalab.errors import ConfigError
from dynalab.pools import bench_cases
from dynalab.pools.bench import PoolBenchPlan, bench_pools
from dynalab.pools.bench_cases import Case, borrow, hand_over

SMALL = PoolBenchPlan(kinds="threads,asyncio", items=[1, 2], threads=[1, 3], tasks=[1, 4], seconds="100ms")


@pytest.fixture(scope="module")
def found():
    return bench_pools(SMALL, progress=False)


def test_it_has_the_form_that_it_promises(found):
    assert dict(found.sizes) == {
        "kind": 2,
        "items": 2,
        "concurrency": 3,
        "percentile": 3,
        "round": found.attrs["rounds"],
    }
    assert list(found.concurrency.values) == [1, 3, 4]
    measured = found.cost.notnull().any("items")
    assert list(found.concurrency.values[measured.sel(kind="threads").values]) == [1, 3]
    assert list(found.concurrency.values[measured.sel(kind="asyncio").values]) == [1, 4]
    variables = {name: found[name] for name in found.variables if name not in ("kind",)}
    assert all({"units", "long_name"} <= set(variable.attrs) for variable in variables.values())
    assert json.loads(found.attrs["parameters"]) == json.loads(SMALL.model_dump_json())


def test_its_figures_hang_together(found):
    cost = (found.seconds - found.bare).median("round")
    np.testing.assert_allclose(cost, found.cost)
    assert bool((found.cost_p10 <= found.cost).where(found.cost.notnull(), True).all())
    assert bool((found.handover.diff("percentile") >= 0).all())
    assert bool((found.waited.sel(concurrency=1, items=1) == 0).all())
    assert float(found.waited.sel(kind="asyncio", concurrency=4, items=1)) > 0.5
    assert bool((found.bare.sel(concurrency=1) == 0).all())
    assert float(found.bare.sel(kind="asyncio", concurrency=4).min()) > 0


def test_it_can_be_kept_in_a_file(found, tmp_path):
    import xarray as xr

    found.to_netcdf(tmp_path / "pools.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "pools.nc", engine="h5netcdf") as kept:
        assert kept.attrs["rounds"] == found.attrs["rounds"]


def test_it_runs_where_a_loop_runs_already():
    async def main():
        return borrow(Case("asyncio", 1, 2), 10)

    assert asyncio.run(main()).waited > 0


def test_an_error_in_the_thread_of_the_loop_is_told():
    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench_cases.on_loop("asyncio", fail)


def test_a_loop_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    with pytest.raises(ConfigError, match="uvloop is not installed"):
        hand_over("uvloop", 1)
    monkeypatch.setattr("dynalab.pools.bench_plan.find_spec", lambda name: None)
    assert PoolBenchPlan().kinds == ("threads", "asyncio")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kinds": "trio"}, "kinds"),
        ({"items": [0]}, "items"),
        ({"threads": []}, "threads"),
        ({"tasks": "1,x"}, "tasks"),
        ({"seconds": 0}, "seconds"),
        ({"second": 1}, "second is no field"),
    ],
)
def test_bad_plans_are_refused(fields, says):
    with pytest.raises(ConfigError, match=f"pool bench: .*{says}"):
        PoolBenchPlan(**fields)
