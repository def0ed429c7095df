"""Copy blocks between two places in memory, of CPU or GPU, whatever the layouts of both.

Where both keep a block's bytes in the same order, a table of the largest pieces that are contiguous on both sides is
copied; else the heads change places on the way. The Python part is a few additions on small arrays: everything that
the layouts and the places determine is worked out once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, LayoutError
from dynalab.tiers.memory import MemoryTier

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

    Addresses = npt.NDArray[np.uint64]
    Slots = npt.NDArray[np.integer[Any]]

#: Bytes of a piece below which copy engines need longer to be asked than the link to carry it. The field measured a
#: cliff between 24 and 28 KiB host to device, on an H100 with PCIe 5.
SMALL_PIECE: Final = 28 * 1024
_CPU: Final = -1


class Selector(Protocol):
    """What copies from and to a GPU by the path that it holds for the quickest, a `PairCopier` for instance."""

    def copy(self, src: Addresses, dst: Addresses, nbytes: int, *, direction: str, stream: int) -> object:
        """Ask for a copy of pairs, in stream order; the direction is "h2d", "d2h" or "d2d"."""


class SizeRule:
    """The selector for a GPU on which nothing was measured: by the bytes of a piece alone."""

    def path(self, direction: str, nbytes: int, pieces: int) -> str:
        """Return the path: the kernel for small pieces that go to the GPU, copy engines for all else.

        Examples
        --------
        >>> rule = SizeRule()
        >>> rule.path("h2d", 4096, 1000), rule.path("h2d", 65536, 1000), rule.path("d2h", 4096, 1000)
        ('kernel', 'batch', 'batch')
        """
        return "kernel" if direction != "d2h" and nbytes < SMALL_PIECE and pieces > 1 else "batch"

    def copy(self, src: Addresses, dst: Addresses, nbytes: int, *, direction: str, stream: int) -> object:
        """Ask for a copy of pairs, in stream order."""
        from dynalab.kernels.memcpy import driver_copies
        from dynalab.kernels.paths_gpu import GPU_PATHS

        path = self.path(direction, nbytes, len(src))
        if path == "batch" and not driver_copies().has_batch:
            path = "async"
        return GPU_PATHS[path](src, dst, nbytes, direction, stream)


@dataclass(frozen=True)
class Place:
    """Blocks somewhere in memory.

    Parameters
    ----------
    layout : KVLayout
    bases : tuple of int
        Address of each storage.
    n_blocks : int
        Blocks that there is room for.
    device : int
        Number of the GPU, or -1 for memory of the CPU.
    pinned : bool
        Memory of the CPU that GPUs reach.
    """

    layout: KVLayout
    bases: tuple[int, ...]
    n_blocks: int
    device: int = _CPU
    pinned: bool = False

    @classmethod
    def of(cls, tier: MemoryTier) -> Place:
        """Return where a tier keeps its blocks."""
        facts = tier.capabilities
        device = int(facts.device_label.removeprefix("cuda:")) if facts.device_label.startswith("cuda:") else _CPU
        return cls(tier.layout, tier.bases, tier.capacity, device, facts.pinned)

    def pieces(self, nbytes: int) -> Addresses:
        """Return the addresses of the pieces of block 0."""
        return self.layout.chunks(self.bases, self.n_blocks, [0], nbytes)[0]

    def first_heads(self) -> Addresses:
        """Return the addresses of the first head and token of every layer of block 0."""
        return self.layout.origins(self.bases, self.n_blocks, [0])[:: self.layout.outer]

    @property
    def inner_strides(self) -> tuple[int, int, int]:
        """Bytes from one outer index, head and token to the next."""
        strides = self.layout.strides
        outer = self.layout.block_stride * self.n_blocks if strides.outer is None else strides.outer
        return outer, strides.head, strides.token


class BlockCopy:
    """Copy blocks from one place to another; for any number of threads.

    Parameters
    ----------
    source, target : Place
    threads : int
        For copies within memory of the CPU: threads that share a large one.
    selector : Selector, optional
        For copies from and to a GPU; by default a `SizeRule`.

    Raises
    ------
    LayoutError
        If the layouts do not hold the same blocks.
    ConfigError
        If a copy needs pinned memory and has none.
    """

    def __init__(self, source: Place, target: Place, *, threads: int = 1, selector: Selector | None = None) -> None:
        if not source.layout.compatible(target.layout):
            raise LayoutError(
                f"layouts: {source.layout.summary()} and {target.layout.summary()} do not hold the same blocks; "
                "give all tiers layouts of one shape and dtype"
            )
        self._threads, self._selector = threads, selector or SizeRule()
        self._device = max(source.device, target.device)
        self._reachable = all(place.device != _CPU or place.pinned for place in (source, target))
        self._direction = ("h" if source.device == _CPU else "d") + "2" + ("h" if target.device == _CPU else "d")
        self._by_table = source.layout.same_bytes(target.layout)
        if self._by_table:
            self._nbytes = source.layout.shared_fragment(target.layout)
            self._from, self._to = source.pieces(self._nbytes), target.pieces(self._nbytes)
        else:
            if self._device != _CPU and not self._reachable:
                raise ConfigError(
                    "host: a copy that changes the order of heads needs pinned memory beside a GPU; "
                    "build the host tier with pinned=True, or give both tiers one head order"
                )
            layout = source.layout
            self._from, self._to = source.first_heads(), target.first_heads()
            self._box = (
                source.inner_strides,
                target.inner_strides,
                (layout.outer, layout.heads, layout.page_tokens),
                layout.run_bytes,
            )
        self._steps = np.uint64(source.layout.block_stride), np.uint64(target.layout.block_stride)

    def __call__(self, source_slots: Slots, target_slots: Slots) -> None:
        """Copy blocks, and return when they have arrived.

        Parameters
        ----------
        source_slots, target_slots : int, shape (n,)
            Checked slots; no two targets alike.
        """
        src = _table(self._from, source_slots, self._steps[0])
        dst = _table(self._to, target_slots, self._steps[1])
        if self._device == _CPU:
            self._on_cpu(src, dst)
        else:
            self._on_gpu(src, dst)

    def _on_cpu(self, src: Addresses, dst: Addresses) -> None:
        from dynalab.kernels import copy_pairs, permute_blocks

        if self._by_table:
            copy_pairs(src, dst, self._nbytes, threads=self._threads)
        else:
            permute_blocks(src, dst, *self._box, threads=self._threads)

    def _on_gpu(self, src: Addresses, dst: Addresses) -> None:
        stream, event = _mine.stream_and_event(self._device)
        try:
            self._ask(src, dst, stream.ptr)
        except BaseException:
            # What is under way may still write to targets that the caller is about to give away.
            stream.synchronize()
            raise
        event.record(stream)
        event.synchronize()  # sleeps, and lets other Python threads run

    def _ask(self, src: Addresses, dst: Addresses, stream: int) -> None:
        """Ask the GPU for a copy, in the order of a stream."""
        from dynalab.kernels import permute_blocks_device
        from dynalab.kernels.memcpy import driver_copies

        if not self._by_table:
            permute_blocks_device(src, dst, *self._box, stream=stream)
            return
        if self._reachable:
            self._selector.copy(src, dst, self._nbytes, direction=self._direction, stream=stream)
        else:  # Only the driver can copy from and to pages that are not pinned.
            driver_copies().each(src, dst, self._nbytes, stream=stream)


def _table(first: Addresses, slots: Slots, step: np.uint64) -> Addresses:
    """Return the addresses of pieces of blocks, in order block, piece, from those of block 0."""
    return (slots.astype(np.uint64)[:, None] * step + first).ravel()


class _ThreadStreams(threading.local):
    """A stream and an event for each thread and GPU, so that copies of different threads overlap."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def stream_and_event(self, device: int) -> tuple[Any, Any]:
        """Return this thread's stream and event for a GPU, which becomes the thread's current one."""
        from cupy import cuda

        cuda.Device(device).use()
        if device not in self._made:
            event = cuda.Event(block=True, disable_timing=True)
            self._made[device] = cuda.Stream(non_blocking=True), event
        return self._made[device]


_mine = _ThreadStreams()
