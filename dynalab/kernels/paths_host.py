"""The copy paths of a machine without a GPU: the twins of the kernel, beside NumPy's copies of contiguous runs.

They stand in for a device's paths, and say so ("host-emulated"); what calibration and choice cost and are worth can be
measured with them on any machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynalab.errors import TransferError
from dynalab.kernels.buffers import view_of
from dynalab.kernels.calibrate import Rig, permuted_offsets
from dynalab.kernels.copy import copy_pairs
from dynalab.kernels.memcpy import merge_runs

DIRECTION: Final = "host_to_host"
#: Sets of places that a size of copy takes turns with, so that it finds cold memory.
_SETS: Final = 4


def copy_runs(src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike) -> None:
    """Copy with one ``np.copyto`` for every contiguous run: what one would write without a kernel."""
    for source, target, size in zip(*(part.tolist() for part in merge_runs(src, dst, nbytes)), strict=True):
        np.copyto(view_of(target, size), view_of(source, size))


def _copy_threaded(src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike) -> None:
    copy_pairs(src, dst, nbytes, threads=os.cpu_count() or 1)


#: Name of a path, and what copies that way.
HOST_PATHS: Final[dict[str, Callable[[ArrayLike, ArrayLike, ArrayLike], None]]] = {
    "kernel": copy_pairs,
    "kernel-threads": _copy_threaded,
    "async": copy_runs,
}


class HostRig(Rig):
    """Copies between two arenas of ordinary memory, of pieces in permuted order.

    Parameters
    ----------
    nbytes : int
        Size of each arena; a copy moves at most a quarter of it.
    seed : int
        Of the places and the order of the pieces.
    """

    def __init__(self, nbytes: int = 64 << 20, seed: int = 0) -> None:
        self.largest = nbytes // 4
        self._rng = np.random.default_rng(seed)
        self._source = self._rng.integers(0, 2**63, nbytes // 8).view(np.uint8)
        self._target = np.zeros(nbytes // 8 * 8, np.uint8)
        self._places: dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it stands in for a device, and the processor and its cores."""
        processor = platform.processor() or platform.machine()
        return {"device": "host-emulated", "processor": processor, "cores": str(os.cpu_count())}

    @property
    def paths(self) -> Mapping[str, Sequence[str]]:
        """The one direction, and its three paths."""
        return {DIRECTION: tuple(HOST_PATHS)}

    def _offsets(self, nbytes: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        known = self._places.setdefault((nbytes, count), [])
        if len(known) < _SETS:
            arena = self._source.size
            source, target = (permuted_offsets(self._rng, arena, nbytes, count) for _ in range(2))
            known.append((source, target))
            return known[-1]
        return known[int(self._rng.integers(_SETS))]

    def measure(self, direction: str, path: str, nbytes: int, count: int) -> float:
        """Copy once; the bytes are all there when the call returns."""
        src, dst = self._offsets(nbytes, count)
        sources = (self._source.ctypes.data + src).astype(np.uint64)
        targets = (self._target.ctypes.data + dst).astype(np.uint64)
        begin = time.perf_counter()
        HOST_PATHS[path](sources, targets, nbytes)
        return time.perf_counter() - begin

    def check(self, direction: str, path: str, nbytes: int, count: int) -> None:
        """Copy to a cleared arena, and compare it whole."""
        src, dst = self._offsets(nbytes, count)
        expected = np.zeros_like(self._target)
        for a, b in zip(src.tolist(), dst.tolist(), strict=True):
            expected[b : b + nbytes] = self._source[a : a + nbytes]
        self._target[:] = 0
        sources = (self._source.ctypes.data + src).astype(np.uint64)
        HOST_PATHS[path](sources, (self._target.ctypes.data + dst).astype(np.uint64), nbytes)
        if not np.array_equal(self._target, expected):
            raise TransferError(f"path {path!r} copied {count} pieces of {nbytes} bytes wrongly")

    def close(self) -> None:
        """Give the arenas back."""
        self._source = self._target = np.zeros(0, np.uint8)
        self._places.clear()
