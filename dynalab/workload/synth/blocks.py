"""Block ids for requests whose sharing is known: equal ids stand for equal tokens behind an equal prefix."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.workload.synth.sessions import Ints, Turns

#: More block accesses than this in one trace (8 GB of working memory) are refused before memory runs out.
MAX_ACCESSES = 400_000_000


def ragged(starts: Ints, counts: Ints) -> Ints:
    """Concatenate ``arange(starts[i], starts[i] + counts[i])`` over i.

    Examples
    --------
    >>> ragged(np.array([10, 0]), np.array([3, 2]))
    array([10, 11, 12,  0,  1])
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - ends + counts, counts)


def build_blocks(turns: Turns, order: Ints, block_tokens: int) -> tuple[Ints, Ints]:
    """Name every block of every prompt.

    Parameters
    ----------
    turns : Turns
        Requests in session order.
    order : ndarray of int64, shape (n_requests,)
        The row that arrives first, second, ...; turns of one session stay in order.
    block_tokens : int

    Returns
    -------
    raw_ids : ndarray of int64, shape (n_accesses,)
        Ids (not dense) in order of arrival.
    offsets : ndarray of int64, shape (n_requests + 1,)
    """
    counts = -(-turns.input_tokens // block_tokens)
    n_accesses = int(counts.sum())
    if n_accesses > MAX_ACCESSES:
        raise ConfigError(
            f"duration and rate: {len(turns):,} requests of these lengths touch {n_accesses:,} blocks of {block_tokens}"
            f" tokens, more than {MAX_ACCESSES:,}; choose a lower rate, a shorter duration or larger block_tokens"
        )
    begin = np.cumsum(counts) - counts
    # A block that is new with its request is named by its place; the others are then overwritten with what they repeat.
    ids = np.arange(n_accesses, dtype=np.int64)
    _name_prefixes(ids, turns, begin)
    _inherit(ids, turns, begin)
    arriving = counts[order]
    offsets = np.zeros(len(turns) + 1, np.int64)
    np.cumsum(arriving, out=offsets[1:])
    return ids[ragged(begin[order], arriving)], offsets


def _name_prefixes(ids: Ints, turns: Turns, begin: Ints) -> None:
    """Give the full blocks of system prompts and documents the same names in the first turns of all sessions."""
    rows = np.flatnonzero(turns.first & (turns.prefix_blocks > 0))
    if rows.size == 0:
        return
    longest = int(turns.prefix_blocks[rows].max())
    n_systems = int(turns.system.max()) + 1
    for owner, low, high in (
        (turns.system, np.zeros(len(turns), np.int64), turns.system_blocks),
        (turns.document + n_systems, turns.system_blocks, turns.prefix_blocks),
    ):
        count = (high - low)[rows]
        name = ids.size + owner[rows] * longest + low[rows]
        ids[ragged(begin[rows] + low[rows], count)] = ragged(name, count)


def _inherit(ids: Ints, turns: Turns, begin: Ints) -> None:
    """Copy the leading `shared` ids of every turn from the turn before it, all sessions at once, turn by turn."""
    row = np.arange(len(turns))
    depth = row - np.maximum.accumulate(np.where(turns.first, row, 0))
    by_depth = np.argsort(depth, kind="stable")
    edges = np.searchsorted(depth[by_depth], np.arange(1, int(depth.max(initial=0)) + 2))
    for low, high in pairwise(edges):
        rows = by_depth[low:high]
        shared = turns.shared[rows]
        ids[ragged(begin[rows], shared)] = ids[ragged(begin[rows - 1], shared)]


def arrival_order(time: npt.NDArray[np.float64]) -> Ints:
    """Order rows by their wanted time; equal times keep session order, hence turn order."""
    return np.argsort(time, kind="stable")
