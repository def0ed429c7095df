"""Counters of a stack: hit rates over a window of requests, a Dataset, and KVBM's metrics as Prometheus text."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalab.kv.tiering.rules import EDGES, EVICTED, INSERTED, N_TIERS, REJECTED, REMOVED, TIERS

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.tiers.directory import Directory
    from dynalab.tiers.flow import Flow
    from dynalab.tiers.stack_base import StackBase

_log = logging.getLogger(__name__)


class HitWindow:
    """Hit rates of host and disk over the last requests, as KVBM's cache statistics define them.

    Parameters
    ----------
    max_requests : int
        Requests in the window; those of no block do not count.
    log_interval : float
        Seconds between two log lines.

    Examples
    --------
    >>> window = HitWindow(max_requests=2, log_interval=5)
    >>> for host, disk, total in ((0, 0, 8), (4, 0, 8), (0, 2, 8)):
    ...     window.record(host, disk, total)
    >>> window.rates()
    (0.25, 0.125)
    """

    def __init__(self, max_requests: int, log_interval: float) -> None:
        self._requests: deque[tuple[int, int, int]] = deque(maxlen=max(1, max_requests))
        self._interval = log_interval
        self._last_log = -np.inf
        self._logged: tuple[int, int, int] | None = None
        self._sums = (0, 0, 0)
        self.matched_tokens = 0

    def record(self, host: int, disk: int, total: int) -> None:
        """Add a request: blocks found in host memory, on disk, and asked for."""
        if total == 0:
            return
        gone = self._requests[0] if len(self._requests) == self._requests.maxlen else (0, 0, 0)
        self._requests.append((host, disk, total))
        now = (host, disk, total)
        self._sums = tuple(a + b - c for a, b, c in zip(self._sums, now, gone, strict=True))  # type: ignore[assignment]

    def rates(self) -> tuple[float, float]:
        """Return the hit rates of host and disk; 0 where nothing was asked for."""
        host, disk, total = self._sums
        return (host / total, disk / total) if total else (0.0, 0.0)

    def maybe_log(self, clock: Callable[[], float]) -> bool:
        """Log the rates if they have changed and the interval is over; return whether that was so."""
        if self._sums[2] == 0 or self._sums == self._logged:
            return False
        now = clock()
        if now - self._last_log < self._interval:
            return False
        self._last_log, self._logged = now, self._sums
        host, disk, total = self._sums
        rates = self.rates()
        _log.info(
            "cache hit rates: host %.1f%% (%d/%d), disk %.1f%% (%d/%d)",
            100 * rates[0],
            host,
            total,
            100 * rates[1],
            disk,
            total,
        )
        return True


def stack_dataset(stack: StackBase, directory: Directory, flow: Flow, window: HitWindow) -> xr.Dataset:
    """Return sizes and counters of a stack over ``tier`` and ``edge``."""
    import xarray as xr

    paths = flow.engine.stats()

    def over_tier(values: Any, units: str, name: str) -> tuple[Any, ...]:
        return ("tier", np.asarray(values), {"units": units, "long_name": name})

    def over_edge(field: str, units: str, name: str) -> tuple[Any, ...]:
        values = [getattr(paths[edge], field) if edge in paths else 0 for edge in EDGES]
        return ("edge", np.asarray(values), {"units": units, "long_name": name})

    events = directory.events
    host, disk = window.rates()
    data: dict[str, Any] = {
        "capacity_blocks": over_tier(directory.capacity, "blocks", "tier capacity"),
        "resident": over_tier([directory.size(k) for k in range(N_TIERS)], "blocks", "blocks held"),
        "in_use": over_tier([directory.in_use(k) for k in range(N_TIERS)], "blocks", "blocks in use"),
        "insertions": over_tier(events[:, INSERTED], "blocks", "insertions"),
        "evictions": over_tier(events[:, EVICTED], "blocks", "evictions"),
        "removals": over_tier(events[:, REMOVED], "blocks", "blocks that left without being evicted"),
        "rejections": over_tier(events[:, REJECTED], "blocks", "blocks refused by the filter"),
        "hit_rate": over_tier([np.nan, host, disk], "1", "share of blocks asked for, last requests"),
        "decided_blocks": ("edge", directory.traffic.copy(), {"units": "blocks", "long_name": "blocks sent"}),
        "moved_blocks": over_edge("blocks_done", "blocks", "blocks that arrived"),
        "moved_bytes": over_edge("bytes_done", "bytes", "bytes that arrived"),
        "failed_blocks": over_edge("blocks_failed", "blocks", "blocks lost on their way"),
        "cancelled_blocks": over_edge("blocks_cancelled", "blocks", "blocks given up"),
        "pending_blocks": over_edge("pending_blocks", "blocks", "blocks waiting"),
        "busy_seconds": over_edge("busy_s", "s", "time with copies in flight"),
        "matched_tokens": ((), window.matched_tokens, {"units": "tokens", "long_name": "tokens matched"}),
    }
    coords = {
        "tier": ("tier", list(TIERS), {"long_name": "memory tier"}),
        "edge": ("edge", list(EDGES), {"long_name": "path between tiers"}),
    }
    attrs: dict[str, Any] = {
        "mode": stack.mode,
        "device": stack.device.capabilities.device_label,
        "policies": ", ".join(f"{name}: {policy}" for name, policy in zip(TIERS, stack.policies, strict=True)),
        "admissions": ", ".join(f"{name}: {given.kind}" for name, given in zip(TIERS, stack.filters, strict=True)),
        "layout": stack.layout.summary(),
        "block_bytes": stack.layout.block_bytes,
    }
    for tier in (stack.host, stack.disk):
        if tier is not None:
            attrs |= {f"{tier.name}_{key}": _plain(value) for key, value in tier.stats().items() if key != "name"}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _plain(value: Any) -> Any:
    """Return a value that netCDF takes as an attribute."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float | str) else str(value)


#: KVBM's counters: name, the paths that count, help. There d2h, h2d and d2d are device to host, host to disk and device
#: to disk for offloads, and host and disk to device for onboards.
_COUNTERS = (
    ("offload_blocks_d2h", ("device_to_host",), "blocks offloaded from device to host"),
    ("offload_blocks_h2d", ("host_to_disk",), "blocks offloaded from host to disk"),
    ("offload_blocks_d2d", ("device_to_disk",), "blocks offloaded from device to disk, around the host"),
    ("onboard_blocks_h2d", ("host_to_device",), "blocks onboarded from host to device"),
    ("onboard_blocks_d2d", ("disk_to_device", "disk_to_host"), "blocks onboarded from disk"),
)


def prometheus_text(flow: Flow, window: HitWindow) -> str:
    """Return KVBM's metrics in Prometheus' text format."""
    paths = flow.engine.stats()
    host, disk = window.rates()
    values: list[tuple[str, str, float, str]] = [
        (name, "counter", sum(paths[edge].blocks_done for edge in edges if edge in paths), text)
        for name, edges, text in _COUNTERS
    ]
    values += [
        ("matched_tokens", "counter", window.matched_tokens, "tokens found in the stack"),
        ("host_cache_hit_rate", "gauge", host, "share of the last requests' blocks found in host memory"),
        ("disk_cache_hit_rate", "gauge", disk, "share of the last requests' blocks found on disk"),
        ("transfer_failures", "counter", flow.n_failures, "blocks lost on their way between tiers"),
    ]
    lines = []
    for name, kind, value, text in values:
        lines += [f"# HELP kvbm_{name} {text}", f"# TYPE kvbm_{name} {kind}", f"kvbm_{name} {value!r}"]
    return "\n".join(lines) + "\n"
