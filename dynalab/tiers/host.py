"""The host tier: blocks in CPU memory that a GPU reaches by DMA, or that at least is never swapped out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.pools import HostArena
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.tier import Capabilities, slot_count

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout


class HostMemory:
    """A `HostArena` as the memory of a tier."""

    def __init__(self, arena: HostArena) -> None:
        self.arena = arena

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self.arena.address

    def array(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, strides: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Return a writable array over the memory, from byte `offset` on."""
        return np.ndarray(shape, dtype, buffer=self.arena.array, offset=offset, strides=strides)

    def to_cpu(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a copy."""
        return np.array(array, order="C")

    def write(self, array: npt.NDArray[Any], values: Any) -> None:
        """Set an array over the memory."""
        array[...] = values

    def facts(self) -> dict[str, Any]:
        """Return the kind of pages, and the NUMA node of the first."""
        return {"memory_bytes": self.arena.nbytes, "pages": self.arena.kind, "numa_node": self.arena.numa_node}

    def close(self) -> None:
        """Give the memory back; views of it read zeros from then on."""
        self.arena.close()


class HostTier(MemoryTier):
    """Blocks in CPU memory.

    Parameters
    ----------
    layout : KVLayout
    size : str or int, optional
        Bytes, as text ("8GiB") or number.
    capacity : int, optional
        Blocks, instead of `size`.
    pinned : bool, optional
        Pin the pages for DMA; by default where there is a GPU. True demands it.
    lock : bool
        Lock the pages in memory where they are not pinned, as far as the system allows; `capabilities` tell.
    numa_node : int, optional
        Node to take the memory from, best the one that the GPU hangs on; by default where the calling thread runs.

    Raises
    ------
    ConfigError
        If the size is none or holds no block, or there is no such node.
    DeviceMemoryError
        If the memory cannot be had, or not pinned although that was demanded.

    Examples
    --------
    >>> from dynalab.kv import KVLayout
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> with HostTier(layout, "1KiB", pinned=False) as tier:
    ...     tier.view(1)[...] = 7
    ...     tier.capacity, tier.view(1).shape, float(tier.view_all().sum())
    (4, (2, 2, 4, 8), 896.0)
    """

    name = "host"

    def __init__(
        self,
        layout: KVLayout,
        size: str | int | None = None,
        *,
        capacity: int | None = None,
        pinned: bool | None = None,
        lock: bool = True,
        numa_node: int | None = None,
    ) -> None:
        capacity = slot_count(size, capacity, layout.bytes_per_block, self.name)

        def allocate(nbytes: int) -> HostMemory:
            return HostMemory(HostArena(nbytes, pinned=pinned, lock=lock, numa_node=numa_node))

        super().__init__(layout, capacity, allocate)

    @property
    def capabilities(self) -> Capabilities:
        """Addresses for the CPU; pinned or locked as far as the machine allows."""
        pages = self._memory.facts()["pages"]
        return Capabilities(addressable=True, cpu_access=True, pinned=pages == "pinned", locked=pages != "pageable")
