"""Turn the counts of a tier replay into a labelled Dataset: hits, traffic, wear, time to first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.cache._drive import served_tokens
from dynalab.cache.accesses import Accesses
from dynalab.cache.stack import TIERS, TierRun
from dynalab.cache.ttft import break_even_tokens, recompute_seconds, ttft_seconds
from dynalab.cache.wear import wear
from dynalab.kv.tiering.rules import COMPUTED, EDGES, EVICTED, INSERTED, REJECTED, REMOVED
from dynalab.workload import HardwareSpec, ModelSpec

if TYPE_CHECKING:
    import xarray as xr


def tier_dataset(
    accesses: Accesses,
    run: TierRun,
    model: ModelSpec | None,
    hardware: HardwareSpec,
    window: float,
    per_request: bool,
) -> xr.Dataset:
    """Return the Dataset of :func:`~dynalab.cache.replay_tiers`."""
    import xarray as xr

    trace = accesses.trace
    total = max(accesses.ids.size, 1)
    hits = np.bincount(run.level, minlength=COMPUTED + 1)[:COMPUTED]
    tokens = served_tokens(run.level, accesses.offsets, trace.block_lengths(), COMPUTED)
    inputs = trace.input_tokens.astype(np.int64)

    def over_tier(values: npt.ArrayLike, units: str, name: str) -> tuple[Any, ...]:
        return ("tier", np.asarray(values), {"units": units, "long_name": name})

    def over_edge(values: npt.ArrayLike, units: str, name: str) -> tuple[Any, ...]:
        return ("edge", np.asarray(values), {"units": units, "long_name": name})

    def scalar(value: float, units: str, name: str) -> tuple[Any, ...]:
        return ((), float(value), {"units": units, "long_name": name})

    ratio = hits / total
    data: dict[str, Any] = {
        "capacity_blocks": over_tier(run.blocks, "blocks", "tier capacity"),
        "hits": over_tier(hits, "blocks", "blocks served"),
        "hit_ratio": over_tier(ratio, "1", "share of all blocks served"),
        "reused_tokens": over_tier(tokens.sum(axis=0), "tokens", "tokens served"),
        "insertions": over_tier(run.events[:, INSERTED], "blocks", "insertions"),
        "evictions": over_tier(run.events[:, EVICTED], "blocks", "evictions"),
        "removals": over_tier(run.events[:, REMOVED], "blocks", "blocks that moved up and left the tier"),
        "rejections": over_tier(run.events[:, REJECTED], "blocks", "blocks refused by the filter"),
        "resident": over_tier(run.resident, "blocks", "blocks held at the end"),
        "moved_blocks": over_edge(run.traffic.sum(axis=0), "blocks", "blocks moved"),
        "total_hit_ratio": scalar(ratio.sum(), "1", "share of all blocks served by any tier"),
        "refused_requests": scalar(run.refused, "requests", "requests that found no room on the device"),
        "token_hit_ratio": scalar(tokens.sum() / max(inputs.sum(), 1), "1", "share of input tokens reused"),
    }
    if model is not None:
        data |= _in_bytes_and_seconds(accesses, run, model, hardware, window, tokens, over_tier, over_edge, scalar)
    coords: dict[str, Any] = {
        "tier": ("tier", list(TIERS), {"long_name": "memory tier"}),
        "edge": ("edge", list(EDGES), {"long_name": "path between tiers"}),
    }
    ds = xr.Dataset(data, coords=coords)
    if per_request:
        names = {"long_name": "tokens reused per request", "units": "tokens"}
        ds["request_reused_tokens"] = (("request", "tier"), tokens, names)
        if model is not None:
            ds["ttft"] = ("request", _ttft(model, hardware, inputs, tokens), _TTFT)
            recomputed = recompute_seconds(model, hardware, inputs)
            ds["ttft_recomputed"] = ("request", recomputed, _TTFT | {"long_name": "unloaded TTFT without reuse"})
    attrs: dict[str, Any] = {"hardware": hardware.name}
    if model is not None:
        attrs |= {"model": model.name, "block_bytes": model.block_bytes(int(trace.block_tokens or 0))}
    return ds.assign_attrs(attrs)


_TTFT = {"units": "s", "long_name": "unloaded TTFT with reuse"}


def _ttft(
    model: ModelSpec, hardware: HardwareSpec, inputs: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    return ttft_seconds(model, hardware, inputs, tokens[:, 0], tokens[:, 1], tokens[:, 2])


def _in_bytes_and_seconds(
    accesses: Accesses,
    run: TierRun,
    model: ModelSpec,
    hardware: HardwareSpec,
    window: float,
    tokens: npt.NDArray[np.int64],
    over_tier: Any,
    over_edge: Any,
    scalar: Any,
) -> dict[str, Any]:
    """Return the variables that need the size of a block and the speed of the machine."""
    trace = accesses.trace
    block_bytes = model.block_bytes(int(trace.block_tokens or 0))
    duration = max(trace.duration, window)
    moved = run.traffic * block_bytes
    written = moved[:, [EDGES.index("host_to_disk"), EDGES.index("device_to_disk")]].sum()
    endurance = wear(float(written), duration, hardware)
    inputs = trace.input_tokens.astype(np.int64)
    ttft = _ttft(model, hardware, inputs, tokens)
    recomputed = recompute_seconds(model, hardware, inputs)
    break_even = [0.0, *(break_even_tokens(model, hardware, path) for path in ("host", "disk"))]
    return {
        "capacity_bytes": over_tier(run.blocks * block_bytes, "bytes", "tier capacity"),
        "break_even_tokens": over_tier(break_even, "tokens", "shortest prefix that loads no slower than it computes"),
        "moved_bytes": over_edge(moved.sum(axis=0), "bytes", "bytes moved"),
        "bandwidth_mean": over_edge(moved.sum(axis=0) / duration, "bytes/s", "mean bandwidth needed"),
        "bandwidth_peak": over_edge(
            moved.max(axis=0) / window, "bytes/s", f"peak bandwidth needed over windows of {window:g} s"
        ),
        "disk_tb_per_day": scalar(endurance.tb_per_day, "TB/day", "written to disk per day"),
        "disk_dwpd": scalar(endurance.dwpd, "1/day", "drive writes per day"),
        "disk_years": scalar(endurance.years, "years", "until the rated endurance is used up"),
        "ttft_mean": scalar(ttft.mean(), "s", "mean unloaded TTFT with reuse"),
        "ttft_recomputed_mean": scalar(recomputed.mean(), "s", "mean unloaded TTFT without reuse"),
        "ttft_saved_mean": scalar((recomputed - ttft).mean(), "s", "mean TTFT saved against recomputing"),
        "requests_slowed": scalar(
            float(np.mean(ttft > recomputed + 1e-12)), "1", "share of requests that would be faster recomputed"
        ),
    }
