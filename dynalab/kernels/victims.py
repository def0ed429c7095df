"""Choose the blocks to evict: the k best victims of N, in order, without sorting the N.

The order of victims is that of Dynamo's block manager, made whole where that leaves it open:

1. lowest priority first;
2. then the oldest last use;
3. then the deepest position in its sequence, so that of blocks that were used at the same moment children go before
   their parents, and what stays is a usable prefix;
4. then the lowest block number.

Pinned blocks (somebody holds them) are never chosen.

This is the CPU's side of :mod:`dynalab.kernels.victims_device` and gives the same answer bit for bit: a radix select.
The fields' ranges turn (priority, last use, position) into one number with no bit wasted; its leading 11 bits are
counted; what lies below the digit in which the k-th victim falls is chosen, and what lies in it, a two-thousandth
unless the data are lumped, goes through the same again. In the end the k chosen ones are sorted.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from dynalab.errors import ConfigError

#: Bits of a digit: 2,048 counters of 8 bytes stay in the first-level cache.
_DIGIT: Final = 11
_MASK: Final = np.uint64(2**_DIGIT - 1)
_ONES: Final = np.uint64(2**64 - 1)


@njit(nogil=True, cache=True)
def _bit_length(value: Any) -> Any:
    bits = 0
    while value:
        value >>= np.uint64(1)
        bits += 1
    return bits


@njit(nogil=True, cache=True)
def _ranges(priority: Any, last_use: Any, position: Any, pinned: Any, flips: Any) -> Any:
    """Return least and greatest of each field over the blocks that are not pinned, and how many these are."""
    low_p, low_u, low_q = _ONES, _ONES, _ONES
    top_p, top_u, top_q, free = np.uint64(0), np.uint64(0), np.uint64(0), 0
    for i in range(priority.size):
        # Without branches, so that it becomes vector code: a pinned block is all ones to `min` and zero to `max`.
        held = _ONES if pinned[i] != 0 else np.uint64(0)
        p = np.uint64(priority[i]) ^ flips[0]
        u = np.uint64(last_use[i]) ^ flips[1]
        q = np.uint64(position[i]) ^ flips[2]
        low_p, top_p = min(low_p, p | held), max(top_p, p & ~held)
        low_u, top_u = min(low_u, u | held), max(top_u, u & ~held)
        low_q, top_q = min(low_q, q | held), max(top_q, q & ~held)
        free += pinned[i] == 0
    return low_p, top_p, low_u, top_u, low_q, top_q, free


@njit(nogil=True, cache=True)
def _packing(ranges: Any) -> Any:
    """Return how to put the fields side by side, 64 bits into a head, the rest into a tail; and a head's bits."""
    low_p, top_p, low_u, top_u, low_q, top_q, _ = ranges
    bits_p, bits_u, bits_q = _bit_length(top_p - low_p), _bit_length(top_u - low_u), _bit_length(top_q - low_q)
    drop = max(0, bits_p + bits_u + bits_q - 64)
    # No shift may reach 64, which processors take for 0; a field that would go so far has no bits.
    up_p, up_u, down_u = min(63, bits_u + bits_q - drop), max(0, bits_q - drop), max(0, drop - bits_q)
    shifts = (np.uint64(up_p), np.uint64(up_u), np.uint64(down_u), np.uint64(min(63, drop)), np.uint64(bits_q))
    return (low_p, low_u, low_q), shifts, bits_p + bits_u + bits_q - drop


@njit(nogil=True, cache=True)
def _key(priority: Any, last_use: Any, position: Any, flips: Any, lows: Any, shifts: Any) -> Any:
    """Return a block's sort key as two words; the second counts where the first ones are equal, priorities then too."""
    p = (np.uint64(priority) ^ flips[0]) - lows[0]
    u = (np.uint64(last_use) ^ flips[1]) - lows[1]
    q = (np.uint64(position) ^ flips[2]) - lows[2]
    return p << shifts[0] | u << shifts[1] >> shifts[2] | q >> shifts[3], u << shifts[4] | q


@njit(nogil=True, cache=True)
def _digit_of(counts: Any, need: Any) -> Any:
    """Return the digit in which the `need`-th key falls, and whether all keys of that digit are needed."""
    digit, reached = 0, counts[0]
    while reached < need:
        digit += 1
        reached += counts[digit]
    return digit, reached == need


@njit(nogil=True, cache=True)
def _first_digit(columns: Any, pinned: Any, flips: Any, lows: Any, shifts: Any, down: Any, chosen: Any) -> Any:
    """Choose by the heads' leading digit; return how many are chosen, and keys and blocks of those still in question.

    The keys are made twice and not stored: to write a million of them takes longer than to make them.
    """
    priority, last_use, position = columns
    counts = np.zeros(1 << _DIGIT, np.int64)
    for i in range(priority.size):
        head, _ = _key(priority[i], last_use[i], position[i], flips, lows, shifts)
        # No branch, for nobody can predict who is pinned; a pinned block's head may be out of range, and adds 0.
        counts[head >> down & _MASK] += pinned[i] == 0
    digit, whole = _digit_of(counts, chosen.size)
    left = 0 if whole else counts[digit]
    keys, blocks = np.empty(left, np.uint64), np.empty(left, np.int32)
    n_chosen = kept = 0
    for i in range(priority.size):
        head, _ = _key(priority[i], last_use[i], position[i], flips, lows, shifts)
        its = np.int64(head >> down)
        if its <= digit and pinned[i] == 0:
            if whole or its < digit:
                chosen[n_chosen] = i
                n_chosen += 1
            else:
                keys[kept], blocks[kept] = head, i
                kept += 1
    return n_chosen, keys, blocks


@njit(nogil=True, cache=True)
def _narrow(keys: Any, blocks: Any, chosen: Any, n_chosen: Any) -> Any:
    """Choose more of the smallest keys until all are chosen, or all that are left are equal and more than needed.

    `keys` and `blocks` are used up: their first entries are those that are left. The order among equal keys is kept.
    Returns how many are left and how many are chosen.
    """
    left = keys.size
    counts = np.empty(1 << _DIGIT, np.int64)
    while n_chosen < chosen.size:
        low, top = keys[0], keys[0]
        for i in range(left):
            low, top = min(low, keys[i]), max(top, keys[i])
        if low == top and left > chosen.size - n_chosen:
            break
        down = np.uint64(max(0, _bit_length(top - low) - _DIGIT))
        counts[:] = 0
        for i in range(left):
            counts[(keys[i] - low) >> down] += 1
        digit, whole = _digit_of(counts, chosen.size - n_chosen)
        kept = 0
        for i in range(left):
            its = np.int64((keys[i] - low) >> down)
            if its < digit or (whole and its == digit):
                chosen[n_chosen] = blocks[i]
                n_chosen += 1
            elif its == digit:
                keys[kept], blocks[kept] = keys[i], blocks[i]
                kept += 1
        left = kept
    return left, n_chosen


@njit(nogil=True, cache=True)
def _select(priority: Any, last_use: Any, position: Any, pinned: Any, k: Any, flips: Any) -> Any:
    """Return the k best victims in no order, with their keys by which to sort them."""
    ranges = _ranges(priority, last_use, position, pinned, flips)
    lows, shifts, bits = _packing(ranges)
    chosen = np.empty(min(k, ranges[6]), np.int32)
    if chosen.size:
        down = np.uint64(max(0, bits - _DIGIT))
        n_chosen, keys, blocks = _first_digit((priority, last_use, position), pinned, flips, lows, shifts, down, chosen)
        left, n_chosen = _narrow(keys, blocks, chosen, n_chosen)
        if n_chosen < chosen.size:
            for j in range(left):
                i = blocks[j]
                _, keys[j] = _key(priority[i], last_use[i], position[i], flips, lows, shifts)
            left, n_chosen = _narrow(keys[:left], blocks[:left], chosen, n_chosen)
            chosen[n_chosen:] = blocks[: chosen.size - n_chosen]  # equal in everything: by number
    heads, tails = np.empty(chosen.size, np.uint64), np.empty(chosen.size, np.uint64)
    for j in range(chosen.size):
        i = chosen[j]
        heads[j], tails[j] = _key(priority[i], last_use[i], position[i], flips, lows, shifts)
    return chosen, heads, tails


#: Field, bits, and what makes "ascending as unsigned numbers" the order of eviction, for unsigned and signed columns.
_FIELDS: Final = {
    "priority": (32, {"u": 0, "i": 2**31}),
    "last_use": (64, {"u": 0, "i": 2**63}),
    "position": (32, {"u": 2**32 - 1, "i": 2**31 - 1}),  # descending
}


def check_columns(**columns: tuple[np.dtype[Any], tuple[int, ...]]) -> tuple[int, tuple[int, int, int]]:
    """Return the number of blocks and the three flips, or say which column has a type or shape that does not fit."""
    shape = columns["priority"][1]
    flips = []
    for field, (dtype, its_shape) in columns.items():
        if len(its_shape) != 1 or its_shape != shape:
            raise ConfigError(
                f"{field}: shape {list(its_shape)} does not fit {list(shape)} priorities; pass one value per block"
            )
        if field == "pinned":
            if dtype.kind not in "biu" or dtype.itemsize not in (1, 4):
                raise ConfigError(f"pinned: dtype {dtype} cannot be; pass bool, uint8 or int32")
            continue
        bits, by_kind = _FIELDS[field]
        if dtype.kind not in by_kind or dtype.itemsize * 8 != bits:
            raise ConfigError(f"{field}: dtype {dtype} cannot be; pass int{bits} or uint{bits}")
        flips.append(by_kind[dtype.kind])
    if shape[0] >= 2**31 - 1:
        raise ConfigError(f"priority: {shape[0]} blocks are more than int32 can number; split them")
    return shape[0], (flips[0], flips[1], flips[2])


def select_victims(
    priority: npt.ArrayLike, last_use: npt.ArrayLike, position: npt.ArrayLike, pinned: npt.ArrayLike, k: int
) -> npt.NDArray[np.int32]:
    """Return the k best victims, best first.

    The interpreter's lock is released for all but the last sort of k keys.

    Parameters
    ----------
    priority : int32 or uint32 array [n]
        Lowest goes first.
    last_use : int64 or uint64 array [n]
        When a block was last used, on any clock; the oldest goes first.
    position : int32 or uint32 array [n]
        Place of a block in its sequence, 0 for the first; the deepest goes first.
    pinned : bool, uint8 or int32 array [n]
        How many hold a block; one that is not zero is never chosen.
    k : int
        Victims wanted.

    Returns
    -------
    int32 array [min(k, blocks that are not pinned)]
        Block numbers by (priority, last_use, -position, number) ascending.

    Raises
    ------
    ConfigError
        If `k` is negative, or a column has another dtype or length.

    Examples
    --------
    >>> def i32(*values): return np.array(values, np.int32)
    >>> select_victims(i32(1, 0, 0, 0), np.array([1, 9, 9, 9]), i32(0, 0, 1, 2), i32(0, 0, 0, 1), 3)
    array([2, 1, 0], dtype=int32)
    """
    if k < 0:
        raise ConfigError(f"k: {k} victims cannot be; pass 0 or more")
    given = {"priority": priority, "last_use": last_use, "position": position, "pinned": pinned}
    columns = {field: np.asarray(column) for field, column in given.items()}
    n, flips = check_columns(**{field: (column.dtype, column.shape) for field, column in columns.items()})
    if k == 0 or n == 0:
        return np.empty(0, np.int32)
    # One compiled version for either sign.
    unsigned = [np.ascontiguousarray(column).view(f"u{column.dtype.itemsize}") for column in columns.values()]
    chosen, heads, tails = _select(*unsigned, min(k, n), tuple(map(np.uint64, flips)))
    return chosen[np.lexsort((tails, heads))]
