"""What became of a disk tier's blocks: counters, and an error in words for each that was not written or read."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

from dynalab.errors import CorruptBlock, TransferError
from dynalab.tiers.disk_native import END_OF_FILE
from dynalab.tiers.tier import READ_CORRUPT, READ_FAILED

#: Errors that a tier remembers.
REMEMBERED: Final = 100
COUNTERS: Final = (
    "blocks_written",
    "blocks_read",
    "write_failures",
    "read_failures",
    "corrupt_blocks",
    "stale_reads",
)


class Record:
    """Counters and the last errors of a tier, for any number of threads.

    Parameters
    ----------
    path : Path
        The file, for the errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._errors: deque[TransferError] = deque(maxlen=REMEMBERED)

    def note(self, lost: list[TransferError], errors: list[TransferError] | None, **counts: int) -> None:
        """Add to the counters, remember the errors, and hand them to the caller's list if there is one."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
            self._errors.extend(lost)
        if errors is not None:
            errors.extend(lost)

    def counts(self) -> dict[str, int]:
        """Return the counters by name."""
        with self._lock:
            return dict(self._counts)

    def errors(self) -> tuple[TransferError, ...]:
        """Return the last errors, the newest last."""
        with self._lock:
            return tuple(self._errors)

    def failure(self, what: str, slot: Any, hash: Any, code: int) -> TransferError:
        """Return the error for a block that the drive did not take or give."""
        block = "" if hash is None else f" (block {int(hash):#018x})"
        error = TransferError(f"disk: {what} of slot {slot}{block} in {self._path} failed: {reason(code)}")
        if code > 0:
            error.__cause__ = OSError(code, os.strerror(code))
        return error

    def miss(self, status: int, slot: Any, hash: Any, code: int) -> TransferError:
        """Return the error for a block that was not read, by its status."""
        if status == READ_FAILED:
            return self.failure("read", slot, hash, code)
        if status == READ_CORRUPT:
            return CorruptBlock(
                f"disk: slot {slot} in {self._path} does not hold the bytes that were written for block "
                f"{int(hash):#018x}: their checksum differs; it is a miss"
            )
        return TransferError(f"disk: slot {slot} does not hold block {int(hash):#018x}, or not any more; it is a miss")


def reason(code: int) -> str:
    """Say what the result of an engine means.

    Examples
    --------
    >>> reason(28)
    'No space left on device (ENOSPC)'
    """
    if code == END_OF_FILE:
        return "the file ends before it (was it cut short?)"
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
