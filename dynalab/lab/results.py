"""Everything that a tuning report found, as one Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_CURVE_POINTS = 400


def report_dataset(
    curve: xr.Dataset, compared: xr.Dataset, runs: Mapping[str, xr.Dataset], candidates: xr.Dataset
) -> xr.Dataset:
    """Gather the results of a report under names that say where they belong.

    Parameters
    ----------
    curve : xarray.Dataset
        From :func:`dynalab.cache.lru_curve`; thinned to 400 capacities, evenly spaced on a logarithmic axis.
    compared : xarray.Dataset
        From :func:`dynalab.cache.replay`, over (policy, capacity).
    runs : mapping of str to xarray.Dataset
        From :func:`dynalab.cache.replay_tiers`, by the name of the stack.
    candidates : xarray.Dataset
        From :func:`dynalab.cache.sizing.evaluate`, over stack.

    Returns
    -------
    xarray.Dataset
        ``lru_hit_ratio(lru_capacity)``; ``policy_*`` over (policy, capacity); ``tier_*`` over (way, ...);
        ``candidate_*`` over (candidate).
    """
    import xarray as xr

    last = curve.sizes["capacity"] - 1
    picks = np.unique(np.geomspace(1, last + 1, _CURVE_POINTS).round().astype(int)) - 1
    thin = curve.isel(capacity=picks).rename(capacity="lru_capacity", hit_ratio="lru_hit_ratio")
    ways = [" ".join(name.split()) for name in runs]
    tiers = xr.concat(
        [ds.drop_dims("request", errors="ignore") for ds in runs.values()], dim="way", combine_attrs="drop"
    ).assign_coords(way=("way", ways, {"long_name": "way of running the stack"}))
    parts = [
        thin,
        compared.rename({name: f"policy_{name}" for name in compared.data_vars}),
        tiers.rename({name: f"tier_{name}" for name in tiers.data_vars}),
        candidates.rename({name: f"candidate_{name}" for name in candidates.data_vars}).rename(stack="candidate"),
    ]
    merged = xr.merge(parts, combine_attrs="drop")
    return merged.assign_attrs(curve.attrs)
