"""Blocks for the disk tier's tests, whose content follows from their name, so that wrong bytes cannot pass."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dynalab.errors import TransferError
from dynalab.kv import KVLayout
from dynalab.tiers import BlockKeys
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.tier import READ_OK

#: Blocks of one page.
LAYOUT = KVLayout(num_layers=2, outer=2, page_tokens=16, inner=32)
_KNUTH = 0x9E3779B97F4A7C15


def name_of(number: int) -> int:
    """Hash of the block with a number."""
    return (int(number) + 1) * _KNUTH % 2**64


def content_of(name: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The bytes of a block."""
    return np.frombuffer(np.random.PCG64(name).random_raw(-(-nbytes // 8)).tobytes(), np.uint8)[:nbytes]


class Blocks:
    """Writes blocks to a tier by number, and reads them back by name."""

    def __init__(self, tier: DiskTier) -> None:
        self.tier = tier
        self.room = np.zeros((tier.capacity + 1, tier.block_bytes), np.uint8)
        self.memory = (self.room.ctypes.data + np.arange(len(self.room)) * tier.block_bytes).astype(np.uint64)

    @staticmethod
    def keys(numbers: Iterable[int]) -> BlockKeys:
        numbers = np.array(list(numbers), np.int64)
        names = np.array([name_of(n) for n in numbers], np.uint64)
        return BlockKeys.of(names, ~names, (numbers * 3 - 1).astype(np.int32), (7 - numbers).astype(np.int32))

    def write(self, slots: npt.ArrayLike, numbers: Iterable[int], **options: Any) -> npt.NDArray[np.bool_]:
        keys = self.keys(numbers)
        for row, name in enumerate(keys.hash):
            self.room[row] = content_of(int(name), self.tier.block_bytes)
        return self.tier.write(np.asarray(slots), self.memory[: len(keys)], keys, **options)

    def status(self, slots: npt.ArrayLike, names: npt.ArrayLike, **options: Any) -> npt.NDArray[np.int8]:
        names = np.asarray(names, np.uint64)
        self.room[:] = 0xEE
        return self.tier.read(np.asarray(slots), self.memory[: len(names)], names, **options)

    def check(
        self, slots: npt.ArrayLike, names: npt.ArrayLike, errors: list[TransferError] | None = None
    ) -> npt.NDArray[np.int8]:
        """Read, and compare what is said to be right with what is."""
        names = np.asarray(names, np.uint64)
        status = self.status(slots, names, errors=errors)
        for row in np.flatnonzero(status == READ_OK):
            assert (self.room[row] == content_of(int(names[row]), self.tier.block_bytes)).all(), f"slot {slots}"
        return status


def refuse_direct(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Let file systems be without O_DIRECT: those that refuse the flag, or those that take it and refuse to act."""
    opened, preadv = os.open, os.preadv
    direct: set[int] = set()

    def open_(path: Any, flags: int, *args: Any) -> int:
        if not flags & os.O_DIRECT:
            return opened(path, flags, *args)
        if at == "open":
            raise OSError(errno.EINVAL, "Invalid argument", path)
        direct.add(fd := opened(path, flags, *args))
        return fd

    def preadv_(fd: int, *args: Any) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(fd, *args)

    monkeypatch.setattr("os.open", open_)
    monkeypatch.setattr("os.preadv", preadv_)
