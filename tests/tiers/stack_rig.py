"""A stack whose copies move when a test says so, and with the outcome that it says."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from stack_bytes import DEVICE, DISK, HOST, LAYOUT, poke

from dynalab.kv import KVLayout
from dynalab.tiers import DeviceTier, DiskTier, HostTier, KvEvent, MemoryTier, StackConfig, TierStack, Transfer
from dynalab.tiers import stack_base as stack_base_module
from dynalab.tiers.directory import Filter
from dynalab.tiers.movers import movers

PATIENCE = 60.0  # seconds after which a test fails instead of hanging

Verdict = Callable[[Transfer, int, int], npt.NDArray[np.bool_] | None]


def all_arrive(transfer: Transfer, lo: int, hi: int) -> None:
    """Let a whole batch arrive."""


class Traffic:
    """Holds every batch of a stack back until it is let through, with an outcome.

    Who waits for a copy in the thread of the test would wait for ever. So while :meth:`held` runs, waiting for a
    transfer or for all of them lets batches through, in an order of its own; everything then happens in one order that
    the seed determines, although real threads move real bytes.

    Attributes
    ----------
    verdict : callable
        Which blocks of a batch arrive: a bool array, None for all; may raise.
    """

    def __init__(self, seed: int = 0) -> None:
        self._turn = threading.Condition()
        self._waiting: dict[int, tuple[str, Transfer, int, int]] = {}
        self._let: set[int] = set()
        self._count = 0
        self._free = False
        self._rng = np.random.default_rng(seed)
        self.verdict: Verdict = all_arrive
        self.engine: Any = None
        self._tiers: dict[str, MemoryTier | None] = {}

    def build(self, *tiers: Any, **options: Any) -> TierStack:
        """Return a stack whose copies are held back."""

        def guarded(*arguments: Any, **more: Any) -> dict[str, Any]:
            return {path: self._mover(path, mover) for path, mover in movers(*arguments, **more).items()}

        with patch.object(stack_base_module, "movers", guarded):
            stack = TierStack(*tiers, **options)
        self.engine = stack._flow.engine
        self._tiers = {"device": stack.device, "host": stack.host}
        return stack

    def _mover(self, path: str, mover: Any) -> Any:
        def move(transfer: Transfer, lo: int, hi: int) -> npt.NDArray[np.bool_]:
            with self._turn:
                mine, self._count = self._count, self._count + 1
                self._waiting[mine] = path, transfer, lo, hi
                assert self._turn.wait_for(lambda: self._free or mine in self._let, PATIENCE), "nobody let it through"
                del self._waiting[mine]
                wanted = self.verdict(transfer, lo, hi)
            arrived: npt.NDArray[np.bool_] = mover(transfer, lo, hi)
            if wanted is not None:
                arrived &= wanted
                target = self._tiers.get(path.partition("_to_")[2])
                if target is not None:
                    lost = transfer.dst[lo:hi][~wanted]
                    poke(target, lost, np.full((len(lost), target.block_bytes), 0xEE, np.uint8))
            return arrived

        return move

    def settle(self) -> None:
        """Return when every worker is idle or held back."""
        engine = self.engine
        deadline = time.monotonic() + PATIENCE
        while True:
            with engine._lock, self._turn:
                held = dict.fromkeys(engine._paths, 0)
                for mine, (path, *_) in self._waiting.items():
                    held[path] += mine not in self._let
                if all(path.workers == path.idle + held[name] for name, path in engine._paths.items()):
                    return
            assert time.monotonic() < deadline, "the engine does not come to rest"
            time.sleep(1e-5)

    def pending(self) -> list[int]:
        """Return the batches that are held back, in an order that does not hang on the threads' chances."""
        with self._turn:
            rows = [(path, transfer._age, lo, mine) for mine, (path, transfer, lo, _) in self._waiting.items()]
        return [mine for *_, mine in sorted(rows)]

    def step(self, which: int) -> bool:
        """Let one batch through and see it out; False where none waits."""
        pending = self.pending()
        if not pending:
            return False
        with self._turn:
            self._let.add(pending[which % len(pending)])
            self._turn.notify_all()
        self.settle()
        return True

    def run_until(self, done: Callable[[], bool]) -> None:
        """Let batches through until something is so."""
        self.settle()
        while not done():
            assert self.step(int(self._rng.integers(1 << 30))), "nothing is left that could make it so"

    def open(self) -> None:
        """Let everything through, from now on."""
        with self._turn:
            self._free = True
            self.verdict = all_arrive
            self._turn.notify_all()

    def waits_let_through(self) -> Any:
        """Return a context in which waiting lets batches through."""
        real_wait, real_drain = Transfer.wait, type(self.engine).drain

        def wait(transfer: Transfer, timeout: float | None = None) -> bool:
            if timeout is None and not self._free:
                self.run_until(transfer.done)
            return real_wait(transfer, timeout)

        def drain(engine: Any, timeout: float | None = None) -> bool:
            if timeout is None and not self._free:
                self.run_until(lambda: not engine._open)
            return real_drain(engine, timeout)

        return _both(patch.object(Transfer, "wait", wait), patch.object(type(self.engine), "drain", drain))


class _both:
    """Two contexts as one."""

    def __init__(self, *contexts: Any) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


class Rig(Traffic):
    """A stack over tiny tiers with everything that may happen to it under control: copies, faults, time, events.

    Parameters
    ----------
    seed : int
        Of the order in which waiting lets batches through.
    slots : (int, int, int)
        Of device, host and disk; 0 for none.
    policies : (str, str, str)
    parents : mapping of int to int
        Hash of the block before each one, for the events.
    layouts : (KVLayout, KVLayout)
        Of device and host.
    spare_ids : int
        Numbers for blocks beyond one for every slot.
    **options
        Of the stack.

    Attributes
    ----------
    alive : dict of int to int
        Blocks by the events so far, with their parents.
    now : float
        The time.
    rng : Generator
        For verdicts.
    """

    def __init__(
        self,
        seed: int,
        slots: tuple[int, int, int],
        policies: tuple[str, str, str],
        parents: dict[int, int],
        *,
        admission: str = "all",
        layouts: tuple[KVLayout, KVLayout] = (LAYOUT, LAYOUT),
        spare_ids: int = 1000,
        batch: int = 16,
        concurrency: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(seed)
        self.slots, self.spare_ids, self.parents = slots, spare_ids, parents
        self.rng = np.random.default_rng(seed + 1)
        self.alive: dict[int, int] = {}
        self.now = 0.0
        self._place = tempfile.TemporaryDirectory()
        self.path = Path(self._place.name)
        self.stack = self.build(
            DeviceTier(layouts[0], capacity=slots[DEVICE], device="host-emulated"),
            HostTier(layouts[1], capacity=slots[HOST]) if slots[HOST] else None,
            self.open_disk() if slots[DISK] else None,
            policy=dict(zip(("device", "host", "disk"), policies, strict=True)),
            admission=Filter(admission, flush_interval=9.0) if any(slots[1:]) else None,
            config=StackConfig(max_concurrent_transfers=concurrency, max_transfer_batch_size=batch),
            id_capacity=sum(slots) + spare_ids,
            clock=lambda: self.now,
            on_events=self._note,
            **options,
        )
        self._waits = self.waits_let_through()
        self._waits.__enter__()

    def open_disk(self) -> DiskTier:
        """Return the disk tier, as it is found."""
        return DiskTier(LAYOUT, capacity=self.slots[DISK], path=self.path)

    def _note(self, events: list[KvEvent]) -> None:
        for event in events:
            self.order_of_events_holds &= (event.kind == "store") == (event.hash not in self.alive)
            self.order_of_events_holds &= event.parent in (0, self.parents[event.hash])
            if event.kind == "store":
                self.alive[event.hash] = event.parent
            else:
                self.alive.pop(event.hash, None)

    #: Store and Remove come in turn for every hash, with the right parent. What a callback raises is only logged.
    order_of_events_holds = True

    def close(self) -> None:
        """Let everything arrive, and close the stack; once."""
        if self._free:
            return
        self.open()
        self.stack.close()
        self._waits.__exit__(None, None, None)

    def clean_up(self) -> None:
        """Remove the files."""
        self._place.cleanup()


def worker_threads() -> set[str]:
    """Return the names of the threads that move blocks."""
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("dynalab-") and not thread.name.startswith("dynalab-copy")
    }
