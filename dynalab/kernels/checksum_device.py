"""The block checksum on NVIDIA GPUs: the same numbers as :mod:`dynalab.kernels.checksum`, at the speed of its memory.

A thread block takes a block of KV, or one of several shares of it where there are too few to fill the GPU; its warps
stride over the *parts* of the block's regions, and every thread sums the mixed words that it loads, four times 16 bytes
at once. Since a sum has no order, the threads' sums are added in any; with several shares a second, tiny launch adds
those and mixes.

Regions whose address or length is no multiple of 8 are read byte by byte, a word per thread: right, and slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.kernels.checksum import STEP, check_table, mix
from dynalab.kernels.copy_tables import TableRing, default_ring
from dynalab.kernels.device_arrays import DeviceArray, memory_for, ordered_on
from dynalab.kernels.gpu import cuda_module, require_gpu, simulated, stream_handle
from dynalab.kernels.launch import WARP, Kernel
from dynalab.kernels.words import load1, load8, load16, load_entry, store8

cuda = cuda_module()

_THREADS: Final = 256
#: Bytes that a warp reads in one round of four 16-byte words a thread.
_ROUND: Final = 4 * 16 * WARP
#: Thread blocks that fill a large GPU: 132 multiprocessors, 8 blocks of 256 threads each.
_FILL: Final = 1056

# The constants of dynalab.kernels.checksum as signed numbers: mixed with unsigned ones, Numba computes with floats.
_STEP: Final = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER: Final = 0xD6E8FEB86659FD93 - 2**64
_LOW: Final = 2**32 - 1

if simulated():

    def _wrap(x: int) -> int:
        """Keep 64 bits of Python's unbounded number, as a signed one."""
        return (x + 2**63) % 2**64 - 2**63

else:

    @cuda.jit(device=True, inline="always")
    def _wrap(x):
        return x


@cuda.jit(device=True, inline="always")
def _mix(x):
    """`dynalab.kernels.checksum.mix` on a signed number, whose shifts would drag the sign along."""
    x ^= (x >> 32) & _LOW
    x = _wrap(x * _MULTIPLIER)
    x ^= (x >> 32) & _LOW
    x = _wrap(x * _MULTIPLIER)
    return x ^ ((x >> 32) & _LOW)


@cuda.jit(device=True, inline="always")
def _mix_pair(pair, key):
    return _mix(pair[0] ^ key) + _mix(pair[1] ^ _wrap(key + _STEP))


@cuda.jit(device=True, inline="always")
def _sum16(address, key, at, last):
    """Sum the pairs of words of one thread, from the byte `at` on; `key` is that of the region's first word."""
    row = 16 * WARP
    total = 0
    key = _wrap(key + (at >> 3) * _STEP)
    step = _wrap(row // 8 * _STEP)
    while at + 3 * row < last:
        a = load16(address + at)
        b = load16(address + at + row)
        c = load16(address + at + 2 * row)
        d = load16(address + at + 3 * row)
        total += _mix_pair(a, key) + _mix_pair(b, _wrap(key + step))
        total += _mix_pair(c, _wrap(key + 2 * step)) + _mix_pair(d, _wrap(key + 3 * step))
        key = _wrap(key + 4 * step)
        at += 4 * row
    while at < last:
        total += _mix_pair(load16(address + at), key)
        key = _wrap(key + step)
        at += row
    return total


@cuda.jit(device=True, inline="always")
def _byte_word(entries, nbytes, total_bytes, word):
    """Put a word together from the bytes of the regions joined end to end."""
    value = 0
    for place in range(8 * word, min(8 * word + 8, total_bytes)):
        byte = load1(load_entry(entries + 8 * (place // nbytes)) + place % nbytes)
        value |= byte << (8 * (place & 7))
    return _wrap(value)


def checksum_kernel(table, regions, nbytes, key, shares, log_parts, part_bytes, sums):
    """Sum the mixed words of every share of every block; all arguments are int64.

    Parameters
    ----------
    table
        Address of the regions' addresses, `regions` for each block.
    shares
        Thread blocks per KV block; each leaves its sum in ``sums``.
    log_parts, part_bytes
        Every region is cut into ``2**log_parts`` parts of `part_bytes` bytes, of which the last ones may be empty.
    """
    partial = cuda.shared.array(_THREADS, np.int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    share = cuda.blockIdx.x % shares
    entries = table + 8 * regions * (cuda.blockIdx.x // shares)
    total = 0
    # One odd region makes the whole block go the slow way; its threads must agree, for they share the words out.
    odd = nbytes & 7 if regions > 1 else 0
    for region in range(thread, regions, threads):
        odd |= load_entry(entries + 8 * region) & 7
    if cuda.syncthreads_or(odd) == 0:
        warps = threads // WARP
        body = nbytes & -8
        item = share * warps + thread // WARP
        while item < regions << log_parts:
            region = item >> log_parts
            address = load_entry(entries + 8 * region)
            region_key = _wrap(key + region * (nbytes >> 3) * _STEP)
            first = (item & ((1 << log_parts) - 1)) * part_bytes
            last = min(first + part_bytes, body)
            lane = thread % WARP
            if address & 15 == 0:
                wide = last & -16
                total += _sum16(address, region_key, first + 16 * lane, wide)
                first = max(first, wide)
            at = first + 8 * lane
            while at < last:
                total += _mix(load8(address + at) ^ _wrap(region_key + (at >> 3) * _STEP))
                at += 8 * WARP
            item += shares * warps
        if nbytes & 7 and share == 0 and thread == 0:
            total += _mix(_byte_word(entries, nbytes, nbytes, nbytes >> 3) ^ _wrap(key + (nbytes >> 3) * _STEP))
    else:
        total_bytes = regions * nbytes
        for word in range(share * threads + thread, (total_bytes + 7) >> 3, shares * threads):
            total += _mix(_byte_word(entries, nbytes, total_bytes, word) ^ _wrap(key + word * _STEP))
    partial[thread] = _wrap(total)
    cuda.syncthreads()
    half = threads >> 1
    while half > 0:
        if thread < half:
            partial[thread] = _wrap(int(partial[thread]) + int(partial[thread + half]))
        cuda.syncthreads()
        half >>= 1
    if thread == 0:
        total = int(partial[0])
        if shares == 1:
            total = _mix(_wrap(total + key + regions * nbytes * _STEP))
        store8(sums + 8 * cuda.blockIdx.x, total)


def finish_kernel(sums, shares, key, total_bytes, n, out):
    """Add the shares of every block, and mix."""
    for block in range(cuda.grid(1), n, cuda.gridsize(1)):
        total = _wrap(key + total_bytes * _STEP)
        for share in range(shares):
            total = _wrap(total + load8(sums + 8 * (block * shares + share)))
        store8(out + 8 * block, _mix(total))


CHECKSUM: Final = Kernel(checksum_kernel, f"void({', '.join(['int64'] * 8)})")
FINISH: Final = Kernel(finish_kernel, f"void({', '.join(['int64'] * 6)})")


@dataclass(frozen=True)
class ChecksumPlan:
    """How a checksum is cut: thread blocks per KV block, and the parts of its regions."""

    shares: int
    log_parts: int
    part_bytes: int


def plan_checksum(n: int, nbytes: int, regions: int) -> ChecksumPlan:
    """Cut the regions into parts of at most eight rounds, and as many shares of a block as it takes to fill a GPU.

    Examples
    --------
    >>> plan_checksum(1000, 128 << 10, 1)  # many blocks: a thread block each, whose 8 warps take 16 KiB each
    ChecksumPlan(shares=1, log_parts=3, part_bytes=16384)
    >>> plan_checksum(4, 2 << 20, 1)  # few blocks: 16 thread blocks each
    ChecksumPlan(shares=16, log_parts=7, part_bytes=16384)
    """
    rounds = max(1, -(-nbytes // _ROUND))
    part = min(8, 1 << (rounds - 1).bit_length())
    log_parts = (-(-rounds // part) - 1).bit_length()
    busy = max(1, (regions << log_parts) * WARP // _THREADS)
    return ChecksumPlan(max(1, min(busy, -(-_FILL // max(n, 1)))), log_parts, part * _ROUND)


def checksum_blocks_device(
    addresses: npt.ArrayLike, nbytes: int, *, seed: int = 0, stream: Any = None, out: Any = None
) -> Any:
    """Return the checksum of every block of device memory; see `checksum_regions_device`."""
    return checksum_regions_device(addresses, nbytes, 1, seed=seed, stream=stream, out=out)


def checksum_regions_device(
    addresses: npt.ArrayLike,
    nbytes: int,
    regions: int,
    *,
    seed: int = 0,
    stream: Any = None,
    out: Any = None,
    plan: ChecksumPlan | None = None,
    tables: TableRing | None = None,
) -> Any:
    """Return the checksum of every block whose regions lie scattered in device memory.

    Nothing waits for the device: the result is there once the work on the stream is done up to here.

    Parameters
    ----------
    addresses : integer array [n * regions]
        In host memory: where the regions begin on the device (or in pinned host memory), block by block.
    nbytes, regions, seed
        As for `dynalab.kernels.checksum.checksum_regions`, which gives the same numbers.
    stream : int, object or None
        See `dynalab.kernels.gpu.stream_handle`.
    out : device array uint64 [n], optional
        Where the result goes; by default a new CuPy array.
    plan : ChecksumPlan, optional
        By default that of `plan_checksum`. Any plan gives the same result.
    tables : TableRing, optional
        Staging and device memory for the table; by default one that all calls for the current device share.

    Returns
    -------
    device array uint64 [n]

    Raises
    ------
    ConfigError
        As `checksum_regions`, and where there is no GPU.
    """
    table = check_table(addresses, nbytes, regions, seed)
    if not simulated():
        require_gpu("checksum_regions_device")
    n, handle = table.size // regions, stream_handle(stream)
    plan = plan or plan_checksum(n, nbytes, regions)
    key = int(mix(np.array([seed], np.uint64) ^ STEP).view(np.int64)[0])
    with ordered_on(handle):
        out = memory_for("out", out, "uint64", n)
        if n == 0:
            return out
        result = DeviceArray("out", out).address
        if nbytes == 0:
            FINISH.launch(-(-n // _THREADS), _THREADS, handle, 0, 0, key, 0, n, result)
            return out
        sums = result if plan.shares == 1 else memory_for("sums", None, "uint64", n * plan.shares)
        where = result if plan.shares == 1 else DeviceArray("sums", sums).address
        cut = (plan.shares, plan.log_parts, plan.part_bytes)
        # The ring is made for pairs; the same table twice costs less than a ring of its own.
        with (tables or default_ring()).upload(table, table, nbytes, handle) as pairs:
            CHECKSUM.launch(n * plan.shares, _THREADS, handle, pairs.sources, regions, nbytes, key, *cut, where)
        if plan.shares > 1:
            FINISH.launch(-(-n // _THREADS), _THREADS, handle, where, plan.shares, key, regions * nbytes, n, result)
    return out
