"""Aligned buffers between a caller's memory and an engine that wants alignment: O_DIRECT takes no other addresses."""

from __future__ import annotations

import queue
import threading
from typing import Final

import numpy as np

from dynalab.kernels.copy import copy_pairs
from dynalab.pools import HostArena
from dynalab.tiers.disk_io import Addresses, DiskEngine, Ints

#: Staging buffers, each for one call at a time, and their bytes (at least one slot).
_STAGES: Final = 4
_STAGE_BYTES: Final = 4 << 20


class Staging:
    """Gives an engine aligned addresses and whole slots, by way of aligned buffers where the caller's are not so.

    Parameters
    ----------
    engine : DiskEngine
    block_bytes, slot_bytes : int
        Bytes of content, and of a slot: a multiple of the engine's alignment.
    """

    def __init__(self, engine: DiskEngine, block_bytes: int, slot_bytes: int) -> None:
        self._engine, self._block, self._slot = engine, block_bytes, slot_bytes
        self._together = max(1, _STAGE_BYTES // slot_bytes)
        self._lock = threading.Lock()
        self._arena: HostArena | None = None
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()

    def transfer(self, slots: Ints, addresses: Addresses, *, write: bool) -> Ints:
        """Move the blocks of some slots; returns what `DiskEngine.transfer` does."""
        offsets = slots * self._slot
        alignment = self._engine.alignment
        if alignment == 1 or (self._block % alignment == 0 and not (addresses % np.uint64(alignment)).any()):
            return self._engine.transfer(offsets, addresses, self._block, write=write)
        errors = np.zeros(len(slots), np.int64)
        staged = np.arange(len(slots))
        if self._block % alignment == 0:
            aligned = addresses % np.uint64(alignment) == 0
            errors[aligned] = self._engine.transfer(offsets[aligned], addresses[aligned], self._block, write=write)
            staged = staged[~aligned]
        if len(staged) == 0:
            return errors
        stage = self._take()
        try:
            for begin in range(0, len(staged), self._together):
                part = staged[begin : begin + self._together]
                errors[part] = self._by_way_of(stage, offsets[part], addresses[part], write)
        finally:
            self._free.put(stage)
        return errors

    def _by_way_of(self, stage: int, offsets: Ints, addresses: Addresses, write: bool) -> Ints:
        """Move blocks through a staging buffer that has room for them."""
        buffers = np.uint64(stage) + np.arange(len(offsets), dtype=np.uint64) * np.uint64(self._slot)
        if write:
            copy_pairs(addresses, buffers, self._block)
            return self._engine.transfer(offsets, buffers, self._slot, write=True)
        errors = self._engine.transfer(offsets, buffers, self._slot, write=False)
        whole = errors == 0
        copy_pairs(buffers[whole], addresses[whole], self._block)
        return errors

    def _take(self) -> int:
        """Return the address of a free staging buffer, made at the first use; wait until there is one."""
        with self._lock:
            if self._arena is None:
                size = self._together * self._slot
                self._arena = HostArena(_STAGES * size, pinned=False, lock=False)
                for stage in range(_STAGES):
                    self._free.put(self._arena.address + stage * size)
        return self._free.get()

    def close(self) -> None:
        """Give the buffers back; nobody may be using them."""
        with self._lock:
            if self._arena is not None:
                self._arena.close()
