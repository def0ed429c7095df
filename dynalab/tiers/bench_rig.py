"""The tiers that a benchmark moves blocks between: every size and layout of a block takes turns in the same memory.

What is moved is moved by the tiers, movers and transfer engine that serve a stack. Only the slots are the benchmark's
own choice: dealt out in permuted order, none again before all others had their turn, so that what is read is cold.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from dynalab.errors import TransferError
from dynalab.kv.layout import KVLayout
from dynalab.pools import BufferPool
from dynalab.tiers.bench_cases import DIRECTIONS, LAYERS, PAGE, Case, Deck, Slots, layout_of
from dynalab.tiers.device import HOST_EMULATED, DeviceTier
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.engine import TransferEngine
from dynalab.tiers.host import HostTier
from dynalab.tiers.memory import Memory, MemoryTier
from dynalab.tiers.movers import MemoryMover, movers
from dynalab.tiers.tier import READ_OK, BlockKeys, Capabilities, Tier
from dynalab.tiers.transfer import Transfer
from dynalab.units import format_size

if TYPE_CHECKING:
    from types import TracebackType

    from dynalab.tiers.bench_plan import BenchPlan
    from dynalab.tiers.engine import Mover

#: Bytes of a bounce buffer at least: sixteen blocks of 1 MiB, as a stack has by default.
_BOUNCE_BYTES: Final = 16 << 20
#: Beside the blocks: each layer's storage begins at a multiple of 256 bytes.
_SLACK: Final = LAYERS * 256
#: What targets hold before they are compared.
_MARK: Final = 0xEE


class _Window(MemoryTier):
    """Another layout over the memory of a tier, which stays that tier's to give back."""

    def __init__(self, tier: MemoryTier, layout: KVLayout, nbytes: int) -> None:
        def lend(needed: int) -> Memory:
            assert needed <= tier.capacity * tier.block_bytes
            return tier._memory

        self._tier = tier
        super().__init__(layout, nbytes // layout.block_bytes, lend)

    @property
    def capabilities(self) -> Capabilities:
        return self._tier.capabilities

    def _close(self) -> None:
        """Leave the memory alone."""


class _DeviceWindow(_Window):
    name = "device"


class _HostWindow(_Window):
    name = "host"


_WINDOWS: Final[dict[str, type[_Window]]] = {"device": _DeviceWindow, "host": _HostWindow}


@dataclass(frozen=True, slots=True)
class _Load:
    """What comes with a transfer: who its blocks are, and what moves them."""

    keys: BlockKeys
    mover: Mover


def _move(transfer: Transfer, lo: int, hi: int) -> npt.NDArray[np.bool_]:
    """Move a batch by the mover that its transfer brings along: one set of workers serves all layouts."""
    load = transfer.payload
    assert isinstance(load, _Load)
    return load.mover(transfer, lo, hi)


class TierRig:
    """Device, host and disk tiers for benchmarks, with all that is between them.

    The disk tiers' files have no names any more once they are open, so that nothing is left of them however the process
    ends. All use of a rig is one thread's.

    Parameters
    ----------
    plan : BenchPlan

    Attributes
    ----------
    disks : dict of int to DiskTier
        One for each block size; none where the plan has no disk.
    rng : numpy.random.Generator

    Raises
    ------
    ConfigError, DeviceMemoryError, TierFull
        If the tiers cannot be had.
    """

    def __init__(self, plan: BenchPlan) -> None:
        self.rng = np.random.default_rng(plan.seed)
        self.disks: dict[int, DiskTier] = {}
        self._memory: dict[str, MemoryTier] = {}
        self._windows: dict[tuple[str, int, str], _Window] = {}
        self._decks: dict[tuple[str, int], Deck] = {}
        self._movers: dict[tuple[int, str], dict[str, Mover]] = {}
        pages = KVLayout(num_layers=1, outer=1, page_tokens=16, inner=PAGE // 32, dtype="bfloat16")
        with ExitStack() as undo:
            self._memory["host"] = undo.enter_context(HostTier(pages, plan.host + _SLACK))
            self._fill_host()
            if plan.device:
                self._memory["device"] = undo.enter_context(DeviceTier(pages, plan.device + _SLACK, device=plan.gpu))
            for size in plan.block_bytes:
                if plan.disk:
                    share = plan.disk // len(plan.block_bytes)
                    disk = undo.enter_context(_unnamed_disk(layout_of(size), share, plan.path, plan.engine))
                    self.disks[size], self._decks["disk", size] = disk, Deck(self.rng, disk.capacity)
                    self._fill_disk(disk)
                for name, tier in self._memory.items():
                    self._decks[name, size] = Deck(self.rng, getattr(plan, name) // size)
                    for order in plan.layouts:
                        window = _WINDOWS[name](tier, layout_of(size, order), getattr(plan, name))
                        self._windows[name, size, order] = window
            largest = max(_BOUNCE_BYTES, *plan.block_bytes)
            bounce = undo.enter_context(BufferPool(plan.concurrency, largest)) if plan.disk else None
            for size, order in product(plan.block_bytes, plan.layouts):
                device, host = (self._windows.get((name, size, order)) for name in ("device", "host"))
                self._movers[size, order] = movers(device, host, self.disks.get(size), bounce=bounce)
                if device is not None:
                    self._movers[size, order]["device_to_device"] = MemoryMover(device, device, 1, None)
            self._engines = {
                batch: undo.enter_context(
                    TransferEngine(dict.fromkeys(DIRECTIONS, _move), concurrency=plan.concurrency, batch=batch)
                )
                for batch in plan.batches
            }
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    @property
    def directions(self) -> tuple[str, ...]:
        """The ways between the tiers that there are, in a fixed order."""
        there = set(self._memory) | ({"disk"} if self.disks else set())
        return tuple(name for name in DIRECTIONS if set(name.split("_to_")) <= there)

    @property
    def device_label(self) -> str:
        """Where the device's blocks are: "cuda:0", "host-emulated", or "" without a device."""
        return self._memory["device"].capabilities.device_label if "device" in self._memory else ""

    def pages(self, name: str) -> MemoryTier:
        """Return the memory of device or host as a tier of pages, one behind the other."""
        return self._memory[name]

    def facts(self) -> dict[str, Any]:
        """Return what the tiers are, for the attributes of a result."""
        host = self._memory["host"].stats()
        facts: dict[str, Any] = {"host_pages": host["pages"], "host_numa_node": host["numa_node"]}
        if self.device_label:
            facts["device_label"] = self.device_label
        if self.device_label == HOST_EMULATED:
            facts["device"] = HOST_EMULATED
        for disk in self.disks.values():
            facts |= {"disk_engine": disk.stats()["engine"], "disk_direct_io": disk.capabilities.direct_io}
        return facts

    def room(self, case: Case) -> int:
        """Return how many blocks can be under way at once, a slot at either end for each."""
        capacities = [self._tier(name, case).capacity for name in case.ends]
        return min(capacities) // (2 if case.ends[0] == case.ends[1] else 1)

    def move(self, case: Case, n: int) -> float:
        """Move blocks, and return the seconds from their submission until all have arrived.

        Within memory, more blocks than there is room for are moved again and again, from and to the same slots.

        Raises
        ------
        TransferError
            If one does not arrive.
        """
        src, dst = self._slots(case, min(n, self.room(case)))
        return self._move(case, np.resize(src, n), np.resize(dst, n))

    def check(self, case: Case, n: int) -> float:
        """Move fresh blocks to targets that hold something else, and compare every bit; return the seconds of moving.

        Raises
        ------
        TransferError
            If a block does not arrive as it was.
        """
        src, dst = self._slots(case, n)
        source, target = (self._tier(name, case) for name in case.ends)
        if isinstance(source, MemoryTier):
            shape, kind = source.view_heads(0).shape, np.uint16
            for slot in src.tolist():
                source.put(slot, self.rng.integers(0, 1 << 16, shape, kind))
        if isinstance(target, MemoryTier):
            target.fill(dst, _MARK)
        elif isinstance(target, DiskTier):
            target.forget(dst)
        seconds = self._move(case, src, dst)
        for a, b, sent, seen in zip(
            src.tolist(), dst.tolist(), self._content(source, src), self._content(target, dst), strict=True
        ):
            if not np.array_equal(sent, seen):
                raise TransferError(
                    f"{case.direction}: slot {b} holds other bytes than slot {a}, where they came from "
                    f"({format_size(case.block_bytes)} blocks, {case.order}, batches of {case.batch})"
                )
        return seconds

    def _move(self, case: Case, src: Slots, dst: Slots) -> float:
        slots = src if case.ends[0] == "disk" else dst
        load = _Load(BlockKeys.of(_names(slots)), self._movers[case.block_bytes, case.order][case.direction])
        transfer = Transfer(case.direction, src, dst, payload=load)
        begin = time.perf_counter()
        self._engines[case.batch].submit([transfer])
        arrived = transfer.result()
        seconds = time.perf_counter() - begin
        if not arrived.all():
            raise transfer.errors[0]
        return seconds

    def _slots(self, case: Case, n: int) -> tuple[Slots, Slots]:
        source, target = case.ends
        if source == target:
            both = self._decks[source, case.block_bytes].deal(2 * n)
            return both[:n], both[n:]
        return self._decks[source, case.block_bytes].deal(n), self._decks[target, case.block_bytes].deal(n)

    def _tier(self, name: str, case: Case) -> Tier:
        return self.disks[case.block_bytes] if name == "disk" else self._windows[name, case.block_bytes, case.order]

    def _content(self, tier: Tier, slots: Slots) -> Iterator[npt.NDArray[Any]]:
        """Yield blocks one by one, read by other means than those that moved them."""
        if isinstance(tier, MemoryTier):
            yield from (tier.get(slot) for slot in slots.tolist())
            return
        assert isinstance(tier, DiskTier)
        layout = tier.stored_layout
        block = np.empty((layout.num_layers, layout.outer, layout.page_tokens, 1, layout.inner), np.uint16)
        for slot in slots:
            errors: list[TransferError] = []
            if tier.read([slot], [block.ctypes.data], _names(slot), errors=errors)[0] != READ_OK:
                raise errors[0]
            yield block

    def _fill_host(self) -> None:
        """Fill the host's memory with noise: some drives and file systems write what is alike in less time."""
        words = self._memory["host"].view_all().reshape(-1).view(np.uint64)
        for part in np.array_split(words, max(1, words.nbytes >> 24)):
            part[...] = self.rng.integers(0, 1 << 64, part.size, np.uint64)

    def _fill_disk(self, disk: DiskTier) -> None:
        """Write every slot of a disk tier once, so that there is something to read, and no first write to be timed."""
        host = self._memory["host"]
        at_once = host.capacity * PAGE // disk.block_bytes
        addresses = np.uint64(host.bases[0]) + np.arange(at_once, dtype=np.uint64) * np.uint64(disk.block_bytes)
        for part in np.array_split(np.arange(disk.capacity), -(-disk.capacity // at_once)):
            errors: list[TransferError] = []
            if not disk.write(part, addresses[: len(part)], BlockKeys.of(_names(part)), errors=errors).all():
                raise errors[0]


def _names(slots: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return the hash of the block that lies in each slot of a disk, in every round the same."""
    return np.atleast_1d(np.asarray(slots)).astype(np.uint64) + np.uint64(1)


def _unnamed_disk(layout: KVLayout, nbytes: int, path: Path, engine: str) -> DiskTier:
    """Open a disk tier whose files go away with it, whatever becomes of the process."""
    folder = tempfile.mkdtemp(prefix=".dynalab-bench-", dir=path)
    try:
        return DiskTier(layout, nbytes, path=folder, engine=engine)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
