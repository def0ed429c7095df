"""One request of a client, from being asked to its one outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dynalab.net.writer import Payload

if TYPE_CHECKING:
    from dynalab.net.connection import ClientConnection


class Call:
    """A request and the future of its response.

    Attributes
    ----------
    begun : bool
        Whether a byte of it was written: from then on its handler may have run.
    """

    __slots__ = ("begun", "connection", "deadline", "future", "head", "path", "payload")

    def __init__(
        self, head: bytes, payload: Payload, path: str, deadline: float, future: asyncio.Future[bytes | bytearray]
    ) -> None:
        self.head = head
        self.payload = payload
        self.path = path
        self.deadline = deadline
        self.future = future
        self.begun = False
        self.connection: ClientConnection | None = None

    def begin(self) -> bool:
        """Take a place among the responses to come, unless nobody waits any more."""
        connection = self.connection
        if self.future.done() or connection is None:
            return False
        self.begun = True
        connection.unanswered.append(self)
        return True

    def fail(self, error: Exception) -> None:
        """End with `error`, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)

    def abandon(self) -> None:
        """Let go of the payload: nobody waits for the response, though its place in the order is kept."""
        if self.connection is not None:
            self.connection.abandoned(self)
        self.payload = b""
