"""The copy kernel for NVIDIA GPUs: many pieces of memory by a table of addresses, in one launch.

A warp takes a *part* of a pair at a time and strides over all parts of all pairs, so that few thread blocks keep a link
busy with many small pairs, and one large pair keeps the whole GPU busy. Addresses may be of device memory or of pinned
host memory on either side.

The width of the accesses is chosen for every pair: 16 bytes if source and target are equally far from a multiple of 16
(the bytes before it go singly), else 8, 4, or 1. A thread loads four words before it stores any, for a load from the
other side of a link takes a microsecond or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import ArrayLike

from dynalab.errors import ConfigError
from dynalab.kernels.copy_tables import PairTable, TableRing, default_ring
from dynalab.kernels.gpu import cuda_module, stream_handle
from dynalab.kernels.launch import WARP, Kernel
from dynalab.kernels.words import load1, load4, load8, load16, load_entry, store1, store4, store8, store16

cuda = cuda_module()

#: Thread blocks that keep a PCIe 5 link busy, and few enough to leave a GPU to its work.
LINK_BLOCKS: Final = 12
#: Bytes that a warp moves in one round of four 16-byte words a thread; parts are multiples of it.
ROUND: Final = 4 * 16 * WARP
#: Longest part: it outweighs the reading of the table, and the last warps to finish do not keep others waiting long.
_LONGEST_PART: Final = 8 * ROUND
_THREADS: Final = 1024
_MOST_BLOCKS: Final = 2**31 - 1


def _words(load: Any, store: Any, width: int, nothing: Any) -> Any:
    """Make the copy of one thread in words of one width; it is compiled into the kernel, once per width."""
    row = width * WARP

    @cuda.jit(device=True, inline="always")
    def copy_words(src, dst, at, last):
        while at + 3 * row < last:
            a = load(src + at)
            b = load(src + at + row)
            c = load(src + at + 2 * row)
            d = load(src + at + 3 * row)
            store(dst + at, a)
            store(dst + at + row, b)
            store(dst + at + 2 * row, c)
            store(dst + at + 3 * row, d)
            at += 4 * row
        # Up to three words are left; a loop would wait for each before it asks for the next.
        a = b = c = nothing
        if at < last:
            a = load(src + at)
        if at + row < last:
            b = load(src + at + row)
        if at + 2 * row < last:
            c = load(src + at + 2 * row)
        if at < last:
            store(dst + at, a)
        if at + row < last:
            store(dst + at + row, b)
        if at + 2 * row < last:
            store(dst + at + 2 * row, c)

    return copy_words


_copy16 = _words(load16, store16, 16, (0, 0))
_copy8 = _words(load8, store8, 8, 0)
_copy4 = _words(load4, store4, 4, 0)
_copy1 = _words(load1, store1, 1, 0)


def copy_kernel(sources, targets, sizes, nbytes, pairs, log_parts, part_bytes):
    """Copy all pairs; every argument is an int64.

    Parameters
    ----------
    sources, targets, sizes
        Addresses of the tables, each with an int64 per pair; `sizes` may be 0: all pairs have `nbytes` bytes.
    log_parts, part_bytes
        Every pair is cut into ``2**log_parts`` parts of `part_bytes` bytes, of which the last ones may be empty.
    """
    thread = cuda.grid(1)
    lane = thread & 31
    item = thread >> 5
    stride = cuda.gridsize(1) >> 5
    while item < pairs << log_parts:
        pair = item >> log_parts
        part = item & ((1 << log_parts) - 1)
        src = load_entry(sources + 8 * pair)
        dst = load_entry(targets + 8 * pair)
        size = nbytes if sizes == 0 else load_entry(sizes + 8 * pair)
        apart = src - dst
        width = 16 if apart & 15 == 0 else 8 if apart & 7 == 0 else 4 if apart & 3 == 0 else 1
        head = min(-dst & (width - 1), size)
        body = (size - head) & -width
        first = part * part_bytes
        last = min(first + part_bytes, body)
        first += lane * width
        if width == 16:
            _copy16(src + head, dst + head, first, last)
        elif width == 8:
            _copy8(src + head, dst + head, first, last)
        elif width == 4:
            _copy4(src + head, dst + head, first, last)
        else:
            _copy1(src, dst, first, last)
        if part == 0:
            # Fewer than 16 bytes on either end: a lane each.
            if lane < head:
                store1(dst + lane, load1(src + lane))
            rest = head + body + lane
            if rest < size:
                store1(dst + rest, load1(src + rest))
        item += stride


COPY: Final = Kernel(copy_kernel, "void(int64, int64, int64, int64, int64, int64, int64)")


@dataclass(frozen=True)
class Shape:
    """How a launch is cut: thread blocks, threads in each, and the parts of a pair."""

    blocks: int
    threads: int
    log_parts: int
    part_bytes: int


def launch_shape(pairs: int, largest: int, max_blocks: int | None = LINK_BLOCKS) -> Shape:
    """Cut a copy of `pairs` pairs, the largest of `largest` bytes, for at most `max_blocks` thread blocks.

    With a bound on the blocks each warp gets some four parts, if that does not make them shorter than one round of
    loads; without one (None: the whole GPU), each gets one part, and the hardware hands them out.

    Examples
    --------
    >>> launch_shape(10_000, 4096)  # many pages over a link: a warp takes one page after the other
    Shape(blocks=12, threads=1024, log_parts=0, part_bytes=4096)
    >>> launch_shape(1, 1 << 20)  # one block of a MiB: 512 warps' worth of parts
    Shape(blocks=12, threads=1024, log_parts=9, part_bytes=2048)
    """
    if max_blocks is not None and max_blocks < 1:
        raise ConfigError(f"max_blocks: {max_blocks!r} is below 1; give None for as many as the GPU takes")
    rounds = -(-largest // ROUND)
    part = _LONGEST_PART // ROUND
    if max_blocks is not None:
        warps = max_blocks * _THREADS // WARP
        part = min(part, max(pairs * rounds // (4 * warps), 1))
    part = min(1 << (part.bit_length() - 1), 1 << max(rounds - 1, 0).bit_length())
    log_parts = max(-(-rounds // part) - 1, 0).bit_length()
    threads = _THREADS if max_blocks is not None else 256
    warps_wanted = pairs << log_parts
    blocks = -(-warps_wanted * WARP // threads)
    return Shape(max(min(blocks, max_blocks or _MOST_BLOCKS), 1), threads, log_parts, part * ROUND)


def copy_table(table: PairTable, *, stream: Any = None, max_blocks: int | None = LINK_BLOCKS) -> None:
    """Copy the pairs of a table that lies on the device already: one launch, nothing else.

    Parameters
    ----------
    table : PairTable
        From `dynalab.kernels.copy_tables`.
    stream : int, object or None
        See `dynalab.kernels.gpu.stream_handle`.
    max_blocks : int or None
        Most thread blocks, each of which fills a multiprocessor at most half; None lets the copy take the whole GPU,
        which is right from device to device when nothing else runs.
    """
    if table.pairs == 0 or table.largest == 0:
        return
    shape = launch_shape(table.pairs, table.largest, max_blocks)
    COPY.launch(
        shape.blocks,
        shape.threads,
        stream_handle(stream),
        table.sources,
        table.targets,
        table.sizes,
        table.largest,
        table.pairs,
        shape.log_parts,
        shape.part_bytes,
    )


def copy_pairs_device(
    src: ArrayLike,
    dst: ArrayLike,
    nbytes: ArrayLike,
    *,
    stream: Any = None,
    max_blocks: int | None = LINK_BLOCKS,
    tables: TableRing | None = None,
) -> None:
    """Copy ``nbytes[i]`` bytes from ``src[i]`` to ``dst[i]`` for all pairs i on the GPU, in stream order.

    The tables travel to the device first, on the same stream, through pinned staging memory that is reused. Nothing is
    waited for: the copy is done when the stream has come past it.

    Parameters
    ----------
    src, dst : array_like of uint64, shape (n,)
        Addresses of device memory or of pinned host memory. What is written must overlap nothing else of the call.
    nbytes : int or array_like of int64, shape (n,)
        Bytes of every pair, or of each; zero is allowed.
    stream, max_blocks
        See `copy_table`.
    tables : TableRing, optional
        Staging and device memory for the tables; by default one that all calls for the current device share.

    Raises
    ------
    ConfigError
        For tables that do not fit each other, a null address or a negative size, and where there is no GPU.
    """
    ring = default_ring() if tables is None else tables
    handle = stream_handle(stream)
    with ring.upload(src, dst, nbytes, handle) as table:
        copy_table(table, stream=handle, max_blocks=max_blocks)
