"""Tiers that have addresses: blocks in one arena, as tables for those who copy, as arrays for those who look."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dynalab.errors import LayoutError, TierError
from dynalab.tiers.tier import Tier

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

    Addresses = npt.NDArray[np.uint64]

#: Storages begin at multiples of this many bytes at least: what a GPU fetches at once, twice over.
_STORAGE_ALIGNMENT = 256


class Memory(Protocol):
    """One allocation of a memory tier, of a CPU or of a GPU; its first byte lies at a multiple of 256."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, strides: tuple[int, ...]) -> Any:
        """Return a writable array over the memory, from byte `offset` on."""

    def to_cpu(self, array: Any) -> npt.NDArray[Any]:
        """Return a copy of such an array in CPU memory."""

    def write(self, array: Any, values: Any) -> None:
        """Set such an array to values from CPU memory, or to one number; return when they are there."""

    def facts(self) -> dict[str, Any]:
        """Return what it is, by name, for the tier's statistics."""

    def close(self) -> None:
        """Give the memory back."""


class MemoryTier(Tier):
    """Blocks in memory of the CPU or of a GPU.

    All storages of the layout lie in one allocation, equally far apart. That makes a view of any layout one strided
    array, also where every layer has a storage of its own.

    Parameters
    ----------
    layout : KVLayout
    capacity : int
        Blocks.
    allocate : callable
        Takes a number of bytes and returns the `Memory`.
    """

    def __init__(self, layout: KVLayout, capacity: int, allocate: Callable[[int], Memory]) -> None:
        super().__init__(layout, capacity)
        step = max(layout.alignment, _STORAGE_ALIGNMENT)
        self._spacing = -(-layout.storage_bytes(capacity)[0] // step) * step
        # The slack lets the first storage begin at a multiple of a large alignment, too.
        self._memory = allocate(self._spacing * layout.n_storages + step - _STORAGE_ALIGNMENT)
        self._offset = -self._memory.address % step

    @property
    def bases(self) -> tuple[int, ...]:
        """Address of each storage: one, or one per layer."""
        self.require_open()
        first = self._memory.address + self._offset
        return tuple(first + i * self._spacing for i in range(self.layout.n_storages))

    def chunks(self, slots: npt.ArrayLike, fragment_bytes: int | None = None) -> tuple[Addresses, int]:
        """Return the addresses of the contiguous pieces of blocks, and the bytes of each.

        See :meth:`dynalab.kv.KVLayout.chunks`. A slot may occur more than once.

        Raises
        ------
        TierError
            If there is no such slot, or the tier was closed.
        """
        return self.layout.chunks(self.bases, self.capacity, self.check_slots(slots), fragment_bytes)

    def regions(self, slots: npt.ArrayLike) -> tuple[Addresses, int]:
        """Return the addresses of the regions of blocks, and the bytes of each; see `chunks`."""
        return self.layout.regions(self.bases, self.capacity, self.check_slots(slots))

    def origins(self, slots: npt.ArrayLike) -> Addresses:
        """Return the addresses of the first head and token of every layer and outer index; see `chunks`."""
        return self.layout.origins(self.bases, self.capacity, self.check_slots(slots))

    def view_heads(self, slot: int) -> Any:
        """Return a block as a writable array, whatever the layout.

        Returns
        -------
        ndarray, shape (num_layers, outer, page_tokens, heads, head_dim)
            Of NumPy, or of CuPy where the tier is a GPU. It shows the tier's memory, also when the slot is given to
            another block; do not use it when the tier is closed.
        """
        return self._heads[self._one(slot)]

    def view(self, slot: int) -> Any:
        """Return a block as a writable array, heads side by side.

        Returns
        -------
        ndarray, shape (num_layers, outer, page_tokens, inner)

        Raises
        ------
        LayoutError
            If heads lie apart (HND and universal layouts): use `view_heads`.
        """
        return self.view_all()[self._one(slot)]

    def view_all(self) -> Any:
        """Return all blocks as one writable array of shape (capacity, num_layers, outer, page_tokens, inner).

        Raises
        ------
        LayoutError
            If heads lie apart (HND and universal layouts): use `view_heads`.
        """
        self.require_open()
        return self._tokens

    def get(self, slot: int) -> npt.NDArray[Any]:
        """Return a copy of a block in CPU memory, of shape (num_layers, outer, page_tokens, heads, head_dim)."""
        return self._memory.to_cpu(self.view_heads(slot))

    def put(self, slot: int, values: npt.NDArray[Any]) -> None:
        """Write a block from CPU memory.

        Parameters
        ----------
        slot : int
        values : ndarray
            Of the view's dtype and of either view's shape.

        Raises
        ------
        TierError
            If shape or dtype differ, or there is no such slot.
        """
        block = self.view_heads(slot)
        values = np.asarray(values)
        if values.dtype != block.dtype or values.shape not in (block.shape, (*block.shape[:3], self.layout.inner)):
            raise TierError(
                f"{self.name}: {values.dtype} of shape {values.shape} is no block; "
                f"give {block.dtype} of shape {block.shape}"
            )
        self._memory.write(block, values.reshape(block.shape))

    def fill(self, slots: npt.ArrayLike, byte: int = 0) -> None:
        """Set every byte of blocks to one value."""
        for slot in self.check_slots(slots).tolist():
            self._memory.write(self._bytes[slot], np.uint8(byte))

    def _one(self, slot: int) -> int:
        if np.ndim(slot) != 0:
            raise TierError(f"{self.name}: {slot!r} is not one slot; ask for each by its number")
        return int(self.check_slots(slot)[0])

    def _window(self, dtype: np.dtype[Any], run: int) -> Any:
        """Return all blocks as (capacity, num_layers, outer, page_tokens, heads, run) of some type."""
        layout = self.layout
        layer, outer, head, token = layout.strides
        return self._memory.array(
            (self.capacity, layout.num_layers, layout.outer, layout.page_tokens, layout.heads, run),
            dtype,
            self._offset,
            (
                layout.block_stride,
                self._spacing if layer is None else layer,
                layout.block_stride * self.capacity if outer is None else outer,
                token,
                head,
                dtype.itemsize,
            ),
        )

    @cached_property
    def _heads(self) -> Any:
        from dynalab.kv.dtypes import numpy_dtype

        return self._window(numpy_dtype(self.layout.dtype), self.layout.head_dim)

    @cached_property
    def _bytes(self) -> Any:
        return self._window(np.dtype(np.uint8), self.layout.run_bytes)

    @cached_property
    def _tokens(self) -> Any:
        layout, heads = self.layout, self._heads
        if layout.heads > 1 and layout.strides.head != layout.run_bytes:
            raise LayoutError(
                f"head_order: the heads of a token lie apart in {layout.head_order!r} blocks; use view_heads()"
            )
        shape, strides = (*heads.shape[:4], layout.inner), (*heads.strides[:4], layout.itemsize)
        return self._memory.array(shape, heads.dtype, self._offset, strides)

    def stats(self) -> dict[str, Any]:
        """Return facts and counters by name, with what the memory is."""
        return super().stats() | self._memory.facts()

    def _close(self) -> None:
        for name in ("_heads", "_bytes", "_tokens"):
            self.__dict__.pop(name, None)
        self._memory.close()
