"""Whether there is a GPU, whether kernels can be compiled, and which device and stream a call means.

Nothing here imports CUDA packages before they are asked for. Two questions are kept apart: compiling kernels needs
``numba-cuda`` with the CUDA compiler's wheels and no GPU at all; running them needs a driver, a device and CuPy too.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from typing import Any, Final

from dynalab.errors import ConfigError

_CURE: Final = "pip install 'dynalab[cuda]'"
#: Modules that running a kernel needs, with the packages that bring them.
_RUNNING: Final = {"numba_cuda": "numba-cuda", "cuda.bindings": "cuda-bindings", "cupy": "cupy-cuda13x"}


def simulated() -> bool:
    """Tell whether Numba's CUDA simulator is on (``NUMBA_ENABLE_CUDASIM=1`` when Numba was first imported)."""
    if "numba" in sys.modules:
        from numba import config

        return bool(config.ENABLE_CUDASIM)
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0").strip() not in ("", "0")


def _absent(*modules: str) -> list[str]:
    found = []
    for name in modules:
        try:
            present = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the parent of a dotted name is absent
            present = False
        if not present:
            found.append(_RUNNING[name])
    return found


def why_no_compiler() -> str:
    """Say in one line what keeps kernels from being compiled to machine code, or "" if nothing does."""
    if simulated():
        return "Numba's CUDA simulator is on: unset NUMBA_ENABLE_CUDASIM"
    absent = _absent("numba_cuda", "cuda.bindings")
    return f"{' and '.join(absent)} not installed: {_CURE}" if absent else ""


def cuda_module() -> Any:
    """Return ``numba.cuda``, or its simulator, made ready for its first compile.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    import numpy as np

    # numba-cuda 0.30 still asks for this old name of vstack at its first compile; numpy 2.5 dropped it.
    vars(np).setdefault("row_stack", np.vstack)
    try:
        from numba import cuda
    except ImportError as error:
        # numba-cuda without the extra that brings the CUDA wheels fails here, and takes numba's own cuda with it.
        raise ConfigError(f"numba.cuda cannot be imported ({error}): {_CURE}") from error
    return cuda


@functools.cache
def _why_no_device() -> str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    error, count = driver.cuInit(0), ctypes.c_int()
    error = error or driver.cuDeviceGetCount(ctypes.byref(count))
    if error == 100:
        return "the NVIDIA driver shows no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES"
    if error:
        return f"the NVIDIA driver does not start (CUDA error {error}): see nvidia-smi"
    return "" if count.value else "the NVIDIA driver shows no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES"


def why_no_gpu() -> str:
    """Say in one line why no kernel can run on a GPU here and what would help, or "" if one can.

    Examples
    --------
    >>> gpu_available() == (why_no_gpu() == "")
    True
    """
    if simulated():
        return "Numba's CUDA simulator is on: unset NUMBA_ENABLE_CUDASIM"
    why = _why_no_device()
    if why:
        return why
    absent = _absent(*_RUNNING)
    return f"{' and '.join(absent)} not installed: {_CURE}" if absent else ""


def gpu_available() -> bool:
    """Tell whether kernels can run on an NVIDIA GPU in this process: driver, device and packages are all there."""
    return not why_no_gpu()


def require_gpu(what: str = "this") -> None:
    """Refuse `what` where there is no GPU.

    Raises
    ------
    ConfigError
        With the reason and the cure.
    """
    why = why_no_gpu()
    if why:
        raise ConfigError(f"{what} needs an NVIDIA GPU: {why}")


def cuda_runtime() -> Any:
    """Return CuPy's thin layer over the CUDA runtime: ``malloc``, ``memcpyAsync``, events and streams by address.

    Its calls make the thread's device ready at need, and raise on errors.

    Raises
    ------
    ConfigError
        Where there is no GPU.
    """
    require_gpu("CUDA")
    from cupy.cuda import runtime

    return runtime


def check_cuda(result: Any, what: str) -> Any:
    """Return the values of a ``cuda.bindings`` call, without its status.

    Raises
    ------
    ConfigError
        If the status is not success; `what` names the call's purpose.
    """
    status, *values = result
    if int(status) != 0:
        raise ConfigError(f"{what}: CUDA error {int(status)} ({status.name})")
    return values[0] if len(values) == 1 else tuple(values)


def stream_handle(stream: Any) -> int:
    """Return a stream's address: of an integer, a CuPy, Numba or ``cuda.core`` stream, or of CuPy's current one.

    Parameters
    ----------
    stream : int, object or None
        None stands for CuPy's current stream.

    Raises
    ------
    ConfigError
        If the object is no stream.

    Examples
    --------
    >>> stream_handle(7)
    7
    """
    if stream is None:
        from cupy import cuda as cupy_cuda

        return int(cupy_cuda.get_current_stream().ptr)
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("ptr", "handle", "cuda_stream"):
        if hasattr(stream, name):
            value = getattr(stream, name)
            return int(getattr(value, "value", value) or 0)
    try:
        return int(stream)
    except (TypeError, ValueError):
        raise ConfigError(
            f"stream: {stream!r} is no CUDA stream; give its address, or a CuPy, Numba or cuda.core stream"
        ) from None


@functools.cache
def device_facts(index: int = 0) -> dict[str, str | int]:
    """Name, size and versions of a GPU: what a measurement on it has to be labelled with.

    Returns
    -------
    dict
        ``device`` (name), ``index``, ``multiprocessors``, ``memory_bytes``, ``compute_capability`` ("9.0"),
        ``driver_cuda`` and ``runtime_cuda`` (as CUDA counts: 13000 for 13.0).

    Raises
    ------
    ConfigError
        Where there is no GPU.
    """
    require_gpu("device facts")
    from cuda.bindings import runtime

    properties = check_cuda(runtime.cudaGetDeviceProperties(index), "device properties")
    name = properties.name
    return {
        "device": (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        "index": index,
        "multiprocessors": int(properties.multiProcessorCount),
        "memory_bytes": int(properties.totalGlobalMem),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver_cuda": int(check_cuda(runtime.cudaDriverGetVersion(), "driver version")),
        "runtime_cuda": int(check_cuda(runtime.cudaRuntimeGetVersion(), "runtime version")),
    }
