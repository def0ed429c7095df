"""The device tier: blocks in GPU memory, or in a stand-in for it on machines without a GPU, which says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, DeviceMemoryError
from dynalab.kernels import gpu_available, require_gpu
from dynalab.pools import HostArena
from dynalab.tiers.host import HostMemory
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.tier import Capabilities, slot_count
from dynalab.units import format_size

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

#: What results of the stand-in are labelled with.
HOST_EMULATED: Final = "host-emulated"


class DeviceTier(MemoryTier):
    """Blocks in the memory of a GPU.

    Parameters
    ----------
    layout : KVLayout
    size : str or int, optional
        Bytes, as text ("2GiB") or number.
    capacity : int, optional
        Blocks, instead of `size`.
    device : int or str, optional
        Number of the GPU, also as "cuda:0"; or "host-emulated". By default the first GPU, or the stand-in where there
        is none: ``capabilities.device_label`` tells.

    Raises
    ------
    ConfigError
        If the size is none or holds no block, or there is no such GPU.
    DeviceMemoryError
        If the memory cannot be had: names what was asked and what is free.

    Notes
    -----
    Where it is a GPU, the memory is one plain allocation, apart from any pool, and views are CuPy arrays.

    Examples
    --------
    >>> from dynalab.kv import KVLayout
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> with DeviceTier(layout, capacity=3, device="host-emulated") as tier:
    ...     tier.capabilities.device_label, tier.view(2).shape
    ('host-emulated', (2, 2, 4, 8))
    """

    name = "device"

    def __init__(
        self,
        layout: KVLayout,
        size: str | int | None = None,
        *,
        capacity: int | None = None,
        device: int | str | None = None,
    ) -> None:
        capacity = slot_count(size, capacity, layout.bytes_per_block, self.name)
        number = _which(device)

        def allocate(nbytes: int) -> HostMemory | CudaMemory:
            if number < 0:
                return HostMemory(HostArena(nbytes, pinned=False, lock=False))  # locked pages are for the host tier
            return CudaMemory(nbytes, number)

        self._label = HOST_EMULATED if number < 0 else f"cuda:{number}"
        super().__init__(layout, capacity, allocate)

    @property
    def capabilities(self) -> Capabilities:
        """Addresses of the GPU, or of the CPU in the stand-in."""
        emulated = self._label == HOST_EMULATED
        return Capabilities(addressable=True, cpu_access=emulated, device_label=self._label)


class CudaMemory:
    """One plain allocation of GPU memory, zeros at first.

    Raises
    ------
    DeviceMemoryError
        If it cannot be had.
    """

    def __init__(self, nbytes: int, device: int) -> None:
        import cupy

        self.nbytes, self._device, self._cupy = nbytes, device, cupy
        self._pointer: Any = None
        with cupy.cuda.Device(device):
            free, _ = cupy.cuda.runtime.memGetInfo()
            shortage = (
                f"cuda:{device}: {format_size(nbytes)} of device memory asked, {format_size(free)} free; "
                "make the device tier smaller, or free memory"
            )
            if nbytes > free:
                raise DeviceMemoryError(shortage)
            try:
                self._pointer = cupy.cuda.MemoryPointer(cupy.cuda.Memory(nbytes), 0)
                self._pointer.memset(0, nbytes)
                cupy.cuda.get_current_stream().synchronize()
            except cupy.cuda.runtime.CUDARuntimeError as error:
                raise DeviceMemoryError(f"{shortage} ({error})") from error

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return int(self._pointer.ptr)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, strides: tuple[int, ...]) -> Any:
        """Return a writable CuPy array over the memory, from byte `offset` on."""
        return self._cupy.ndarray(shape, dtype, self._pointer + offset, strides)

    def to_cpu(self, array: Any) -> npt.NDArray[Any]:
        """Return a copy in CPU memory."""
        with self._cupy.cuda.Device(self._device):
            return self._cupy.asnumpy(array)

    def write(self, array: Any, values: Any) -> None:
        """Set an array over the memory, and wait until it is set."""
        with self._cupy.cuda.Device(self._device):
            array[...] = self._cupy.asarray(values)
            self._cupy.cuda.get_current_stream().synchronize()

    def facts(self) -> dict[str, Any]:
        """Return the bytes."""
        return {"memory_bytes": self.nbytes}

    def close(self) -> None:
        """Give the memory back, as soon as the last view of it is gone."""
        self._pointer = None


def _which(device: int | str | None) -> int:
    """Return the number of the GPU that is meant, or -1 for the stand-in."""
    if device is None:
        return 0 if gpu_available() else -1
    if device == HOST_EMULATED:
        return -1
    match = re.fullmatch(r"(?:cuda:)?(\d+)", str(device))
    if match is None or isinstance(device, bool):
        raise ConfigError(f'device: {device!r} is no GPU; write its number, "cuda:0" or "{HOST_EMULATED}"')
    require_gpu(f"device {device!r}")
    from cupy.cuda import runtime

    count = int(runtime.getDeviceCount())
    if int(match[1]) >= count:
        raise ConfigError(f"device: {device!r} does not exist; this machine has GPUs 0 to {count - 1}")
    return int(match[1])
