"""One aligned piece of host memory, whole from the start: pinned for the GPU, or locked, or plain; it says which."""

from __future__ import annotations

import contextlib
import logging
import mmap
import weakref
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, DeviceMemoryError, TierClosed
from dynalab.pools import _cuda, _locking
from dynalab.pools.limits import available_memory
from dynalab.units import format_size, parse_size

#: Start of every arena: a page, which O_DIRECT and pinning want; 2 MiB from that size on, for huge pages.
ALIGNMENT = 4096
_HUGE_PAGE = 2 << 20
_log = logging.getLogger(__name__)


class HostArena:
    """One allocation of host memory that is really there.

    Every page is brought in when the arena is built, so that neither a page fault nor a lack of memory meets the first
    transfer; memory that the machine or its control group cannot give is refused before.

    Parameters
    ----------
    size : int or str
        Bytes, or text such as ``"8GiB"``.
    pinned : bool, optional
        Pin for CUDA: True demands it, False forbids it; by default where there is a GPU.
    lock : bool
        Where it is not pinned: lock the pages in memory (mlock). Where the system refuses (``ulimit -l``), a warning
        is logged and the arena is pageable.
    numa_node : int, optional
        Node to take the memory from while it has room; by default the one of the calling thread.

    Raises
    ------
    ConfigError
        If the size is no size, or zero.
    DeviceMemoryError
        If the memory cannot be had, or cannot be pinned although `pinned` is True.

    Attributes
    ----------
    nbytes : int
        Size in bytes.
    kind : str
        "pinned", "locked" or "pageable".

    Examples
    --------
    >>> with HostArena("64KiB", pinned=False) as arena:
    ...     arena.array[:4] = 7
    ...     arena.array.shape, arena.address % 4096, int(arena.array.sum())
    ((65536,), 0, 28)
    """

    def __init__(
        self, size: int | str, *, pinned: bool | None = None, lock: bool = True, numa_node: int | None = None
    ) -> None:
        self.nbytes = parse_size(size, field="size")
        if self.nbytes == 0:
            raise ConfigError("size: an arena of 0 bytes holds nothing; ask for at least one byte")
        why = "" if pinned is False else _cuda.why_no_cuda()
        if pinned and why:
            raise DeviceMemoryError(f"pinned host memory cannot be had: {why}, or pass pinned=False")
        self.kind: Literal["pinned", "locked", "pageable"] = "pageable"
        mapping, offset = self._map(numa_node)
        self._array: npt.NDArray[np.uint8] | None = np.frombuffer(mapping, np.uint8, self.nbytes, offset)
        self._address = self._array.ctypes.data
        if pinned is not False and not why:
            self._pin(must=bool(pinned))
        if self.kind == "pageable" and lock:
            self._lock()
        self._numa_node = _locking.node_of(self._address)
        self._release = weakref.finalize(self, _release, mapping, offset, self._address, self.nbytes, self.kind)

    @property
    def address(self) -> int:
        """Address of the first byte, a multiple of 4096 (of 2 MiB in arenas of that size and more)."""
        self.array  # noqa: B018 - a closed arena has no address
        return self._address

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory as uint8[nbytes], zeros at first."""
        if self._array is None:
            raise TierClosed("this host arena is closed; build a new one")
        return self._array

    @property
    def locked(self) -> bool:
        """Whether the pages stay in memory for good: pinned or locked."""
        return self.kind != "pageable"

    @property
    def numa_node(self) -> int | None:
        """NUMA node of the first page, None where the system does not tell."""
        return self._numa_node

    def close(self) -> None:
        """Give the memory back; a second call does nothing.

        The pages go at once, even where views of `array` are still held: those read zeros from then on.
        """
        self._array = None
        self._release()

    def __enter__(self) -> HostArena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._array is None else f"{self.kind}, at {self._address:#x}, NUMA node {self._numa_node}"
        return f"HostArena({format_size(self.nbytes)}, {state})"

    def _map(self, numa_node: int | None) -> tuple[mmap.mmap, int]:
        """Map, place and touch the memory; return the mapping and where the arena begins in it."""
        alignment = _HUGE_PAGE if self.nbytes >= _HUGE_PAGE else ALIGNMENT
        available = available_memory()
        shortage = DeviceMemoryError(
            f"{format_size(self.nbytes)} of host memory asked, {format_size(available)} available to this process; "
            "make the tier or pool smaller, or free memory"
        )
        if self.nbytes > available:
            raise shortage
        try:
            # A mapping begins at a page; what lies before the first huge page's boundary is never touched.
            mapping = mmap.mmap(-1, self.nbytes + alignment - ALIGNMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise shortage from error
        begin = np.frombuffer(mapping, np.uint8, 1).ctypes.data
        offset = -begin % alignment
        if alignment == _HUGE_PAGE:
            with contextlib.suppress(OSError):  # a kernel without huge pages: small ones do as well, more slowly
                mapping.madvise(mmap.MADV_HUGEPAGE, offset, self.nbytes)
        if numa_node is not None:
            try:
                _locking.prefer_node(begin + offset, self.nbytes, numa_node)
            except OSError as error:
                raise ConfigError(
                    f"numa_node: {numa_node} cannot be used ({error}); see `numactl --hardware`"
                ) from None
        try:
            _locking.touch_pages(mapping, offset, self.nbytes)
        except MemoryError as error:
            raise shortage from error
        return mapping, offset

    def _pin(self, *, must: bool) -> None:
        try:
            _cuda.pin(self._address, self.nbytes)
            self.kind = "pinned"
        except Exception as error:  # CuPy's errors have no common base of their own
            if must:
                raise DeviceMemoryError(
                    f"{format_size(self.nbytes)} of host memory cannot be pinned ({error}); "
                    "ask for less, or pass pinned=False"
                ) from error
            _log.warning(
                "%s of host memory are not pinned (%s): copies will be slower", format_size(self.nbytes), error
            )

    def _lock(self) -> None:
        try:
            _locking.lock_pages(self._address, self.nbytes)
            self.kind = "locked"
        except OSError as error:
            _log.warning(
                "%s of host memory are not locked (%s): they may be swapped out; raise `ulimit -l`",
                format_size(self.nbytes),
                error,
            )


def _release(mapping: mmap.mmap, offset: int, address: int, nbytes: int, kind: str) -> None:
    """Unpin or unlock, then drop the pages; the addresses stay reserved for as long as a view needs them."""
    if kind == "pinned":
        _cuda.unpin(address)
    elif kind == "locked":
        _locking.unlock_pages(address, nbytes)
    mapping.madvise(mmap.MADV_DONTNEED, offset, nbytes)
