"""What moves a batch of blocks along each path between three tiers: the movers of a transfer engine.

Between device and host a block is copied from slot to slot. The disk takes and gives contiguous blocks in CPU memory;
where the tier at the other end does not keep its blocks like that, they pass through a bounce buffer on their way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, DynalabError, LayoutError, TransferError
from dynalab.tiers.copying import BlockCopy, Place, Selector, SizeRule
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.tier import READ_OK, BlockKeys, StorageTier

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout
    from dynalab.pools import BufferPool
    from dynalab.tiers.engine import Mover
    from dynalab.tiers.transfer import Transfer

    Addresses = npt.NDArray[np.uint64]
    Outcome = npt.NDArray[np.bool_]

_log = logging.getLogger(__name__)


def movers(
    device: MemoryTier | None = None,
    host: MemoryTier | None = None,
    disk: StorageTier | None = None,
    *,
    bounce: BufferPool | None = None,
    threads: int = 1,
    selector: Selector | None = None,
) -> dict[str, Mover]:
    """Return the movers for all paths between the tiers that there are.

    Parameters
    ----------
    device, host : MemoryTier, optional
    disk : StorageTier, optional
    bounce : BufferPool, optional
        Buffers for blocks on their way from or to the disk; each holds one block at least, best a whole batch. Needed
        where `needs_bounce` says so; pinned ones beside a GPU.
    threads : int
        For copies within CPU memory: threads that share a large one.
    selector : Selector, optional
        What copies from and to a GPU. By default, where there is one, a :class:`dynalab.kernels.PairCopier` that is
        calibrated at its first use on this machine.

    Returns
    -------
    dict of str to callable
        By path: "device_to_host", "host_to_device", "host_to_disk", "disk_to_host", "device_to_disk", "disk_to_device".
        For paths from and to the disk, a transfer's `payload` is `BlockKeys`, or has such an attribute ``keys``: one
        key for each of its blocks.

    Raises
    ------
    LayoutError
        If the tiers do not hold the same blocks.
    ConfigError
        If bounce buffers are missing, or too small for a block.

    Examples
    --------
    >>> from dynalab.kv import KVLayout
    >>> from dynalab.tiers import DeviceTier, HostTier, Transfer, TransferEngine
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> with DeviceTier(layout, capacity=4) as device, HostTier(layout, capacity=9) as host:
    ...     host.fill([7], 1)
    ...     with TransferEngine(movers(device, host)) as engine:
    ...         transfer = Transfer("host_to_device", [7], [2])
    ...         _ = engine.submit([transfer])
    ...         bool(transfer.result().all()), bool((device.get(2) == host.get(7)).all())
    (True, True)
    """
    if selector is None and any(tier is not None and Place.of(tier).device >= 0 for tier in (device, host)):
        selector = _calibrated()
    found: dict[str, Mover] = {}
    if device is not None and host is not None:
        found["device_to_host"] = MemoryMover(device, host, threads, selector)
        found["host_to_device"] = MemoryMover(host, device, threads, selector)
    if disk is not None:
        for memory in (host, device):
            if memory is not None:
                found[f"{memory.name}_to_{disk.name}"] = StorageWriter(memory, disk, bounce, threads, selector)
                found[f"{disk.name}_to_{memory.name}"] = StorageReader(memory, disk, bounce, threads, selector)
    return found


def _calibrated() -> Selector:
    """Return the copier that was calibrated on this GPU, or a plain rule where it cannot be now."""
    from dynalab.kernels import PairCopier

    try:
        return PairCopier.for_gpu()
    except DynalabError as error:  # The tiers may have left it no memory to measure with.
        _log.warning("copy paths of the GPU are not measured (%s): they are chosen by size alone", error)
        return SizeRule()


def needs_bounce(memory: MemoryTier, disk: StorageTier) -> bool:
    """Tell whether blocks pass through a buffer between a memory tier and a disk."""
    facts = memory.capabilities
    reached = facts.cpu_access or disk.capabilities.gpu_direct
    whole = memory.layout.fragments_per_block == 1
    return not (reached and whole and memory.layout.same_bytes(disk.stored_layout))


class MemoryMover:
    """Copy blocks from one memory tier to another."""

    def __init__(self, source: MemoryTier, target: MemoryTier, threads: int, selector: Selector | None) -> None:
        self._source, self._target = source, target
        self._copy = BlockCopy(Place.of(source), Place.of(target), threads=threads, selector=selector)

    def __call__(self, transfer: Transfer, lo: int, hi: int) -> Outcome:
        """Copy blocks `lo` to `hi` of a transfer; all arrive, or it raises."""
        src = self._source.check_slots(transfer.src[lo:hi])
        dst = self._target.check_slots(transfer.dst[lo:hi])
        self._copy(src, dst)
        return np.ones(hi - lo, np.bool_)


class _StorageMover:
    """What writing and reading have in common: where the blocks of a batch lie meanwhile.

    Parameters
    ----------
    memory : MemoryTier
    disk : StorageTier
    bounce : BufferPool, optional
    threads, selector
        For the copies from or to the bounce buffers.
    """

    _to_disk: bool

    def __init__(
        self,
        memory: MemoryTier,
        disk: StorageTier,
        bounce: BufferPool | None,
        threads: int,
        selector: Selector | None,
    ) -> None:
        self._memory, self._disk, self._bounce = memory, disk, bounce
        self._place = Place.of(memory)
        self._options: dict[str, Any] = {"threads": threads, "selector": selector}
        self._stored: KVLayout = disk.stored_layout
        if not memory.layout.compatible(self._stored):
            raise LayoutError(
                f"layouts: {memory.name} has {memory.layout.summary()} and {disk.name} {disk.layout.summary()}; "
                "give all tiers layouts of one shape and dtype"
            )
        # A pool has few buffers, and what a copy has to know of one stays the same.
        self._copies: dict[int, tuple[Addresses, BlockCopy]] = {}
        self._direct = not needs_bounce(memory, disk)
        if self._direct:
            return
        why = f"the {memory.name} tier's blocks reach the {disk.name} through bounce buffers"
        if bounce is None:
            raise ConfigError(f"bounce: {why}; give a BufferPool with buffers of {disk.block_bytes} bytes or more")
        self._at_once = bounce.buffer_bytes // disk.block_bytes
        if self._at_once == 0:
            raise ConfigError(
                f"bounce: {why}, of {bounce.buffer_bytes} bytes each; give buffers of {disk.block_bytes} or more"
            )

    @contextmanager
    def _buffer(self) -> Iterator[tuple[Addresses, BlockCopy]]:
        """Lend a bounce buffer: the addresses of its blocks, and the copy between it and the memory tier."""
        assert self._bounce is not None
        with self._bounce.acquire() as buffer:
            if buffer.index not in self._copies:
                place = Place(self._stored, (buffer.address,), self._at_once, pinned=self._bounce.kind == "pinned")
                blocks, _ = self._stored.chunks(place.bases, self._at_once, np.arange(self._at_once))
                ends = (self._place, place) if self._to_disk else (place, self._place)
                self._copies[buffer.index] = blocks, BlockCopy(*ends, **self._options)
            yield self._copies[buffer.index]

    def _pieces(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """Cut blocks `lo` to `hi` into what a bounce buffer takes at once."""
        for begin in range(lo, hi, self._at_once):
            yield begin, min(begin + self._at_once, hi)


class StorageWriter(_StorageMover):
    """Write blocks of a memory tier to a disk."""

    _to_disk = True

    def __call__(self, transfer: Transfer, lo: int, hi: int) -> Outcome:
        """Write blocks `lo` to `hi` of a transfer, and return which of them are written."""
        keys = _keys(transfer)
        slots = self._memory.check_slots(transfer.src[lo:hi])
        if self._direct:
            sources, _ = self._memory.chunks(slots)
            return self._disk.write(transfer.dst[lo:hi], sources, keys[lo:hi], errors=transfer.errors)
        written = np.zeros(hi - lo, np.bool_)
        with self._buffer() as (blocks, gather):
            for begin, end in self._pieces(lo, hi):
                gather(slots[begin - lo : end - lo], np.arange(end - begin))
                written[begin - lo : end - lo] = self._disk.write(
                    transfer.dst[begin:end], blocks[: end - begin], keys[begin:end], errors=transfer.errors
                )
        return written


class StorageReader(_StorageMover):
    """Read blocks from a disk into a memory tier."""

    _to_disk = False

    def __call__(self, transfer: Transfer, lo: int, hi: int) -> Outcome:
        """Read blocks `lo` to `hi` of a transfer, and return which of them have arrived, whole and under their name."""
        hashes = _keys(transfer).hash
        slots = self._memory.check_slots(transfer.dst[lo:hi])
        if self._direct:
            targets, _ = self._memory.chunks(slots)
            status = self._disk.read(transfer.src[lo:hi], targets, hashes[lo:hi], errors=transfer.errors)
            return status == READ_OK
        arrived = np.zeros(hi - lo, np.bool_)
        with self._buffer() as (blocks, scatter):
            for begin, end in self._pieces(lo, hi):
                status = self._disk.read(
                    transfer.src[begin:end], blocks[: end - begin], hashes[begin:end], errors=transfer.errors
                )
                good = np.flatnonzero(status == READ_OK)
                if len(good):
                    scatter(good, slots[begin - lo :][good])
                arrived[begin - lo + good] = True
        return arrived


def _keys(transfer: Transfer) -> BlockKeys:
    """Return the keys that come with a transfer, one for each block."""
    payload = transfer.payload
    keys = payload if isinstance(payload, BlockKeys) else getattr(payload, "keys", None)
    if not isinstance(keys, BlockKeys) or len(keys) != len(transfer):
        raise TransferError(
            f"{transfer.path}: {len(transfer)} blocks come with {payload!r:.80}; give as payload one key for each"
        )
    return keys
