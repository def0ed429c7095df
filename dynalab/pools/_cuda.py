"""The CUDA runtime as memory needs it: is there a device, pinning, and CuPy's bindings.

CuPy is imported at the first call only, and its absence is an answer, not an error.
"""

from __future__ import annotations

import functools
from typing import Any

#: cudaHostRegisterPortable | cudaHostRegisterMapped: for every device, and readable by kernels.
_REGISTER_FLAGS = 1 | 2


@functools.cache
def why_no_cuda() -> str:
    """Return why CUDA memory cannot be had in this process, in one line; empty where it can."""
    try:
        from cupy.cuda import runtime
    except ImportError:
        return "CuPy is not installed; install dynalab[cuda]"
    try:
        count = runtime.getDeviceCount()
    except Exception as error:  # the driver may be absent, too old, or broken, each with a class of its own
        return f"the CUDA driver does not work ({error}); install or update the NVIDIA driver"
    return "" if count else "there is no NVIDIA GPU; run on a machine that has one"


def runtime() -> Any:
    """Return CuPy's bindings of the CUDA runtime; call only where `why_no_cuda` is empty."""
    from cupy.cuda import runtime

    return runtime


def current_stream() -> int:
    """Return the address of CuPy's current stream in this thread."""
    from cupy.cuda import get_current_stream

    return int(get_current_stream().ptr)


def pin(address: int, nbytes: int) -> None:
    """Pin pages for all devices; raises CuPy's CUDARuntimeError."""
    runtime().hostRegister(address, nbytes, _REGISTER_FLAGS)


def unpin(address: int) -> None:
    """Release pinned pages."""
    runtime().hostUnregister(address)
