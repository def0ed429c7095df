"""Plain device and pinned host memory with an address, given back when nobody refers to it any more."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynalab.errors import DeviceMemoryError
from dynalab.kernels import gpu
from dynalab.units import format_size


def view_of(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Return an array over memory of this process, which must outlive it."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class _Buffer:
    """Memory from one of the runtime's allocators."""

    kind = "memory"

    def __init__(self, nbytes: int, allocate: Any, free: Any) -> None:
        self.nbytes = nbytes
        try:
            self.ptr = int(allocate(max(nbytes, 1)))
        except Exception as error:
            raise DeviceMemoryError(
                f"{self.kind}: {format_size(nbytes)} cannot be had ({error}); free some, or ask for less"
            ) from error
        self._finalizer = weakref.finalize(self, free, self.ptr)
        # At the interpreter's end the driver takes everything back itself, and may be gone already.
        self._finalizer.atexit = False

    def close(self) -> None:
        """Give the memory back now."""
        self._finalizer()


class DeviceBuffer(_Buffer):
    """GPU memory.

    Parameters
    ----------
    nbytes : int
        Bytes; the address, a multiple of 256, is ``ptr``.

    Raises
    ------
    DeviceMemoryError
        If there is not so much.
    """

    kind = "device memory"

    def __init__(self, nbytes: int) -> None:
        runtime = gpu.cuda_runtime()
        super().__init__(nbytes, runtime.malloc, runtime.free)


class PinnedBuffer(_Buffer):
    """Host memory that the GPU can read and write by itself, with ``array`` over it.

    Parameters
    ----------
    nbytes : int
        Bytes; the address, a multiple of 4096, is ``ptr``.

    Raises
    ------
    DeviceMemoryError
        If there is not so much.
    """

    kind = "pinned host memory"

    def __init__(self, nbytes: int) -> None:
        runtime = gpu.cuda_runtime()
        super().__init__(nbytes, lambda size: runtime.hostAlloc(size, 0), runtime.freeHost)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The memory as bytes; it must not outlive the buffer."""
        return view_of(self.ptr, self.nbytes)
