"""Capacity curves: the hit ratio of LRU at every capacity, exactly in one pass or estimated from a sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dynalab.cache._distances import distance_histogram
from dynalab.cache.accesses import Accesses
from dynalab.cache.replay import check_capacities, trace_attrs
from dynalab.errors import ConfigError, TraceError
from dynalab.workload import Trace

if TYPE_CHECKING:
    import xarray as xr

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GROUPS = 8
_LEAST_SAMPLED = 30  # sampled blocks below which the estimate is biased


def lru_curve(
    trace: Trace, capacities: int | Sequence[int] | None = None, *, blocks: str = "all", order: str = "forward"
) -> xr.Dataset:
    """Return the exact hit ratio of LRU at every capacity, from one pass over the trace.

    Equal to :func:`~dynalab.cache.replay` with policy "lru" at each capacity, in O(n log n) for all of them together.

    Parameters
    ----------
    trace : Trace
        With block ids.
    capacities : int or sequence of int, optional
        In blocks. By default every capacity from 1 to the number of distinct blocks.
    blocks, order : str
        As in :func:`~dynalab.cache.replay`.

    Returns
    -------
    xarray.Dataset
        ``hit_ratio(capacity)``; the attribute ``infinite_hit_ratio`` is the limit.

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> curve = lru_curve(synthesize("conversation", duration=60, seed=1))
    >>> bool((curve.hit_ratio.diff("capacity") >= 0).all())
    True
    """
    accesses = Accesses.of(trace, blocks=blocks, order=order)
    histogram = distance_histogram(accesses.ids, accesses.n_blocks)
    hits = np.cumsum(histogram[1:])
    # Entry 0 is no cache at all; it is also all there is where no prompt fills a block.
    ratio = np.concatenate([[0.0], hits / max(accesses.ids.size, 1)])
    sizes = np.arange(1, accesses.n_blocks + 1) if capacities is None else check_capacities(capacities)
    values = ratio[np.minimum(sizes, accesses.n_blocks)]
    attrs = trace_attrs(trace) | {"blocks": blocks, "order": order, "infinite_hit_ratio": float(ratio[-1])}
    return _curve_dataset(sizes, values, attrs | {"method": "exact: LRU stack distances"})


def sampled_curve(
    trace: Trace | Iterable[npt.ArrayLike],
    rate: float = 0.1,
    seed: int = 0,
    capacities: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Estimate the LRU curve from a spatial sample of blocks (SHARDS), with its standard error.

    A hash of the block id decides whether a block is in the sample, so that every use of a sampled block is seen and
    sampled distances, scaled by ``1 / rate``, estimate the true ones. The difference between the accesses that the
    sample should hold and those it holds is credited to the shortest distances (SHARDS-adj). The sample is made of 8
    disjoint parts; each alone gives a curve, and their spread the standard error.

    Parameters
    ----------
    trace : Trace or iterable of int arrays
        A trace, or chunks of raw block ids of a trace too large to be held (each id any 64-bit integer).
    rate : float
        Fraction of blocks that are sampled, in (0, 1].
    seed : int
    capacities : int or sequence of int, optional
        In blocks; by default 200 capacities from ``30 / rate`` upward, evenly spaced on a logarithmic axis.

    Returns
    -------
    xarray.Dataset
        ``hit_ratio(capacity)`` and ``standard_error(capacity)``.

    Notes
    -----
    Below about 30 sampled blocks (a capacity under ``30 / rate``) the estimate is biased upward beyond its error. The
    error is that of chance among blocks; at a cliff (a loop over just as many blocks as fit) the true one is larger.

    References
    ----------
    Waldspurger et al., Efficient MRC construction with SHARDS, FAST 2015.

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> ds = sampled_curve(synthesize("conversation", duration=300, seed=1), rate=0.5)
    >>> float(ds.standard_error.max()) < 0.2
    True
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate: {rate} is not a fraction of blocks; give a value above 0 and up to 1")
    if isinstance(trace, Trace):
        trace.require_blocks()
        chunks: Iterable[npt.ArrayLike] = [trace.block_ids]
        attrs: dict[str, Any] = trace_attrs(trace)
    else:
        chunks, attrs = trace, {}
    kept, groups, total = _sample(chunks, rate, seed)
    if total == 0:
        raise TraceError("there are no block accesses to sample; give a trace with block ids")
    if kept.size == 0:
        raise ConfigError(f"rate: {rate} samples none of the trace's blocks; give a larger one")
    dense = pd.factorize(kept)[0].astype(np.int32)
    largest = int(np.ceil((int(dense.max()) + 1) / rate))
    sizes = (
        np.unique(np.geomspace(min(np.ceil(_LEAST_SAMPLED / rate), largest), largest, 200).round().astype(np.int64))
        if capacities is None
        else check_capacities(capacities)
    )
    estimate = _scaled_curve(dense, rate, total, sizes)
    parts = np.array([_scaled_curve(_dense(dense[groups == g]), rate / _GROUPS, total, sizes) for g in range(_GROUPS)])
    # The parts exhaust the sample, and a rate of 1 leaves no uncertainty: finite population correction.
    error = parts.std(axis=0, ddof=1) * np.sqrt((1 - rate) / _GROUPS)
    attrs |= {"rate": float(rate), "seed": int(seed), "sampled_accesses": int(kept.size), "n_accesses": int(total)}
    ds = _curve_dataset(sizes, estimate, attrs | {"method": "sampled: SHARDS"})
    ds["standard_error"] = ("capacity", error, {"units": "1", "long_name": "standard error of the hit ratio"})
    return ds


def _curve_dataset(sizes: npt.NDArray, values: npt.NDArray, attrs: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset(
        {"hit_ratio": ("capacity", values, {"units": "1", "long_name": "hit ratio of LRU"})},
        coords={"capacity": ("capacity", sizes, {"units": "blocks", "long_name": "cache capacity"})},
        attrs=attrs,
    )


def _sample(
    chunks: Iterable[npt.ArrayLike], rate: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Return the sampled ids, the part of the sample that each belongs to, and the number of accesses seen."""
    salt = np.random.default_rng(seed).integers(0, 2**63, dtype=np.uint64)
    kept, groups, total = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for chunk in chunks:
        raw = np.asarray(chunk)
        ids = raw.view(np.int64) if raw.dtype == np.uint64 else raw.astype(np.int64)
        z = ids.astype(np.uint64) ^ salt
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        position = (z ^ (z >> np.uint64(31))) / 2.0**64
        chosen = position < rate
        kept.append(ids[chosen])
        groups.append(np.minimum(position[chosen] / rate * _GROUPS, _GROUPS - 1).astype(np.int64))
        total += ids.size
    return np.concatenate(kept), np.concatenate(groups), total


def _dense(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return pd.factorize(ids)[0].astype(np.int32)


def _scaled_curve(dense: npt.NDArray[np.int32], rate: float, total: int, sizes: npt.NDArray) -> npt.NDArray:
    """Return the estimated hit ratio at `sizes` from densely numbered sampled accesses."""
    if dense.size == 0:
        return np.zeros(sizes.size)
    histogram = distance_histogram(dense, int(dense.max()) + 1).astype(np.float64)
    expected = total * rate
    hits = np.cumsum(histogram[1:]) + (expected - dense.size)
    # A sampled distance d stands for about d / rate blocks.
    scaled = np.arange(1, hits.size + 1) / rate
    return np.clip(np.interp(sizes, scaled, hits, left=max(hits[0], 0.0)) / expected, 0.0, 1.0)


def knee(curve: xr.Dataset) -> int:
    """Return the capacity at the knee of a curve, where more capacity begins to pay less than on average.

    The curve is cut where it reaches 99.9% of its limit, both axes are scaled to 0..1, and the point furthest above the
    diagonal is the knee (Satopaa et al., Finding a "kneedle" in a haystack, ICDCSW 2011, for a concave curve).

    Parameters
    ----------
    curve : xarray.Dataset
        With ``hit_ratio(capacity)``, as :func:`lru_curve` or :func:`sampled_curve` return it.

    Returns
    -------
    int
        Blocks.

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> curve = lru_curve(synthesize("conversation", duration=300, seed=1))
    >>> 1 < knee(curve) < int(curve.capacity[-1])
    True
    """
    x = curve["capacity"].values.astype(np.float64)
    y = curve["hit_ratio"].values.astype(np.float64)
    end = int(np.searchsorted(y, 0.999 * y[-1]))
    return int(x[knee_index(x[: end + 1], y[: end + 1])])


def knee_index(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> int:
    """Return the index of the point of (x, y) furthest above the straight line from the first to the last.

    The last point where none lies above it: returns that do not diminish have no knee, and less than all is a waste.
    """
    if x.size < 3 or x[-1] == x[0] or y[-1] == y[0]:
        return x.size - 1
    above = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    highest = int(np.argmax(above))
    return highest if above[highest] > 0 else x.size - 1
