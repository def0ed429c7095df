"""Copies by the CUDA driver's copy engines: many at once as a batch, or one call for each contiguous run.

Both take the same tables of addresses as the copy kernel. The driver's functions are called by their addresses, from
NumPy arrays and compiled loops: building Python lists of ten thousand pointers would take longer than the copy.
``cuMemcpyBatchAsync`` is what the runtime's ``cudaMemcpyBatchAsync`` calls; it came with CUDA 12.8.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from dynalab.errors import ConfigError, TransferError, unknown
from dynalab.kernels.copy import check_tables
from dynalab.kernels.gpu import check_cuda, require_gpu, stream_handle

SourceOrder = Literal["stream", "during_call", "any"]
#: When the driver may read a source; the values are CUDA's.
_ORDERS: Final[dict[str, int]] = {"stream": 1, "during_call": 2, "any": 3}
_PREFER_OVERLAP: Final = 1

_I64 = ir.IntType(64)
_TABLE = types.Array(types.uint64, 1, "C", readonly=True)
_SIZES = types.Array(types.int64, 1, "C", readonly=True)
_OUT_TABLE, _OUT_SIZES = types.Array(types.uint64, 1, "C"), types.Array(types.int64, 1, "C")


@intrinsic
def _call(typingctx: Any, function: Any, dst: Any, src: Any, nbytes: Any, stream: Any) -> Any:
    """Call a C function at an address: ``int f(u64 dst, u64 src, size_t nbytes, void *stream)``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_I64] * 4).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], kind), args[1:]), _I64)

    return types.int64(*[types.int64] * 5), generate


@njit(types.Tuple((types.int64, types.int64))(types.int64, _TABLE, _TABLE, _SIZES, types.int64), nogil=True, cache=True)
def _call_each(function, src, dst, sizes, stream):
    """Call the function for one pair after the other; return the first error with its pair, or (0, -1)."""
    for i in range(src.size):
        error = _call(function, np.int64(dst[i]), np.int64(src[i]), sizes[i], stream)
        if error != 0:
            return error, i
    return 0, -1


@njit(types.int64(_TABLE, _TABLE, _SIZES, _OUT_TABLE, _OUT_TABLE, _OUT_SIZES), nogil=True, cache=True)
def _merge(src, dst, sizes, run_src, run_dst, run_sizes):
    """Join each pair to the one before it if it continues it on both sides; return the number of runs."""
    step = 0 if sizes.size == 1 else 1
    n = 0
    for i in range(src.size):
        size = sizes[i * step]
        if size == 0:
            continue
        if n > 0:
            done = np.uint64(run_sizes[n - 1])
            if run_src[n - 1] + done == src[i] and run_dst[n - 1] + done == dst[i]:
                run_sizes[n - 1] += size
                continue
        run_src[n], run_dst[n], run_sizes[n] = src[i], dst[i], size
        n += 1
    return n


def merge_runs(
    src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Merge neighbours of a table that are adjacent on both sides, and leave out pairs without bytes.

    Parameters
    ----------
    src, dst, nbytes
        As for `dynalab.kernels.copy.copy_pairs`, and refused as there. The order is kept: sort the table by one side
        first where it may be out of order.

    Returns
    -------
    src, dst : ndarray of uint64, shape (runs,)
    sizes : ndarray of int64, shape (runs,)

    Examples
    --------
    >>> src, dst, sizes = merge_runs([1000, 1100, 1300], [5000, 5100, 5200], 100)
    >>> src.tolist(), dst.tolist(), sizes.tolist()
    ([1000, 1300], [5000, 5200], [200, 100])
    """
    src, dst, sizes, _ = check_tables(src, dst, nbytes)
    out = np.empty_like(src), np.empty_like(dst), np.empty(src.size, np.int64)
    n = _merge(src, dst, sizes, *out)
    return out[0][:n], out[1][:n], out[2][:n]


class DriverCopies:
    """The driver's two ways to copy, by the addresses of its functions.

    Parameters
    ----------
    each : int
        Address of ``cuMemcpyAsync``.
    batch : int
        Address of ``cuMemcpyBatchAsync``; 0 where the driver has none.
    batch_tells_failed : bool
        Whether it is the function of CUDA 12.8, which has one argument more, for the index of a failed copy.
    enter : callable, optional
        Makes a CUDA context current; called once by every thread, before its first copy.
    """

    def __init__(
        self,
        each: int,
        batch: int = 0,
        *,
        batch_tells_failed: bool = False,
        enter: Callable[[], object] | None = None,
    ) -> None:
        self._each = each
        self._tells_failed = batch_tells_failed
        pointer = ctypes.c_void_p
        arguments = [pointer] * 3 + [ctypes.c_size_t] + [pointer] * 2 + [ctypes.c_size_t]
        arguments += [pointer] * (2 if batch_tells_failed else 1)
        self._batch = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(batch) if batch else None
        self._enter = enter
        self._thread = threading.local()

    @property
    def has_batch(self) -> bool:
        """Tell whether the driver copies batches."""
        return self._batch is not None

    def _enter_once(self) -> None:
        if self._enter is not None and not hasattr(self._thread, "entered"):
            self._enter()
            self._thread.entered = True

    def each(self, src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, *, stream: Any, merge: bool = True) -> int:
        """Ask for one asynchronous copy for every contiguous run.

        Parameters
        ----------
        src, dst, nbytes
            As for `dynalab.kernels.copy.copy_pairs`; addresses of device or pinned host memory.
        stream : int or object
            See `dynalab.kernels.gpu.stream_handle`.
        merge : bool
            Merge neighbours that are adjacent on both sides. They must then belong to one allocation.

        Returns
        -------
        int
            Number of copies asked for.

        Raises
        ------
        TransferError
            If the driver refuses one; those before it are under way, and those after it were not asked for.
        """
        if merge:
            src, dst, sizes = merge_runs(src, dst, nbytes)
        else:
            src, dst, sizes, _ = check_tables(src, dst, nbytes)
            sizes = np.ascontiguousarray(np.broadcast_to(sizes, src.shape))
        self._enter_once()
        error, at = _call_each(self._each, src, dst, sizes, stream_handle(stream))
        if error:
            raise TransferError(
                f"cuMemcpyAsync: {_name(error)} for copy {at} of {src.size}: {sizes[at]} bytes "
                f"from {src[at]:#x} to {dst[at]:#x}; the copies before it are under way"
            )
        return src.size

    def batch(
        self,
        src: ArrayLike,
        dst: ArrayLike,
        nbytes: ArrayLike,
        *,
        stream: Any,
        merge: bool = True,
        source_order: SourceOrder = "stream",
        overlap: bool = True,
    ) -> int:
        """Ask for all copies in one call.

        Parameters
        ----------
        src, dst, nbytes, stream, merge
            As for `each`; the stream must be one of its own, not CUDA's legacy default stream (0).
        source_order : {"stream", "during_call", "any"}
            When sources may be read: in the stream's order, before the call returns, or whenever (sources that nothing
            in flight is writing, until the stream has come past the copy).
        overlap : bool
            Prefer a copy engine that leaves computations alone, where there is a choice.

        Returns
        -------
        int
            Number of copies asked for.

        Raises
        ------
        ConfigError
            For the legacy default stream, an unknown order, or a driver without batches.
        TransferError
            If the driver refuses the batch: none of it can be relied on then.
        """
        if self._batch is None:
            raise ConfigError("cuMemcpyBatchAsync: this driver has none; it came with CUDA 12.8")
        if source_order not in _ORDERS:
            raise unknown("source_order", source_order, _ORDERS)
        handle = stream_handle(stream)
        if handle == 0:
            raise ConfigError("stream: a batch of copies cannot run on the legacy default stream; make a stream for it")
        if merge:
            src, dst, sizes = merge_runs(src, dst, nbytes)
        else:
            src, dst, sizes, _ = check_tables(src, dst, nbytes)
            sizes = np.ascontiguousarray(np.broadcast_to(sizes, src.shape))
        if src.size == 0:
            return 0
        # CUmemcpyAttributes: order, hints for source and target (kind and number each; not needed), flags.
        attributes = np.array([_ORDERS[source_order], 0, 0, 0, 0, _PREFER_OVERLAP if overlap else 0], np.uint32)
        first = ctypes.c_size_t(0)
        failed = [ctypes.byref(ctypes.c_size_t())] if self._tells_failed else []
        tables = [table.ctypes.data for table in (dst, src, sizes)]
        self._enter_once()
        error = self._batch(
            *tables, src.size, attributes.ctypes.data, ctypes.addressof(first), 1, *failed, ctypes.c_void_p(handle)
        )
        if error:
            raise TransferError(f"cuMemcpyBatchAsync: {_name(error)} for {src.size} copies of {int(sizes.sum())} bytes")
        return src.size


def _name(error: int) -> str:
    try:
        from cuda.bindings.driver import CUresult

        return f"{CUresult(error).name} ({error})"
    except (ImportError, ValueError):
        return f"CUDA error {error}"


def _address(symbol: bytes, version: int) -> int:
    from cuda.bindings import driver

    status, function, _ = driver.cuGetProcAddress(symbol, version, 0)
    return int(function or 0) if int(status) == 0 else 0


@functools.cache
def driver_copies() -> DriverCopies:
    """Return the copies of this machine's CUDA driver.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    """
    require_gpu("a copy by the CUDA driver")
    from cuda.bindings import runtime

    newest, older = (_address(b"cuMemcpyBatchAsync", version) for version in (13000, 12080))
    return DriverCopies(
        _address(b"cuMemcpyAsync", 4000),
        newest or older,
        batch_tells_failed=not newest,
        # The classical way to have the thread's device ready: the driver's functions, unlike the runtime's, do not.
        enter=lambda: check_cuda(runtime.cudaFree(0), "the CUDA context of this thread"),
    )
