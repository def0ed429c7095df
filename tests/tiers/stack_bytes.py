"""Blocks whose content follows from their hash, and a look into every slot of a stack."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dynalab.kv import KVLayout
from dynalab.kv.tiering.book import FREE, HEAD
from dynalab.tiers import MemoryTier, TierStack
from dynalab.tiers.tier import READ_OK

DEVICE, HOST, DISK = range(3)
#: Blocks of 256 bytes.
LAYOUT = KVLayout(num_layers=2, outer=2, page_tokens=2, inner=16, dtype="float16")
#: The same blocks, every layer in a storage of its own: what reaches the disk passes a bounce buffer.
BY_LAYER = LAYOUT.with_(order="layer_first")

Words = npt.NDArray[np.uint64]


def content(hashes: npt.ArrayLike, nbytes: int = LAYOUT.block_bytes) -> npt.NDArray[np.uint8]:
    """Return what blocks hold, by their hashes; shape (n, nbytes)."""
    keys = np.asarray(hashes, np.uint64).reshape(-1, 1)
    with np.errstate(over="ignore"):
        words = (keys + np.arange(1, nbytes // 8 + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        words ^= words >> np.uint64(29)
        words *= np.uint64(0xBF58476D1CE4E5B9)
        words ^= words >> np.uint64(32)
    return words.view(np.uint8)


def peek(tier: MemoryTier, slots: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the bytes of slots; shape (n, block_bytes)."""
    blocks = np.ascontiguousarray(tier.view_all()[np.asarray(slots, np.int64)])
    return blocks.view(np.uint8).reshape(len(blocks), tier.block_bytes)


def poke(tier: MemoryTier, slots: npt.ArrayLike, data: npt.NDArray[np.uint8]) -> None:
    """Write bytes into slots."""
    every = tier.view_all()
    every[np.asarray(slots, np.int64)] = data.view(every.dtype).reshape(-1, *every.shape[1:])


def resident(stack: TierStack, k: int) -> tuple[Words, npt.NDArray[np.int32]]:
    """Return the hashes that a tier holds, and the slots where they lie."""
    held = stack._directory.held(k)
    return held, stack._directory.slot_of(k, held)


def free_slots(stack: TierStack, k: int) -> list[int]:
    """Return the slots of a tier that nobody has, the next to be used first."""
    directory = stack._directory
    head, count = directory._ring_state[k, HEAD], directory._ring_state[k, FREE]
    n = directory._ring.shape[1]
    return [int(directory._ring[k, (head + i) % n]) for i in range(count)]


def read_disk(stack: TierStack, slots: npt.ArrayLike, hashes: Words) -> tuple[Words, npt.NDArray[np.uint8]]:
    """Read blocks from the disk; return their statuses and bytes."""
    assert stack.disk is not None
    room = np.zeros((len(hashes), stack.disk.block_bytes), np.uint8)
    targets = (room.ctypes.data + np.arange(len(hashes)) * stack.disk.block_bytes).astype(np.uint64)
    return stack.disk.read(slots, targets, hashes), room


def check_all_bytes(stack: TierStack) -> int:
    """Compare every block of every tier with its content, while nothing is in flight; return how many there are."""
    count = 0
    for k, tier in enumerate((stack.device, stack.host, stack.disk)):
        if tier is None:
            continue
        hashes, slots = resident(stack, k)
        count += len(hashes)
        if k == DISK:
            status, found = read_disk(stack, slots, hashes)
            assert (status == READ_OK).all(), f"disk: {status.tolist()}"
        else:
            found = peek(tier, slots)
        wrong = (found != content(hashes)).any(axis=1)
        assert not wrong.any(), f"{tier.name}: slots {slots[wrong].tolist()} hold other bytes than their hashes say"
    return count


def flip(path: Path, slot: int, slot_bytes: int) -> None:
    """Change a byte of a block on disk behind the tier's back."""
    with (path / "blocks.data").open("r+b") as file:
        file.seek(slot * slot_bytes + 17)
        byte = file.read(1)[0]
        file.seek(slot * slot_bytes + 17)
        file.write(bytes([byte ^ 0x40]))


def words(keys: Iterable[int]) -> Words:
    """Return hashes as an array."""
    return np.array(list(keys), np.uint64)
