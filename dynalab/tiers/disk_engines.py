"""Other people's engines for a disk tier, each an optional package: KvikIO (GPUDirect Storage) and NIXL (POSIX plugin).

Both are slower to start, and neither tells which block of a batch failed and why as exactly as the POSIX engine does.
KvikIO is worth it where the drive can reach GPU memory by itself; NIXL, for comparing with systems that build on it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import queue
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.errors import ConfigError
from dynalab.kernels.gpu import why_no_gpu
from dynalab.tiers.disk_io import DIRECT_ALIGNMENT, Addresses, DataFile, DiskEngine, Ints
from dynalab.tiers.disk_native import END_OF_FILE

if TYPE_CHECKING:
    from dynalab.tiers.disk_io import EngineFactory

#: Homes of NIXL's Python API: the package that picks one, and its builds for each CUDA version.
_NIXL_MODULES: Final = ("nixl._api", "nixl_cu13._api", "nixl_cu12._api")
#: NIXL is asked again and again whether a transfer is done; in between it may have the core for itself [seconds].
_NIXL_PAUSE: Final = 20e-6
#: ``cudaMemoryType``: memory that only the GPU, or both, have addresses for.
_GPU_MEMORY: Final = (2, 3)


def why_no_kvikio() -> str:
    """Say in one line why KvikIO cannot be used, or "" if it can."""
    if importlib.util.find_spec("kvikio") is None:
        return "the package kvikio is absent: pip install kvikio-cu13"
    # It imports without a GPU, but then does not even move host memory.
    return why_no_gpu()


def find_kvikio() -> EngineFactory:
    """Return what opens a `KvikioEngine`.

    Raises
    ------
    ConfigError
        If it cannot be had here.
    """
    if why := why_no_kvikio():
        raise ConfigError(f'engine: "kvikio" cannot be used: {why}; or choose "posix"')
    return KvikioEngine


def find_nixl() -> EngineFactory:
    """Return what opens a `NixlEngine`.

    Raises
    ------
    ConfigError
        If it cannot be had here.
    """
    _nixl()
    return NixlEngine


def _nixl() -> Any:
    """Import NIXL's Python API."""
    why = "the package nixl is absent: pip install --no-deps nixl-cu13"
    for name in _NIXL_MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                why = f"{name} lacks {error.name}"
        except ImportError as error:
            why = f"{name} cannot be loaded ({error})"
    raise ConfigError(f'engine: "nixl" cannot be used: {why}; or choose "posix"')


class _GpuBlock:
    """GPU memory at an address, as the CUDA array interface shows it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


class _HostBlock:
    """Host memory at an address, as NumPy's array interface shows it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


class KvikioEngine(DiskEngine):
    """KvikIO: between the file and GPU memory without a stop in host memory where GPUDirect Storage is set up.

    Addresses are all of GPU memory or all of host memory in one call. Alignment is left to KvikIO, whose number of
    threads is a setting of the whole process.

    Parameters
    ----------
    file : DataFile
    threads : int
        Threads of KvikIO's pool.
    """

    name = "kvikio"
    gpu_direct = True

    def __init__(self, file: DataFile, threads: int) -> None:
        kvikio = importlib.import_module("kvikio")
        importlib.import_module("kvikio.defaults").set("num_threads", threads)
        self._file = kvikio.CuFile(file.path, "r+")

    def transfer(self, offsets: Ints, addresses: Addresses, nbytes: int, *, write: bool) -> Ints:
        """Start all transfers, then wait for each of them."""
        block = _GpuBlock if self._on_gpu(addresses) else _HostBlock
        start = self._file.pwrite if write else self._file.pread
        futures = [
            start(block(address, nbytes), nbytes, offset)
            for address, offset in zip(addresses.tolist(), offsets.tolist(), strict=True)
        ]
        return np.array([_outcome(future, nbytes) for future in futures], np.int64)

    def checksums(self, addresses: Addresses, nbytes: int, seed: int) -> Addresses:
        """Return the checksums of blocks in memory, computed where the blocks are."""
        if not self._on_gpu(addresses):
            return super().checksums(addresses, nbytes, seed)
        from dynalab.kernels.checksum_device import checksum_blocks_device

        sums: Addresses = importlib.import_module("cupy").asnumpy(checksum_blocks_device(addresses, nbytes, seed=seed))
        return sums

    def close(self) -> None:
        """Close KvikIO's own handle of the file."""
        if not self._file.closed:
            self._file.close()

    @staticmethod
    def _on_gpu(addresses: Addresses) -> bool:
        if len(addresses) == 0:
            return False
        runtime = importlib.import_module("cupy").cuda.runtime
        return runtime.pointerGetAttributes(int(addresses[0])).type in _GPU_MEMORY


def _outcome(future: Any, nbytes: int) -> int:
    """Wait for a transfer of KvikIO, and return what a `DiskEngine` says of it."""
    try:
        return 0 if future.get() == nbytes else END_OF_FILE
    except OSError as error:
        return error.errno or errno.EIO
    except RuntimeError:
        # Errors of cuFile and of the C library alike come as text only.
        return errno.EIO


class NixlEngine(DiskEngine):
    """NIXL with its POSIX plugin: the engine of Dynamo's own disk tier, for host memory.

    An agent of NIXL is used by one thread at a time, so there is one for each caller at work. When a batch fails, NIXL
    does not say which block failed, nor why: its blocks are then moved one by one, and those that fail have ``EIO``.

    Parameters
    ----------
    file : DataFile
    threads : int
        Not used: the plugin has a queue of its own.
    """

    name = "nixl"

    def __init__(self, file: DataFile, threads: int) -> None:
        self.alignment = DIRECT_ALIGNMENT if file.direct else 1
        self._api, self._data = _nixl(), file
        self._agents: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._agents.put(self._new_agent())

    def transfer(self, offsets: Ints, addresses: Addresses, nbytes: int, *, write: bool) -> Ints:
        """Move all blocks as one transfer of NIXL, or one by one if that fails."""
        results = np.zeros(len(offsets), np.int64)
        if len(offsets) == 0:
            return results
        try:
            agent = self._agents.get_nowait()
        except queue.Empty:
            agent = self._new_agent()
        try:
            if not self._move(agent, offsets, addresses, nbytes, write):
                for i in range(len(offsets)):
                    alone = slice(i, i + 1)
                    if not self._move(agent, offsets[alone], addresses[alone], nbytes, write):
                        results[i] = errno.EIO
        finally:
            self._agents.put(agent)
        return results

    def close(self) -> None:
        """Let go of the agents."""
        with contextlib.suppress(queue.Empty):
            while True:
                agent, file = self._agents.get_nowait()
                agent.deregister_memory(file, backends=["POSIX"])

    def _new_agent(self) -> tuple[Any, Any]:
        """Return an agent with the plugin loaded, and its registration of the file."""
        agent = self._api.nixl_agent(
            f"dynalab-{os.getpid()}-{time.monotonic_ns()}", self._api.nixl_agent_config(backends=[])
        )
        if "POSIX" not in agent.get_plugin_list():
            raise ConfigError('engine: "nixl" has no POSIX plugin here; see NIXL_PLUGIN_DIR, or choose "posix"')
        agent.create_backend("POSIX", {})
        return agent, agent.register_memory([(0, self._data.nbytes, self._data.fd, "")], "FILE", backends=["POSIX"])

    def _move(self, owner: tuple[Any, Any], offsets: Ints, addresses: Addresses, nbytes: int, write: bool) -> bool:
        """Move blocks as one transfer; return whether all of them arrived."""
        agent = owner[0]
        sizes = np.full(len(offsets), nbytes, np.uint64)
        memory = np.stack([addresses, sizes, np.zeros_like(sizes)], axis=1)
        places = np.stack([offsets.astype(np.uint64), sizes, np.full_like(sizes, self._data.fd)], axis=1)
        registered = agent.register_memory(
            [(address, nbytes, 0, "") for address in addresses.tolist()], "DRAM", backends=["POSIX"]
        )
        handle = None
        try:
            handle = agent.initialize_xfer(
                "WRITE" if write else "READ",
                agent.get_xfer_descs(memory, "DRAM"),
                agent.get_xfer_descs(places, "FILE"),
                agent.name,
                backends=["POSIX"],
            )
            state = agent.transfer(handle)
            while state == "PROC":
                time.sleep(_NIXL_PAUSE)
                state = agent.check_xfer_state(handle)
            return bool(state == "DONE")
        except Exception as error:
            # The binding's error classes have no common base but this, and no public home.
            if not type(error).__name__.startswith("nixl"):
                raise
            return False
        finally:
            if handle is not None:
                agent.release_xfer_handle(handle)
            agent.deregister_memory(registered, backends=["POSIX"])
