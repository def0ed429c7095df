"""What stands behind a stack's operations: its parts, its life, and what is known about it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError, ConfigError, TierClosed, TierError, TransferError
from dynalab.kv.tiering.rules import DISK, HOST, N_TIERS, TIERS
from dynalab.tiers._state import load_steps
from dynalab.tiers.config import StackConfig
from dynalab.tiers.directory import STORE, Directory, Filter, Outcome
from dynalab.tiers.flow import Flow
from dynalab.tiers.handles import Match
from dynalab.tiers.leases import Blocks, LeaseTable
from dynalab.tiers.movers import movers, needs_bounce
from dynalab.tiers.stack_options import check_count, check_tiers, filters_of, per_tier
from dynalab.tiers.stack_stats import HitWindow, prometheus_text, stack_dataset
from dynalab.tiers.tier import BlockKeys, Tier
from dynalab.tiers.transfer import Transfer

if TYPE_CHECKING:
    from types import TracebackType

    import xarray as xr

    from dynalab.kv.layout import KVLayout
    from dynalab.tiers.memory import MemoryTier
    from dynalab.tiers.tier import StorageTier

_log = logging.getLogger(__name__)
#: Most bytes of a buffer between memory and disk, if it holds more than one block.
_BOUNCE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class KvEvent:
    """A block that entered the stack, or left its last tier.

    Attributes
    ----------
    kind : {"store", "remove"}
    hash, parent : int
        Sequence hash, and that of the block before it (0 for none).
    """

    kind: str
    hash: int
    parent: int


class StackBase:
    """Tiers, directory and copies of a :class:`~dynalab.tiers.TierStack`, and everything but its requests."""

    def __init__(
        self,
        device: MemoryTier,
        host: MemoryTier | None = None,
        disk: StorageTier | None = None,
        *,
        policy: str | Mapping[str, str] = "lru",
        admission: str | Filter | Mapping[str, str | Filter] | None = None,
        mode: str = "write_through",
        admit_after: int = 2,
        touch: str = "served",
        disk_path: str = "staged",
        config: StackConfig | None = None,
        id_capacity: int | None = None,
        max_pending_blocks: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
        on_events: Callable[[list[KvEvent]], object] | None = None,
    ) -> None:
        with ExitStack() as undo:
            for tier in (device, host, disk):
                # They are made in the line that makes the stack: nobody else could close them.
                if isinstance(tier, Tier):
                    undo.callback(tier.close)
            tiers: tuple[Tier | None, ...] = (device, host, disk)
            check_tiers(*tiers)
            self.device, self.host, self.disk = device, host, disk
            self.layout: KVLayout = device.layout
            self.config = StackConfig() if config is None else config
            if not isinstance(self.config, StackConfig):
                raise ConfigError(f"config: {config!r:.80} is no StackConfig; give StackConfig(...) or none")
            slots = tuple(0 if tier is None else tier.capacity for tier in tiers)
            self.mode = mode
            self.policies = per_tier("policy", policy, "lru")
            self.filters = filters_of(admission, mode, admit_after, host is not None, disk is not None)
            n_ids = (
                2 * sum(slots) + 65_536 if id_capacity is None else check_count("id_capacity", id_capacity, sum(slots))
            )
            self._directory = Directory(
                slots,  # type: ignore[arg-type]
                self.policies,
                self.filters,
                mode=mode,
                touch=touch,
                disk_path=disk_path,
                n_ids=n_ids,
                tell=on_events is not None,
            )
            load_steps()
            self._lock = threading.RLock()
            self._leases = LeaseTable()
            self._clock, self._start = clock, clock()
            self._on_events = on_events
            self._max_pending = check_count("max_pending_blocks", max_pending_blocks, 1)
            self._window = HitWindow(self.config.cache_stats_max_requests, self.config.cache_stats_log_interval_s)
            self._open_matches = 0
            self._closed = False
            bounce = None
            if disk is not None and any(tier is not None and needs_bounce(tier, disk) for tier in (device, host)):
                from dynalab.pools import BufferPool

                # Each path has so many batches in flight; with fewer buffers they would wait for each other. A large
                # batch passes in parts: this is memory on top of the tiers.
                batch = disk.block_bytes * self.config.max_transfer_batch_size
                size = max(disk.block_bytes, min(batch, _BOUNCE_BYTES // disk.block_bytes * disk.block_bytes))
                bounce = undo.enter_context(BufferPool(2 * self.config.max_concurrent_transfers, size))
            self._flow = Flow(
                slots,  # type: ignore[arg-type]
                movers(device, host, disk, bounce=bounce),
                self._lock,
                self._lose,
                concurrency=self.config.max_concurrent_transfers,
                batch=self.config.max_transfer_batch_size,
                block_bytes=device.block_bytes,
            )
            self._bounce = bounce
            if disk is not None:
                self._directory.restore(*disk.recovered())
                self._publish(self._directory.outcome())
            undo.pop_all()

    def reset(self) -> None:
        """Forget every block of every tier, after the copies in flight have ended.

        Raises
        ------
        TierError
            If blocks are in use.
        """
        with self._quiet():
            self._require_open()
            used = {name: self._directory.in_use(k) for k, name in enumerate(TIERS) if self._directory.in_use(k)}
            if used:
                told = ", ".join(f"{count} of {name}" for name, count in used.items())
                raise TierError(f"reset: blocks are in use ({told}); release them first")
            if self.disk is not None:
                held = self._directory.held(DISK)
                self.disk.forget(self._directory.slot_of(DISK, held))
            for k in range(N_TIERS):
                if self._directory.capacity[k]:
                    self._directory.clear(k)
                    self._carry_out()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Hold the lock while no copy is in flight."""
        while True:
            self.drain()
            with self._lock:
                if not self._flow.oldest():
                    yield
                    return

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no copy is in flight, at most `timeout` seconds; return whether that is so."""
        return self._flow.engine.drain(timeout)

    def flush(self) -> None:
        """Return once everything offered to the disk so far survives a loss of power."""
        self.drain()
        if self.disk is not None:
            self.disk.flush()

    def close(self, *, cancel: bool = False) -> None:
        """Finish (or cancel) the copies in flight, and close the tiers; once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._flow.close(cancel)
        except BaseException:
            self._closed = False  # as by a callback, which cannot close what it is part of
            raise
        if self._bounce is not None:
            self._bounce.close()
        for tier in (self.device, self.host, self.disk):
            if tier is not None:
                tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    # What is known about it.

    def stats(self) -> xr.Dataset:
        """Return counters and sizes over ``tier`` and ``edge``, with units."""
        with self._lock:
            return stack_dataset(self, self._directory, self._flow, self._window)

    def metrics(self) -> str:
        """Return the counters that KVBM exposes, under its names, in Prometheus' text format."""
        with self._lock:
            return prometheus_text(self._flow, self._window)

    @property
    def failures(self) -> tuple[TransferError, ...]:
        """The last copies that failed, at most a hundred."""
        return tuple(self._flow.failures)

    def __repr__(self) -> str:
        d = self._directory
        parts = [f"{name} {d.size(k)} of {d.capacity[k]}" for k, name in enumerate(TIERS) if d.capacity[k]]
        return f"<TierStack ({self.mode}): {', '.join(parts)} blocks{', closed' if self._closed else ''}>"

    # Inside.

    def _now(self) -> float:
        return self._clock() - self._start

    def _require_open(self) -> None:
        if self._closed:
            raise TierClosed("the stack is closed; make a new one")

    def _take(self, match: Match) -> None:
        """Use a match up."""
        if not isinstance(match, Match) or match._stack is not self:
            raise BlockStateError(f"{match!r:.80} is no match of this stack; give what its match() returned")
        if not match._open:
            raise BlockStateError("the match was onboarded or released before; match again")
        match._open = False
        self._open_matches -= 1

    def _require_mine(self, blocks: object) -> None:
        if not isinstance(blocks, Blocks) or blocks._stack is not self:
            raise BlockStateError(f"{blocks!r:.80} are no blocks of this stack; give what it allocated or onboarded")

    def _carry_out(self, priority: int = 0) -> list[Transfer]:
        outcome = self._directory.outcome()
        self._publish(outcome)
        return self._flow.carry_out(outcome, priority)

    def _publish(self, outcome: Outcome) -> None:
        if self._on_events is None or not outcome.news:
            return
        events = [KvEvent("store" if kind == STORE else "remove", key, parent) for kind, key, parent in outcome.news]
        try:
            self._on_events(events)
        except Exception:
            _log.exception("on_events failed")

    def _lose(self, tier: int, hashes: npt.NDArray[np.uint64], slots: npt.NDArray[np.int32]) -> None:
        """Forget blocks that are not where they should be; called with the lock held."""
        lost = self._directory.lose(tier, hashes, slots)
        self._publish(self._directory.outcome())
        if lost.any() and tier == DISK and self.disk is not None:
            try:
                self.disk.forget(slots[lost])
            except TierError as error:
                # Until the next process opens the file, which will find out by itself, they are forgotten.
                _log.warning("%s", error)

    def _in_the_way(self) -> list[Transfer]:
        """Return the copies that have to end before more blocks may be registered, the first one first."""
        paths = self._flow.engine.stats().values()
        return self._flow.oldest() if sum(path.pending_blocks for path in paths) >= self._max_pending else []

    def _give_up(self, transfers: Sequence[Transfer]) -> list[Transfer]:
        """Cancel copies to host memory that have not started, and return those of which some blocks have.

        What another request has come to rely on goes on: it has been told that it need not go to the disk.
        """
        with self._lock:
            return self._flow.cancel([transfer for transfer in transfers if not self._is_awaited(transfer)])

    def _is_awaited(self, transfer: Transfer) -> bool:
        keys = transfer.payload
        assert isinstance(keys, BlockKeys)
        return self._flow.is_read(transfer) or self._directory.any_pinned(HOST, keys.hash, transfer.dst)

    def _prefix_above_disk(self, hashes: npt.NDArray[np.uint64]) -> int:
        with self._lock:
            level = self._directory.find(hashes)[1]
        below = level >= DISK
        return int(np.argmax(below)) if below.any() else len(below)
