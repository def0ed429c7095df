"""Carry out what the directory decides: copies in flight, what waits for what, and what is undone when one fails.

Decisions are made at once and in order, copies happen later and side by side. Every slot remembers the last copies
that write and read it; a copy comes after those that it must not overtake (:mod:`dynalab.tiers._plan`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import TransferError
from dynalab.kv.tiering.book import ENDS, MOVE_EDGE, MOVE_SOURCE, MOVE_TARGET
from dynalab.kv.tiering.rules import D2H, D2K, DEVICE, DISK, EDGES, N_TIERS
from dynalab.tiers._plan import plan
from dynalab.tiers.engine import TransferEngine
from dynalab.tiers.tier import BlockKeys
from dynalab.tiers.transfer import Transfer

if TYPE_CHECKING:
    from dynalab.tiers.directory import Outcome
    from dynalab.tiers.engine import Mover

_log = logging.getLogger(__name__)
_TICKET_BITS = 44

#: Called with a tier, hashes and slots: blocks whose bytes did not arrive, or could not be read, there.
LoseBlocks = Callable[[int, npt.NDArray[np.uint64], npt.NDArray[np.int32]], Any]


class Flow:
    """Copies between the slots of three tiers.

    Parameters
    ----------
    slots : sequence of int, length 3
        Slots of each tier.
    movers : mapping of path to callable
        See :class:`~dynalab.tiers.engine.TransferEngine`.
    lock : lock
        The stack's, which :meth:`carry_out` is called with; taken when a copy ends.
    lose : callable
        Told, with the lock held, which blocks are not where the directory thinks.
    **options
        Of the engine.
    """

    def __init__(
        self, slots: tuple[int, int, int], movers: Mapping[str, Mover], lock: Any, lose: LoseBlocks, **options: Any
    ) -> None:
        widest = max(slots)
        self._last_write = np.zeros((N_TIERS, widest), np.int64)
        self._last_read = np.zeros((len(EDGES), widest), np.int64)
        self._bad = np.zeros((N_TIERS, widest), np.bool_)
        self._next = 1
        self._pending: dict[int, Transfer] = {}
        self._tickets: dict[Transfer, int] = {}
        self._cancelled: dict[Transfer, int] = {}
        self._lock, self._lose = lock, lose
        guarded = {path: self._guard(mover, ENDS[EDGES.index(path)][0]) for path, mover in movers.items()}
        self.engine = TransferEngine(guarded, on_done=self._ended, **options)
        self.failures: list[TransferError] = []
        self.n_failures = 0

    def _guard(self, mover: Mover, source: int) -> Mover:
        """Keep a mover from copying what never arrived at its source."""
        bad = self._bad[source]

        def move(transfer: Transfer, lo: int, hi: int) -> npt.NDArray[np.bool_]:
            lost = bad[transfer.src[lo:hi]]
            if not lost.any():
                return mover(transfer, lo, hi)
            transfer.errors.append(
                TransferError(
                    f"{transfer.path}: {int(lost.sum())} of {len(lost)} blocks had not arrived at their source"
                )
            )
            arrived = np.zeros(hi - lo, np.bool_)
            edges = np.flatnonzero(np.diff(np.concatenate([[True], lost, [True]])))
            for begin, end in edges.reshape(-1, 2).tolist():
                arrived[begin:end] = mover(transfer, lo + begin, lo + end)
            return arrived

        return move

    @property
    def _floor(self) -> int:
        """All copies up to this ticket have ended."""
        return next(iter(self._pending), self._next) - 1

    def carry_out(self, outcome: Outcome, priority: int = 0) -> list[Transfer]:
        """Send the copies that follow from a step on their way; with the lock held."""
        moves = outcome.moves
        if not len(moves):
            return []
        base = self._next - 1
        group = np.empty(len(moves), np.int32)
        waits = np.empty((5 * len(moves), 2), np.int64)
        n_groups, n_waits = plan(moves, self._last_write, self._last_read, base, self._floor, group, waits)
        order = np.argsort(group, kind="stable")
        ends = np.searchsorted(group, np.arange(n_groups), side="right", sorter=order)
        transfers = []
        begin = 0
        for end in ends.tolist():
            which = order[begin:end]
            rows = moves[which]
            path = EDGES[rows[0, MOVE_EDGE]]
            transfers.append(
                Transfer(
                    path,
                    np.ascontiguousarray(rows[:, MOVE_SOURCE]),
                    np.ascontiguousarray(rows[:, MOVE_TARGET]),
                    priority=priority,
                    payload=outcome.keys[which],
                )
            )
            begin = end
        codes = np.unique((waits[:n_waits, 0] << _TICKET_BITS) | waits[:n_waits, 1])
        before: dict[int, list[int]] = {}
        in_order = True
        for code in codes.tolist():
            g, ticket = code >> _TICKET_BITS, code & ((1 << _TICKET_BITS) - 1)
            other = transfers[ticket - base - 1] if ticket > base else self._pending.get(ticket)
            if other is None:
                continue
            transfers[g].after += (other,)
            if ticket > base:
                before.setdefault(g, []).append(ticket - base - 1)
                in_order = in_order and ticket - base - 1 < g
        for i, transfer in enumerate(transfers):
            self._pending[base + 1 + i] = transfer
            self._tickets[transfer] = base + 1 + i
        self._next += n_groups
        if in_order:
            self.engine.submit(transfers)
        else:
            graph = {g: before.get(g, []) for g in range(n_groups)}
            self.engine.submit([transfers[g] for g in TopologicalSorter(graph).static_order()])
        return transfers

    def _waiting_on(self, tickets: Iterable[npt.NDArray[np.int64]]) -> list[Transfer]:
        floor = self._floor
        wanted = np.unique(np.concatenate([given[given > floor] for given in tickets]))
        return [self._pending[ticket] for ticket in wanted.tolist() if ticket in self._pending]

    def writers(self, tier: int, slots: npt.NDArray[np.int32]) -> list[Transfer]:
        """Return the copies into slots that have not ended; with the lock held."""
        return self._waiting_on([self._last_write[tier, slots]])

    def users(self, slots: npt.NDArray[np.int32]) -> list[Transfer]:
        """Return the copies into and out of device slots that have not ended; with the lock held."""
        reads = [self._last_read[edge, slots] for edge in (D2H, D2K)]
        return self._waiting_on([self._last_write[DEVICE, slots], *reads])

    def oldest(self) -> list[Transfer]:
        """Return the copies that have not ended, the first ones first."""
        with self._lock:
            return list(self._pending.values())

    def is_bad(self, tier: int, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Tell which slots hold no block, because the copy there failed."""
        return self._bad[tier, slots]

    def written(self, slots: npt.NDArray[np.int32]) -> None:
        """Note that device slots, which no copy uses, are handed out to be written."""
        self._bad[DEVICE, slots] = False

    def _ended(self, transfer: Transfer) -> None:
        keys = transfer.payload
        assert isinstance(keys, BlockKeys)
        source, target = ENDS[EDGES.index(transfer.path)]
        failed = ~transfer.ok
        with self._lock:
            try:
                self._bad[target, transfer.dst] = failed
                self._account(transfer, keys, failed, source, target)
            finally:
                del self._pending[self._tickets.pop(transfer)]

    def _account(
        self, transfer: Transfer, keys: BlockKeys, failed: npt.NDArray[np.bool_], source: int, target: int
    ) -> None:
        """Tell of the blocks of a transfer that are lost; with the lock held."""
        cancelled = self._cancelled.pop(transfer, 0)
        if n_lost := int(failed.sum()) - cancelled:
            self.n_failures += n_lost
            self.failures = [*self.failures, *transfer.errors][-100:]
            lost = f"{n_lost} of {len(failed)} blocks lost"
            _log.warning("%s: %s: %s", transfer.path, lost, transfer.errors[0])
        # A transfer gives up its last blocks; of those has been told.
        tried = failed & (np.arange(len(failed)) < len(failed) - cancelled)
        if tried.any():
            self._lose(target, keys.hash[tried], transfer.dst[tried])
            if source == DISK:
                # What cannot be read now will not be served later.
                self._lose(DISK, keys.hash[tried], transfer.src[tried])

    def cancel(self, transfers: Iterable[Transfer]) -> list[Transfer]:
        """Give up what has not started of these copies: their targets hold nothing, their sources stay.

        Returns
        -------
        list of Transfer
            Those of which some blocks have started, and may still arrive. The others need not be waited for.
        """
        moving = []
        with self._lock:
            for transfer in transfers:
                if transfer.done():
                    continue
                n = len(transfer)
                if count := transfer.cancel():
                    self._cancelled[transfer] = count
                    keys, target = transfer.payload, ENDS[EDGES.index(transfer.path)][1]
                    assert isinstance(keys, BlockKeys)
                    self._lose(target, keys.hash[n - count :], transfer.dst[n - count :])
                if self._cancelled.get(transfer, 0) < n:
                    moving.append(transfer)
        return moving

    def is_read(self, transfer: Transfer) -> bool:
        """Tell whether other copies come to read what this one brings; with the lock held."""
        ticket = self._tickets.get(transfer)
        target = ENDS[EDGES.index(transfer.path)][1]
        readers = [edge for edge, (source, _) in enumerate(ENDS) if source == target]
        return ticket is not None and bool((self._last_read[readers][:, transfer.dst] > ticket).any())

    def close(self, cancel: bool) -> None:
        """End all copies and the engine's threads; without the lock."""
        if cancel:
            # By way of this class, which knows that the source of a copy given up is as good as before.
            self.cancel(self.oldest())
        self.engine.close()
