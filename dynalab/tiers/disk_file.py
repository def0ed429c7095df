"""The two files of a disk tier: found or made, checked, locked, reserved; never half of that.

``blocks.data`` holds the slots, one behind the other, and carries the lock that keeps a second tier out.
``blocks.index`` says what they hold. A new index is written beside the old one and renamed onto it: there is always a
whole one, or none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dynalab.errors import TierError, TierInUse
from dynalab.tiers.disk_space import reserve, under_cap, write_zeros
from dynalab.tiers.disk_superblock import ENTRY_BYTES, PAGE, Superblock

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

DATA_NAME: Final = "blocks.data"
INDEX_NAME: Final = "blocks.index"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Space:
    """What may be taken, and how.

    Parameters
    ----------
    cap : int, optional
        Bytes that all files below `cap_path` may take up.
    cap_path : Path
        The directory of the cap.
    zero_fill : bool
        Write zeros where space cannot be reserved.
    """

    cap: int | None
    cap_path: Path
    zero_fill: bool


class TierFiles:
    """The open files of one tier.

    Parameters
    ----------
    directory : Path
        Made if it is not there.
    layout : KVLayout
        The stored layout.
    slot_bytes, capacity : int
        Bytes and number of the slots.
    direct : bool
        Bypass the page cache where the file system can.
    space : Space
    reset : bool
        Give up whatever the files hold.

    Attributes
    ----------
    data_fd, index_fd : int
    direct : bool
        Whether the page cache is bypassed.
    superblock : Superblock
    existed : bool
        Whether the index was there, and its blocks count.

    Raises
    ------
    TierInUse, TierFull, LayoutError, ConfigError, TierError
        As `DiskTier` says; the files are as they were then.
    """

    def __init__(
        self,
        directory: Path,
        layout: KVLayout,
        slot_bytes: int,
        capacity: int,
        *,
        direct: bool,
        space: Space,
        reset: bool,
    ) -> None:
        self.data, self.index = directory / DATA_NAME, directory / INDEX_NAME
        self._fds: list[int] = []
        self._pid = os.getpid()
        wanted = Superblock(
            layout.block_bytes,
            slot_bytes,
            capacity,
            secrets.randbits(64),
            layout.fingerprint(),
            layout.summary(),
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_fd, made = self._lock()
            try:
                self._open(lock_fd, wanted, space, reset)
            except BaseException:
                if made:
                    self.data.unlink(missing_ok=True)
                raise
            self.data_fd, self.direct = self._open_data(direct)
        except OSError as error:
            self.close()
            raise TierError(f"disk: {error.filename or directory}: {error.strerror}; choose another path") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files, which gives up the lock."""
        if self._fds and os.getpid() == self._pid:
            # Said outright: a process forked off while the files were open has them open still.
            fcntl.flock(self._fds[0], fcntl.LOCK_UN)
        while self._fds:
            os.close(self._fds.pop())

    def read_entries(self) -> bytes:
        """Return all entries of the index."""
        size = self.superblock.capacity * ENTRY_BYTES
        data = _read(self.index_fd, PAGE, size)
        if len(data) < size:
            raise TierError(f"disk: {self.index} became shorter while it was opened; leave it alone")
        return data

    def allocated_bytes(self) -> int:
        """Return the bytes that the two files take up on their drive."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in (self.data_fd, self.index_fd))

    def _lock(self) -> tuple[int, bool]:
        """Open the data file and lock it; return it, and whether it was made for this."""
        while True:
            fd, made = self._open_or_make()
            self._fds.append(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise TierInUse(
                    f"disk: {self.data} is held open by {_holder(fd)}; close that tier, or choose another path"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.data)):
                    return fd, made
            # Its maker gave up and removed it between our opening and locking it.
            os.close(self._fds.pop())

    def _open_or_make(self) -> tuple[int, bool]:
        flags = os.O_RDWR | os.O_CLOEXEC
        with contextlib.suppress(FileExistsError):
            return os.open(self.data, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        return os.open(self.data, flags | os.O_CREAT, 0o644), False

    def _open(self, lock_fd: int, wanted: Superblock, space: Space, reset: bool) -> None:
        """Bring both files into the shape that is wanted."""
        self.existed = self.index.exists() and not reset
        old = self._check_index(lock_fd) if self.existed else None
        size = os.fstat(lock_fd).st_size
        if old is None and size > 0 and not reset:
            _log.warning("disk: %s has no index beside it: what it holds is unknown, the tier begins empty", self.data)
        self.superblock = wanted if old is None else old.grown_to(wanted, self.index)
        data_bytes, index_bytes = self.superblock.data_bytes, self.superblock.index_bytes
        # An index that is there grows in place: its superblock says only in the end that there is more.
        draft = self.index.with_name(f"{INDEX_NAME}.new") if old is None else self.index
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if old is None else 0)
        self.index_fd = os.open(draft, flags, 0o644)
        self._fds.append(self.index_fd)
        try:
            with under_cap(space.cap_path, space.cap, {self.data: data_bytes, self.index: index_bytes}):
                reserve(lock_fd, self.data, data_bytes, space.zero_fill)
                reserve(self.index_fd, self.index, index_bytes, zero_fill=True)
                write_zeros(self.index_fd, PAGE if old is None else old.index_bytes, index_bytes)
        except BaseException:
            if os.fstat(lock_fd).st_size > size:
                os.ftruncate(lock_fd, size)
            if old is None:
                draft.unlink(missing_ok=True)
            raise
        if self.superblock != old:
            os.fsync(lock_fd)
            os.pwrite(self.index_fd, self.superblock.to_bytes(), 0)
            os.fsync(self.index_fd)
        if old is None:
            os.rename(draft, self.index)
            _sync_directory(self.index.parent)
            os.ftruncate(lock_fd, data_bytes)

    def _check_index(self, lock_fd: int) -> Superblock:
        """Return the superblock of an index whose files are as long as it says."""
        fd = os.open(self.index, os.O_RDONLY | os.O_CLOEXEC)
        try:
            superblock = Superblock.from_bytes(_read(fd, 0, PAGE), self.index)
            for path, size, least in (
                (self.index, os.fstat(fd).st_size, superblock.index_bytes),
                (self.data, os.fstat(lock_fd).st_size, superblock.data_bytes),
            ):
                if size < least:
                    raise TierError(
                        f"disk: {path} has {size} bytes where its index speaks of {least}: it was cut short or "
                        "replaced; bring it back, or pass reset=True, which gives its blocks up"
                    )
        finally:
            os.close(fd)
        return superblock

    def _open_data(self, direct: bool) -> tuple[int, bool]:
        """Open the data file for the blocks' bytes, past the page cache if that is wanted and possible."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if direct:
            try:
                fd = os.open(self.data, flags | os.O_DIRECT)
                self._fds.append(fd)
                # Some file systems take the flag and refuse the transfers.
                with mmap.mmap(-1, PAGE) as page:
                    os.preadv(fd, [page], 0)
                return fd, True
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                _log.warning(
                    "disk: the file system of %s does not do direct I/O: blocks go through the page cache, which takes "
                    "memory and time; choose another path, or pass direct=False (DYN_KVBM_DISK_DISABLE_O_DIRECT=1)",
                    self.data,
                )
        fd = os.open(self.data, flags)
        self._fds.append(fd)
        return fd, False


def _sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the drive."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(fd: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file, fewer where it ends."""
    parts = []
    while size > 0 and (part := os.pread(fd, min(size, 1 << 26), offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _holder(fd: int) -> str:
    """Say who holds the lock on a file, as far as the kernel tells."""
    inode = os.fstat(fd).st_ino
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                pid = int(words[4])
                # Of processes outside this container the kernel tells no number.
                if pid > 0:
                    return "another tier of this process" if pid == os.getpid() else f"process {pid}"
    return "another process"
