"""Parts of traces and traces put together, their block ids made dense again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.errors import TraceError
from dynalab.workload.dense import ragged, relabel

if TYPE_CHECKING:
    from dynalab.workload.trace import Trace


def take(trace: Trace, rows: npt.NDArray[np.int64], step: str) -> Trace:
    """Return the trace of some requests; `step` says what was done, for the record.

    Parameters
    ----------
    trace : Trace
    rows : ndarray of int64, shape (n,)
        Requests to keep, at least one, in rising order.
    step : str
    """
    accesses, offsets = ragged(trace.offsets, rows)
    ids, lineage = _dense_part(trace, trace.block_ids[accesses])
    arrival = trace.arrival[rows]
    return trace._derived(
        step,
        arrival=arrival - arrival[0],
        input_tokens=trace.input_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        block_ids=ids,
        offsets=offsets,
        lineage=lineage,
    )


def full_blocks(trace: Trace) -> Trace:
    """Return the trace without partial blocks: see :meth:`Trace.full_blocks`."""
    size = trace.require_blocks()
    offsets = np.zeros_like(trace.offsets)
    np.cumsum(trace.input_tokens // size, out=offsets[1:])
    ids, lineage = _dense_part(trace, trace.block_ids[trace.block_lengths() == size])
    return trace._derived("full_blocks()", block_ids=ids, offsets=offsets, lineage=lineage)


def merge(trace: Trace, other: Trace, shared_blocks: bool) -> Trace:
    """Interleave two traces by arrival: see :meth:`Trace.merge`."""
    if trace.block_tokens != other.block_tokens:
        sizes = [f"blocks of {one.block_tokens} tokens" if one.has_blocks else "no block ids" for one in (trace, other)]
        raise TraceError(
            f"cannot merge a trace with {sizes[0]} and one with {sizes[1]}: use reblock() or with_prefixes() first"
        )
    theirs = other.block_ids.astype(np.int64) + trace.n_blocks
    ids = np.concatenate([trace.block_ids.astype(np.int64), theirs])
    origin = None
    if shared_blocks:
        trace.require_blocks()
        (origin, names), (their_origin, their_names) = trace._origin(), other._origin()
        if origin != their_origin:
            raise TraceError(
                "shared_blocks=True needs two parts of one trace, but these come from different ones"
                f" ({trace.source} and {other.source}): leave shared_blocks out"
            )
        ids = np.concatenate([names, their_names])[ids]
    arrival = np.concatenate([trace.arrival, other.arrival])
    order = np.argsort(arrival, kind="stable")
    accesses, offsets = ragged(np.concatenate([trace.offsets, other.offsets[1:] + trace.n_accesses]), order)
    raw = ids[accesses]
    dense, known = relabel(raw, int(raw.max()) + 1 if raw.size else 0)
    lineage = None
    if origin is not None:
        lineage = (origin, _by_id(dense, raw, known))
    return trace._derived(
        f"merge({other.source}, sha256 {other.sha256[:12]}, shared_blocks={shared_blocks})",
        source=f"{trace.source} + {other.source}",
        arrival=arrival[order],
        input_tokens=np.concatenate([trace.input_tokens, other.input_tokens])[order],
        output_tokens=np.concatenate([trace.output_tokens, other.output_tokens])[order],
        block_ids=dense,
        offsets=offsets,
        lineage=lineage,
    )


def _dense_part(
    trace: Trace, kept: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], tuple[str, npt.NDArray[np.int32]] | None]:
    """Dense ids for some accesses of a trace, and where those blocks come from."""
    ids, known = relabel(kept, trace.n_blocks)
    if not trace.has_blocks:
        return ids, None
    origin, names = trace._origin()
    return ids, (origin, names[_by_id(ids, kept, known)])


def _by_id(dense: npt.NDArray[np.int32], raw: npt.NDArray[np.integer], known: int) -> npt.NDArray[np.int32]:
    """Return the raw id behind every dense one."""
    table = np.empty(known, np.int32)
    table[dense] = raw
    return table
