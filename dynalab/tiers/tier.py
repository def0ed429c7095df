"""What every memory tier is: a fixed number of slots, one block each, with its layout, its size and what it can do.

A tier knows bytes and slots only. Which block lies in which slot, who is evicted and what is admitted is decided above
it, by the same policies that the metadata-only replay drives. There are two kinds: a `MemoryTier` has addresses, a
`StorageTier` is written and read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TierClosed, TierError, TransferError
from dynalab.units import format_size, parse_size

if TYPE_CHECKING:
    from types import TracebackType

    from dynalab.kv.layout import KVLayout

#: What `StorageTier.read` says of each block. Only the first one means that the target holds the block asked for.
READ_OK: Final = 0
#: The bytes do not match their checksum.
READ_CORRUPT: Final = 1
#: The slot holds nothing, or a block with another hash.
READ_STALE: Final = 2
#: The device did not deliver the bytes.
READ_FAILED: Final = 3


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a tier can do, as facts that code may rely on.

    Attributes
    ----------
    addressable : bool
        The blocks have addresses: it is a `MemoryTier`.
    cpu_access : bool
        The CPU may load from and store to those addresses.
    durable : bool
        Blocks survive the process: a tier opened on the same place finds them.
    device_label : str
        Where the blocks are, for data sets and plots: "cuda:0", "host-emulated" for the stand-in of a GPU, else "".
    pinned : bool
        Host pages that a GPU reads and writes by DMA.
    locked : bool
        Host pages that are never swapped out (pinned pages are locked, too).
    direct_io : bool
        Reads and writes bypass the page cache.
    gpu_direct : bool
        Reads and writes take addresses of GPU memory.
    """

    addressable: bool = False
    cpu_access: bool = False
    durable: bool = False
    device_label: str = ""
    pinned: bool = False
    locked: bool = False
    direct_io: bool = False
    gpu_direct: bool = False


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """Who blocks are, in four arrays of the same length: what a durable tier stores beside their bytes.

    Parameters
    ----------
    hash, parent : uint64, shape (n,)
        Sequence hash of each block and of the block before it (0 for the first of a sequence).
    position, priority : int32, shape (n,)
        Place of the block in its sequence, from 0, and the priority that eviction respects.

    Examples
    --------
    >>> keys = BlockKeys.of([11, 12, 13], parent=[0, 11, 12], position=[0, 1, 2])
    >>> len(keys), keys[1:].hash.tolist(), keys[1:].parent.tolist()
    (3, [12, 13], [11, 12])
    """

    hash: npt.NDArray[np.uint64]
    parent: npt.NDArray[np.uint64]
    position: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.hash, self.parent, self.position, self.priority)]
        if len(set(lengths)) > 1:
            raise TierError(
                f"keys: hash, parent, position and priority have lengths {lengths}; give one of each a block"
            )

    @classmethod
    def of(
        cls,
        hash: npt.ArrayLike,
        parent: npt.ArrayLike = 0,
        position: npt.ArrayLike = 0,
        priority: npt.ArrayLike = 0,
    ) -> BlockKeys:
        """Return keys from anything array-like; a single value stands for every block."""
        hashes = np.atleast_1d(np.asarray(hash, np.uint64))

        def spread(values: npt.ArrayLike, dtype: type) -> npt.NDArray[Any]:
            array: npt.NDArray[Any] = np.asarray(values, dtype)
            return np.full(len(hashes), array, dtype) if array.ndim == 0 else array

        return cls(hashes, spread(parent, np.uint64), spread(position, np.int32), spread(priority, np.int32))

    def __len__(self) -> int:
        return len(self.hash)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> BlockKeys:
        """Return the keys of some of the blocks: a slice, or an array of positions or of truth values."""
        return BlockKeys(self.hash[which], self.parent[which], self.position[which], self.priority[which])


def slot_count(size: object, capacity: object, slot_bytes: int, tier: str) -> int:
    """Return how many slots a tier has, from its size in bytes or, instead, from their number.

    Parameters
    ----------
    size : str or int, optional
        Bytes, as text ("8GiB") or number.
    capacity : int, optional
        Slots.
    slot_bytes : int
        Bytes that one slot takes up.
    tier : str
        Name of the tier, for the errors.

    Raises
    ------
    ConfigError
        If both or neither are given, if the size is none, or if it has no room for one block.

    Examples
    --------
    >>> slot_count("1MiB", None, 65_536, "host"), slot_count(None, 5, 65_536, "host")
    (16, 5)
    """
    if (size is None) == (capacity is None):
        given = "neither" if size is None else "both"
        raise ConfigError(f'{tier}: {given} of size and capacity given; write size="8GiB" or capacity=1000 (blocks)')
    if capacity is not None:
        if isinstance(capacity, bool) or not isinstance(capacity, int | np.integer) or capacity < 1:
            raise ConfigError(f"{tier}: capacity {capacity!r} is not a number of blocks; write 1 or more")
        return int(capacity)
    nbytes = parse_size(size, field=f"{tier} size")
    if nbytes < slot_bytes:
        raise ConfigError(
            f"{tier}: a size of {format_size(nbytes)} has no room for one block of {format_size(slot_bytes)} "
            f"({slot_bytes} bytes); make it larger, or the blocks smaller (fewer tokens a page)"
        )
    return nbytes // slot_bytes


class Tier(ABC):
    """A fixed number of slots for blocks of one layout.

    Parameters
    ----------
    layout : KVLayout
        Shape of a block, and the order of its bytes.
    capacity : int
        Slots, numbered from 0.

    Notes
    -----
    Distinct slots may be used from distinct threads at the same time; who uses one slot from two threads orders them.
    """

    #: "device", "host" or "disk".
    name: ClassVar[str]

    def __init__(self, layout: KVLayout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self._closed = False

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this tier can do."""

    @property
    def block_bytes(self) -> int:
        """Bytes of content in a block, without any padding."""
        return int(self.layout.block_bytes)

    @property
    def closed(self) -> bool:
        """Whether the tier was closed."""
        return self._closed

    def close(self) -> None:
        """Give everything back; the second and later calls do nothing. Close what moves bytes of the tier first."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Give everything back, once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require_open(self) -> None:
        """Raise `TierClosed` if the tier was closed."""
        if self._closed:
            raise TierClosed(f"{self.name}: the tier is closed; open a new one")

    def check_slots(self, slots: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return slot numbers as an array.

        Raises
        ------
        TierClosed
            If the tier was closed.
        TierError
            If a number is no slot of this tier.
        """
        self.require_open()
        given = np.asarray(slots)
        if given.size == 0:
            return np.empty(0, np.int64)
        if given.dtype.kind not in "iu" or given.ndim > 1:
            raise TierError(f"{self.name}: slots are one row of integers, not {given.ndim}-d {given.dtype}")
        # One look at the extremes, since every table of a transfer passes here. A uint64 beyond int64 is seen, too.
        if int(given.min()) < 0 or int(given.max()) >= self.capacity:
            bad = given.ravel()[(given.ravel() < 0) | (given.ravel() >= self.capacity)][0]
            raise TierError(f"{self.name}: slot {bad} does not exist; slots are 0 to {self.capacity - 1}")
        return np.ascontiguousarray(np.atleast_1d(given), np.int64)

    def stats(self) -> dict[str, Any]:
        """Return facts and counters by name."""
        return {
            "name": self.name,
            "capacity": self.capacity,
            "block_bytes": self.block_bytes,
            "bytes": self.capacity * self.block_bytes,
            "device_label": self.capabilities.device_label,
        }

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        size = format_size(self.capacity * self.block_bytes)
        return f"<{type(self).__name__}: {self.capacity} blocks of {format_size(self.block_bytes)} ({size}){state}>"


class StorageTier(Tier):
    """A tier without addresses: blocks are written from CPU memory and read back into it.

    Whatever the order of the tiers around it, the content of a stored block is ``block_bytes`` contiguous bytes in the
    order of `stored_layout`, so that a block written from one layout may be read into another.
    """

    @cached_property
    def stored_layout(self) -> KVLayout:
        """Layout of a block as written and read: block-first, the head order kept."""
        return self.layout.with_(order="block_first", alignment=1)

    @abstractmethod
    def write(
        self,
        slots: npt.ArrayLike,
        sources: npt.NDArray[np.uint64],
        keys: BlockKeys,
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Write blocks.

        Parameters
        ----------
        slots : int, shape (n,)
            Where to.
        sources : uint64, shape (n,)
            Addresses in CPU memory of `block_bytes` contiguous bytes each.
        keys : BlockKeys
            Who they are; n of them.
        errors : list of TransferError, optional
            Takes one error for every block that is not written.

        Returns
        -------
        bool, shape (n,)
            True for a block that is written; the others lie nowhere.
        """

    @abstractmethod
    def read(
        self,
        slots: npt.ArrayLike,
        targets: npt.NDArray[np.uint64],
        hashes: npt.NDArray[np.uint64],
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.int8]:
        """Read blocks.

        Parameters
        ----------
        slots : int, shape (n,)
            Where from.
        targets : uint64, shape (n,)
            Addresses in CPU memory with room for `block_bytes` contiguous bytes each.
        hashes : uint64, shape (n,)
            The blocks that should lie there.
        errors : list of TransferError, optional
            Takes one error for every block whose status is not `READ_OK`; a `CorruptBlock` for `READ_CORRUPT`.

        Returns
        -------
        int8, shape (n,)
            `READ_OK`, `READ_CORRUPT`, `READ_STALE` or `READ_FAILED` for each block; unless it is `READ_OK`, what the
            target holds is worthless.
        """

    @abstractmethod
    def forget(self, slots: npt.ArrayLike) -> None:
        """Drop blocks: a read of them is stale from now on, and a tier opened later does not find them."""

    @abstractmethod
    def recovered(self) -> tuple[npt.NDArray[np.int64], BlockKeys]:
        """Return the slots and keys of the blocks found when the tier was opened, in the order they were written."""

    @abstractmethod
    def flush(self) -> None:
        """Return once every block written so far survives a loss of power, as far as the tier is durable."""
