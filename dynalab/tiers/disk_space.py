"""Space for a disk tier's files: all of it is taken when the tier is opened, or none.

Two limits hold. The *logical* one is the tier's own capacity. The *physical* one bounds what all files below a
directory really take up, whoever wrote them, so that the tiers of several ranks that share a directory are bounded
together; where that cannot be found out, the tier is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dynalab.errors import ConfigError, TierFull
from dynalab.tiers.disk_superblock import PAGE
from dynalab.units import format_size

#: Bytes of zeros written at once where a file system cannot reserve space.
ZERO_BYTES: Final = 16 << 20
_NO_SPACE: Final = {
    errno.ENOSPC: "its file system is full",
    errno.EDQUOT: "the user's quota is used up",
    errno.EFBIG: "it would be larger than files may be here (see `ulimit -f`)",
}


def allocated_bytes(directory: Path) -> int:
    """Return the bytes that all files below a directory take up on their drives, holes left out.

    A file with several names counts once, symbolic links are not followed, and a file that goes away meanwhile counts
    for nothing.

    Raises
    ------
    OSError
        If a directory cannot be listed, or a file not be looked at.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        facts = entry.stat(follow_symlinks=False)
                        if (facts.st_dev, facts.st_ino) not in seen:
                            seen.add((facts.st_dev, facts.st_ino))
                            total += facts.st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def fallocate(fd: int, size: int) -> None:
    """Reserve the first `size` bytes of a file on its drive, and make it that long.

    This is the system call, not ``os.posix_fallocate``: where a file system cannot reserve, the C library would write
    into every block of the file without being asked.

    Raises
    ------
    OSError
        If they cannot be had; the file may be longer than before then.
    """
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while function(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def write_zeros(fd: int, begin: int, end: int) -> None:
    """Write zeros from one offset of a file to another, and bring them to the drive."""
    if begin >= end:
        return
    with mmap.mmap(-1, ZERO_BYTES) as zeros, memoryview(zeros) as view:
        while begin < end:
            begin += os.pwrite(fd, view[: min(ZERO_BYTES, end - begin)], begin)
    os.fdatasync(fd)


def reserve(fd: int, path: Path, size: int, zero_fill: bool) -> None:
    """Give a file `size` bytes that nobody else can take, or leave it as it was.

    Parameters
    ----------
    fd : int
        The file, open for writing.
    path : Path
        Its name, for the errors.
    size : int
        Bytes, no fewer than it has.
    zero_fill : bool
        Write zeros where the file system cannot reserve space.

    Raises
    ------
    TierFull
        If the drive, a quota or a limit has no room for it.
    ConfigError
        If the file system cannot reserve space and zeros are not allowed.
    """
    before = os.fstat(fd)
    if before.st_size >= size and before.st_blocks * 512 >= size:
        return
    free = os.fstatvfs(fd)
    missing = size - before.st_blocks * 512
    if free.f_blocks and missing > free.f_bfree * free.f_frsize:  # some file systems in memory do not count
        # Said before anything is taken: a file system that is full for a moment hurts others, too.
        raise _full(path, size, f"its file system has {format_size(free.f_bfree * free.f_frsize)} free")
    try:
        try:
            fallocate(fd, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if before.st_size >= size:  # full length, and smaller on the drive: the file system compresses
                return
            if not zero_fill:
                raise ConfigError(
                    f"disk: the file system of {path} cannot reserve space; choose another path, or pass "
                    "zero_fill=True (DYN_KVBM_DISK_ZEROFILL_FALLBACK=1), which writes the whole file once"
                ) from None
            write_zeros(fd, before.st_size, size)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    except OSError as error:
        os.ftruncate(fd, before.st_size)
        if error.errno not in _NO_SPACE:
            raise
        raise _full(path, size, _NO_SPACE[error.errno]) from error


def _full(path: Path, size: int, why: str) -> TierFull:
    return TierFull(
        f"disk: {path} needs {format_size(size)}, and {why}; make the tier smaller, free space or choose another path"
    )


@contextlib.contextmanager
def under_cap(directory: Path, cap: int | None, planned: dict[Path, int]) -> Iterator[None]:
    """Take space inside this context only if all files below a directory stay within a cap, before and after.

    Parameters
    ----------
    directory : Path
        Whose files count together. It is locked meanwhile, so that two tiers do not both take the last room.
    cap : int, optional
        Bytes; None is no cap.
    planned : dict of Path to int
        Files about to be made or to grow, and the bytes they shall have.

    Raises
    ------
    TierFull
        If the cap is, or would be, exceeded, or if it cannot be found out.
    """
    if cap is None:
        yield
        return
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unknown(directory, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            used = allocated_bytes(directory)
            grow = sum(max(0, -(-size // PAGE) * PAGE - _allocated(path)) for path, size in planned.items())
        except OSError as error:
            raise _unknown(directory, error) from error
        if used + grow > cap:
            raise _over(directory, cap, f"take up {format_size(used)}, and {format_size(grow)} more are needed")
        yield
        try:
            used = allocated_bytes(directory)
        except OSError as error:
            raise _unknown(directory, error) from error
        if used > cap:
            raise _over(directory, cap, f"would take up {format_size(used)}")
    finally:
        os.close(fd)


def _allocated(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _over(directory: Path, cap: int, what: str) -> TierFull:
    return TierFull(
        f"disk: the files below {directory} {what}, but physical_cap is {format_size(cap)}; "
        "raise the cap, make the tier smaller, or delete what is not needed"
    )


def _unknown(directory: Path, error: OSError) -> TierFull:
    return TierFull(
        f"disk: what the files below {directory} take up cannot be found out ({error}), and physical_cap is set; "
        "make the directory readable, or leave the cap out"
    )
