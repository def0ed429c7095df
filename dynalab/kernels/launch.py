"""A CUDA kernel that is compiled when it is first used: for the device at hand, or to text for a test to read."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

from dynalab.errors import ConfigError
from dynalab.kernels.gpu import cuda_module, require_gpu, simulated, why_no_compiler
from dynalab.kernels.keyed import keyed

#: Threads that execute one instruction together.
WARP = 32

#: The simulator runs one kernel at a time.
_simulator = threading.Lock()


@functools.lru_cache(maxsize=256)
def _numba_stream(handle: int) -> Any:
    """Wrap a stream's address for Numba, which knows launches by wrapped streams (kept, for making them costs time)."""
    return cuda_module().external_stream(handle) if handle else 0


class Kernel:
    """A kernel with its one signature: compiled for a device at its first launch, kept on disk for the next process.

    Parameters
    ----------
    function : callable
        The kernel. What it calls must be global to its module, and so must be Numba's ``cuda`` module under that name.
    signature : str
        As Numba writes it, such as ``"void(int64, int64)"``. Whole numbers only: addresses, sizes and counts. An array
        would cost several arguments and some microseconds at every launch.
    """

    def __init__(self, function: Callable[..., None], signature: str) -> None:
        self.function = keyed(function)
        self.signature = signature
        self._compiled: Any = None
        self._lock = threading.Lock()

    def launch(self, blocks: int, threads: int, stream: int, *args: int) -> None:
        """Start `blocks` thread blocks of `threads` threads each on a stream, given by its address; does not wait."""
        if self._compiled is None:
            self._compile()
        if simulated():
            with _simulator:
                self._compiled[blocks, threads](*args)
        else:
            self._compiled[blocks, threads, _numba_stream(stream)](*args)

    def _compile(self) -> None:
        if not simulated():
            require_gpu(self.function.__name__)
            # Few thread blocks are meant: a copy over a link must leave the multiprocessors to others.
            warnings.filterwarnings("ignore", message="Grid size .* low occupancy")
        with self._lock:
            if self._compiled is None:
                self._compiled = cuda_module().jit(self.signature, cache=True)(self.function)

    def ptx(self, compute_capability: tuple[int, int] = (9, 0)) -> str:
        """Compile to PTX text, without a GPU.

        Raises
        ------
        ConfigError
            Where there is no compiler.
        """
        why = why_no_compiler()
        if why:
            raise ConfigError(f"{self.function.__name__} cannot be compiled: {why}")
        return cuda_module().compile_ptx(self.function, self.signature, cc=compute_capability)[0]
