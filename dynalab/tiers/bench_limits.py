"""What a machine gives at best, beside which its tiers are measured: one large copy, and plain reading and writing.

None of it knows tiers or blocks: memory is copied in one piece, and a file is read and written from its beginning to
its end.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from dynalab.errors import TransferError
from dynalab.kernels import copy_pairs
from dynalab.pools import HostArena
from dynalab.tiers.disk_space import reserve

if TYPE_CHECKING:
    from types import TracebackType

#: Bytes of one call of a plain reader or writer.
PIECE: Final = 4 << 20
#: Bytes of one large copy, or of one stretch of reading or writing.
LARGE: Final = 128 << 20
#: Its calls in flight.
DEPTH: Final = 8
#: Asynchronous copies in a row: one alone would be timed with the call that waits for it.
_CUDA_COPIES: Final = 8
_PAGE: Final = 4096


class PlainCopy:
    """Copies memory in one piece.

    Within memory of the CPU, by the C library's `memcpy` or by one that writes past the caches, whichever is quicker,
    the bytes shared out among threads. From and to a GPU, by asynchronous copies of CUDA, one behind the other.

    Parameters
    ----------
    threads : int
        Threads that share a copy within memory of the CPU.
    device : int
        Number of a GPU that is at one end at least, or -1.

    Examples
    --------
    >>> words = np.arange(1 << 20)
    >>> copy = PlainCopy(threads=2, device=-1)
    >>> copy.seconds(words.ctypes.data + words.nbytes // 2, words.ctypes.data, words.nbytes // 2) > 0
    True
    >>> copy.close(), int(words[-1])
    (None, 524287)
    """

    def __init__(self, threads: int, device: int) -> None:
        self._threads, self._device = threads, device
        self._pool = ThreadPoolExecutor(threads)

    def seconds(self, target: int, source: int, nbytes: int) -> float:
        """Copy bytes from one address to another, and return the seconds it took."""
        if self._device >= 0:
            return self._by_cuda(target, source, nbytes)
        return min(self._by_libc(target, source, nbytes), self._past_caches(target, source, nbytes))

    def _by_libc(self, target: int, source: int, nbytes: int) -> float:
        share = -(-nbytes // (self._threads * _PAGE)) * _PAGE
        begin = time.perf_counter()
        parts = [
            self._pool.submit(ctypes.memmove, target + at, source + at, min(share, nbytes - at))
            for at in range(0, nbytes, share)
        ]
        for part in parts:
            part.result()
        return time.perf_counter() - begin

    def _past_caches(self, target: int, source: int, nbytes: int) -> float:
        begin = time.perf_counter()
        copy_pairs([source], [target], nbytes, threads=self._threads)
        return time.perf_counter() - begin

    def _by_cuda(self, target: int, source: int, nbytes: int) -> float:
        from cupy import cuda

        with cuda.Device(self._device):
            stream = cuda.Stream(non_blocking=True)
            begin = time.perf_counter()
            for _ in range(_CUDA_COPIES):
                cuda.runtime.memcpyAsync(target, source, nbytes, cuda.runtime.memcpyDefault, stream.ptr)
            stream.synchronize()
            return (time.perf_counter() - begin) / _CUDA_COPIES

    def close(self) -> None:
        """Send the threads home."""
        self._pool.shutdown()


class PlainFile:
    """A file without a name that is read and written in large pieces, side by side, several at a time.

    Parameters
    ----------
    path : path
        Directory on the file system to measure.
    nbytes : int
        Size, a multiple of `PIECE`.
    direct : bool
        Bypass the page cache.

    Raises
    ------
    TierFull
        If there is no room for it.
    TransferError
        If it cannot be written whole.

    Examples
    --------
    >>> with PlainFile(Path(tempfile.gettempdir()), 2 * PIECE, direct=False) as file:
    ...     seconds, nbytes = file.run(PIECE, write=False)
    ...     seconds > 0, nbytes == PIECE
    (True, True)
    """

    def __init__(self, path: Path, nbytes: int, *, direct: bool) -> None:
        self._pieces, self._next = nbytes // PIECE, 0
        self._arena = HostArena(DEPTH * PIECE, pinned=False, lock=False)
        self._arena.array[:] = np.random.default_rng(0).integers(0, 256, self._arena.nbytes, np.uint8)
        self._memory = memoryview(self._arena.array.data)
        self._fd, name = tempfile.mkstemp(prefix=".dynalab-bench-", dir=path)
        try:
            if direct:
                os.close(self._fd)
                self._fd = os.open(name, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        finally:
            os.unlink(name)
        self._pool = ThreadPoolExecutor(DEPTH)
        try:
            reserve(self._fd, Path(name), nbytes, zero_fill=True)
            self.run(nbytes, write=True)  # the first write of reserved space is slower than those that follow
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, nbytes: int, *, write: bool) -> tuple[float, int]:
        """Write or read on from where the last call ended; return the seconds and the bytes.

        Raises
        ------
        TransferError
            If the drive does not take or give them.
        """
        count = max(1, min(nbytes // PIECE, self._pieces))
        if self._next + count > self._pieces:
            self._next = 0
        pieces = range(self._next, self._next + count)
        self._next += count

        def one(piece: int) -> int:
            at = piece % DEPTH * PIECE
            buffers = [self._memory[at : at + PIECE]]
            function = os.pwritev if write else os.preadv
            return function(self._fd, buffers, piece * PIECE)

        begin = time.perf_counter()
        try:
            moved = sum(self._pool.map(one, pieces))
        except OSError as error:
            raise TransferError(f"disk: the plain file cannot be {'written' if write else 'read'}: {error}") from error
        seconds = time.perf_counter() - begin
        if moved != count * PIECE:
            raise TransferError(f"disk: {moved} of {count * PIECE} bytes of the plain file were moved")
        return seconds, moved

    def close(self) -> None:
        """Give the file's space back."""
        self._pool.shutdown()
        self._arena.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
