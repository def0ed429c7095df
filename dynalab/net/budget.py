"""A bound on the bytes that all connections of an endpoint hold together."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Waiter(Protocol):
    """A connection that waits for bytes."""

    def bytes_free(self) -> bool:
        """Learn that there may be room; return whether it was enough."""


class ByteBudget:
    """Bytes in use, and who waits for some, first come first served.

    Parameters
    ----------
    total : int
        The bound [bytes]. A single message beyond it is let in when nothing else is held, so that it cannot wait
        for ever.

    Examples
    --------
    >>> budget = ByteBudget(100)
    >>> budget.take(80), budget.take(30)
    (True, False)
    """

    __slots__ = ("_waiting", "_waking", "total", "used")

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._waiting: deque[Waiter] = deque()
        self._waking = False

    def take(self, nbytes: int, waiter: Waiter | None = None) -> bool:
        """Take `nbytes` if they are there and nobody waited before; else let `waiter` wait."""
        first = not self._waiting or self._waiting[0] is waiter
        if first and (self.used == 0 or self.used + nbytes <= self.total):
            self.used += nbytes
            return True
        if waiter is not None and waiter not in self._waiting:
            self._waiting.append(waiter)
        return False

    def give(self, nbytes: int) -> None:
        """Return bytes, and let those go on for whom there is room now."""
        self.used -= nbytes
        if self._waiting and not self._waking:
            self._waking = True
            try:
                while self._waiting and self._waiting[0].bytes_free():
                    self._waiting.popleft()
            finally:
                self._waking = False

    def forget(self, waiter: Waiter) -> None:
        """Take a connection that has gone out of the queue."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            self.give(0)
