"""Who uses which block: a lease for every use, so that a block that was given back cannot be used again by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError

if TYPE_CHECKING:
    from dynalab.tiers.stack import TierStack

ENDED: Final = 0
ALLOCATED: Final = 1
REGISTERED: Final = 2
_STATES: Final = ("released", "allocated", "registered")
_CURES: Final = ("", "register each block once, and allocate another for another hash", "register it first")


class LeaseTable:
    """Leases as rows of arrays; a row is used again for another lease, with a new serial number.

    Attributes
    ----------
    state : int8; serial : int64; slot, number : int32; hash : uint64; shape (n,)
        ``ENDED``, ``ALLOCATED`` or ``REGISTERED``; and what the lease is for: slot on the device, number and hash of
        the block.
    """

    def __init__(self) -> None:
        self._size = 0
        self._free: list[int] = []
        self.state = np.zeros(0, np.int8)
        self.serial = np.zeros(0, np.int64)
        self.slot = np.zeros(0, np.int32)
        self.number = np.zeros(0, np.int32)
        self.hash = np.zeros(0, np.uint64)
        self._place = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Leases that have not ended."""
        return self._size - len(self._free)

    def open(self, state: int, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return new leases for `slots`."""
        n = len(slots)
        missing = n - len(self._free)
        if missing > 0:
            grow = max(missing, self._size, 256)
            for name in ("state", "serial", "slot", "number", "hash", "_place"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros(grow, old.dtype)]))
            self._free.extend(range(self._size + grow - 1, self._size - 1, -1))
            self._size += grow
        rows = np.array(self._free[len(self._free) - n :][::-1], np.int64)
        del self._free[len(self._free) - n :]
        self.state[rows] = state
        self.slot[rows] = slots
        return rows

    def are_distinct(self, rows: npt.NDArray[np.int64]) -> bool:
        """Tell whether no lease is named twice."""
        places = np.arange(len(rows))
        self._place[rows] = places
        return bool((self._place[rows] == places).all())

    def close(self, rows: npt.NDArray[np.int64]) -> None:
        """End leases."""
        self.state[rows] = ENDED
        self.serial[rows] += 1
        self._free.extend(rows.tolist())


class Blocks:
    """Blocks on the device in the hands of a user: allocated ones to write, registered ones to read.

    A sequence: it can be indexed, sliced, added up and looped over, one block being ``Blocks`` of length 1.
    """

    __slots__ = ("_rows", "_serials", "_stack")

    def __init__(self, stack: TierStack, rows: npt.NDArray[np.int64], serials: npt.NDArray[np.int64]) -> None:
        self._stack, self._rows, self._serials = stack, rows, serials

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: int | slice) -> Blocks:
        """Return some of the blocks."""
        if not isinstance(which, slice):
            place = range(len(self))[which]
            which = slice(place, place + 1)
        return Blocks(self._stack, self._rows[which], self._serials[which])

    def __iter__(self) -> Iterator[Blocks]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Blocks) -> Blocks:
        if not isinstance(other, Blocks) or other._stack is not self._stack:
            return NotImplemented
        return Blocks(
            self._stack,
            np.concatenate([self._rows, other._rows]),
            np.concatenate([self._serials, other._serials]),
        )

    def require(self, state: int = 0) -> npt.NDArray[np.int64]:
        """Return the leases' rows.

        Raises
        ------
        BlockStateError
            If one has ended, or is not in the `state` asked for.
        """
        leases = self._stack._leases
        now = leases.state[self._rows]
        ended = leases.serial[self._rows] != self._serials
        wrong = ended | (now != state) if state else ended
        if wrong.any():
            i = int(np.argmax(wrong))
            is_now = _STATES[ENDED] if ended[i] else _STATES[now[i]]
            wanted = _STATES[state] if state else "allocated or registered"
            raise BlockStateError(
                f"block {i} of {len(self)} is {is_now}, not {wanted}; allocate or match it again"
                if ended[i]
                else f"block {i} of {len(self)} (device slot {leases.slot[self._rows[i]]}) is {is_now}, not {wanted}; "
                f"{_CURES[state]}"
            )
        return self._rows

    @property
    def slots(self) -> npt.NDArray[np.int32]:
        """Slots on the device, shape (n,)."""
        return self._stack._leases.slot[self.require()]

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Sequence hashes, shape (n,); 0 for blocks that are not registered."""
        return self._stack._leases.hash[self.require()]

    def view(self) -> list[Any]:
        """Return the blocks' memory: one writable array of shape (num_layers, outer, page_tokens, inner) each.

        Of CuPy where the device is a GPU, else of NumPy. Not to be used once the block is released. Where a layout
        keeps heads apart there is no such array: use :meth:`view_heads`.
        """
        return [self._stack.device.view(slot) for slot in self.slots.tolist()]

    def view_heads(self) -> list[Any]:
        """Return the blocks' memory in any layout, as (num_layers, outer, page_tokens, heads, head_dim) each."""
        return [self._stack.device.view_heads(slot) for slot in self.slots.tolist()]

    def release(self) -> None:
        """Give the blocks back; the same as ``stack.release(blocks)``."""
        self._stack.release(self)

    def __repr__(self) -> str:
        leases = self._stack._leases
        live = leases.serial[self._rows] == self._serials
        slots = leases.slot[self._rows[live]].tolist()
        return f"<Blocks: {len(self)}, on device slots {slots if len(slots) < 9 else f'{slots[:8]} ...'}>"
