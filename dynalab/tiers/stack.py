"""Device, host and disk as one cache of KV blocks: match, onboard, allocate, register, release.

Who is evicted, what is admitted where and what a match returns is decided by the rules and policies that
:func:`dynalab.cache.replay_tiers` drives with ``pinned=True``: the same trace gives the same decisions, block by block.
Here they move bytes. Decisions are made at once, under one lock; copies follow on the engine's threads, each after
those that it must not overtake, so that no reader ever sees a block before it has arrived, or after it was overwritten.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError, ConfigError, TransferError
from dynalab.kv.tiering.rules import DEVICE, DISK, HOST, N_TIERS
from dynalab.tiers.handles import Match, Onboarding, Prefetch
from dynalab.tiers.leases import ALLOCATED, REGISTERED, Blocks
from dynalab.tiers.stack_base import KvEvent, StackBase
from dynalab.tiers.stack_options import as_hashes, as_parent
from dynalab.tiers.transfer import Transfer

_log = logging.getLogger(__name__)


class TierStack(StackBase):
    """A cache of KV blocks over device, host and disk.

    Parameters
    ----------
    device : DeviceTier
    host : HostTier, optional
    disk : DiskTier, optional
        The stack closes its tiers when it is closed, or cannot be made. What a disk holds is found again.
    policy : str or mapping of tier to str
        Replacement policy, see :data:`dynalab.kv.policies.POLICIES`.
    admission : str, Filter, or mapping of tier to these, optional
        What the tiers below the device take, see :data:`dynalab.kv.admission.ADMISSIONS`. A single one stands in front
        of the lowest tier, as KVBM's frequency filter stands in front of its disk. By default everything, or in mode
        "selective" blocks used at least `admit_after` times.
    mode : {"write_through", "write_back", "selective"}
        See :data:`dynalab.cache.MODES`. "write_back" keeps one slot of host and disk free.
    admit_after : int
        For "selective".
    touch : {"served", "all"}
        Which tiers see the use of a block that several hold.
    disk_path : {"staged", "direct"}
        Blocks reach the disk, and come back, through host memory or around it.
    config : StackConfig, optional
        Concurrency and batches of transfers, windows of hit rates.
    id_capacity : int, optional
        Blocks remembered, held or not: ghosts and frequencies of blocks that are gone. By default twice the slots of
        all tiers and 65,536 more.
    max_pending_blocks : int
        Backpressure: :meth:`register` waits while so many blocks wait for a copy.
    clock : callable
        Seconds, for filters that forget.
    on_events : callable, optional
        Called with a list of :class:`KvEvent`, in order, while the stack is locked: it must be quick and must not call
        the stack. The blocks that a disk holds already are told first.

    Notes
    -----
    Thread-safe. A block is *in use* from :meth:`match` or :meth:`allocate` to :meth:`release`, and cannot be evicted.

    Examples
    --------
    >>> from dynalab.kv import KVLayout, sequence_hashes
    >>> from dynalab.tiers import DeviceTier, HostTier, TierStack
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> hashes = sequence_hashes(range(16), layout.page_tokens)
    >>> with TierStack(DeviceTier(layout, capacity=8), HostTier(layout, capacity=32)) as stack:
    ...     new = stack.allocate(len(hashes))
    ...     for block, page in zip(new.view(), range(4)):
    ...         block[...] = page
    ...     stack.register(new, hashes)
    ...     stack.release(new)
    ...     match = stack.match(hashes)
    ...     blocks = stack.onboard(match).result()
    ...     [float(block.max()) for block in blocks.view()]
    [0.0, 1.0, 2.0, 3.0]
    """

    # Requests.

    def match(self, hashes: npt.ArrayLike) -> Match:
        """Find and pin the longest prefix that the tiers hold, each block in the highest tier that has it.

        Parameters
        ----------
        hashes : array_like of uint64, shape (n,)
            Sequence hashes of the prompt's full blocks, from its first block on
            (:func:`dynalab.kv.sequence_hashes`).

        Returns
        -------
        Match
            To :meth:`onboard` or to :meth:`release`.
        """
        wanted = as_hashes(hashes)
        with self._lock:
            self._require_open()
            ids, level, slots = self._directory.match(wanted)
            counts = np.bincount(level, minlength=N_TIERS)
            self._window.record(int(counts[HOST]), int(counts[DISK]), len(wanted))
            self._window.matched_tokens += len(ids) * self.layout.page_tokens
            self._open_matches += 1
            found = Match(self, wanted, ids, level, slots)
        self._window.maybe_log(self._clock)
        return found

    def onboard(self, match: Match) -> Onboarding:
        """Bring what was matched to the device, where its blocks stay in use until released.

        Returns
        -------
        Onboarding
            A future of :class:`Blocks`; its failures say which did not arrive.

        Raises
        ------
        NotEnoughBlocks
            If the device has no room for all: nothing moves, and the match is released.
        BlockStateError
            If the match was onboarded or released before.
        """
        with self._lock:
            self._require_open()
            self._take(match)
            # The match goes on to tell where its blocks were found.
            level, slots = match._level.copy(), match._slots.copy()
            try:
                n = self._directory.onboard(match._ids, level, slots, self._now())
            finally:
                self._publish(outcome := self._directory.outcome())
            ids, slots = match._ids[:n], slots[:n]
            own = self._flow.carry_out(outcome)
            coming = [t for t in self._flow.writers(DEVICE, slots) if not t.done()]
            onboarding = Onboarding([*own, *(t for t in coming if t not in own)])
            left = len(coming)

        def one_done(_: Transfer) -> None:
            nonlocal left
            with self._lock:
                left -= 1
                if left:
                    return
            self._arrived(onboarding, match.hashes[:n], ids, slots)

        if not coming:
            self._arrived(onboarding, match.hashes[:n], ids, slots)
        for transfer in coming:
            transfer.add_done_callback(one_done)
        return onboarding

    def _arrived(
        self,
        onboarding: Onboarding,
        hashes: npt.NDArray[np.uint64],
        ids: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
    ) -> None:
        with self._lock:
            bad = self._flow.is_bad(DEVICE, slots)
            n = int(np.argmax(bad)) if bad.any() else len(bad)
            self._directory.let_go(ids[n:], np.zeros(len(ids) - n, np.int8), slots[n:])
            blocks = self._lease(REGISTERED, slots[:n], ids[:n], hashes[:n])
        onboarding.set_result(blocks)

    def allocate(self, n: int, *, timeout: float | None = None) -> Blocks:
        """Return `n` blocks of the device to write, evicting what is not in use: all of them, or none.

        Waits until the copies out of them have ended, at most `timeout` seconds.

        Raises
        ------
        NotEnoughBlocks
            If fewer are free or evictable.
        TimeoutError
            Nothing is allocated then.
        """
        slots, users = self._reserve(n)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for transfer in users:
                if not transfer.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(
                        f"device: copies out of {n} blocks have not ended after {timeout} s; nothing allocated"
                    )
        except BaseException:
            self._give_back(slots)
            raise
        return self._hand_out(slots)

    def _reserve(self, n: int) -> tuple[npt.NDArray[np.int32], list[Transfer]]:
        """Take slots for :meth:`_hand_out` or :meth:`_give_back`, and name the copies that use them still."""
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise ConfigError(f"n: {n!r} is not a number of blocks; give 0 or more")
        with self._lock:
            self._require_open()
            slots = self._directory.allocate(int(n), self._now())
            self._carry_out()
            return slots, self._flow.users(slots)

    def _hand_out(self, slots: npt.NDArray[np.int32]) -> Blocks:
        with self._lock:
            self._flow.written(slots)
            return self._lease(ALLOCATED, slots)

    def _give_back(self, slots: npt.NDArray[np.int32]) -> None:
        with self._lock:
            self._directory.give_back(slots)

    def register(self, blocks: Blocks, hashes: npt.ArrayLike, *, parent: int = 0, priority: int = 0) -> None:
        """Enter written blocks under their hashes; copies to host and disk begin by themselves.

        Where the device holds a block already, that one is used, and the new one is free again: ask the blocks for
        their views anew. Waits while too many copies wait (`max_pending_blocks`), and for such a block to arrive.

        Parameters
        ----------
        blocks : Blocks
            Allocated ones. They stay in use until released.
        hashes : array_like of uint64, shape (len(blocks),)
            Sequence hashes, consecutive ones of one sequence.
        parent : int
            Hash of the block before the first. Not needed where the sequence was matched, for that tells it.
        priority : int
            0 to 100: who stays longer, and whose copies go first.

        Raises
        ------
        BlockStateError
            If a block is registered or released already.
        TransferError
            If a block that the device held already was on its way there, and did not arrive.
        """
        names = as_hashes(hashes)
        while waiting := self._in_the_way():
            # The oldest one: it is what others wait for.
            waiting[0].wait()
        late = self._enter(blocks, names, parent, priority)
        for transfer in late:
            transfer.wait()
        if late:
            self._require_arrived(blocks)

    def _enter(self, blocks: Blocks, names: npt.NDArray[np.uint64], parent: int, priority: int) -> list[Transfer]:
        """Register blocks; return the copies to the device of blocks used in place of new ones, if not there yet."""
        if len(names) != len(blocks):
            raise BlockStateError(
                f"register: {len(blocks)} blocks and {len(names)} hashes; give one hash for each block"
            )
        if isinstance(priority, bool) or not isinstance(priority, int | np.integer) or not 0 <= priority <= 100:
            raise ConfigError(f"priority: {priority!r} is not a whole number from 0 to 100; give one")
        before = as_parent(parent)
        with self._lock:
            self._require_open()
            self._require_mine(blocks)
            rows = blocks.require(ALLOCATED)
            if not self._leases.are_distinct(rows):
                raise BlockStateError("register: the same block is given twice; every block gets a hash of its own")
            slots = self._leases.slot[rows]
            numbers = self._directory.register(names, before, int(priority), slots, self._now())
            replaced = slots[slots != self._leases.slot[rows]]
            self._leases.state[rows] = REGISTERED
            self._leases.slot[rows] = slots
            self._leases.number[rows] = numbers
            self._leases.hash[rows] = names
            self._carry_out(int(priority))
            return self._flow.writers(DEVICE, replaced) if len(replaced) else []

    def _require_arrived(self, blocks: Blocks) -> None:
        with self._lock:
            bad = self._flow.is_bad(DEVICE, blocks.slots)
        if bad.any():
            raise TransferError(
                f"register: block {int(np.argmax(bad))} of {len(blocks)} was on its way to the device already, and did "
                "not arrive; release the blocks, and compute it again"
            )

    def release(self, what: Blocks | Match) -> None:
        """Give blocks, or a match that was not onboarded, back: they may be evicted again.

        Blocks that were allocated and never registered are free.

        Raises
        ------
        BlockStateError
            If one was released before; then none is.
        """
        with self._lock:
            if isinstance(what, Match):
                self._take(what)
                self._directory.let_go(what._ids, what._level, what._slots)
                return
            self._require_mine(what)
            rows = what.require()
            if not self._leases.are_distinct(rows):
                raise BlockStateError("release: the same block is given twice; give each once")
            kept = rows[self._leases.state[rows] == REGISTERED]
            self._directory.let_go(self._leases.number[kept], np.zeros(len(kept), np.int8), self._leases.slot[kept])
            self._directory.give_back(self._leases.slot[rows[self._leases.state[rows] == ALLOCATED]])
            self._leases.close(rows)

    def _lease(
        self,
        state: int,
        slots: npt.NDArray[np.int32],
        numbers: npt.NDArray[np.int32] | int = 0,
        hashes: npt.NDArray[np.uint64] | int = 0,
    ) -> Blocks:
        rows = self._leases.open(state, slots)
        self._leases.number[rows] = numbers
        self._leases.hash[rows] = hashes
        return Blocks(self, rows, self._leases.serial[rows])

    # Around requests.

    def find(self, hashes: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Return the highest tier that holds each block: 0 device, 1 host, 2 disk, 3 none. No policy is told."""
        with self._lock:
            self._require_open()
            return self._directory.find(as_hashes(hashes))[1]

    def touch(self, hashes: npt.ArrayLike) -> int:
        """Tell the policies that a sequence is used, and return how many of its first blocks were found."""
        with self._lock:
            self._require_open()
            return self._directory.use(as_hashes(hashes))

    def pin(self, hashes: npt.ArrayLike) -> Match:
        """Keep the prefix held from being evicted, until the match returned is released. The same as :meth:`match`."""
        return self.match(hashes)

    def prefetch(self, hashes: npt.ArrayLike) -> Prefetch:
        """Copy blocks of a sequence from disk to host memory ahead of their use."""
        wanted = as_hashes(hashes)
        with self._lock:
            self._require_open()
            n = self._directory.prefetch(wanted, self._now())
            # In an exclusive stack blocks sink to make room. That is nobody's to give up.
            rising = [transfer for transfer in self._carry_out() if transfer.path == "disk_to_host"]
            return Prefetch(self, wanted, n, rising)


__all__ = ["KvEvent", "TierStack"]
