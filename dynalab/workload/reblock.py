"""Blocks of another size: cut exactly, joined exactly where ids stand for their prefix, refused otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.errors import TraceError
from dynalab.workload.checks import block_count
from dynalab.workload.dense import densify

if TYPE_CHECKING:
    from dynalab.workload.trace import Trace


def reblock(trace: Trace, tokens: int) -> Trace:
    """Return the same requests with blocks of another size.

    *Down* to a divisor, part ``j`` of block ``id`` becomes a block of its own: exact for every trace. *Up* to a
    multiple, blocks are joined and known by their last constituent: exact if and only if every id stands for its whole
    prefix (:attr:`Trace.prefix_consistent`). Either way a partial last block is known by its tokens too, so that it
    never equals a full one.

    Sharing that the larger blocks hid stays hidden: cutting blocks that were equal as a whole cannot tell which of the
    different ones began alike, so that the hit ratio of smaller blocks is a lower bound.

    Parameters
    ----------
    trace : Trace
    tokens : int
        Tokens per block from now on: a divisor or a multiple of ``trace.block_tokens``.

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        If the trace has no block ids or lost its partial blocks, `tokens` is neither divisor nor multiple, or blocks
        shall be joined whose ids do not stand for their prefix.

    Examples
    --------
    >>> from dynalab.workload import Trace
    >>> trace = Trace.from_columns([0, 1], [5, 4], [1, 1], [7, 8, 7], block_tokens=4)
    >>> trace.reblock(2).block_ids
    array([0, 1, 2, 0, 1], dtype=int32)
    """
    size = trace.require_blocks()
    if isinstance(tokens, bool) or not isinstance(tokens, int | np.integer) or tokens < 1:
        raise TraceError(f"cannot make blocks of {tokens!r} tokens: use a whole number from 1 up")
    if tokens == size:
        return trace
    require_partial_blocks(trace, "re-block")
    if size % tokens == 0:
        keys = _cut(trace, size, int(tokens))
    elif tokens % size == 0:
        _require_prefix_ids(trace, int(tokens))
        keys = _joined(trace, int(tokens) // size, int(tokens))
    else:
        divisors = [str(part) for part in range(1, size) if size % part == 0]
        raise TraceError(
            f"cannot make blocks of {tokens} tokens from blocks of {size}: use a divisor"
            f" ({', '.join(divisors) or 'there is none'}) or a multiple ({2 * size}, {3 * size}, {4 * size}, ...)"
        )
    offsets = np.zeros_like(trace.offsets)
    np.cumsum(block_count(trace.input_tokens, int(tokens)), out=offsets[1:])
    ids, _ = densify(keys, reuse=True)
    return trace._derived(f"reblock({tokens})", block_ids=ids, offsets=offsets, block_tokens=int(tokens), lineage=None)


def require_partial_blocks(trace: Trace, what: str) -> None:
    """Raise a TraceError where the partial last blocks were dropped by ``full_blocks()``."""
    if not np.array_equal(np.diff(trace.offsets), block_count(trace.input_tokens, trace.require_blocks())):
        raise TraceError(f"cannot {what} a trace without its partial blocks: do that before full_blocks()")


def _cut(trace: Trace, size: int, tokens: int) -> npt.NDArray[np.int64]:
    """Key of every smaller block: block, part and, for a partial one, its tokens."""
    lengths = trace.block_lengths()
    parts = block_count(lengths, tokens)
    first = np.cumsum(parts) - parts
    access = np.repeat(np.arange(trace.n_accesses), parts)
    part = np.arange(access.size) - first[access]
    covered = np.minimum(lengths[access] - part * tokens, tokens)
    factor = size // tokens
    whole = trace.block_ids[access] * np.int64(factor) + part
    return _partial_apart(whole, trace.n_blocks * factor, covered, tokens)


def _joined(trace: Trace, factor: int, tokens: int) -> npt.NDArray[np.int64]:
    """Key of every larger block: its last constituent and, for a partial one, its tokens."""
    counts = np.diff(trace.offsets)
    groups = -(-counts // factor)
    request = np.repeat(np.arange(len(trace)), groups)
    group = np.arange(request.size) - (np.cumsum(groups) - groups)[request]
    last = trace.offsets[request] + np.minimum((group + 1) * factor, counts[request]) - 1
    covered = np.minimum(trace.input_tokens[request] - group * tokens, tokens)
    return _partial_apart(trace.block_ids[last].astype(np.int64), trace.n_blocks, covered, tokens)


def _partial_apart(
    keys: npt.NDArray[np.int64], upper: int, covered: npt.NDArray[np.integer], tokens: int
) -> npt.NDArray[np.int64]:
    """Give blocks of fewer than `tokens` tokens keys from `upper` up, one for each key and length.

    All keys stay small numbers this way, which are made dense much faster than hashes.
    """
    partial = np.flatnonzero(covered < tokens)
    _, known = np.unique(keys[partial] * tokens + covered[partial], return_inverse=True)
    keys[partial] = upper + known
    return keys


def _require_prefix_ids(trace: Trace, tokens: int) -> None:
    """Raise a TraceError that shows a block with two different predecessors, if there is one."""
    usual = trace.parents()[trace.block_ids]
    actual = trace._access_parents()
    wrong = np.flatnonzero(usual != actual)
    if not wrong.size:
        return
    access = int(wrong[0])
    request = int(np.searchsorted(trace.offsets, access, side="right")) - 1
    before = ["nothing" if block < 0 else f"block {block}" for block in (usual[access], actual[access])]
    raise TraceError(
        f"cannot join blocks to {tokens} tokens: block {trace.block_ids[access]} follows {before[0]} first and"
        f" {before[1]} in request {request}, so that its id does not stand for its prefix; only a divisor of"
        f" {trace.block_tokens} is exact here"
    )
