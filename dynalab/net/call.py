"""One request of a client, from being asked to its one outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dynalab.errors import (
    CannotConnect,
    ConnectionLost,
    FrameError,
    HandlerFailed,
    NetError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
)
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
        # Text without a status: the server could not read the request, nor anything behind it.
        host.counters.rejected += 1
        if call.connection is not None:
            call.connection.abort(ConnectionLost(f"{host.address} stopped reading at a request that it refused"))
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


def outcome_of(failure: BaseException, call: Call, host: Host, seconds: float) -> BaseException:
    """Return what the caller is told of a failed attempt, and count it."""
    counters, error = host.counters, failure
    if isinstance(failure, asyncio.CancelledError):
        counters.cancelled += 1
        call.abandon()
    elif isinstance(failure, ConnectionLost):
        counters.lost += 1
        # One loss ends many requests: each gets an error of its own.
        error = ConnectionLost(str(failure), maybe_handled=call.begun)
        error.__cause__ = failure.__cause__
    elif isinstance(failure, CannotConnect):
        counters.unreachable += 1
        error = CannotConnect(str(failure))
        error.__cause__ = failure.__cause__
    elif isinstance(failure, TimeoutError):
        counters.timeouts += 1
        call.abandon()
        # The call keeps its place, with its future and this error: they shall not keep the caller's frame.
        failure.__traceback__ = None
        what = f"{host.address}: no response to {call.path!r} within {seconds:g} s"
        error = RequestTimeout(what, maybe_handled=call.begun)
    return error
