"""One request of a client, from being asked to its one outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dynalab.errors import FrameError, HandlerFailed, NetError, ServerOverloaded, ServerUnavailable
from dynalab.net.frames import STATUS_FAILED, STATUS_OK, STATUS_OVERLOADED, STATUS_REFUSED, STATUS_UNAVAILABLE
from dynalab.net.writer import Payload

if TYPE_CHECKING:
    from dynalab.net.connection import ClientConnection
    from dynalab.net.host import Host


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


def flat(payload: Payload) -> memoryview:
    """Return a view of any payload as bytes.

    Raises
    ------
    FrameError
        If it has none.
    """
    try:
        view = memoryview(payload)
        if view.format == "O":
            raise TypeError("it holds references")
        return view.cast("B")
    except (TypeError, ValueError, BufferError) as error:
        # Whoever exports a buffer raises what it likes: ValueError if it was released.
        raise FrameError(f"payload: {type(payload).__name__} cannot be sent as bytes ({error}); encode it") from None


def body_of(response: bytes | bytearray, call: Call, host: Host) -> bytes | bytearray:
    """Take the status off a response, and raise the error that it stands for."""
    status = response[0]
    if status > STATUS_REFUSED:
        # Text without a status: the server could not read the request, and closes the connection.
        host.counters.rejected += 1
        raise NetError(f"{host.address}: refused the request: {response.decode(errors='replace')}")
    if isinstance(response, bytearray):
        # In place: a bytearray moves its beginning, not its content.
        del response[:1]
    else:
        response = response[1:]
    if status == STATUS_OK:
        return response
    text = response.decode(errors="replace")
    if status == STATUS_FAILED:
        host.counters.failed += 1
        raise HandlerFailed(f"{host.address}: the handler of {call.path!r} failed: {text}")
    host.counters.rejected += 1
    if status == STATUS_OVERLOADED:
        raise ServerOverloaded(f"{host.address}: {text}")
    if status == STATUS_UNAVAILABLE:
        raise ServerUnavailable(f"{host.address}: {text}")
    raise NetError(f"{host.address}: refused the request: {text}")
