"""The figures of a benchmark of tiers as one Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.tiers.bench_cases import payloads

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.tiers.bench_cases import Case
    from dynalab.tiers.bench_plan import BenchPlan

CONVENTION: Final = "payload once; device_to_device counts bytes read and bytes written"
_DIMS: Final = ("direction", "block_bytes", "batch", "layout")
_SPREAD: Final = {"": 0.5, "_p10": 0.1, "_p90": 0.9}
_NAMES: Final = {"": "median", "_p10": "10th percentile", "_p90": "90th percentile"}


def bench_dataset(
    plan: BenchPlan,
    blocks: Mapping[Case, int],
    seconds: Mapping[Case, Sequence[float]],
    limits: Mapping[str, Sequence[float]],
    facts: Mapping[str, Any],
) -> xr.Dataset:
    """Gather measurements.

    Parameters
    ----------
    plan : BenchPlan
    blocks : mapping of Case to int
        Blocks of one measurement.
    seconds : mapping of Case to sequence of float
        Time of each round [s].
    limits : mapping of str to sequence of float
        By direction: bandwidth of each round [B/s].
    facts : mapping
        For the attributes.

    Returns
    -------
    xarray.Dataset
        As :func:`dynalab.tiers.bench.bench_tiers` says.
    """
    import xarray as xr

    directions = list(limits)
    axes = directions, plan.block_bytes, plan.batches, plan.layouts
    place = [{value: i for i, value in enumerate(axis)} for axis in axes]
    rounds = max(map(len, limits.values()))
    shape = tuple(map(len, axes))
    times, counts = np.full((*shape, rounds), np.nan), np.zeros(shape, np.int64)
    for case, measured in seconds.items():
        values = case.direction, case.block_bytes, case.batch, case.order
        where = tuple(index[value] for index, value in zip(place, values, strict=True))
        times[where], counts[where] = measured, blocks[case]
    coords = {
        "direction": ("direction", directions, {"long_name": "from tier to tier"}),
        "block_bytes": ("block_bytes", list(plan.block_bytes), {"units": "B", "long_name": "bytes of a block"}),
        "batch": ("batch", list(plan.batches), {"units": "block", "long_name": "blocks that a mover takes at once"}),
        "layout": ("layout", list(plan.layouts), {"long_name": "layout of the blocks of device and host"}),
    }
    ds = xr.Dataset(coords=coords)
    ds["seconds"] = ((*_DIMS, "round"), times, {"units": "s", "long_name": "time of a measurement"})
    ds["blocks"] = (_DIMS, counts, {"units": "block", "long_name": "blocks of a measurement"})
    factor = xr.DataArray([payloads(name) for name in directions], dims="direction")
    rates = ds.blocks * ds.block_bytes * factor / ds.seconds
    plain = xr.DataArray(np.array([limits[name] for name in directions]), dims=("direction", "round"))
    for name, by_round, what in (("bandwidth", rates, "bandwidth of blocks"), ("limit", plain, "one large piece")):
        for suffix, quantile in _SPREAD.items():
            # Not NumPy's nanquantile, which warns of every case that was left out.
            found = by_round.quantile(quantile, dim="round", skipna=False).drop_vars("quantile")
            ds[name + suffix] = found.assign_attrs(units="B/s", long_name=f"{what}, {_NAMES[suffix]} over rounds")
    share = ds.bandwidth / ds.limit
    ds["share_of_limit"] = share.assign_attrs(units="1", long_name="bandwidth of blocks over that of one large piece")
    return ds.assign_attrs(
        convention=CONVENTION,
        checked="every case moved blocks that were compared bit by bit before it was timed",
        rounds=rounds,
        parameters=plan.model_dump_json(),
        **facts,
    )
