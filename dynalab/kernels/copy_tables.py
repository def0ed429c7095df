"""Tables of addresses on their way to the GPU: pinned staging, device memory, and when either may be used again."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from dynalab.errors import ConfigError
from dynalab.kernels import gpu
from dynalab.kernels.buffers import DeviceBuffer, PinnedBuffer, view_of
from dynalab.kernels.copy import check_tables

_HOST_TO_DEVICE: Final = 1
_EVENT_DISABLE_TIMING: Final = 2
#: Smallest slot: 256 pairs with their sizes. A slot grows to the largest call that it has met.
_SMALLEST: Final = 3 * 8 * 256


@dataclass(frozen=True)
class PairTable:
    """Pairs whose table the device can read.

    Parameters
    ----------
    sources, targets : int
        Device addresses of `pairs` int64 each.
    sizes : int
        Device address of the sizes, or 0: all pairs have `largest` bytes.
    pairs, largest : int
        Number of pairs, and bytes of the largest one.
    memory : object
        Keeps the device memory.
    """

    sources: int
    targets: int
    sizes: int
    pairs: int
    largest: int
    memory: Any = field(default=None, repr=False)


class _Slot:
    """A staging buffer, a device buffer, and the event after which both are free."""

    def __init__(self, ring: TableRing) -> None:
        self.ring = ring
        self.event = ring.runtime.eventCreateWithFlags(_EVENT_DISABLE_TIMING)
        # Not at the interpreter's end: the driver may be gone by then.
        weakref.finalize(self, ring.runtime.eventDestroy, self.event).atexit = False
        self.capacity = 0
        self.staging: Any = None
        self.words: Any = None
        self.device: Any = None

    def make_room(self, nbytes: int) -> None:
        """Wait until the last user's launch is over, and grow if need be."""
        self.ring.runtime.eventSynchronize(self.event)
        if nbytes <= self.capacity:
            return
        capacity = max(_SMALLEST, 1 << (nbytes - 1).bit_length())
        self.capacity, self.words = 0, None
        self.staging, self.device = self.ring.allocate_pinned(capacity), self.ring.allocate(capacity)
        self.words = view_of(int(self.staging.ptr), capacity).view(np.int64)
        self.capacity = capacity


class TableRing:
    """Buffers for the tables of copies under way, handed out in turn.

    Parameters
    ----------
    slots : int
        Copies that can be under way at once before a call has to wait for the oldest; the field takes two per
        concurrent transfer and two more, with four transfers.
    allocate : callable, optional
        Takes bytes, returns an object that keeps so much device memory, with its address as ``ptr``: the ``malloc`` of
        a CuPy memory pool, for one. By default the CUDA runtime's own allocator.
    allocate_pinned : callable, optional
        The same for pinned host memory.
    runtime : module or object, optional
        Has the calls of ``cupy.cuda.runtime``, which is the default.
    """

    def __init__(
        self,
        slots: int = 10,
        *,
        allocate: Callable[[int], Any] | None = None,
        allocate_pinned: Callable[[int], Any] | None = None,
        runtime: Any = None,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots: {slots!r} is below 1")
        self.runtime = gpu.cuda_runtime() if runtime is None else runtime
        self.allocate = DeviceBuffer if allocate is None else allocate
        self.allocate_pinned = PinnedBuffer if allocate_pinned is None else allocate_pinned
        self._free = deque(_Slot(self) for _ in range(slots))
        self._returned = threading.Condition()

    def _fill(self, slot: _Slot, tables: tuple[Any, Any, Any, int], stream: int) -> PairTable:
        src, dst, sizes, _ = tables
        n, words = src.size, src.size * (3 if sizes.size > 1 else 2)
        slot.make_room(8 * words)
        slot.words[:n] = src.view(np.int64)
        slot.words[n : 2 * n] = dst.view(np.int64)
        if sizes.size > 1:
            slot.words[2 * n : words] = sizes
        base = int(slot.device.ptr)
        self.runtime.memcpyAsync(base, int(slot.staging.ptr), 8 * words, _HOST_TO_DEVICE, stream)
        return PairTable(
            sources=base,
            targets=base + 8 * n,
            sizes=base + 16 * n if sizes.size > 1 else 0,
            pairs=n,
            largest=int(sizes.max()),
            memory=slot.device,
        )

    @contextmanager
    def upload(self, src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, stream: int) -> Iterator[PairTable]:
        """Send a table to the device; what the body launches on the same stream may read it.

        Parameters
        ----------
        src, dst, nbytes
            As for `dynalab.kernels.copy.copy_pairs`, and refused as there.
        stream : int
            Address of the stream.

        Raises
        ------
        ConfigError
            For tables that do not fit.
        DeviceMemoryError
            If there is no memory for a larger slot.
        """
        tables = check_tables(src, dst, nbytes)
        if tables[0].size == 0:
            yield PairTable(0, 0, 0, 0, 0)
            return
        with self._returned:
            self._returned.wait_for(lambda: bool(self._free))
            slot = self._free.popleft()
        try:
            yield self._fill(slot, tables, stream)
        finally:
            # Recorded even after a failed launch: the table's own copy may still be under way.
            self.runtime.eventRecord(slot.event, stream)
            with self._returned:
                self._free.append(slot)
                self._returned.notify()

    def resident(self, src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, stream: int) -> PairTable:
        """Make a table that stays on the device as long as it is referred to, for copies that repeat."""
        alone = TableRing(1, allocate=self.allocate, allocate_pinned=self.allocate_pinned, runtime=self.runtime)
        with alone.upload(src, dst, nbytes, stream) as table:
            pass
        self.runtime.streamSynchronize(stream)
        return table


@functools.cache
def _ring_of(device: int) -> TableRing:
    return TableRing()


def default_ring() -> TableRing:
    """Return the ring that all calls for the current device share."""
    return _ring_of(gpu.cuda_runtime().getDevice())
