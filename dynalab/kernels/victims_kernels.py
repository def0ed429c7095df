"""The four kernels of victim selection on a GPU; :mod:`dynalab.kernels.victims_device` says how they work together.

Every argument is an int64. ``priority``, ``last_use``, ``position`` and ``pinned`` are the columns' addresses, `wide`
tells whether pins have 4 bytes instead of 1, and the flips turn each field's order into that of eviction. `state` is
the address of counters that one kernel leaves to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from dynalab.kernels.atomics import atomic_add
from dynalab.kernels.gpu import cuda_module
from dynalab.kernels.launch import Kernel
from dynalab.kernels.words import load1, load4, load8, load_entry, store4, store8

cuda = cuda_module()
#: Most keys in the sample; with its keys the largest array that fits a thread block's 48 KiB of shared memory twice.
SAMPLE: Final = 1024
#: One more than bounds: for what lies beyond the last.
BINS: Final = SAMPLE + 1
#: Blocks that a thread looks at in one round: their loads are on the way together.
ITEMS: Final = 4

# The state, in words of 8 bytes: how many are listed, and in the bins that matter; then arrays by bin, and the bounds.
_LISTED, _RANKED = 0, 1
_COUNTS: Final = 8
_FILLED: Final = _COUNTS + BINS
_STARTS: Final = _FILLED + BINS
_BOUNDS: Final = _STARTS + BINS
#: Bytes of the state.
STATE_BYTES: Final = 8 * (_BOUNDS + 3 * SAMPLE)

_HALF: Final = 2**32
_LOW: Final = 2**32 - 1
_SIGN: Final = 2**31
_LAST: Final = 2**63 - 1


@cuda.jit(device=True, inline="always")
def _pack(p, u, q, flip_p, flip_u, flip_q):
    """Two signed words that order like the fields: what is unsigned or descending is shifted and flipped for that."""
    return ((p ^ flip_p) - _SIGN) * _HALF + (((u >> 32) & _LOW) ^ flip_u), ((u & _LOW) - _SIGN) * _HALF + (q ^ flip_q)


@cuda.jit(device=True, inline="always")
def _key(priority, last_use, position, flip_p, flip_u, flip_q, i):
    return _pack(load4(priority + 4 * i), load8(last_use + 8 * i), load4(position + 4 * i), flip_p, flip_u, flip_q)


@cuda.jit(device=True, inline="always")
def _held(pinned, wide, i):
    return load4(pinned + 4 * i) != 0 if wide else load1(pinned + i) != 0


@cuda.jit(device=True, inline="always")
def _after(high, low, number, other_high, other_low, other_number):
    if high != other_high:
        return high > other_high
    if low != other_low:
        return low > other_low
    return number > other_number


@cuda.jit(device=True, inline="always")
def _put(binned, n, place, high, low, number, its):
    """Store a block in its bin: key, number and bin are in arrays of n entries each."""
    store8(binned + 8 * place, high)
    store8(binned + 8 * (n + place), low)
    store4(binned + 16 * n + 4 * place, number)
    store4(binned + 20 * n + 4 * place, its)


def sample_kernel(priority, last_use, position, pinned, wide, flip_p, flip_u, flip_q, n, samples, state):
    """Sort a sample of `samples` keys, a power of two, and clear the counts; one thread block."""
    high = cuda.shared.array(SAMPLE, np.int64)
    low = cuda.shared.array(SAMPLE, np.int64)
    number = cuda.shared.array(SAMPLE, np.int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for word in range(thread, _STARTS, threads):
        store8(state + 8 * word, 0)
    for i in range(thread, samples, threads):
        first = i * n // samples
        # Not at equal distances, which might be those of something in the data.
        at = first + ((i * 2654435761) & _LOW) % ((i + 1) * n // samples - first)
        high[i], low[i] = _key(priority, last_use, position, flip_p, flip_u, flip_q, at)
        number[i] = at
        if _held(pinned, wide, at):
            high[i] = _LAST
    cuda.syncthreads()
    size = 2
    while size <= samples:  # bitonic
        stride = size >> 1
        while stride > 0:
            for pair in range(thread, samples >> 1, threads):
                a = 2 * pair - (pair & (stride - 1))
                b = a + stride
                if _after(high[a], low[a], number[a], high[b], low[b], number[b]) == ((a & size) == 0):
                    high[a], high[b] = high[b], high[a]
                    low[a], low[b] = low[b], low[a]
                    number[a], number[b] = number[b], number[a]
            cuda.syncthreads()
            stride >>= 1
        size <<= 1
    for i in range(thread, samples, threads):
        store8(state + 8 * (_BOUNDS + i), int(high[i]))
        store8(state + 8 * (_BOUNDS + SAMPLE + i), int(low[i]))
        store8(state + 8 * (_BOUNDS + 2 * SAMPLE + i), int(number[i]))


def filter_kernel(
    priority, last_use, position, pinned, wide, flip_p, flip_u, flip_q, n, bounds, keep_all, state, listed
):
    """List the blocks up to the last of `bounds` bounds, or all of them, with their bins, and count them by bin."""
    high = cuda.shared.array(SAMPLE, np.int64)
    low = cuda.shared.array(SAMPLE, np.int64)
    number = cuda.shared.array(SAMPLE, np.int64)
    counts = cuda.shared.array(BINS, np.int32)
    places = cuda.shared.array(2, np.int64)  # of this round: how many are listed, and where the first goes
    raw = cuda.local.array((ITEMS, 4), np.int64)
    bins = cuda.local.array(ITEMS, np.int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for i in range(thread, bounds, threads):
        high[i] = load8(state + 8 * (_BOUNDS + i))
        low[i] = load8(state + 8 * (_BOUNDS + SAMPLE + i))
        number[i] = load8(state + 8 * (_BOUNDS + 2 * SAMPLE + i))
    for i in range(thread, bounds + 1, threads):
        counts[i] = 0
    first = cuda.blockIdx.x * threads * ITEMS
    while first < n:
        if thread == 0:
            places[0] = 0
        cuda.syncthreads()
        # All loads before any value is looked at, for that would wait for it.
        for item in range(ITEMS):
            i = min(first + item * threads + thread, n - 1)
            raw[item, 0], raw[item, 1] = load4(priority + 4 * i), load8(last_use + 8 * i)
            raw[item, 2] = load4(position + 4 * i)
        for item in range(ITEMS):
            i = min(first + item * threads + thread, n - 1)
            raw[item, 3] = load4(pinned + 4 * i) if wide else load1(pinned + i)
        mine, last = 0, bounds - 1
        for item in range(ITEMS):
            i = first + item * threads + thread
            key = _pack(int(raw[item, 0]), int(raw[item, 1]), int(raw[item, 2]), flip_p, flip_u, flip_q)
            bins[item] = -1
            beyond = _after(key[0], key[1], i, high[last], low[last], number[last])
            if i < n and raw[item, 3] == 0 and (keep_all or not beyond):
                below, above = 0, bounds
                while below < above:
                    middle = (below + above) >> 1
                    if _after(key[0], key[1], i, high[middle], low[middle], number[middle]):
                        below = middle + 1
                    else:
                        above = middle
                bins[item] = below
                cuda.atomic.add(counts, below, 1)
                mine += 1
        place = int(cuda.atomic.add(places, 0, mine)) if mine else 0
        cuda.syncthreads()
        if thread == 0 and places[0]:
            places[1] = atomic_add(state + 8 * _LISTED, places[0])
        cuda.syncthreads()
        place += int(places[1])
        for item in range(ITEMS):
            if bins[item] >= 0:
                store4(listed + 8 * place, first + item * threads + thread)
                store4(listed + 8 * place + 4, int(bins[item]))
                place += 1
        first += cuda.gridDim.x * threads * ITEMS
    for i in range(thread, bounds + 1, threads):
        if counts[i]:
            atomic_add(state + 8 * (_COUNTS + i), counts[i])


def scatter_kernel(
    priority, last_use, position, pinned, wide, flip_p, flip_u, flip_q, n, bounds, keep_all, state, listed, binned, k
):
    """Put what is listed into its bins, up to the one that reaches k; if none does, what was dropped into one more."""
    sums = cuda.shared.array((2, BINS), np.int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for i in range(thread, bounds + 1, threads):
        sums[0, i] = load_entry(state + 8 * (_COUNTS + i))
    cuda.syncthreads()
    side, reach = 0, 1
    while reach <= bounds:  # running sums, doubling the reach
        for i in range(thread, bounds + 1, threads):
            sums[1 - side, i] = sums[side, i] + (sums[side, i - reach] if i >= reach else 0)
        cuda.syncthreads()
        side, reach = 1 - side, reach * 2
    total = int(sums[side, bounds])
    if cuda.blockIdx.x == 0:
        for i in range(thread, bounds + 1, threads):
            start = int(sums[side, i - 1]) if i else 0
            end = int(sums[side, i])
            store8(state + 8 * (_STARTS + i), start)
            if start < k and (end >= k or i == bounds):  # true of one bin
                store8(state + 8 * _RANKED, end)
    stride = cuda.gridsize(1)
    for entry in range(cuda.grid(1), load_entry(state + 8 * _LISTED), stride):
        i, its = load4(listed + 8 * entry), load4(listed + 8 * entry + 4)
        start = int(sums[side, its - 1]) if its else 0
        if start < k:
            high, low = _key(priority, last_use, position, flip_p, flip_u, flip_q, i)
            _put(binned, n, start + atomic_add(state + 8 * (_FILLED + its), 1), high, low, i, its)
    if keep_all == 0 and total < k:
        last = bounds - 1
        bound_high = load8(state + 8 * (_BOUNDS + last))
        bound_low = load8(state + 8 * (_BOUNDS + SAMPLE + last))
        bound_number = load8(state + 8 * (_BOUNDS + 2 * SAMPLE + last))
        for i in range(cuda.grid(1), n, stride):
            high, low = _key(priority, last_use, position, flip_p, flip_u, flip_q, i)
            if not _held(pinned, wide, i) and _after(high, low, i, bound_high, bound_low, bound_number):
                _put(binned, n, total + atomic_add(state + 8 * (_FILLED + bounds), 1), high, low, i, bounds)


def rank_kernel(n, bounds, keep_all, state, binned, k, lanes, out):
    """Write every block in the bins to its place, if that is below k; what is left of the k places becomes -1."""
    smaller = cuda.shared.array(1024, np.int32)
    thread = cuda.threadIdx.x
    group, lane = thread // lanes, thread % lanes  # a group counts for one block
    groups = cuda.blockDim.x // lanes
    entries = load_entry(state + 8 * _RANKED)
    if keep_all == 0:
        entries += load_entry(state + 8 * (_FILLED + bounds))
    first = cuda.blockIdx.x * groups
    while first < entries:
        entry = first + group
        if lane == 0:
            smaller[group] = 0
        cuda.syncthreads()
        start, number = 0, 0
        if entry < entries:
            high, low = load_entry(binned + 8 * entry), load_entry(binned + 8 * (n + entry))
            number, its = load4(binned + 16 * n + 4 * entry), load4(binned + 20 * n + 4 * entry)
            start = load_entry(state + 8 * (_STARTS + its))
            mine = 0
            for other in range(start + lane, start + load_entry(state + 8 * (_FILLED + its)), lanes):
                other_high = load_entry(binned + 8 * other)
                if other_high < high:
                    mine += 1
                elif other_high == high:
                    other_low = load_entry(binned + 8 * (n + other))
                    other_number = load4(binned + 16 * n + 4 * other)
                    mine += 1 if _after(high, low, number, other_high, other_low, other_number) else 0
            if mine:
                cuda.atomic.add(smaller, group, mine)
        cuda.syncthreads()
        place = start + int(smaller[group])
        if entry < entries and lane == 0 and place < k:
            store4(out + 4 * place, number)
        cuda.syncthreads()
        first += cuda.gridDim.x * groups
    for place in range(entries + cuda.grid(1), k, cuda.gridsize(1)):
        store4(out + 4 * place, -1)


def _kernel(function: Callable[..., None]) -> Kernel:
    return Kernel(function, f"void({', '.join(['int64'] * function.__code__.co_argcount)})")


SAMPLE_KERNEL: Final = _kernel(sample_kernel)
FILTER_KERNEL: Final = _kernel(filter_kernel)
SCATTER_KERNEL: Final = _kernel(scatter_kernel)
RANK_KERNEL: Final = _kernel(rank_kernel)
