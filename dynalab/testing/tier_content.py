"""What a tier should hold, kept beside it: one way to write and check blocks, for memory and for storage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynalab.tiers import BlockKeys, MemoryTier, StorageTier, Tier
from dynalab.tiers.tier import READ_OK, READ_STALE

_GUARD = 64


class Content:
    """The blocks that were written to a tier, as a dictionary.

    Parameters
    ----------
    tier : MemoryTier
        Blocks are written and read by value.
    """

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.blocks: dict[int, bytes] = {}
        self.hashes: dict[int, int] = {}

    def random(self, rng: np.random.Generator) -> bytes:
        """Return new bytes for a block."""
        return rng.bytes(self.tier.block_bytes)

    def write(self, slot: int, block: bytes) -> None:
        """Write a block to the tier, and remember it."""
        tier = self.tier
        assert isinstance(tier, MemoryTier)
        view = tier.view_heads(slot)
        tier.put(slot, np.frombuffer(block, view.dtype).reshape(view.shape))
        self.expect(slot, block)

    def expect(self, slot: int, block: bytes) -> None:
        """Remember a block that came into the tier some other way."""
        self.blocks[slot] = block

    def forget(self, slot: int) -> None:
        """Drop a block; memory has nothing to drop."""

    def read(self, slot: int) -> bytes:
        """Return the bytes of a slot."""
        assert isinstance(self.tier, MemoryTier)
        return np.ascontiguousarray(self.tier.get(slot)).tobytes()

    def audit(self) -> None:
        """Compare every block that was written with what the tier holds."""
        for slot, block in self.blocks.items():
            assert self.read(slot) == block, f"slot {slot} of {self.tier!r} holds other bytes than were written"


class StoredContent(Content):
    """The same for a `StorageTier`, whose blocks have names; each gets a new one when it is written."""

    def write(self, slot: int, block: bytes) -> None:
        """Write a block to the tier under a new name, and remember both."""
        tier = self.tier
        assert isinstance(tier, StorageTier)
        name = int.from_bytes(block[:8].ljust(8, b"x"), "little") ^ (len(self.hashes) << 32) ^ slot
        source = np.frombuffer(block, np.uint8)
        ok = tier.write([slot], np.array([source.ctypes.data], np.uint64), BlockKeys.of([name], position=slot))
        assert ok.tolist() == [True]
        self.blocks[slot], self.hashes[slot] = block, name

    def forget(self, slot: int) -> None:
        """Drop a block, also one that is not there."""
        assert isinstance(self.tier, StorageTier)
        self.tier.forget([slot])
        if self.blocks.pop(slot, None) is not None:
            # It must not be found again under its old name.
            assert self._read(slot)[0] == READ_STALE

    def read(self, slot: int) -> bytes:
        """Return the bytes of a slot."""
        status, block = self._read(slot)
        assert status == READ_OK, f"slot {slot}: status {status}"
        return block

    def _read(self, slot: int) -> tuple[int, bytes]:
        tier = self.tier
        assert isinstance(tier, StorageTier)
        # An odd place, with bytes around it that no read may touch.
        room: npt.NDArray[np.uint8] = np.full(tier.block_bytes + 2 * _GUARD + 1, 0xEE, np.uint8)
        inside = room[_GUARD + 1 : _GUARD + 1 + tier.block_bytes]
        names = np.array([self.hashes[slot]], np.uint64)
        status = tier.read([slot], np.array([inside.ctypes.data], np.uint64), names)
        assert (room[: _GUARD + 1] == 0xEE).all()
        assert (room[_GUARD + 1 + tier.block_bytes :] == 0xEE).all()
        return int(status[0]), inside.tobytes()


def content_of(tier: Tier) -> Content:
    """Return the account of a new tier of either kind."""
    return StoredContent(tier) if isinstance(tier, StorageTier) else Content(tier)
