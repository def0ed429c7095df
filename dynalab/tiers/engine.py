"""Move blocks between tiers: one queue per path, bounded batches in flight, and an outcome for every single block.

Paths are independent: each has its own worker threads, so that offload never waits behind onboarding. The engine knows
neither tiers nor bytes. It calls a *mover* of the path for a few blocks at a time, and the mover returns only when they
have arrived. A block that did not arrive is never counted as moved.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TierClosed, TierError, TransferError, unknown
from dynalab.tiers._path import Path, PathStats
from dynalab.tiers.transfer import DONE, FINAL, NEW, SUBMITTED, Transfer

if TYPE_CHECKING:
    from types import TracebackType

    Mover = Callable[[Transfer, int, int], npt.NDArray[np.bool_]]
    DoneCallback = Callable[[Transfer], object]

_log = logging.getLogger(__name__)


class TransferEngine:
    """Move blocks along paths, many at a time, by priority.

    Parameters
    ----------
    movers : mapping of path to callable
        ``mover(transfer, lo, hi)`` moves blocks ``lo`` to ``hi`` (exclusive) of the transfer, returns when they have
        arrived, and returns a bool array of length ``hi - lo``: True for each that has. It may add to
        ``transfer.errors``. If it raises, none of these blocks is ok, and the error is kept.
    concurrency : int
        Batches in flight per path, at most; also batches of the same transfer.
    batch : int
        Blocks in a batch, at most.
    max_pending_blocks : int, optional
        Backpressure: `submit` waits while a path holds blocks and would hold more than so many.
    on_done : callable, optional
        Called with each transfer whose outcome is final, before its own callbacks, before transfers that come after it
        start and before those who wait for it go on; on a worker thread. What it raises is logged.
    block_bytes : int
        Bytes of a block, for `stats`.

    Notes
    -----
    A worker takes the next `batch` blocks of the first transfer that is ready: of higher priority, then of earlier
    submission. Transfers may overtake each other; let one come `after` another where that must not be.

    Examples
    --------
    >>> import numpy as np
    >>> moved = []
    >>> def mover(transfer, lo, hi):
    ...     moved.extend(transfer.src[lo:hi].tolist())
    ...     return np.ones(hi - lo, bool)
    >>> with TransferEngine({"device_to_host": mover}, concurrency=1, batch=2) as engine:
    ...     transfer = Transfer("device_to_host", [3, 1, 2], [0, 1, 2])
    ...     _ = engine.submit([transfer])
    ...     transfer.result(timeout=10).all(), moved
    (np.True_, [3, 1, 2])
    """

    def __init__(
        self,
        movers: Mapping[str, Mover],
        *,
        concurrency: int = 4,
        batch: int = 16,
        max_pending_blocks: int | None = None,
        on_done: DoneCallback | None = None,
        block_bytes: int = 0,
    ) -> None:
        limits = {"concurrency": concurrency, "batch": batch, "max_pending_blocks": max_pending_blocks}
        for field, value in limits.items():
            if value is not None and value < 1:
                raise ConfigError(f"{field}: {value!r} is less than 1; write 1 or more")
        self.concurrency, self.batch, self.max_pending_blocks = concurrency, batch, max_pending_blocks
        self._on_done = on_done
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._empty = threading.Condition(self._lock)
        self._paths = {name: Path(name, mover, block_bytes, self._lock) for name, mover in movers.items()}
        self._open: set[Transfer] = set()
        self._ages = count()
        self._threads: list[threading.Thread] = []
        self._worker_ids: set[int] = set()
        self._submitters_waiting = 0
        self._closing = self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def submit(self, transfers: Iterable[Transfer], *, timeout: float | None = None) -> bool:
        """Take on transfers: all of them, or none.

        Parameters
        ----------
        transfers : iterable of Transfer
            New ones. One may come `after` another that stands before it.
        timeout : float, optional
            Seconds to wait for room, see `max_pending_blocks`; by default as long as it takes. A callback never waits,
            for it may hold the very worker that makes room.

        Returns
        -------
        bool
            False if no room came in time: then none was taken on.

        Raises
        ------
        TierClosed
            If the engine was closed.
        TierError
            If a transfer was submitted before, or comes after one that was not. Or if the system allows no more
            threads: then the transfers stay queued until a later call can start one.
        ConfigError
            If a path has no mover.
        """
        transfers = list(transfers)
        with self._lock:
            self._check(transfers)
            if self.max_pending_blocks is not None and not self._wait_for_room(transfers, timeout):
                return False
            jobs: dict[Path, int] = {}
            for transfer in transfers:
                path = self._paths[transfer.path]
                transfer._engine, transfer._state, transfer._age = self, SUBMITTED, next(self._ages)
                self._open.add(transfer)
                path.hold(len(transfer.src))
                for earlier in transfer.after:
                    if earlier._state != DONE:
                        earlier._dependents.append(transfer)
                        transfer._waits += 1
                if not transfer._waits:
                    self._make_ready(transfer, path, jobs)
            starts = self._wake(jobs)
        self._start(starts)
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all transfers are done, also those that callbacks submit; return whether they are."""
        with self._lock:
            self._refuse_worker(threading.get_ident(), "drain the engine")
            return self._empty.wait_for(lambda: not self._open, timeout)

    def close(self, *, cancel: bool = False) -> None:
        """Refuse new transfers, finish (or cancel) those taken on, and end all threads; once.

        Callbacks that submit more are refused as well; call `drain` first where they must not be.
        """
        with self._lock:
            self._refuse_worker(threading.get_ident(), "close the engine")
            self._closing = True
            self._room.notify_all()
            starts: list[Path] = []
            if cancel:
                for transfer in list(self._open):
                    starts += self._cancel(transfer)[0]
        self._start(starts)
        with self._lock:
            self._empty.wait_for(lambda: not self._open)
            self._stopping = True
            for path in self._paths.values():
                path.work.notify_all()
            # A worker counts from before it is started until after its last job: none is missed here.
            self._empty.wait_for(lambda: not any(path.workers for path in self._paths.values()))
        for thread in self._threads:
            thread.join()

    def stats(self) -> dict[str, PathStats]:
        """Return the counters of each path, as they are now."""
        with self._lock:
            return {name: replace(path.stats) for name, path in self._paths.items()}

    # Everything below but _start, _work and _settle is called with the lock held.

    def _check(self, transfers: list[Transfer]) -> None:
        if self._closing:
            raise TierClosed("the transfer engine is closed; open a new one")
        new: set[Transfer] = set()
        for transfer in transfers:
            if transfer.path not in self._paths:
                raise unknown("path", transfer.path, self._paths)
            if transfer._state != NEW or transfer in new:
                raise TierError(f"{transfer.path}: the transfer was submitted before; make a new one")
            for earlier in transfer.after:
                if earlier._state != DONE and earlier._engine is not self and earlier not in new:
                    raise TierError(
                        f"{transfer.path}: comes after a transfer ({earlier.path}) that was not submitted before it"
                    )
            new.add(transfer)

    def _wait_for_room(self, transfers: list[Transfer], timeout: float | None) -> bool:
        if threading.get_ident() in self._worker_ids:
            return True
        wanted: dict[str, int] = {}
        for transfer in transfers:
            wanted[transfer.path] = wanted.get(transfer.path, 0) + len(transfer)

        def room() -> bool:
            # An empty path takes anything, else what is larger than the bound would wait for ever.
            held = {name: self._paths[name].stats.pending_blocks for name in wanted}
            return self._closing or all(
                held[name] == 0 or held[name] + n <= (self.max_pending_blocks or 0) for name, n in wanted.items()
            )

        if room():
            return True
        self._submitters_waiting += 1
        try:
            found = self._room.wait_for(room, timeout)
        finally:
            self._submitters_waiting -= 1
        self._check(transfers)  # Others held the lock in the meantime: they may have closed the engine.
        return found

    def _make_ready(self, transfer: Transfer, path: Path, jobs: dict[Path, int]) -> None:
        if transfer._left:
            path.push(transfer)
        else:
            transfer._state = FINAL
            path.settling.append(transfer)
        jobs[path] = jobs.get(path, 0) + max(1, -(-len(transfer.src) // self.batch))

    def _wake(self, jobs: dict[Path, int]) -> list[Path]:
        return [path for path, n in jobs.items() for _ in range(path.wake(n, self.concurrency))]

    def _cancel(self, transfer: Transfer) -> tuple[list[Path], int]:
        path = self._paths[transfer.path]
        first, end = transfer._next, len(transfer.src)
        if first == end:
            return [], 0
        transfer._next = end
        transfer._left -= end - first
        transfer.errors.append(
            TransferError(f"{transfer.path}: cancelled before blocks {first} to {end - 1} of {end} started")
        )
        path.cancel(end - first)
        self._made_room()
        if transfer._left or transfer._waits:
            # It does not end before those that it comes after: who comes after it relies on them as well.
            return [], end - first
        transfer._state = FINAL
        path.settling.append(transfer)
        return self._wake({path: 1}), end - first

    def _made_room(self) -> None:
        if self._submitters_waiting:
            self._room.notify_all()

    def _refuse_worker(self, thread: int, what: str) -> None:
        if thread in self._worker_ids:
            raise TierError(f"a callback or mover cannot {what}: it would wait for itself; submit with `after` instead")

    def _start(self, paths: list[Path]) -> None:
        """Start one worker for each entry, without the lock: starting a thread takes as long as it takes to be run."""
        for i, path in enumerate(paths):
            thread = threading.Thread(target=self._work, args=(path,), name=f"dynalab-{path.name}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                with self._lock:
                    for other in paths[i:]:
                        other.workers -= 1
                raise TierError(f"{path.name}: no worker thread can be started ({error}); raise the limit") from error

    def _work(self, path: Path) -> None:
        """Move what is next on a path, again and again: a worker thread."""
        me = threading.get_ident()
        with self._lock:
            self._worker_ids.add(me)
            self._threads.append(threading.current_thread())
        while True:
            with self._lock:
                while (job := path.next_job(self.batch)) is None:
                    if self._stopping:
                        self._worker_ids.discard(me)
                        path.workers -= 1
                        self._empty.notify_all()
                        return
                    path.idle += 1
                    path.work.wait()
                transfer, lo, hi = job
                if lo < hi:
                    path.begin_batch()
            if lo < hi:
                begin = perf_counter()
                n_ok = _move(path.mover, transfer, lo, hi)
                seconds = perf_counter() - begin
                with self._lock:
                    path.end_batch(hi - lo, n_ok, seconds)
                    self._made_room()
                    transfer._left -= hi - lo
                    if transfer._left:
                        continue
                    transfer._state = FINAL
            self._settle(transfer, path)

    def _settle(self, transfer: Transfer, path: Path) -> None:
        """Tell everyone that the outcome of a transfer is final, the callbacks first."""
        transfer._settler = threading.get_ident()
        if not transfer.errors and not transfer.ok.all():
            blocks = np.flatnonzero(~transfer.ok).tolist()
            transfer.errors.append(TransferError(f"{transfer.path}: blocks {blocks} of {len(transfer)} did not arrive"))
        if self._on_done is not None:
            _call(self._on_done, transfer)
        while True:
            with self._lock:
                callbacks, transfer._callbacks = transfer._callbacks, []
                if not callbacks:
                    starts = self._finish(transfer, path)
                    break
            for callback in callbacks:
                _call(callback, transfer)
        try:
            self._start(starts)
        except TierError:
            _log.exception("transfers that came after %r wait for a worker", transfer)

    def _finish(self, transfer: Transfer, path: Path) -> list[Path]:
        transfer._state = DONE
        transfer.after = ()
        path.stats.transfers += 1
        self._open.discard(transfer)
        if not self._open:
            self._empty.notify_all()
        if transfer._event is not None:
            transfer._event.set()
        jobs: dict[Path, int] = {}
        for later in transfer._dependents:
            later._waits -= 1
            if not later._waits and later._state == SUBMITTED:
                self._make_ready(later, self._paths[later.path], jobs)
        transfer._dependents = []
        return self._wake(jobs)


def _move(mover: Mover, transfer: Transfer, lo: int, hi: int) -> int:
    """Move one batch, keep what became of it, and return how many blocks have arrived."""
    try:
        arrived = np.asarray(mover(transfer, lo, hi))
        if arrived.shape != (hi - lo,) or arrived.dtype != np.bool_:
            raise TransferError(
                f"the mover returned {arrived.dtype} of shape {arrived.shape}, not {hi - lo} truth values"
            )
        transfer.ok[lo:hi] = arrived
        return int(np.count_nonzero(arrived))
    except BaseException as error:  # Whatever it is, it must not end the worker and leave blocks without an outcome.
        slots = f"slots {transfer.src[lo:hi].tolist()} to {transfer.dst[lo:hi].tolist()}"
        failure = TransferError(
            f"{transfer.path}: blocks {lo} to {hi - 1} of {len(transfer)} ({slots}): {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        transfer.errors.append(failure)
        return 0


def _call(callback: DoneCallback, transfer: Transfer) -> None:
    try:
        callback(transfer)
    except BaseException:  # As above: the worker goes on.
        _log.exception("a callback of %r failed", transfer)
