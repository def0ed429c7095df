"""A bound on the bytes that all connections of an endpoint hold together."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from dynalab.net.decoder import SMALL

#: Part of the total that small payloads can have whatever large ones do: 1/4.
_SHARE: Final = 4


class Waiter(Protocol):
    """A connection that waits for bytes."""

    def bytes_free(self) -> object:
        """Ask again: there may be room now."""


class ByteBudget:
    """Bytes in use, and who waits for some, first come first served.

    A payload takes its bytes when it is announced, and peers may announce much and send nothing. So large payloads
    wait in a line of their own, and leave a quarter to small ones: who sends little is not held up by them.

    Parameters
    ----------
    total : int
        The bound [bytes]. A single large payload, and a single small one, are let in whatever the bound when there
        is no other of their kind, so that none can wait for ever.

    Attributes
    ----------
    small, large, replies : int
        Bytes of payloads of requests, up to 64 KiB and beyond, and of responses. The latter count, and never wait.

    Examples
    --------
    >>> budget = ByteBudget(1 << 20)
    >>> budget.take(700_000), budget.take(200_000), budget.take(1000)
    (True, False, True)
    """

    __slots__ = ("_large_line", "_share", "_small_line", "_turn", "_waking", "large", "replies", "small", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.small = self.large = self.replies = 0
        self._share = total // _SHARE
        self._small_line: deque[Waiter] = deque()
        self._large_line: deque[Waiter] = deque()
        self._turn: Waiter | None = None
        self._waking = False

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self.small + self.large + self.replies

    def take(self, nbytes: int, waiter: Waiter | None = None) -> bool:
        """Take `nbytes` of a payload if they are there and nobody waited before; else let `waiter` wait."""
        line = self._large_line if nbytes > SMALL else self._small_line
        if (line and waiter is not self._turn) or not self._fits(nbytes):
            if waiter is not None:
                line.append(waiter)
            return False
        if nbytes > SMALL:
            self.large += nbytes
        else:
            self.small += nbytes
        return True

    def _fits(self, nbytes: int) -> bool:
        if nbytes > SMALL:
            most = self.total - self._share
            return not self.large or (self.large + nbytes <= most and self.used + nbytes <= self.total)
        small = self.small + nbytes
        if small <= self._share or not self.small:
            return True
        return not self._large_line and self.used + nbytes <= self.total

    def give(self, nbytes: int) -> None:
        """Return the bytes of one payload."""
        if nbytes > SMALL:
            self.large -= nbytes
        else:
            self.small -= nbytes
        if self._large_line or self._small_line:
            self._wake_soon()

    def sent(self, nbytes: int) -> None:
        """Count bytes of responses out."""
        self.replies -= nbytes
        if self._large_line or self._small_line:
            self._wake_soon()

    def forget(self, waiter: Waiter) -> None:
        """Take a connection that has gone out of its line."""
        for line in (self._small_line, self._large_line):
            if waiter in line:
                line.remove(waiter)
                self._wake_soon()

    def _wake_soon(self) -> None:
        # Later, for whoever gives may be in the middle of its own requests, and those have an order.
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        for line in (self._small_line, self._large_line):
            while line:
                self._turn = waiter = line.popleft()
                waiter.bytes_free()
                self._turn = None
                if line and line[-1] is waiter:
                    # It waits again, and keeps its place.
                    line.rotate(1)
                    break
