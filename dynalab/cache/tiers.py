"""Replay a trace against a stack of tiers: device, host, disk and what lies beyond (recomputing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.cache._tier_results import tier_dataset
from dynalab.cache.accesses import Accesses
from dynalab.cache.replay import trace_attrs
from dynalab.cache.stack import Tier, check_stack, run_stack
from dynalab.errors import ConfigError, unknown
from dynalab.kv.tiering.rules import (
    ANY_MATCH,
    AROUND_HOST,
    EXCLUSIVE,
    INTERLEAVED,
    N_SWITCHES,
    OFFER_ALWAYS,
    TOUCH_ALL,
)
from dynalab.workload import HardwareSpec, ModelSpec, Trace, hardware_spec, model_spec

if TYPE_CHECKING:
    import xarray as xr

_MAX_WINDOWS = 1_000_000
_MATCHES = {"prefix": "blocks beyond the first one missed are computed", "any": "every block found is used"}
_TOUCHES = {"served": "only the tier that serves a block sees the use", "all": "every tier that holds it does"}
_DISK_PATHS = {"staged": "through host memory", "direct": "around the host, device to disk"}


def replay_tiers(
    trace: Trace,
    tiers: Mapping[str, int | str] | Sequence[Tier],
    *,
    mode: str = "write_through",
    admit_after: int = 2,
    match: str = "prefix",
    touch: str = "served",
    interleaved: bool = False,
    pinned: bool = False,
    disk_path: str | None = None,
    priority: npt.ArrayLike | None = None,
    window: float = 10.0,
    model: str | ModelSpec | None = None,
    hardware: str | HardwareSpec = "h100-sxm",
    per_request: bool = False,
) -> xr.Dataset:
    """Replay a trace against device, host and disk.

    Parameters
    ----------
    trace : Trace
        With block ids.
    tiers : mapping of name to capacity, or sequence of Tier
        ``{"device": 2000, "host": 10_000, "disk": "4TB"}``; ints are blocks, strings are bytes. Absent tiers and
        capacity 0 change nothing.
    mode : {"write_through", "write_back", "selective"}
        See :data:`dynalab.cache.MODES`.
    admit_after : int
        For "selective": uses that earn a copy in a lower tier.
    match : {"prefix", "any"}
        Whether blocks beyond the first one missed count as found. Engines can only reuse a prefix.
    touch : {"served", "all"}
        Which tiers see the use of a block that several hold. KVBM's lower tiers do not see device hits.
    interleaved : bool
        False looks up all blocks of a request before anything moves, as a block manager does; True looks up, touches
        and moves block by block, as the definitions of single-cache hit ratios do. A prefix still ends where the
        request's first block is missed.
    pinned : bool
        Take the steps of a block manager: match, onboard, make room (all or nothing), register, release; what a request
        uses cannot be evicted until it ends. This is what :class:`dynalab.tiers.TierStack` does with real memory, block
        for block. A request that needs more blocks than the device has is refused. False lets every block that
        enters evict any other, as the usual models of a cache do.
    disk_path : {"staged", "direct"}, optional
        Through host memory, or around it. By default as `hardware` says.
    priority : array_like of int, shape (n_blocks,), optional
        For the policy and the filter "priority".
    window : float
        Seconds over which peak bandwidths are averaged.
    model : str or ModelSpec, optional
        Turns blocks into bytes; without it everything that is measured in bytes or seconds is left out.
    hardware : str or HardwareSpec
        Link and disk speeds, compute, endurance and prices.
    per_request : bool
        Add ``reused_tokens(request, tier)``, and with a model ``ttft(request)`` and ``ttft_recomputed(request)``.

    Returns
    -------
    xarray.Dataset
        Over ``tier``: capacity, hits, hit_ratio, insertions, evictions, rejections, resident blocks, break-even length.
        Over ``edge``: blocks moved; with a model the bytes, the mean and the peak bandwidth needed. Without dimension:
        total and token hit ratio, disk wear, mean TTFT with and without reuse.

    Raises
    ------
    ConfigError, TraceError

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> trace = synthesize("conversation", duration=300, seed=1)
    >>> ds = replay_tiers(trace, {"device": 500, "host": 2000, "disk": 20_000}, model="llama-3-8b")
    >>> bool(ds.hit_ratio.sum() == ds.total_hit_ratio)
    True
    """
    spec = None if model is None else model_spec(model)
    machine = hardware_spec(hardware)
    stack = check_stack(tiers, mode, admit_after)
    path = machine.disk_path if disk_path is None else disk_path
    for field, value, choices in (
        ("match", match, _MATCHES),
        ("touch", touch, _TOUCHES),
        ("disk_path", path, _DISK_PATHS),
    ):
        if value not in choices:
            raise unknown(field, value, choices)
    if not window > 0:
        raise ConfigError(f"window: {window} s is not a positive time")
    if window == float("inf") or trace.duration / window > _MAX_WINDOWS:
        raise ConfigError(f"window: {window} s; give a time that splits the trace into at most {_MAX_WINDOWS:,} parts")
    accesses = Accesses.of(trace)
    block_bytes = None if spec is None else spec.block_bytes(int(trace.block_tokens or 0))
    switch = np.zeros(N_SWITCHES, np.bool_)
    switch[EXCLUSIVE] = mode == "write_back"
    switch[OFFER_ALWAYS] = mode == "selective" or (touch == "all" and mode == "write_through")
    switch[TOUCH_ALL] = touch == "all"
    switch[ANY_MATCH] = match == "any"
    switch[INTERLEAVED] = interleaved
    switch[AROUND_HOST] = path == "direct"
    if pinned:
        if interleaved or match == "any":
            raise ConfigError(
                "pinned: True goes with match='prefix' and interleaved=False only; a block manager works on requests"
            )
        if not stack[0].blocks(block_bytes):
            raise ConfigError("pinned: True needs a device tier; a block manager brings every block there")
    run = run_stack(accesses, stack, switch, block_bytes, priority, window, pinned)

    held = [tier for tier, blocks in zip(stack, run.blocks, strict=True) if blocks]
    attrs = trace_attrs(trace) | {
        "mode": mode,
        "match": match,
        "touch": touch,
        "interleaved": int(interleaved),
        "pinned": int(pinned),
        "disk_path": path,
        "window_s": float(window),
        "policies": ", ".join(f"{tier.name}: {tier.policy}" for tier in held),
        "admissions": ", ".join(f"{tier.name}: {tier.admission}" for tier in held),
    }
    return tier_dataset(accesses, run, spec, machine, window, per_request).assign_attrs(attrs)
