"""What a pool counts: a snapshot, as a Dataset, and in Prometheus' text format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dynalab.pools.exposition import Histogram, exposition

if TYPE_CHECKING:
    import xarray as xr

#: Upper bounds of the wait-time histogram's buckets [s]; a last bucket has none.
WAIT_BOUNDS: Final = (*(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2.5, 5)), 100.0)


@dataclass(frozen=True, slots=True)
class PoolMetrics:
    """Counts of one pool since it was built, at one moment.

    Attributes
    ----------
    name : str
        The pool's.
    capacity, in_use, waiting : int
        Values that belong to the pool, those that are lent, and how many wait for one: now.
    high_water : int
        Most values lent at once.
    acquires : int
        Items handed out.
    waits : int
        Calls that found no free value and had to wait, however that ended.
    timeouts, cancelled : int
        Waits that ended because the time was up, and by cancellation or an interrupt.
    leaked : int
        Items that were never released and came back by garbage collection.
    unhealthy : int
        Values that failed their check or their `on_return`.
    wait_counts : tuple of int
        Items handed out by the time waited for them, of each bucket: up to ``wait_bounds``, and above the last of them.
        Who did not wait counts in the first one.
    wait_seconds : float
        Sum of the time waited for the items handed out [s].
    """

    name: str
    capacity: int
    in_use: int
    waiting: int
    high_water: int
    acquires: int
    waits: int
    timeouts: int
    cancelled: int
    leaked: int
    unhealthy: int
    wait_counts: tuple[int, ...]
    wait_seconds: float

    @property
    def wait_bounds(self) -> tuple[float, ...]:
        """Upper bounds of the buckets [s]."""
        return WAIT_BOUNDS

    @property
    def mean_wait(self) -> float:
        """Mean time waited for an item [s], those included who did not wait; NaN before the first."""
        return self.wait_seconds / self.acquires if self.acquires else float("nan")

    def wait_quantile(self, share: float) -> float:
        """Return the bound below which `share` of the waits lie [s]: that of their bucket, infinite past the last.

        Examples
        --------
        >>> from dynalab.pools import SyncPool
        >>> pool = SyncPool([1])
        >>> pool.acquire().release()
        >>> pool.metrics.wait_quantile(0.99)
        1e-05
        """
        seen = 0
        for bound, count in zip((*WAIT_BOUNDS, float("inf")), self.wait_counts, strict=True):
            seen += count
            if seen >= share * self.acquires > 0:
                return bound
        return float("nan")


#: Field, Prometheus' name and type, unit, and what it is.
_SCALARS: Final = (
    ("capacity", "capacity", "gauge", "item", "values that belong to the pool"),
    ("in_use", "in_use", "gauge", "item", "values lent"),
    ("waiting", "waiting", "gauge", "1", "tasks or threads that wait for an item"),
    ("high_water", "high_water", "gauge", "item", "most values lent at once"),
    ("acquires", "acquires", "counter", "item", "items handed out"),
    ("waits", "waits", "counter", "1", "calls that had to wait"),
    ("timeouts", "timeouts", "counter", "1", "waits that timed out"),
    ("cancelled", "cancelled", "counter", "1", "waits that were cancelled or interrupted"),
    ("leaked", "leaked", "counter", "item", "items that came back by garbage collection"),
    ("unhealthy", "unhealthy", "counter", "item", "values that failed their check or their on_return"),
)


def metrics_dataset(metrics: PoolMetrics, kind: str) -> xr.Dataset:
    """Return a snapshot as a Dataset; `kind` is the name of the pool's class."""
    import xarray as xr

    data: dict[str, Any] = {
        field: ((), getattr(metrics, field), {"units": unit, "long_name": text}) for field, _, _, unit, text in _SCALARS
    }
    data["wait_seconds"] = ((), metrics.wait_seconds, {"units": "s", "long_name": "time waited for items, in all"})
    data["wait_counts"] = (
        "wait_bound",
        list(metrics.wait_counts),
        {"units": "item", "long_name": "items by the time waited for them"},
    )
    bounds = [*metrics.wait_bounds, float("inf")]
    coords = {"wait_bound": ("wait_bound", bounds, {"units": "s", "long_name": "upper bound of the time waited"})}
    return xr.Dataset(data, coords=coords, attrs={"name": metrics.name, "kind": kind})


def prometheus_text(metrics: PoolMetrics) -> str:
    """Return a snapshot in Prometheus' text format, labelled with the pool's name."""
    told = [(kind, (f"dynalab_pool_{name}", text, getattr(metrics, field))) for field, name, kind, _, text in _SCALARS]
    waits = Histogram(
        "dynalab_pool_wait_seconds",
        "time waited for the items handed out",
        metrics.wait_bounds,
        metrics.wait_counts,
        metrics.wait_seconds,
    )
    return exposition(
        [metric for kind, metric in told if kind == "counter"],
        [metric for kind, metric in told if kind != "counter"],
        [waits],
        {"pool": metrics.name},
    )
