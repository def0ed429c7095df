"""A storage tier in a dictionary: what movers are tested with where a disk would only be slower, faults on demand."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import numpy.typing as npt

from dynalab.errors import CorruptBlock, TransferError
from dynalab.kv import KVLayout
from dynalab.tiers import BlockKeys, Capabilities, StorageTier
from dynalab.tiers.tier import READ_CORRUPT, READ_FAILED, READ_OK, READ_STALE


class MemoryStorage(StorageTier):
    """Blocks as bytes by slot; slots in `broken` cannot be written or read, those in `corrupt` read as garbage."""

    name = "disk"

    def __init__(self, layout: KVLayout, capacity: int) -> None:
        super().__init__(layout, capacity)
        self.blocks: dict[int, tuple[bytes, int]] = {}
        self.broken: set[int] = set()
        self.corrupt: set[int] = set()
        self.largest = 0
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def write(
        self,
        slots: npt.ArrayLike,
        sources: npt.NDArray[np.uint64],
        keys: BlockKeys,
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.bool_]:
        where = self.check_slots(slots).tolist()
        assert len(where) == len(sources) == len(keys)
        written = np.array([slot not in self.broken for slot in where], np.bool_)
        for slot, source, name, ok in zip(where, sources.tolist(), keys.hash.tolist(), written.tolist(), strict=True):
            if ok:
                self.blocks[slot] = ctypes.string_at(source, self.block_bytes), name
            else:
                self.blocks.pop(slot, None)
                self._tell(errors, TransferError(f"disk: write of slot {slot} failed"))
        with self._lock:
            self.largest = max(self.largest, len(where))
        return written

    def read(
        self,
        slots: npt.ArrayLike,
        targets: npt.NDArray[np.uint64],
        hashes: npt.NDArray[np.uint64],
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.int8]:
        where = self.check_slots(slots).tolist()
        assert len(where) == len(targets) == len(hashes)
        status = np.zeros(len(where), np.int8)
        for i, (slot, target, name) in enumerate(zip(where, targets.tolist(), hashes.tolist(), strict=True)):
            block, held = self.blocks.get(slot, (b"", None))
            if slot in self.broken:
                status[i] = READ_FAILED
                self._tell(errors, TransferError(f"disk: read of slot {slot} failed"))
            elif held != name:
                status[i] = READ_STALE
                self._tell(errors, TransferError(f"disk: slot {slot} does not hold block {name}"))
            elif slot in self.corrupt:
                status[i] = READ_CORRUPT
                ctypes.memset(target, 0xBA, self.block_bytes)
                self._tell(errors, CorruptBlock(f"disk: slot {slot} does not match block {name}"))
            else:
                status[i] = READ_OK
                ctypes.memmove(target, block, self.block_bytes)
        with self._lock:
            self.largest = max(self.largest, len(where))
        return status

    @staticmethod
    def _tell(errors: list[TransferError] | None, error: TransferError) -> None:
        if errors is not None:
            errors.append(error)

    def forget(self, slots: npt.ArrayLike) -> None:
        for slot in self.check_slots(slots).tolist():
            self.blocks.pop(slot, None)

    def recovered(self) -> tuple[npt.NDArray[np.int64], BlockKeys]:
        return np.empty(0, np.int64), BlockKeys.of([])

    def flush(self) -> None:
        self.require_open()

    def _close(self) -> None:
        self.blocks.clear()
