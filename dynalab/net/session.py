"""The server's side of one connection: requests in, responses out in their order, and nothing held without bound."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from dynalab.errors import FrameError
from dynalab.net.decoder import RequestDecoder, RequestFrame
from dynalab.net.frames import (
    STATUS_FAILED,
    STATUS_OK,
    STATUS_OVERLOADED,
    STATUS_REFUSED,
    STATUS_UNAVAILABLE,
    encode_response_head,
)
from dynalab.net.workers import Work
from dynalab.net.writer import FrameWriter, Payload

if TYPE_CHECKING:
    from dynalab.net.endpoint import SharedTcpEndpoint

#: Requests of one connection that may be unanswered; beyond them nothing more is read.
PIPELINE: Final = 4096
#: Reasons for not reading.
_BYTES, _ANSWERS = 1, 2
#: The status byte of a response, by status.
_STATUS: Final = tuple(bytes([status]) for status in range(STATUS_REFUSED + 1))
#: Longest text of an error that is sent [characters].
_TEXT: Final = 1000


class Reply:
    """The place of a response in the order of its connection."""

    __slots__ = ("body", "nbytes", "ready", "session", "status", "with_status")

    def __init__(self, session: Session, with_status: bool) -> None:
        self.session = session
        self.with_status = with_status
        self.ready = False
        self.status = STATUS_OK
        self.body: Payload = b""
        self.nbytes = 0

    def begin(self) -> bool:
        """Be written: what it held is on its way."""
        self.session.release(self.nbytes)
        return True


class Session(asyncio.BufferedProtocol):
    """One accepted connection.

    Attributes
    ----------
    held : int
        Bytes of its requests and responses that are in memory.
    frame_since, blocked_since : float, optional
        When the frame that is coming in began, and when the peer stopped reading [s, the loop's time].
    """

    def __init__(self, endpoint: SharedTcpEndpoint) -> None:
        self._endpoint = endpoint
        self._loop = endpoint.loop
        self._decoder = RequestDecoder(endpoint.config.max_message, self._admit)
        self._writer = FrameWriter(endpoint.counters, keep_payloads=True)
        self._transport: asyncio.Transport | None = None
        self._replies: deque[Reply] = deque()
        self._flush_scheduled = False
        self._held_back = 0
        self._incoming = 0
        self._wanted = 0
        self._ending = False
        self.closed = False
        self.held = 0
        self.frame_since: float | None = None
        self.blocked_since: float | None = None
        # The transport asks for it at every read: spare it the way through this class.
        self.get_buffer = self._decoder.get_buffer  # type: ignore[method-assign]

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._writer.open(self._transport)
        self._endpoint.joined(self)

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        self._endpoint.counters.bytes_received += nbytes
        try:
            frames = self._decoder.buffer_updated(nbytes)
        except FrameError as error:
            self._refuse(error)
            return
        self._take(frames)

    def eof_received(self) -> bool | None:  # noqa: D102
        try:
            self._decoder.eof()
        except FrameError:
            self._endpoint.counters.bad_frames += 1
        self.finish()
        transport = cast(asyncio.Transport, self._transport)
        # A half-closed peer still gets its answers; TLS knows no half-closing.
        return None if transport.get_extra_info("sslcontext") else not transport.is_closing()

    def pause_writing(self) -> None:  # noqa: D102
        self._writer.pause()
        self.blocked_since = self._loop.time()

    def resume_writing(self) -> None:  # noqa: D102
        self.blocked_since = None
        self._writer.resume()
        self._after_writing()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self.closed = True
        self.frame_since = self.blocked_since = None
        self._writer.withdraw()
        self._replies.clear()
        # What handlers hold is theirs until they end; the rest goes back now.
        self._endpoint.budget.forget(self)
        self._endpoint.budget.give(self.held)
        self.held = self._incoming = 0
        self._endpoint.left(self)

    # Requests.

    def _take(self, frames: list[RequestFrame]) -> None:
        for frame in frames:
            # Its bytes are its handler's from now on.
            self._incoming -= len(frame.payload)
            self._accept(frame)
        if frames or not self._decoder.in_frame:
            self.frame_since = None
        if self._decoder.in_frame and self.frame_since is None and not self._held_back:
            self.frame_since = self._loop.time()
        self._writer.flush()
        self._after_writing()

    def _accept(self, frame: RequestFrame) -> None:
        endpoint, nbytes = self._endpoint, len(frame.payload)
        endpoint.counters.requests += 1
        reply = Reply(self, frame.wants_status)
        self._replies.append(reply)
        route = endpoint.routes.get(frame.path)
        if route is None or endpoint.draining:
            endpoint.counters.unavailable += 1
            why = "draining" if endpoint.draining else f"unknown endpoint {frame.path}"
            self._answer(reply, STATUS_UNAVAILABLE, f"Server unavailable: {why}".encode())
            self.release(nbytes)
            return
        acknowledge = not route.reply

        def done(result: Any, error: BaseException | None) -> None:
            if self.closed:
                endpoint.budget.give(nbytes)
            else:
                self.release(nbytes)
            if acknowledge or self.closed:
                return
            if error is not None:
                self._answer(reply, STATUS_FAILED, _told(error))
            else:
                self._answer_with(reply, result)
            self._flush_soon()

        work = Work(route, frame, done, (lambda: True) if acknowledge else (lambda: not self.closed))
        if not endpoint.workers.submit(work):
            endpoint.counters.enqueue_rejected += 1
            self._answer(reply, STATUS_OVERLOADED, b"Server overloaded: worker at capacity")
            self.release(nbytes)
            return
        endpoint.counters.accepted += 1
        if acknowledge:
            self._answer(reply, STATUS_OK, b"")

    def _refuse(self, error: FrameError) -> None:
        """Answer what no frame can follow, and close once everything is answered."""
        self._endpoint.counters.bad_frames += 1
        reply = Reply(self, with_status=False)
        self._replies.append(reply)
        self._answer(reply, STATUS_REFUSED, f"Read error: {error}"[:_TEXT].encode())
        self.finish()

    # Responses.

    def _answer_with(self, reply: Reply, result: Any) -> None:
        if result is None:
            result = b""
        elif not isinstance(result, bytes | bytearray):
            try:
                result = memoryview(result).cast("B")
            except TypeError:
                text = f"the handler returned {type(result).__name__}, not bytes"
                self._endpoint.counters.failed += 1
                self._answer(reply, STATUS_FAILED, text.encode())
                return
        most = self._endpoint.config.max_message
        if len(result) > most - 5:
            self._endpoint.counters.failed += 1
            text = f"the reply of {len(result)} bytes is longer than max_message={most} less its head"
            self._answer(reply, STATUS_FAILED, text.encode())
            return
        self._answer(reply, STATUS_OK, result)

    def _answer(self, reply: Reply, status: int, body: Payload) -> None:
        """Fill a place in the order, and queue the responses that are next."""
        reply.ready = True
        if status == STATUS_FAILED and not reply.with_status:
            body = b"Handler failed: " + body
        reply.status, reply.body, reply.nbytes = status, body, len(body)
        self.held += reply.nbytes
        self._endpoint.budget.force(reply.nbytes)
        replies, put, most = self._replies, self._writer.put, self._endpoint.config.max_message
        while replies and replies[0].ready:
            first = replies.popleft()
            body = first.body
            if first.with_status:
                put(encode_response_head(len(body) + 1, most) + _STATUS[first.status], body, first)
            else:
                put(encode_response_head(len(body), most), body, first)

    def _flush_soon(self) -> None:
        """Write at once if nothing else is under way, else together with what ends in this turn of the loop."""
        if not self._replies:
            self._writer.flush()
            self._after_writing()
        elif not self._flush_scheduled and len(self._writer):
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._writer.flush()
        self._after_writing()

    def _after_writing(self) -> None:
        """Stop or go on reading by what is unanswered, and close if that was all."""
        unanswered = len(self._replies) + len(self._writer)
        if unanswered >= PIPELINE or (self._writer.paused and unanswered):
            self._hold_back(_ANSWERS)
        elif self._held_back & _ANSWERS:
            self._let_go(_ANSWERS)
        if self._ending and not self._replies and self._writer.idle and self._transport is not None:
            self._transport.close()

    # Bounds.

    def _admit(self, nbytes: int) -> bool:
        """Say whether a payload of `nbytes` may be allocated; if not, stop reading until it may."""
        if self.held and self.held + nbytes > self._endpoint.config.connection_bytes:
            self._wanted = nbytes
        elif self._endpoint.budget.take(nbytes, self):
            self._wanted = 0
            self.held += nbytes
            self._incoming += nbytes
            return True
        self._hold_back(_BYTES)
        return False

    def release(self, nbytes: int) -> None:
        """Give bytes back, and read on if that makes room."""
        self.held -= nbytes
        self._endpoint.budget.give(nbytes)
        wanted = self._wanted
        if wanted and (not self.held or self.held + wanted <= self._endpoint.config.connection_bytes):
            self._wanted = 0
            self._loop.call_soon(self.bytes_free)

    def bytes_free(self) -> bool:
        """Read on, if there is room now; return whether there was."""
        if self.closed or not self._held_back & _BYTES:
            return True
        try:
            frames = self._decoder.resume()
        except FrameError as error:
            self._refuse(error)
            return True
        admitted = not self._decoder.blocked
        if admitted:
            self._let_go(_BYTES)
        self._take(frames)
        return admitted

    def _hold_back(self, reason: int) -> None:
        if not self._held_back and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._held_back |= reason
        self.frame_since = None

    def _let_go(self, reason: int) -> None:
        self._held_back &= ~reason
        if not self._held_back and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            if self._decoder.in_frame:
                self.frame_since = self._loop.time()

    def finish(self) -> None:
        """Read no more, and close once everything is answered."""
        self._ending = True
        self._held_back |= 4
        self.frame_since = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._writer.flush()
            self._after_writing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def _told(error: BaseException) -> bytes:
    if isinstance(error, asyncio.CancelledError):
        return b"cancelled"
    return f"{type(error).__name__}: {error}"[:_TEXT].encode()
