"""One path of the transfer engine: who is next on it, and what it has done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynalab.tiers.transfer import Transfer


@dataclass(slots=True)
class PathStats:
    """What a path has done and holds; `TransferEngine.stats` returns copies.

    Attributes
    ----------
    transfers : int
        Transfers that are done, whatever their outcome.
    batches : int
        Calls of the mover that have ended.
    blocks_done, blocks_failed, blocks_cancelled : int
        Outcomes; every block submitted ends as exactly one of them.
    bytes_done : int
        Bytes of the blocks done.
    pending_blocks, in_flight : int
        Blocks without an outcome yet, and batches that are being moved, now.
    most_pending_blocks, most_in_flight : int
        Their high-water marks.
    busy_s : float
        Seconds [s] with at least one batch in flight: ``bytes_done / busy_s`` is the path's bandwidth under load.
    batch_s : float
        Seconds [s] summed over batches; above `busy_s` as far as batches overlapped.
    """

    transfers: int = 0
    batches: int = 0
    blocks_done: int = 0
    blocks_failed: int = 0
    blocks_cancelled: int = 0
    bytes_done: int = 0
    pending_blocks: int = 0
    in_flight: int = 0
    most_pending_blocks: int = 0
    most_in_flight: int = 0
    busy_s: float = 0.0
    batch_s: float = 0.0


class Path:
    """Queue, workers and counters of one path. Every method is called with the engine's lock held.

    Parameters
    ----------
    name : str
        Such as "device_to_host".
    mover : callable
        ``(transfer, lo, hi) -> bool array``, see `TransferEngine`.
    block_bytes : int
        Bytes of a block, for the counters.
    lock : threading.Lock
        The engine's.
    """

    __slots__ = (
        "_busy_since",
        "_ready",
        "block_bytes",
        "idle",
        "mover",
        "name",
        "settling",
        "stats",
        "work",
        "workers",
    )

    def __init__(self, name: str, mover: Callable[..., Any], block_bytes: int, lock: threading.Lock) -> None:
        self.name = name
        self.mover = mover
        self.block_bytes = block_bytes
        self.work = threading.Condition(lock)
        self.workers = 0
        # Workers that wait and that nobody has woken yet: who wakes one takes it off, so that none is counted twice.
        self.idle = 0
        # Transfers whose outcome is known although no batch of theirs is ending: a worker must run their callbacks.
        self.settling: deque[Transfer] = deque()
        self._ready: list[tuple[int, int, Transfer]] = []
        self._busy_since = 0.0
        self.stats = PathStats()

    def push(self, transfer: Transfer) -> None:
        """Queue a transfer that waits for nothing any more: by higher priority, then by age."""
        heappush(self._ready, (-transfer.priority, transfer._age, transfer))

    def hold(self, n_blocks: int) -> None:
        """Count blocks that were submitted."""
        stats = self.stats
        stats.pending_blocks += n_blocks
        stats.most_pending_blocks = max(stats.most_pending_blocks, stats.pending_blocks)

    def next_job(self, batch: int) -> tuple[Transfer, int, int] | None:
        """Return the next blocks to move as ``(transfer, lo, hi)``; ``lo == hi`` where only callbacks are to be run."""
        if self.settling:
            transfer = self.settling.popleft()
            return transfer, 0, 0
        while self._ready:
            transfer = self._ready[0][2]
            lo, end = transfer._next, len(transfer.src)
            hi = min(lo + batch, end)
            if hi == end:
                heappop(self._ready)
            if lo < end:  # Else it was cancelled while it was queued.
                transfer._next = hi
                return transfer, lo, hi
        return None

    def begin_batch(self) -> None:
        """Count a batch that starts to move."""
        stats = self.stats
        if stats.in_flight == 0:
            self._busy_since = perf_counter()
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)

    def end_batch(self, n_blocks: int, n_ok: int, seconds: float) -> None:
        """Count a batch that has ended, and the outcomes of its blocks."""
        stats = self.stats
        stats.in_flight -= 1
        if stats.in_flight == 0:
            stats.busy_s += perf_counter() - self._busy_since
        stats.batch_s += seconds
        stats.batches += 1
        stats.pending_blocks -= n_blocks
        stats.blocks_done += n_ok
        stats.blocks_failed += n_blocks - n_ok
        stats.bytes_done += n_ok * self.block_bytes

    def cancel(self, n_blocks: int) -> None:
        """Count blocks that will never start."""
        self.stats.pending_blocks -= n_blocks
        self.stats.blocks_cancelled += n_blocks

    def wake(self, jobs: int, concurrency: int) -> int:
        """Wake idle workers for new jobs, and return how many the caller must start when it has let go of the lock."""
        woken = min(jobs, self.idle)
        if woken:
            self.idle -= woken
            self.work.notify(woken)
        new = max(0, min(jobs - woken, concurrency - self.workers))
        self.workers += new
        return new
