"""The copy paths of a GPU: the kernel, batches, and one asynchronous copy per run; and a rig that times them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynalab.errors import TransferError
from dynalab.kernels import gpu, memcpy
from dynalab.kernels.buffers import DeviceBuffer, PinnedBuffer
from dynalab.kernels.calibrate import Rig, permuted_offsets
from dynalab.kernels.copier import Copy
from dynalab.kernels.copy_device import LINK_BLOCKS, copy_pairs_device

#: Endpoints of the copies, named "from 2 to": host is pinned memory, device the GPU's own.
DIRECTIONS: Final = ("h2d", "d2h", "d2d")
_MEMCPY_DEFAULT: Final = 4
_NON_BLOCKING: Final = 1
_SETS: Final = 4


def _kernel(src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, direction: str, stream: Any) -> None:
    # Over a link few thread blocks suffice; inside the device the copy is as quick as the multiprocessors it gets.
    copy_pairs_device(src, dst, nbytes, stream=stream, max_blocks=None if direction == "d2d" else LINK_BLOCKS)


def _batch(src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, direction: str, stream: Any) -> None:
    memcpy.driver_copies().batch(src, dst, nbytes, stream=stream)


def _async(src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, direction: str, stream: Any) -> None:
    memcpy.driver_copies().each(src, dst, nbytes, stream=stream)


GPU_PATHS: Final[dict[str, Copy]] = {"kernel": _kernel, "batch": _batch, "async": _async}


class GpuRig(Rig):
    """Copies between arenas of device and of pinned host memory, of pieces in permuted order.

    Parameters
    ----------
    nbytes : int
        Size of each of the four arenas (source and target on both sides).
    seed : int
        Of the places and the order of the pieces.

    Attributes
    ----------
    stream : int
        Address of the stream that everything runs on.
    """

    def __init__(self, nbytes: int = 128 << 20, seed: int = 0) -> None:
        self.runtime = gpu.cuda_runtime()
        self.nbytes = nbytes
        self.largest = nbytes // 2
        self.rng = np.random.default_rng(seed)
        self.stream = int(self.runtime.streamCreateWithFlags(_NON_BLOCKING))
        self.content = self.rng.integers(0, 2**63, nbytes // 8).view(np.uint8)
        self._arenas: dict[str, tuple[Any, Any]] = {
            "h": (PinnedBuffer(nbytes), PinnedBuffer(nbytes)),
            "d": (DeviceBuffer(nbytes), DeviceBuffer(nbytes)),
        }
        self._arenas["h"][0].array[: self.content.size] = self.content
        self.copy_whole(self._arenas["h"][0].ptr, self._arenas["d"][0].ptr)
        self._places: dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}

    @property
    def facts(self) -> Mapping[str, str]:
        """The GPU, and the versions of its driver and runtime."""
        return {name: str(value) for name, value in gpu.device_facts(int(self.runtime.getDevice())).items()}

    @property
    def paths(self) -> Mapping[str, Sequence[str]]:
        """All paths in all directions; no batches where the driver has none."""
        known = tuple(path for path in GPU_PATHS if path != "batch" or memcpy.driver_copies().has_batch)
        return dict.fromkeys(DIRECTIONS, known)

    def arena(self, direction: str) -> tuple[int, int]:
        """Addresses of the source and the target of a direction."""
        return self._arenas[direction[0]][0].ptr, self._arenas[direction[2]][1].ptr

    def copy_whole(self, src: int, dst: int, nbytes: int | None = None) -> None:
        """Copy an arena, or its beginning, with one call, and wait for it."""
        self.runtime.memcpyAsync(dst, src, self.nbytes if nbytes is None else nbytes, _MEMCPY_DEFAULT, self.stream)
        self.runtime.streamSynchronize(self.stream)

    def offsets(self, nbytes: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets of pieces in source and target, each in an order of its own; one of a few sets for every size."""
        known = self._places.setdefault((nbytes, count), [])
        if len(known) < _SETS:
            source, target = (permuted_offsets(self.rng, self.nbytes, nbytes, count) for _ in range(2))
            known.append((source, target))
            return known[-1]
        return known[int(self.rng.integers(_SETS))]

    def tables(self, direction: str, offsets: Sequence[NDArray[np.int64]]) -> tuple[NDArray, NDArray]:
        """Addresses that belong to offsets."""
        source, target = (
            (base + part).astype(np.uint64) for base, part in zip(self.arena(direction), offsets, strict=True)
        )
        return source, target

    def measure(self, direction: str, path: str, nbytes: int, count: int) -> float:
        """Copy once: what the caller waits for, the making and sending of tables and the launch included."""
        src, dst = self.tables(direction, self.offsets(nbytes, count))
        begin = time.perf_counter()
        GPU_PATHS[path](src, dst, nbytes, direction, self.stream)
        self.runtime.streamSynchronize(self.stream)
        return time.perf_counter() - begin

    def clear(self, direction: str) -> None:
        """Set the target of a direction to zero."""
        if direction[2] == "h":
            self._arenas["h"][1].array[:] = 0
        else:
            self.runtime.memsetAsync(self.arena(direction)[1], 0, self.nbytes, self.stream)
            self.runtime.streamSynchronize(self.stream)

    def compare(self, direction: str, offsets: Sequence[NDArray[np.int64]], nbytes: int, what: str) -> None:
        """Compare the whole target with what a copy into zeros must have made of it.

        Raises
        ------
        TransferError
            If they differ, for `what`.
        """
        expected = np.zeros(self.nbytes, np.uint8)
        for a, b in zip(offsets[0].tolist(), offsets[1].tolist(), strict=True):
            expected[b : b + nbytes] = self.content[a : a + nbytes]
        seen = self._arenas["h"][1].array
        if direction[2] == "d":
            self.copy_whole(self.arena(direction)[1], self._arenas["h"][1].ptr)
        if not np.array_equal(seen, expected):
            wrong = np.flatnonzero(seen != expected)
            raise TransferError(
                f"{what}, {direction}: {wrong.size} bytes of {offsets[0].size} pieces of {nbytes} bytes are wrong, "
                f"the first at offset {wrong[0]} of the target"
            )

    def check(self, direction: str, path: str, nbytes: int, count: int) -> None:
        """Copy into zeros, and compare byte by byte."""
        offsets = self.offsets(nbytes, count)
        self.clear(direction)
        GPU_PATHS[path](*self.tables(direction, offsets), nbytes, direction, self.stream)
        self.runtime.streamSynchronize(self.stream)
        self.compare(direction, offsets, nbytes, f"path {path!r}")

    def close(self) -> None:
        """Give the memory and the stream back."""
        self.runtime.streamSynchronize(self.stream)
        for side in self._arenas.values():
            for buffer in side:
                buffer.close()
        self.runtime.streamDestroy(self.stream)
