"""Arrays in device memory as kernels that work on addresses see them, whoever made them.

In the CUDA simulator NumPy's arrays take their place: its device memory is the process's own.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from dynalab.errors import ConfigError
from dynalab.kernels.gpu import simulated


class DeviceArray:
    """A contiguous device array's address, type and shape.

    Parameters
    ----------
    field : str
        Name of the parameter, for errors.
    array : object
        Anything with ``__cuda_array_interface__``: of CuPy, Numba, PyTorch and others.

    Raises
    ------
    ConfigError
        If it is not in device memory, or not contiguous.
    """

    def __init__(self, field: str, array: Any) -> None:
        interface = getattr(array, "__array_interface__" if simulated() else "__cuda_array_interface__", None)
        if interface is None:
            raise ConfigError(f"{field}: {type(array).__name__} is not in GPU memory; pass a CuPy array or the like")
        self.dtype, self.shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
        strides, expected = interface.get("strides"), self.dtype.itemsize
        for size, stride in zip(reversed(self.shape), reversed(strides or ()), strict=False):
            if stride != expected and size > 1:
                raise ConfigError(f"{field}: its elements do not lie side by side; pass a contiguous copy")
            expected *= size
        self.nbytes = expected if strides else self.dtype.itemsize * int(np.prod(self.shape))
        self.address = int(interface["data"][0])


def ordered_on(stream: int) -> contextlib.AbstractContextManager[Any]:
    """Make CuPy allocate in the order of a stream, given by its address."""
    if simulated():
        return contextlib.nullcontext()
    import cupy

    return cupy.cuda.ExternalStream(stream)


def memory_for(field: str, given: Any, dtype: str, size: int, *, at_least: bool = False) -> Any:
    """Return the memory that was given, if it fits, or new one where none was.

    Parameters
    ----------
    field : str
        Name of the parameter, for errors.
    given : device array or None
        What the caller gave.
    dtype, size
        What it has to be; with `at_least`, any contiguous memory of so many elements or more, 8-aligned.

    Raises
    ------
    ConfigError
        If it does not fit.
    """
    if given is None:
        if simulated():
            return np.empty(size, dtype)
        import cupy

        return cupy.empty(size, dtype)
    array = DeviceArray(field, given)
    if at_least:
        fits = array.nbytes >= size * np.dtype(dtype).itemsize and array.address % 8 == 0
    else:
        fits = array.dtype == dtype and array.shape == (size,)
    if not fits:
        more = " or more, 8-aligned" if at_least else ""
        raise ConfigError(f"{field}: {array.dtype}{list(array.shape)} does not fit; pass {dtype}[{size}]{more}")
    return given
