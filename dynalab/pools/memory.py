"""Device memory from a stream-ordered pool of one's own: reserved ahead, kept up to a threshold, and accounted for.

The pool is CUDA's (``cudaMemPoolCreate``), reached by CuPy's bindings of the runtime. CuPy's own wrapper of such pools,
``MemoryAsyncPool``, is not used: it makes the pool the current one of every device, and keeps no high-water marks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from dynalab.errors import BlockStateError, ConfigError, DeviceMemoryError, TierClosed
from dynalab.pools import _cuda
from dynalab.units import format_size, parse_size

_POINTER_BYTES: Final = 8
# Values of the runtime's enumerations that CuPy does not name.
_ALLOCATION_PINNED, _HANDLE_NONE, _LOCATION_DEVICE, _STREAM_NON_BLOCKING = 1, 0, 1, 1
_OUT_OF_MEMORY: Final = 2
_STATISTICS: Final = {
    "used": "cudaMemPoolAttrUsedMemCurrent",
    "used_high": "cudaMemPoolAttrUsedMemHigh",
    "reserved": "cudaMemPoolAttrReservedMemCurrent",
    "reserved_high": "cudaMemPoolAttrReservedMemHigh",
}


def pointer_tables_bytes(*, layers: int, outer: int, concurrency: int = 4, batch: int = 16) -> int:
    """Return the bytes that the address tables of a transfer path can take at once.

    A copy kernel reads two tables (sources, destinations) of one 8-byte address per block, layer and outer index; with
    `concurrency` copies in flight, and one more being prepared: ``(2 * concurrency + 2) * batch * outer * layers * 8``
    (the rule of Dynamo's transfer context).

    Examples
    --------
    >>> pointer_tables_bytes(layers=80, outer=2)
    204800
    """
    for field, value in (("layers", layers), ("outer", outer), ("concurrency", concurrency), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{field}: {value} cannot be; pass at least 1")
    return (2 * concurrency + 2) * batch * outer * layers * _POINTER_BYTES


class DeviceBuffer:
    """Device memory that is ordered with the work of a stream: valid for what is started on it after the allocation.

    Attributes
    ----------
    address, nbytes : int
        Where it is and its size.
    stream : int
        Address of the stream that it was allocated on.
    """

    __slots__ = ("_address", "_pool", "nbytes", "stream")

    def __init__(self, pool: CudaMemoryPool, address: int, nbytes: int, stream: int) -> None:
        self._pool, self._address, self.nbytes, self.stream = pool, address, nbytes, stream

    @property
    def address(self) -> int:
        """Device address of the first byte."""
        if not self._address:
            raise BlockStateError(f"this device buffer of {format_size(self.nbytes)} was freed; allocate another one")
        return self._address

    def free(self, stream: object = None) -> None:
        """Free it once the work on a stream is done up to here; a second call does nothing.

        Parameters
        ----------
        stream : object or int, optional
            The stream that used it last, which is ordered behind all others that did; by default its own.
        """
        address, self._address = self._address, 0
        if address:
            self._pool._free(address, self.stream if stream is None else _handle(stream))

    def array(self, shape: int | tuple[int, ...] | None = None, dtype: object = "uint8") -> Any:
        """Return the memory as a CuPy array, which must not outlive it; by default all of its bytes."""
        import cupy

        memory = cupy.cuda.UnownedMemory(self.address, self.nbytes, self)
        return cupy.ndarray(self.nbytes if shape is None else shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def __enter__(self) -> DeviceBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free()


class CudaMemoryPool:
    """A stream-ordered pool of device memory.

    Allocating and freeing are ordered like kernels on a stream and do not wait for the device. Freed memory stays with
    the pool, up to `release_threshold` beyond the next synchronisation.

    Parameters
    ----------
    reserve : int or str
        Bytes to bring in now, by allocating and freeing them once, so that no early allocation has to ask the
        operating system. What exceeds the threshold would not stay and is refused. See `pointer_tables_bytes`.
    release_threshold : int or str
        Bytes to keep at least.
    device : int
        Number of the GPU.

    Raises
    ------
    ConfigError
        If a size is none, or `reserve` exceeds `release_threshold`.
    DeviceMemoryError
        If there is no GPU, no such GPU, or not enough memory.
    """

    def __init__(self, reserve: int | str = 0, *, release_threshold: int | str = "128MiB", device: int = 0) -> None:
        self.reserve = parse_size(reserve, field="reserve")
        self.release_threshold = parse_size(release_threshold, field="release_threshold")
        self.device = device
        if self.reserve > self.release_threshold:
            raise ConfigError(
                f"reserve: {format_size(self.reserve)} would not stay with a release threshold of "
                f"{format_size(self.release_threshold)}; raise release_threshold to at least as much"
            )
        why = _cuda.why_no_cuda()
        if why:
            raise DeviceMemoryError(f"device memory cannot be had: {why}")
        self._runtime = _cuda.runtime()
        count = self._runtime.getDeviceCount()
        if not 0 <= device < count:
            raise DeviceMemoryError(f"device memory cannot be had: GPU {device} does not exist; there are {count}")
        properties = self._runtime.MemPoolProps(_ALLOCATION_PINNED, _HANDLE_NONE, _LOCATION_DEVICE, device)
        self._pool = self._runtime.memPoolCreate(properties)
        self._destroy = weakref.finalize(self, self._runtime.memPoolDestroy, self._pool)
        try:
            # Before the first free, lest what is brought in goes at once.
            self._set("cudaMemPoolAttrReleaseThreshold", self.release_threshold)
            if self.reserve:
                self._warm_up()
        except BaseException:
            self._destroy()
            raise

    def _warm_up(self) -> None:
        with self._on_device():
            stream = self._runtime.streamCreateWithFlags(_STREAM_NON_BLOCKING)
            try:
                self.allocate(self.reserve, stream).free()
                self._runtime.streamSynchronize(stream)
            finally:
                self._runtime.streamDestroy(stream)

    def allocate(self, nbytes: int | str, stream: object = None) -> DeviceBuffer:
        """Return device memory for the work that is started on a stream from now on.

        Parameters
        ----------
        nbytes : int or str
            Size.
        stream : object or int, optional
            CuPy stream, or a stream's address; by default CuPy's current stream.

        Raises
        ------
        ConfigError
            If the size is none, or zero.
        DeviceMemoryError
            If there is not enough memory.
        TierClosed
            If the pool is closed.
        """
        size, handle = parse_size(nbytes, field="nbytes"), self._handle_of_pool()
        if not size:
            raise ConfigError("nbytes: 0 bytes have no address; ask for at least one")
        where = _cuda.current_stream() if stream is None else _handle(stream)
        with self._on_device():
            try:
                address = self._runtime.mallocFromPoolAsync(size, handle, where)
            except Exception as error:  # CuPy's CUDARuntimeError, which only importing CuPy would give a name here
                if getattr(error, "status", None) != _OUT_OF_MEMORY:
                    raise
                free, total = self._runtime.memGetInfo()
                raise DeviceMemoryError(
                    f"cuda:{self.device}: {format_size(size)} asked, {format_size(free)} of {format_size(total)} free; "
                    "make the device tier smaller, or free device memory"
                ) from error
        return DeviceBuffer(self, int(address), size, where)

    def _free(self, address: int, stream: int) -> None:
        with self._on_device():
            self._runtime.freeAsync(address, stream)

    def stats(self) -> dict[str, int]:
        """Return what the pool holds, as the driver counts it.

        Returns
        -------
        dict
            Bytes ``used`` by allocations and ``reserved`` from the operating system, now, and the most of each since
            the pool was built or `reset_high_water` was called: ``used_high``, ``reserved_high``.
        """
        handle = self._handle_of_pool()
        return {
            name: int(self._runtime.memPoolGetAttribute(handle, getattr(self._runtime, attribute)))
            for name, attribute in _STATISTICS.items()
        }

    def reset_high_water(self) -> None:
        """Let the high-water marks begin anew at what is used and reserved now."""
        for name in ("used_high", "reserved_high"):
            self._set(_STATISTICS[name], 0)

    def trim(self, keep: int | str = 0) -> None:
        """Give reserved memory that nobody uses back to the operating system, down to `keep` bytes.

        What was freed on a stream that the host has not waited for since may count as used.
        """
        self._runtime.memPoolTrimTo(self._handle_of_pool(), parse_size(keep, field="keep"))

    def close(self) -> None:
        """Give the pool back once its last buffer is freed; a second call does nothing."""
        self._destroy()

    def __enter__(self) -> CudaMemoryPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._destroy.alive:
            return f"CudaMemoryPool(cuda:{self.device}, closed)"
        stats = self.stats()
        return (
            f"CudaMemoryPool(cuda:{self.device}, {format_size(stats['used'])} used, "
            f"{format_size(stats['reserved'])} reserved)"
        )

    def _set(self, attribute: str, value: int) -> None:
        self._runtime.memPoolSetAttribute(self._handle_of_pool(), getattr(self._runtime, attribute), value)

    def _handle_of_pool(self) -> int:
        if not self._destroy.alive:
            raise TierClosed(f"this memory pool of cuda:{self.device} is closed; build a new one")
        return self._pool

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        before = self._runtime.getDevice()
        if before == self.device:
            yield
            return
        self._runtime.setDevice(self.device)
        try:
            yield
        finally:
            self._runtime.setDevice(before)


def _handle(stream: object) -> int:
    """Return a stream's address."""
    return int(getattr(stream, "ptr", stream))  # type: ignore[call-overload]
