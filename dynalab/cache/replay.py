"""Replay a trace against policies and capacities, with metadata alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import dynalab
from dynalab.cache._drive import count_hits, drive
from dynalab.cache.accesses import Accesses
from dynalab.errors import ConfigError
from dynalab.kv.policies import CLASSIC, KV_SPECIFIC, POLICIES, PolicyState, get_policy
from dynalab.workload import Trace

if TYPE_CHECKING:
    import xarray as xr

#: What each definition of "hit ratio" counts. The definitions differ by several points on one and the same replay, so
#: that a published figure means nothing without its name.
DEFINITIONS = {
    "hit_ratio": "blocks found / all blocks (every block of every request in file order is one access)",
    "prefix_hit_ratio": "blocks found before the first one missed / all blocks: what an engine can reuse",
    "full_block_hit_ratio": "full blocks found / full blocks",
    "token_hit_ratio": "tokens in the reusable prefix / input tokens",
    "request_hit_ratio": "mean over requests of (tokens in the reusable prefix / input tokens of the request)",
}
#: The largest capacity: block ids are int32.
MAX_BLOCKS = 2**31 - 1
_GROUPS = {"classic": CLASSIC, "kv": KV_SPECIFIC, "all": tuple(POLICIES)}


def policy_names(policies: str | Iterable[str]) -> list[str]:
    """Resolve policy names and the groups "classic", "kv" and "all", keeping the order and dropping repeats.

    Raises
    ------
    ConfigError
        For an unknown policy.
    """
    given = [policies] if isinstance(policies, str) else list(policies)
    names: list[str] = []
    for entry in given:
        names += _GROUPS.get(entry, ()) or [get_policy(entry).name]
    if not names:
        raise ConfigError("policies: none given; name one, or a group: " + ", ".join(_GROUPS))
    return list(dict.fromkeys(names))


def check_capacities(capacities: int | Iterable[int]) -> npt.NDArray[np.int64]:
    """Return capacities in blocks as a rising array without repeats.

    Raises
    ------
    ConfigError
        For none, for a capacity below 1 or for one that is not a whole number.
    """
    values = np.atleast_1d(np.asarray(capacities if np.isscalar(capacities) else list(capacities)))  # type: ignore[arg-type]
    if values.size == 0:
        raise ConfigError("capacities: none given; give block counts such as [1000, 10000]")
    if values.dtype.kind not in "iu" and not (values.dtype.kind == "f" and np.all(values == np.round(values))):
        raise ConfigError(f"capacities: {values.tolist()} are not whole numbers of blocks")
    if values.min() < 1:
        raise ConfigError(f"capacities: {values.min():g} blocks cannot hold anything; give at least 1")
    if values.max() > MAX_BLOCKS:
        raise ConfigError(f"capacities: {values.max()} blocks; give at most {MAX_BLOCKS:,}")
    return np.unique(values.astype(np.int64))


def hit_flags(accesses: Accesses, policy: str, capacity: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Replay one cache.

    Returns
    -------
    hit : ndarray of uint8, shape (n_accesses,)
        1 where the access found its block, in the trace's order.
    evictions : int
    """
    facts: dict[str, Any] = {}
    needs = get_policy(policy).needs
    if "position" in needs:
        facts["position"] = accesses.positions
    if "parent" in needs:
        facts["parent"] = accesses.parents
    state = PolicyState(policy, capacity, accesses.n_blocks, **facts)
    next_use = accesses.neighbours[1] if "next_use" in needs else np.empty(0, np.int32)
    hit = np.empty(accesses.ids.size, np.uint8)
    evictions = drive(state.step, state.f, state.s, state.t, accesses.ids, next_use, hit)
    return accesses.in_trace_order(hit), int(evictions)


def ratios(accesses: Accesses, hit: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return every hit ratio of :data:`DEFINITIONS` for hit flags in the trace's order."""
    trace = accesses.trace
    hits, prefix, full_hits = count_hits(hit, accesses.offsets, accesses.full)
    total = max(int(accesses.offsets[-1]), 1)
    tokens = trace.input_tokens.astype(np.int64)
    reused = np.minimum(prefix.astype(np.int64) * int(trace.block_tokens or 0), tokens)
    return {
        "hit_ratio": int(hits.sum()) / total,
        "prefix_hit_ratio": int(prefix.sum()) / total,
        "full_block_hit_ratio": int(full_hits.sum()) / max(int(accesses.full.sum()), 1),
        "token_hit_ratio": int(reused.sum()) / max(int(tokens.sum()), 1),
        "request_hit_ratio": float(np.mean(reused / tokens)) if tokens.size else 0.0,
    }


def infinite_hit_ratios(trace: Trace, *, blocks: str = "all") -> dict[str, float]:
    """Return every hit ratio of a cache without limit: what is left to gain, by each definition.

    Parameters
    ----------
    trace : Trace
    blocks : {"all", "full"}

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> trace = synthesize("conversation", duration=60, seed=1)
    >>> sorted(infinite_hit_ratios(trace))
    ['full_block_hit_ratio', 'hit_ratio', 'prefix_hit_ratio', 'request_hit_ratio', 'token_hit_ratio']
    """
    accesses = Accesses.of(trace, blocks=blocks)
    return ratios(accesses, (accesses.neighbours[0] >= 0).astype(np.uint8))


def replay(
    trace: Trace,
    policies: str | Iterable[str] = "all",
    capacities: int | Sequence[int] = (1_000, 10_000, 30_000),
    *,
    blocks: str = "all",
    order: str = "forward",
    progress: bool | None = None,
) -> xr.Dataset:
    """Replay a trace against every policy at every capacity.

    Parameters
    ----------
    trace : Trace
        With block ids; a trace without any is refused (see `Trace.with_prefixes`).
    policies : str or iterable of str
        Names of :data:`dynalab.kv.policies.POLICIES`, or the groups "classic", "kv" and "all".
    capacities : int or sequence of int
        In blocks, at least 1.
    blocks : {"all", "full"}
        Whether the partial last block of a prompt is an access.
    order : {"forward", "leaf_first"}
        Order in which the blocks of a request are touched.
    progress : bool, optional
        Show a progress bar; by default only on a terminal or in a notebook, and only for long work.

    Returns
    -------
    xarray.Dataset
        Dimensions ``policy`` and ``capacity`` (blocks); one variable per definition of :data:`DEFINITIONS`, and
        ``evictions``. The same trace and parameters give the same numbers, bit for bit.

    Raises
    ------
    ConfigError
        For an unknown policy or a capacity below 1.
    TraceError
        For a trace without block ids.

    Examples
    --------
    >>> from dynalab.workload import synthesize
    >>> trace = synthesize("conversation", duration=120, seed=1)
    >>> ds = replay(trace, ["lru", "belady"], [500, 2000])
    >>> bool((ds.hit_ratio.sel(policy="belady") >= ds.hit_ratio.sel(policy="lru")).all())
    True
    """
    import xarray as xr

    names = policy_names(policies)
    sizes = check_capacities(capacities)
    accesses = Accesses.of(trace, blocks=blocks, order=order)
    if any("next_use" in POLICIES[name].needs for name in names):
        accesses.neighbours  # noqa: B018  computed once here, not once per thread

    def one(job: tuple[str, int]) -> dict[str, float]:
        hit, evictions = hit_flags(accesses, *job)
        return {**ratios(accesses, hit), "evictions": evictions}

    jobs = [(name, int(size)) for name in names for size in sizes]
    results = run_jobs(one, jobs, "replay", progress)
    shape = (len(names), len(sizes))
    data = {
        key: (("policy", "capacity"), np.array([result[key] for result in results]).reshape(shape), _describe(key))
        for key in results[0]
    }
    return xr.Dataset(
        data,
        coords={
            "policy": ("policy", names, {"long_name": "replacement policy"}),
            "capacity": ("capacity", sizes, {"units": "blocks", "long_name": "cache capacity"}),
        },
        attrs=trace_attrs(trace) | {"blocks": blocks, "order": order},
    )


def run_jobs(
    function: Callable[[Any], Any], jobs: Sequence[Any], label: str, progress: bool | None = None
) -> list[Any]:
    """Map `function` over `jobs` on all cores (the compiled loops free the GIL), in order, with a progress bar.

    Parameters
    ----------
    function : callable
    jobs : sequence
    label : str
        What the bar says.
    progress : bool, optional
        None shows the bar on a terminal, and only once the work has taken two seconds.
    """
    from tqdm.auto import tqdm

    workers = min(len(jobs), os.cpu_count() or 1)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        pending = pool.map(function, jobs)
        disable = None if progress is None else not progress
        return list(tqdm(pending, total=len(jobs), desc=label, leave=False, disable=disable, delay=2))


def trace_attrs(trace: Trace) -> dict[str, Any]:
    """Return what a result must remember of the trace that it came from."""
    return {
        "trace_source": trace.source,
        "trace_sha256": trace.sha256,
        "block_tokens": int(trace.block_tokens or 0),
        "n_requests": trace.n_requests,
        "n_accesses": trace.n_accesses,
        "n_blocks": trace.n_blocks,
        "dynalab_version": dynalab.__version__,
        "method": "simulated: metadata-only replay",
    }


def _describe(key: str) -> dict[str, str]:
    if key == "evictions":
        return {"units": "blocks", "long_name": "evictions"}
    return {"units": "1", "long_name": key.replace("_", " "), "description": DEFINITIONS[key]}
