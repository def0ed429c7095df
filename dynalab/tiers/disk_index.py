"""Which block lies in which slot of a disk tier: in memory for those who ask, in a file for the next process.

The file is a superblock and one entry of 64 bytes per slot, in slot order; all zeros mean an empty slot. An entry names
the block (hash, parent, position, priority), the checksum of its bytes, and a sequence number that orders all entries
ever written to the file; its last word is a checksum of the others, begun with the file's own number.

**Why nothing wrong is served, whatever dies when.** A block is written in three steps: (1) its slot's old entry, if
any, is overwritten by zeros; (2) the bytes are written to the data file; (3) the new entry is written, and only then is
the write acknowledged.

*The process dies* (``kill -9``). What a system call has written stays, so the steps happened up to some point, in their
order, for every slot by itself. Before (1) the slot holds the old block under the old entry; between (1) and (3) it
holds anything under no entry; after (3) the new block under the new entry. A page of the index that a dying ``write``
changed only in part shows by the entry's checksum and counts as no entry. Writes that a dead process had in flight
overtake nobody: the kernel closes a process's files, and with them gives up the lock on the data file, only after the
last of its threads has come back from the drive.

*The power fails.* Then every page written since the last `flush` may be there or not, in any combination, as may every
sector of the data. A slot is then served only if the checksums of its entry and of its bytes hold: an entry whose bytes
did not arrive, or whose slot has been given other bytes while its zeros were lost, is found out when it is read, and is
a miss. Blocks that were forgotten may come back, with the right bytes or not at all. What was written before a `flush`
that returned is there: it makes the data durable first, then the entries.

*Two entries name one block.* The later one counts, the other slot is empty.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import TierError
from dynalab.kernels.checksum import checksum_blocks
from dynalab.tiers.disk_native import write_rows
from dynalab.tiers.disk_superblock import ENTRY_BYTES, PAGE
from dynalab.tiers.tier import BlockKeys

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_N_WORDS: Final = ENTRY_BYTES // 8
_SEQUENCE, _HASH, _PARENT, _PLACE, _CHECKSUM, _SLOT, _, _CHECK = range(_N_WORDS)
_POSITION, _PRIORITY = 2 * _PLACE, 2 * _PLACE + 1  # halves of the word, as int32


def entry_checks(rows: Words, file_id: int) -> Words:
    """Return the checksum that each entry, shape (n, 8), should end with."""
    addresses = rows.ctypes.data + np.arange(len(rows), dtype=np.uint64) * np.uint64(ENTRY_BYTES)
    return checksum_blocks(addresses, ENTRY_BYTES - 8, seed=file_id)


class BlockIndex:
    """Entries of all slots, in memory and in an open file.

    A slot is *live* when it may be read, *busy* while someone writes or empties it, else empty.

    Parameters
    ----------
    fd : int
        The index file, open for reading and writing.
    capacity : int
        Slots.
    file_id : int
        The file's own number.

    Attributes
    ----------
    damaged, superseded : int
        Entries found at the start that were neither valid nor empty, and valid ones that a later one replaces.

    Raises
    ------
    TierError
        If the file cannot be read, or is shorter than its entries.
    """

    def __init__(self, fd: int, capacity: int, file_id: int) -> None:
        self._fd, self._file_id = fd, file_id
        self._lock = threading.Lock()
        self._rows: Words = np.zeros((capacity, _N_WORDS), "<u8")
        self._live = np.zeros(capacity, np.bool_)
        self._busy = np.zeros(capacity, np.bool_)
        # A block that this process has written, or has read and found whole.
        self._known = np.zeros(capacity, np.bool_)
        self._next = 1
        self.damaged = self.superseded = 0

    def recover(self, data: bytes | memoryview) -> Ints:
        """Take over the entries of the file, and clear those that are worth nothing.

        Parameters
        ----------
        data : bytes
            All entries.

        Returns
        -------
        int, shape (n,)
            Live slots, in the order in which they were written.

        Raises
        ------
        TierError
            If an entry that is worth nothing cannot be cleared.
        """
        rows = self._rows
        rows[:] = np.frombuffer(data, "<u8").reshape(rows.shape)
        used = rows.any(axis=1)
        valid = used & (rows[:, _SEQUENCE] > 0) & (rows[:, _CHECK] == entry_checks(rows, self._file_id))
        valid &= rows[:, _SLOT] == np.arange(len(rows), dtype=np.uint64)
        slots = np.flatnonzero(valid)
        slots = slots[np.argsort(rows[slots, _SEQUENCE], kind="stable")]
        # np.unique finds the first of equals: the last one written, seen from behind.
        keep = len(slots) - 1 - np.unique(rows[slots[::-1], _HASH], return_index=True)[1]
        winners: Ints = slots[np.sort(keep)]
        self._live[winners] = True
        self.damaged = int(np.count_nonzero(used & ~valid))
        self.superseded = len(slots) - len(winners)
        if len(slots):
            self._next = int(rows[slots[-1], _SEQUENCE]) + 1
        worthless = np.flatnonzero(used & ~self._live)
        rows[worthless] = 0
        failed = self._store(worthless)
        if failed.any():
            raise TierError(f"disk: the index cannot be written (errno {failed[failed != 0][0]}); see to the drive")
        return winners

    def keys(self, slots: Ints) -> BlockKeys:
        """Return who the blocks in some slots are."""
        with self._lock:
            rows = self._rows[slots]
        halves = rows.view("<i4")
        return BlockKeys(
            rows[:, _HASH].copy(),
            rows[:, _PARENT].copy(),
            halves[:, _POSITION].astype(np.int32),
            halves[:, _PRIORITY].astype(np.int32),
        )

    def live_count(self) -> int:
        """Return how many slots may be read."""
        with self._lock:
            return int(np.count_nonzero(self._live))

    @contextlib.contextmanager
    def claimed(self, slots: Ints) -> Iterator[Ints]:
        """Empty some slots, in memory and in the file, and keep them busy for the caller inside the context.

        Yields
        ------
        int64, shape (n,)
            0, or why a slot's old entry could not be cleared in the file.

        Raises
        ------
        TierError
            If a slot is named twice, or busy already: nothing is claimed then.
        """
        errors = self._claim(slots)
        try:
            yield errors
        finally:
            with self._lock:
                self._busy[slots] = False

    def _claim(self, slots: Ints) -> Ints:
        with self._lock:
            if len(np.unique(slots)) < len(slots):
                values, counts = np.unique(slots, return_counts=True)
                raise TierError(f"disk: slot {values[counts > 1][0]} is named twice in one call; name each slot once")
            if self._busy[slots].any():
                busy = slots[self._busy[slots]][0]
                raise TierError(f"disk: slot {busy} is being written or forgotten by another thread; wait for it")
            self._busy[slots] = True
            self._live[slots] = False
            used = self._rows[slots].any(axis=1)
            self._rows[slots] = 0
        errors = np.zeros(len(slots), np.int64)
        errors[used] = self._store(slots[used])
        # Where the file may still hold the old entry, the next claim has to clear it.
        self._rows[slots[errors != 0], _SLOT] = 1
        return errors

    def publish(self, slots: Ints, keys: BlockKeys, checksums: Words) -> Ints:
        """Enter blocks whose bytes have been written into claimed slots; return 0 or an errno for each."""
        rows = np.zeros((len(slots), _N_WORDS), "<u8")
        with self._lock:
            rows[:, _SEQUENCE] = np.arange(self._next, self._next + len(slots), dtype=np.uint64)
            self._next += len(slots)
        rows[:, _HASH], rows[:, _PARENT], rows[:, _CHECKSUM], rows[:, _SLOT] = keys.hash, keys.parent, checksums, slots
        halves = rows.view("<i4")
        halves[:, _POSITION], halves[:, _PRIORITY] = keys.position, keys.priority
        rows[:, _CHECK] = entry_checks(rows, self._file_id)
        self._rows[slots] = rows
        errors = self._store(slots)
        done = slots[errors == 0]
        with self._lock:
            self._live[done] = True
            self._known[done] = True
        return errors

    def look_up(self, slots: Ints, hashes: Words) -> tuple[npt.NDArray[np.bool_], Words, Words, npt.NDArray[np.bool_]]:
        """Say what to expect of a read.

        Returns
        -------
        there : bool, shape (n,)
            The slot is live and holds the block asked for.
        sequences, checksums : uint64, shape (n,)
            The entry's number, for `still`, and the checksum of the bytes.
        known : bool, shape (n,)
            This process has written or verified the block itself.
        """
        with self._lock:
            rows = self._rows[slots]
            there = self._live[slots] & (rows[:, _HASH] == hashes)
            return there, rows[:, _SEQUENCE].copy(), rows[:, _CHECKSUM].copy(), self._known[slots]

    def still(self, slots: Ints, sequences: Words, verified: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return whether the entries seen by `look_up` are live still, and note which blocks were verified."""
        with self._lock:
            same: npt.NDArray[np.bool_] = self._live[slots] & (self._rows[slots, _SEQUENCE] == sequences)
            self._known[slots[same & verified]] = True
            return same

    def _store(self, slots: Ints) -> Ints:
        """Write the entries of some slots to the file; return 0 or an errno for each."""
        order = np.argsort(slots, kind="stable")
        ascending, results = np.ascontiguousarray(slots[order], np.int64), np.zeros(len(slots), np.int64)
        write_rows(
            self._fd,
            self._rows.ctypes.data,
            ascending.ctypes.data,
            len(slots),
            ENTRY_BYTES,
            PAGE,
            results.ctypes.data,
        )
        errors = np.empty_like(results)
        errors[order] = results
        return errors
