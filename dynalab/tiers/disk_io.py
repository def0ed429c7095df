"""How bytes get between memory and a disk tier's file: the interface of the engines, and the POSIX engine."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TierClosed, unknown
from dynalab.kernels.checksum import checksum_blocks
from dynalab.tiers import disk_native

Ints = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]

#: What O_DIRECT wants of addresses, offsets and sizes. Many devices are content with 512; no device wants more.
DIRECT_ALIGNMENT: Final = 4096
#: Threads of the POSIX engine: what the transfer engine's four batches of 16 blocks keep busy, and a drive needs.
THREADS: Final = 16
#: Blocks side by side in the file are moved in one call up to so many bytes: blocks of 4 KiB 4 times faster than one by
#: one, of 64 KiB 1.3 to 1.6 times; more than 1 MiB gained nothing (virtual drive, 2 cores).
COALESCE_BYTES: Final = 1 << 20
#: A batch is spread over the threads rather than joined into few calls, but not into calls of less than this.
_SPREAD_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class DataFile:
    """The open file that an engine moves bytes to and from.

    Parameters
    ----------
    path : Path
    fd : int
        Open for reading and writing for longer than the engine lives.
    direct : bool
        Opened with O_DIRECT.
    nbytes : int
        Size of the file.
    """

    path: Path
    fd: int
    direct: bool
    nbytes: int


class DiskEngine(ABC):
    """Moves blocks between memory and one file; any number of threads may call it at once.

    Attributes
    ----------
    name : str
    alignment : int
        What addresses, offsets and sizes must be multiples of; the tier sees to it.
    gpu_direct : bool
        Addresses may be those of GPU memory.
    """

    name: ClassVar[str]
    alignment: int = 1
    gpu_direct: bool = False

    @abstractmethod
    def transfer(self, offsets: Ints, addresses: Addresses, nbytes: int, *, write: bool) -> Ints:
        """Move blocks, and return when each of them is done or has failed.

        Parameters
        ----------
        offsets : int64, shape (n,)
            Where the blocks lie in the file; they do not overlap.
        addresses : uint64, shape (n,)
            Where they lie in memory.
        nbytes : int
            Bytes of each.
        write : bool
            To the file, or from it.

        Returns
        -------
        int64, shape (n,)
            0 for a block that was moved whole, else its errno, or ``disk_native.END_OF_FILE``.
        """

    def checksums(self, addresses: Addresses, nbytes: int, seed: int) -> Addresses:
        """Return the checksums of blocks in memory."""
        return checksum_blocks(addresses, nbytes, seed=seed)

    @abstractmethod
    def close(self) -> None:
        """Wait for what is under way, and give everything back but the file; the second call does nothing."""


class PosixEngine(DiskEngine):
    """``preadv`` and ``pwritev`` from threads that do not know the GIL; see `dynalab.tiers.disk_native`.

    Parameters
    ----------
    file : DataFile
    threads : int
        Calls in flight besides those of the callers themselves, each of whom does its share.
    coalesce : int
        Most bytes of one call, if its blocks lie side by side in the file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as raw:
    ...     block = np.arange(512, dtype=np.uint64)
    ...     engine = PosixEngine(DataFile(Path("raw"), raw.fileno(), False, 8192), threads=2)
    ...     address = np.array([block.ctypes.data], np.uint64)
    ...     engine.transfer(np.array([4096]), address, 4096, write=True).tolist()
    ...     engine.transfer(np.array([4096, 8192]), np.repeat(address, 2), 4096, write=False).tolist()
    ...     engine.close()
    [0]
    [0, -1]
    """

    name = "posix"

    def __init__(self, file: DataFile, threads: int = THREADS, coalesce: int = COALESCE_BYTES) -> None:
        self.alignment = DIRECT_ALIGNMENT if file.direct else 1
        self._fd, self._threads, self._coalesce = file.fd, threads, coalesce
        self._control = np.zeros(disk_native.CONTROL_BYTES // 8, np.int64)
        self._ring = np.zeros((disk_native.RING, disk_native.WORDS), np.int64)
        disk_native.prepare(self._control.ctypes.data)
        workers = [
            # A daemon, for it sleeps in machine code: the interpreter could not wake it to end.
            threading.Thread(
                target=disk_native.work,
                args=(self._control.ctypes.data, self._ring.ctypes.data),
                name=f"dynalab-disk-{number}",
                daemon=True,
            )
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        self._gate = Gate()
        # The threads hold addresses of these arrays: they go home before the arrays do, at the latest at exit.
        self._finalizer = weakref.finalize(
            self, _send_home, self._gate, self._control, self._ring, workers, os.getpid()
        )

    def transfer(self, offsets: Ints, addresses: Addresses, nbytes: int, *, write: bool) -> Ints:
        """Move blocks; those side by side in the file go together, and small batches stay in the calling thread."""
        count = len(offsets)
        results = np.zeros(count, np.int64)
        if count == 0:
            return results
        order = np.argsort(offsets, kind="stable")
        ascending = np.ascontiguousarray(offsets[order], np.int64)
        buffers = np.empty((count, 2), np.uint64)
        buffers[:, 0], buffers[:, 1] = addresses[order], nbytes
        batch = np.zeros(disk_native.BATCH_BYTES // 8, np.int64)
        limit = min(self._coalesce, max(_SPREAD_BYTES, nbytes * count // (self._threads + 1)))
        with self._gate:
            disk_native.run_batch(
                self._control.ctypes.data,
                self._ring.ctypes.data,
                batch.ctypes.data,
                self._fd,
                buffers.ctypes.data,
                ascending.ctypes.data,
                results.ctypes.data,
                count,
                nbytes,
                limit,
                int(write),
            )
        moved = np.empty_like(results)
        moved[order] = results
        return moved

    def close(self) -> None:
        """Wait for the callers inside, then send the threads home."""
        self._finalizer()


class Gate:
    """Lets any number of callers in until it is shut, which waits until the last of them has left."""

    def __init__(self) -> None:
        self._inside = 0
        self._shut = False
        self._pid = os.getpid()
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        if os.getpid() != self._pid:
            raise TierClosed("disk: the tier was opened before this process was forked off; open it in here instead")
        with self._changed:
            if self._shut:
                raise TierClosed("disk: the tier is closed; open a new one")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._inside == 0:
                self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in any more, and wait until nobody is inside."""
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: self._inside == 0)


def _send_home(gate: Gate, control: Ints, ring: Ints, workers: list[threading.Thread], pid: int) -> None:
    """Stop the threads of an engine; in a forked process there are none."""
    if os.getpid() != pid:
        return
    gate.shut()
    disk_native.stop(control.ctypes.data, len(workers))
    for worker in workers:
        worker.join()
    del ring  # alive until here, for the threads


EngineFactory = Callable[[DataFile, int], DiskEngine]


def find_engine(engine: str | EngineFactory) -> EngineFactory:
    """Return what opens an engine, or say why there is none: before any file is made.

    Parameters
    ----------
    engine : str or callable
        "posix", "kvikio", "nixl", "auto", or a function of a `DataFile` and a number of threads, returned as it is.

    Raises
    ------
    ConfigError
        If the engine does not exist, or cannot be had here.
    """
    from dynalab.tiers.disk_engines import find_kvikio, find_nixl, why_no_kvikio

    if callable(engine):
        return engine
    known: dict[str, Callable[[], EngineFactory]] = {
        "posix": lambda: PosixEngine,
        "kvikio": find_kvikio,
        "nixl": find_nixl,
        "auto": lambda: PosixEngine if why_no_kvikio() else find_kvikio(),
    }
    if engine not in known:
        raise unknown("engine", engine, known)
    return known[engine]()


def check_threads(threads: int | None) -> int:
    """Return the number of transfers in flight, by default `THREADS`."""
    if threads is None:
        return THREADS
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 512:
        raise ConfigError(f"threads: {threads!r} is not a number from 1 to 512; {THREADS} suit most drives")
    return threads
