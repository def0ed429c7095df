"""The permuting copy kernel for NVIDIA GPUs: KV blocks from one layout to another, in one launch.

A run (``head_dim`` elements of one head and token) is often a few hundred bytes, less than a warp moves at once. So a
warp is cut into *teams* of lanes as wide as a run, and every team takes four runs at a time. Which runs those are, the
thread computes from the axes; the divisions are of 32 bits.
"""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import ArrayLike

from dynalab.errors import ConfigError
from dynalab.kernels.copy_device import LINK_BLOCKS, copy_pairs_device
from dynalab.kernels.copy_tables import PairTable, TableRing, default_ring
from dynalab.kernels.gpu import cuda_module, stream_handle
from dynalab.kernels.launch import WARP, Kernel
from dynalab.kernels.permute import Permutation, check_bases
from dynalab.kernels.words import divide, load1, load4, load8, load16, load_entry, store1, store4, store8, store16

cuda = cuda_module()

_THREADS: Final = 256
_MOST_BLOCKS: Final = 2**31 - 1
#: Bytes that a warp should find to do in one group of runs, beside reading the table.
_GROUP_BYTES: Final = 16384


def _runs(load: Any, store: Any, width: int, nothing: Any) -> Any:
    """Make the copy of one thread in words of one width; it is compiled into the kernel, once per width."""

    @cuda.jit(device=True, inline="always")
    def copy_runs(src, dst, run, end, step, word, team, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes):
        while run < end:
            b, c, d = min(run + step, end - 1), min(run + 2 * step, end - 1), min(run + 3 * step, end - 1)
            qa, qb, qc, qd = divide(run, n2), divide(b, n2), divide(c, n2), divide(d, n2)
            ta, tb, tc, td = run - qa * n2, b - qb * n2, c - qc * n2, d - qd * n2
            oa, ob, oc, od = divide(qa, n1), divide(qb, n1), divide(qc, n1), divide(qd, n1)
            ha, hb, hc, hd = qa - oa * n1, qb - ob * n1, qc - oc * n1, qd - od * n1
            sa, sb = src + oa * s0 + ha * s1 + ta * s2, src + ob * s0 + hb * s1 + tb * s2
            sc, sd = src + oc * s0 + hc * s1 + tc * s2, src + od * s0 + hd * s1 + td * s2
            da, db = dst + oa * d0 + ha * d1 + ta * d2, dst + ob * d0 + hb * d1 + tb * d2
            dc, dd = dst + oc * d0 + hc * d1 + tc * d2, dst + od * d0 + hd * d1 + td * d2
            at = word * width
            while at < run_bytes:
                # Beyond the end, the last run is read again and not written.
                wa = load(sa + at)
                wb = load(sb + at)
                wc = load(sc + at)
                wd = load(sd + at)
                store(da + at, wa)
                if run + step < end:
                    store(db + at, wb)
                if run + 2 * step < end:
                    store(dc + at, wc)
                if run + 3 * step < end:
                    store(dd + at, wd)
                at += team * width
            run += 4 * step

    return copy_runs


_runs16 = _runs(load16, store16, 16, (0, 0))
_runs8 = _runs(load8, store8, 8, 0)
_runs4 = _runs(load4, store4, 4, 0)
_runs1 = _runs(load1, store1, 1, 0)


def permute_kernel(
    sources, targets, pairs, log_groups, group_runs, log_team, n0, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes
):
    """Permute all blocks; every argument is an int64.

    Parameters
    ----------
    sources, targets, pairs
        Addresses of the tables of bases, and their length.
    log_groups, group_runs
        The runs of every pair are cut into ``2**log_groups`` groups of `group_runs`; the last ones may be empty.
    log_team
        ``2**log_team`` lanes work on one run.
    n0, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes
        The axes' lengths and strides in source and target, and the bytes at each point.
    """
    thread = cuda.grid(1)
    lane = thread & 31
    item = thread >> 5
    stride = cuda.gridsize(1) >> 5
    team = 1 << log_team
    word = lane & (team - 1)
    step = 32 >> log_team
    runs = n0 * n1 * n2
    strides = s0 | s1 | s2 | d0 | d1 | d2 | run_bytes
    while item < pairs << log_groups:
        pair = item >> log_groups
        first = (item & ((1 << log_groups) - 1)) * group_runs
        end = min(first + group_runs, runs)
        run = first + (lane >> log_team)
        src = load_entry(sources + 8 * pair)
        dst = load_entry(targets + 8 * pair)
        low = src | dst | strides
        if low & 15 == 0:
            _runs16(src, dst, run, end, step, word, team, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes)
        elif low & 7 == 0:
            _runs8(src, dst, run, end, step, word, team, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes)
        elif low & 3 == 0:
            _runs4(src, dst, run, end, step, word, team, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes)
        else:
            _runs1(src, dst, run, end, step, word, team, n1, n2, s0, s1, s2, d0, d1, d2, run_bytes)
        item += stride


PERMUTE: Final = Kernel(permute_kernel, f"void({', '.join(['int64'] * 16)})")


def team_size(run_bytes: int) -> int:
    """Lanes that share a run: as many as leave fewer than a tenth of them idle, else those that leave fewest.

    Examples
    --------
    >>> [team_size(n) for n in (16, 256, 512, 1024, 160, 320)]
    [1, 16, 32, 32, 2, 4]
    """
    words = max(-(-run_bytes // 16), 1)

    def busy(lanes: int) -> float:
        return words / (-(-words // lanes) * lanes)

    sizes = [1 << k for k in range(WARP.bit_length())]
    good = [lanes for lanes in sizes if busy(lanes) >= 0.9]
    return max(good)


def _launch(table: PairTable, p: Permutation, stream: int, max_blocks: int | None) -> None:
    team = team_size(p.run_bytes)
    at_once = 4 * WARP // team
    group = max(_GROUP_BYTES // max(p.run_bytes, 1) // at_once, 1) * at_once
    log_groups = max(-(-p.runs // group) - 1, 0).bit_length()
    blocks = -(-(table.pairs << log_groups) * WARP // _THREADS)
    PERMUTE.launch(
        max(min(blocks, max_blocks or _MOST_BLOCKS), 1),
        _THREADS,
        stream,
        table.sources,
        table.targets,
        table.pairs,
        log_groups,
        group,
        team.bit_length() - 1,
        *p.shape,
        *p.src,
        *p.dst,
        p.run_bytes,
    )


def permute_blocks_device(
    src_bases: ArrayLike,
    dst_bases: ArrayLike,
    src_strides: ArrayLike,
    dst_strides: ArrayLike,
    shape: ArrayLike,
    run_bytes: int,
    *,
    stream: Any = None,
    max_blocks: int | None = LINK_BLOCKS,
    tables: TableRing | None = None,
) -> None:
    """Copy blocks from one layout to another on the GPU, in stream order; nothing is waited for.

    Parameters
    ----------
    src_bases, dst_bases, src_strides, dst_strides, shape, run_bytes
        As in `dynalab.kernels.permute.permute_blocks`; addresses of device memory or of pinned host memory.
    stream, max_blocks, tables
        As in `dynalab.kernels.copy_device.copy_pairs_device`.

    Raises
    ------
    ConfigError
        If the arguments do not fit each other, and where there is no GPU.
    """
    permutation = Permutation.between(shape, src_strides, dst_strides, run_bytes)
    src, dst, total = check_bases(src_bases, dst_bases, permutation)
    if permutation.is_copy:
        copy_pairs_device(src, dst, permutation.run_bytes, stream=stream, max_blocks=max_blocks, tables=tables)
        return
    if permutation.runs >= 2**32:
        raise ConfigError(f"shape: {permutation.shape} has 2**32 runs or more in one block")
    if max_blocks is not None and max_blocks < 1:
        raise ConfigError(f"max_blocks: {max_blocks!r} is below 1; give None for as many as the GPU takes")
    if total == 0:
        return
    ring = default_ring() if tables is None else tables
    handle = stream_handle(stream)
    with ring.upload(src, dst, total // src.size, handle) as table:
        _launch(table, permutation, handle, max_blocks)
