"""Movers that stop at a gate, so that a test decides when a batch ends and sees what had begun by then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dynalab.tiers import Transfer

PATIENCE = 30.0  # seconds after which a test fails instead of hanging


class Gate:
    """A mover whose batches wait to be let through, one by one or all.

    Attributes
    ----------
    begun : list of (transfer, lo, hi)
        Batches in the order in which they began.
    most : int
        Largest number that ran at the same time.
    """

    def __init__(self, *, open_: bool = False) -> None:
        self._turn = threading.Condition()
        self.begun: list[tuple[Transfer, int, int]] = []
        self._let: set[int] = set()
        self._open = open_
        self._running = self.most = 0
        #: Decides the outcome of a batch; may raise.
        self.outcome: Callable[[Transfer, int, int], npt.NDArray[np.bool_]] = lambda _, lo, hi: np.ones(hi - lo, bool)

    def __call__(self, transfer: Transfer, lo: int, hi: int) -> npt.NDArray[np.bool_]:
        with self._turn:
            mine = len(self.begun)
            self.begun.append((transfer, lo, hi))
            self._running += 1
            self.most = max(self.most, self._running)
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._open or mine in self._let, PATIENCE), "the gate stayed shut"
            self._running -= 1
        return self.outcome(transfer, lo, hi)

    def wait_begun(self, n: int) -> None:
        """Wait until `n` batches have begun."""
        with self._turn:
            assert self._turn.wait_for(lambda: len(self.begun) >= n, PATIENCE), f"{len(self.begun)} begun, not {n}"

    def let(self, *which: int) -> None:
        """Let the batches go on that began as number `which`, counted from 0."""
        with self._turn:
            self._let.update(which)
            self._turn.notify_all()

    def open(self) -> None:
        """Let all batches through, now and later."""
        with self._turn:
            self._open = True
            self._turn.notify_all()

    @property
    def order(self) -> list[tuple[object, int, int]]:
        """Payloads and ranges of the batches that have begun."""
        with self._turn:
            return [(transfer.payload, lo, hi) for transfer, lo, hi in self.begun]


def blocks(path: str, n: int, name: object = None, **options: object) -> Transfer:
    """Return a transfer of `n` blocks called `name`."""
    return Transfer(path, np.arange(n), np.arange(n) + 100, payload=name, **options)  # type: ignore[arg-type]
