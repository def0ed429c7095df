"""Page-locking, NUMA placement and first touch of mapped memory: the system calls that Python does not wrap."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform

_MADV_POPULATE_WRITE = 23  # Linux 5.14; not in Python's mmap module
_MPOL_PREFERRED, _MPOL_F_NODE, _MPOL_F_ADDR = 1, 1, 2
_MOST_NODES = 1024
_NUMBERS = {"x86_64": {"mbind": 237, "get_mempolicy": 239}, "aarch64": {"mbind": 235, "get_mempolicy": 236}}


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that returns 0, or raise OSError with the reason."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*(ctypes.c_size_t(argument) for argument in arguments)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def lock_pages(address: int, nbytes: int) -> None:
    """Keep pages in memory for good (mlock), bringing them in; OSError where the limit does not allow it."""
    _call("mlock", address, nbytes)


def unlock_pages(address: int, nbytes: int) -> None:
    """Let pages be swapped and given back again (munlock)."""
    _call("munlock", address, nbytes)


def touch_pages(mapping: mmap.mmap, offset: int, nbytes: int) -> None:
    """Bring in writable pages now; MemoryError where the system has none, instead of a death at first use."""
    try:
        mapping.madvise(_MADV_POPULATE_WRITE, offset, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EFAULT):
            raise MemoryError(str(error)) from error
        for place in range(offset, offset + nbytes, mmap.PAGESIZE):  # an older kernel
            mapping[place] = 0


def prefer_node(address: int, nbytes: int, node: int) -> None:
    """Place pages that are not there yet on a NUMA node while it has room (mbind); OSError where it cannot be."""
    if not 0 <= node < _MOST_NODES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    mask = (ctypes.c_ulong * (_MOST_NODES // 64))()
    mask[node // 64] = 1 << node % 64
    _system_call(
        "mbind", address, nbytes, _MPOL_PREFERRED, ctypes.addressof(mask), _MOST_NODES + 1, 0
    )  # the kernel drops one


def node_of(address: int) -> int | None:
    """Return the NUMA node that holds a touched page; None where the system does not tell."""
    node = ctypes.c_int(-1)
    try:
        _system_call("get_mempolicy", ctypes.addressof(node), 0, 0, address, _MPOL_F_NODE | _MPOL_F_ADDR)
    except OSError:
        return None
    return node.value


def _system_call(name: str, *arguments: int) -> None:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, f"{name} has no known number on {platform.machine()}")
    _call("syscall", numbers[name], *arguments)
