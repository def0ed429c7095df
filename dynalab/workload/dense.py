"""Dense block ids: the integers ``0 .. n_blocks - 1`` in order of first appearance."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

#: Accesses handled at a time, so that temporaries stay small beside the columns.
_STEP = 1 << 20

#: Ids whose largest value is below this many times their number index a table; others are hashed first.
_COMPACT = 4

#: Parts into which 64-bit hashes are split.
_PARTS = 64


def densify(raw: npt.NDArray[np.integer], *, reuse: bool = False) -> tuple[npt.NDArray[np.int32], int]:
    """Replace arbitrary integer ids by dense ones in order of first appearance.

    Ids that are small integers (Mooncake, Bailian) go through one lookup table. 64-bit hashes (Dynamo) are split by
    their low bits and each part goes through :func:`pandas.factorize`: the hash table of a part fits the processor's
    cache, and takes a small part of a single table's memory.

    Parameters
    ----------
    raw : ndarray of integers, shape (n_accesses,)
    reuse : bool
        Whether the memory of `raw` may be written over (and be that of the result).

    Returns
    -------
    ids : ndarray of int32, shape (n_accesses,)
    n_blocks : int

    Examples
    --------
    >>> densify(np.array([70, -5, 70, 12]))
    (array([0, 1, 0, 2], dtype=int32), 3)
    """
    if raw.size == 0:
        return np.empty(0, np.int32), 0
    low, high = int(raw.min()), int(raw.max())
    if low >= 0 and high < _COMPACT * raw.size + 1024:
        into = cast("npt.NDArray[np.int32]", raw) if reuse and raw.dtype == np.int32 else None
        return relabel(raw, high + 1, out=into)
    import pandas as pd

    if raw.size < _STEP:
        codes, uniques = pd.factorize(raw)
        return codes.astype(np.int32), len(uniques)
    work = raw if reuse and raw.dtype == np.int64 else raw.astype(np.int64)
    steps = range(0, work.size, _STEP)
    parts = np.empty(work.size, np.uint8)
    for start in steps:
        parts[start : start + _STEP] = work[start : start + _STEP] & (_PARTS - 1)
    total = 0
    for part in range(_PARTS):
        where = np.flatnonzero(parts == part)
        codes, uniques = pd.factorize(work[where])
        codes += total
        work[where] = codes
        total += len(uniques)
    del parts
    # Narrowing in place: what is written lies before everything that is still to be read.
    narrow = work.view(np.int32)[: work.size]
    for start in steps:
        narrow[start : start + _STEP] = work[start : start + _STEP]
    return relabel(narrow, total, out=narrow)[0].copy(), total


def relabel(
    ids: npt.NDArray[np.integer], upper: int, out: npt.NDArray[np.int32] | None = None
) -> tuple[npt.NDArray[np.int32], int]:
    """Renumber ids that lie in ``0 .. upper - 1`` in order of first appearance.

    Parameters
    ----------
    ids : ndarray of integers, shape (n_accesses,)
    upper : int
        Exclusive bound of the ids.
    out : ndarray of int32, optional
        Where to put the result; may be `ids` itself.

    Returns
    -------
    ids : ndarray of int32, shape (n_accesses,)
    n_blocks : int
        How many different ids there are.
    """
    result = np.empty(ids.size, np.int32) if out is None else out
    table = np.full(upper, -1, np.int32)
    known = 0
    for start in range(0, ids.size, _STEP):
        chunk = ids[start : start + _STEP]
        new = chunk[table[chunk] < 0]
        if new.size:
            order = np.arange(new.size, dtype=np.int32)
            # Of repeated indices the last assignment stays, so going backwards leaves the first occurrence.
            table[new[::-1]] = order[::-1]
            first = new[table[new] == order]
            table[first] = np.arange(known, known + first.size, dtype=np.int32)
            known += first.size
        result[start : start + _STEP] = table[chunk]
    return result, known


def ragged(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the accesses of some requests, in the order of those requests.

    Parameters
    ----------
    offsets : ndarray of int64, shape (n_requests + 1,)
    rows : ndarray of integers, shape (n,)
        Requests to gather.

    Returns
    -------
    positions : ndarray of int64
        Indices into the access column.
    offsets : ndarray of int64, shape (n + 1,)
        Offsets of the gathered requests.

    Examples
    --------
    >>> ragged(np.array([0, 2, 3, 6]), np.array([2, 0]))
    (array([3, 4, 5, 0, 1]), array([0, 3, 5]))
    """
    counts = offsets[rows + 1] - offsets[rows]
    gathered = np.zeros(rows.size + 1, np.int64)
    np.cumsum(counts, out=gathered[1:])
    positions = np.repeat(offsets[rows] - gathered[:-1], counts)
    positions += np.arange(positions.size)
    return positions, gathered
