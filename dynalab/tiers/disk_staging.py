"""Aligned buffers between a caller's memory and an engine that wants alignment: O_DIRECT takes no other addresses."""

from __future__ import annotations

import threading
from typing import Final

import numpy as np

from dynalab.kernels.copy import copy_pairs
from dynalab.pools import BufferPool
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
        self._pool: BufferPool | None = None

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
        # One buffer a call: who held several and waited for more could wait for ever.
        with self._buffers().acquire() as buffer:
            for begin in range(0, len(staged), self._together):
                part = staged[begin : begin + self._together]
                errors[part] = self._by_way_of(buffer.address, offsets[part], addresses[part], write)
        return errors

    def _by_way_of(self, address: int, offsets: Ints, addresses: Addresses, write: bool) -> Ints:
        """Move blocks through a buffer that has room for them."""
        places = np.uint64(address) + np.arange(len(offsets), dtype=np.uint64) * np.uint64(self._slot)
        if write:
            copy_pairs(addresses, places, self._block)
            return self._engine.transfer(offsets, places, self._slot, write=True)
        errors = self._engine.transfer(offsets, places, self._slot, write=False)
        whole = errors == 0
        copy_pairs(places[whole], addresses[whole], self._block)
        return errors

    def _buffers(self) -> BufferPool:
        """Return the buffers, made at their first use: most tiers never need them."""
        with self._lock:
            if self._pool is None:
                self._pool = BufferPool(_STAGES, self._together * self._slot, pinned=False, lock=False)
            return self._pool

    def close(self) -> None:
        """Give the buffers back; nobody may be using them."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
