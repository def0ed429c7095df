"""Copy KV blocks from one layout to another, on the CPU: the twin of the GPU's permuting kernel.

Inside a block (of one layer) every layout is an address for each (outer, head, token): a base and three byte strides,
with a contiguous *run* of ``head_dim`` elements there. One copy between any two layouts follows from the two vectors of
strides; what is contiguous on both sides is merged beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, types
from numpy.typing import ArrayLike, NDArray

from dynalab.errors import ConfigError
from dynalab.kernels.copy import STREAM_FROM, check_tables, copy_pairs, fence, in_shares, move
from dynalab.kernels.keyed import keyed

_TABLE = types.Array(types.uint64, 1, "C", readonly=True)
_THREE = types.UniTuple(types.int64, 3)


@dataclass(frozen=True)
class Permutation:
    """Runs of bytes at the points of a box of three axes, with a stride for each axis on both sides.

    Parameters
    ----------
    shape : tuple of int
        Lengths of the axes, the target's slowest first; axes that are not needed have length 1, in front.
    src, dst : tuple of int
        Byte strides of the axes.
    run_bytes : int
        Contiguous bytes at every point.
    """

    shape: tuple[int, int, int]
    src: tuple[int, int, int]
    dst: tuple[int, int, int]
    run_bytes: int

    @property
    def runs(self) -> int:
        """Points of the box."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_copy(self) -> bool:
        """Tell whether everything has merged into one run."""
        return self.runs == 1

    @classmethod
    def between(cls, shape: ArrayLike, src_strides: ArrayLike, dst_strides: ArrayLike, run_bytes: int) -> Permutation:
        """Order the axes as the target stores them, and merge what is contiguous on both sides.

        Parameters
        ----------
        shape : array_like of int, shape (3,)
            Number of (outer, heads, tokens).
        src_strides, dst_strides : array_like of int, shape (3,)
            Bytes from one outer, head and token to the next.
        run_bytes : int
            Contiguous bytes of one (outer, head, token): ``head_dim * itemsize``.

        Raises
        ------
        ConfigError
            If there are not three of each, or a length or `run_bytes` is negative.

        Examples
        --------
        NHD to HND, 2 heads, 3 tokens, runs of 16 bytes, keys and values:

        >>> Permutation.between((2, 2, 3), (96, 16, 32), (96, 48, 16), 16)
        Permutation(shape=(2, 2, 3), src=(96, 16, 32), dst=(96, 48, 16), run_bytes=16)

        Between two NHD layouts, a layer of keys and values is one run:

        >>> Permutation.between((2, 2, 3), (96, 16, 32), (96, 16, 32), 16)
        Permutation(shape=(1, 1, 1), src=(0, 0, 0), dst=(0, 0, 0), run_bytes=192)
        """
        vectors = {"shape": shape, "src_strides": src_strides, "dst_strides": dst_strides}
        numbers = {name: np.asarray(vector) for name, vector in vectors.items()}
        for name, vector in numbers.items():
            if vector.shape != (3,) or vector.dtype.kind not in "iu":
                raise ConfigError(f"{name}: {vectors[name]!r} is not three whole numbers, of (outer, heads, tokens)")
        if numbers["shape"].min() < 0 or run_bytes < 0:
            raise ConfigError(f"shape, run_bytes: {tuple(vectors['shape'])!r}, {run_bytes!r}: none may be negative")  # type: ignore[arg-type]
        axes = [tuple(map(int, axis)) for axis in np.stack(list(numbers.values())).T if axis[0] != 1]
        axes.sort(key=lambda axis: -abs(axis[2]))
        merged: list[tuple[int, ...]] = []
        for length, src, dst in reversed(axes):
            if not merged and src == dst == run_bytes:
                run_bytes *= length
                continue
            if merged and (src, dst) == (merged[0][1] * merged[0][0], merged[0][2] * merged[0][0]):
                merged[0] = (merged[0][0] * length, *merged[0][1:])
                continue
            merged.insert(0, (length, src, dst))
        merged = [(1, 0, 0)] * (3 - len(merged)) + merged
        lengths, sources, targets = zip(*merged, strict=True)
        return cls(lengths, sources, targets, int(run_bytes))


def check_bases(
    src_bases: ArrayLike, dst_bases: ArrayLike, permutation: Permutation
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """Flatten the bases, and return them with the bytes to copy in all; refuse those that do not fit each other.

    Raises
    ------
    ConfigError
        If the shapes differ, or a base is null.
    """
    src, dst = np.asarray(src_bases, dtype=np.uint64), np.asarray(dst_bases, dtype=np.uint64)
    if src.shape != dst.shape:
        raise ConfigError(f"src_bases, dst_bases: shapes {src.shape} and {dst.shape} differ")
    nbytes = permutation.runs * permutation.run_bytes
    flat_src, flat_dst, _, total = check_tables(src.reshape(-1), dst.reshape(-1), nbytes)
    return flat_src, flat_dst, total


@njit(
    types.void(_TABLE, _TABLE, _THREE, _THREE, _THREE, types.int64, types.int64, types.int64, types.boolean),
    nogil=True,
    cache=True,
)
@keyed
def _permute_span(src, dst, shape, src_strides, dst_strides, run_bytes, begin, end, stream):
    for pair in range(begin, end):
        for i in range(shape[0]):
            for j in range(shape[1]):
                source = np.int64(src[pair]) + i * src_strides[0] + j * src_strides[1]
                target = np.int64(dst[pair]) + i * dst_strides[0] + j * dst_strides[1]
                for _ in range(shape[2]):
                    move(target, source, run_bytes, stream)
                    source += src_strides[2]
                    target += dst_strides[2]
    fence()


def permute_blocks(
    src_bases: ArrayLike,
    dst_bases: ArrayLike,
    src_strides: ArrayLike,
    dst_strides: ArrayLike,
    shape: ArrayLike,
    run_bytes: int,
    *,
    threads: int = 1,
) -> None:
    """Copy blocks from one layout to another, without the GIL.

    Parameters
    ----------
    src_bases, dst_bases : array_like of uint64, any shape, the same
        Address of (outer 0, head 0, token 0) for every (block, layer).
    src_strides, dst_strides : array_like of int, shape (3,)
        Bytes from one outer, head and token to the next.
    shape : array_like of int, shape (3,)
        Number of (outer, heads, tokens).
    run_bytes : int
        Contiguous bytes of one (outer, head, token).
    threads : int
        As in `dynalab.kernels.copy.copy_pairs`.

    Raises
    ------
    ConfigError
        If the arguments do not fit each other; nothing was copied then.

    Examples
    --------
    A page of 3 tokens and 2 heads of 4 bytes, from NHD to HND:

    >>> nhd = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    >>> hnd = np.zeros((2, 3, 4), np.uint8)
    >>> permute_blocks([nhd.ctypes.data], [hnd.ctypes.data], (0, 4, 8), (0, 12, 4), (1, 2, 3), 4)
    >>> bool((hnd == nhd.transpose(1, 0, 2)).all())
    True
    """
    permutation = Permutation.between(shape, src_strides, dst_strides, run_bytes)
    src, dst, total = check_bases(src_bases, dst_bases, permutation)
    if permutation.is_copy:
        copy_pairs(src, dst, permutation.run_bytes, threads=threads)
        return
    stream = total >= STREAM_FROM

    def work(begin: int, end: int) -> None:
        p = permutation
        _permute_span(src, dst, p.shape, p.src, p.dst, p.run_bytes, begin, end, stream)

    in_shares(work, src.size, total, threads)
