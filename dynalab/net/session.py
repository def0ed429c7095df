"""The server's side of one connection: requests in, responses out in their order, and nothing held without bound."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from dynalab.errors import FrameError
from dynalab.net.decoder import RequestDecoder, RequestFrame
from dynalab.net.exchange import Exchange, in_short
from dynalab.net.frames import (
    STATUS_FAILED,
    STATUS_OK,
    STATUS_OVERLOADED,
    STATUS_REFUSED,
    STATUS_UNAVAILABLE,
    encode_response_head,
)
from dynalab.net.writer import HIGH_WATER, TOGETHER, FrameWriter, Payload

if TYPE_CHECKING:
    from dynalab.net.endpoint import SharedTcpEndpoint

#: Requests of one connection that may be unanswered; beyond them nothing more is read.
PIPELINE: Final = 4096
#: Seconds that a refused peer may go on sending before it is cut off.
_LINGER: Final = 2.0
#: Reasons for not reading.
_BYTES, _ANSWERS, _ENDING, _BACKLOG = 1, 2, 4, 8
#: The status byte of a response, by status.
_STATUS: Final = tuple(bytes([status]) for status in range(STATUS_REFUSED + 1))


class Session(asyncio.BufferedProtocol):
    """One accepted connection.

    Attributes
    ----------
    held : int
        Bytes of its requests and responses that are in memory.
    with_handlers : int
        Those among them of requests whose handler has not ended.
    frame_since, blocked_since : float, optional
        When the frame that is coming in began, and when the peer stopped reading [s, the loop's time].
    """

    def __init__(self, endpoint: SharedTcpEndpoint) -> None:
        self.endpoint = endpoint
        self._loop = endpoint.loop
        self._decoder = RequestDecoder(endpoint.config.max_message, self._admit)
        self._writer = FrameWriter(endpoint.counters, keep_payloads=True)
        self._transport: asyncio.Transport | None = None
        self._open: deque[Exchange] = deque()
        self._backlog: deque[RequestFrame] = deque()
        self._aside: list[Exchange] = []
        self._broken: FrameError | None = None
        self._flush_scheduled = False
        self._catching_up = False
        self._held_back = 0
        self._incoming = 0
        self._wanted: int | None = None
        self._ending = self._refused = self._lingering = False
        self._taking = False
        self.closed = False
        self.held = 0
        self.with_handlers = 0
        self.frame_since: float | None = None
        self.blocked_since: float | None = None
        # The transport asks for it at every read: spare it the way through this class.
        self.get_buffer = self._decoder.get_buffer  # type: ignore[method-assign]

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._writer.open(self._transport)
        self.endpoint.joined(self)

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        self.endpoint.counters.bytes_received += nbytes
        try:
            frames = self._decoder.buffer_updated(nbytes)
        except FrameError as error:
            if not self._lingering:
                self._take(error.frames_before_error)
                self._refuse(error)
            return
        self._take(frames)

    def eof_received(self) -> bool | None:  # noqa: D102
        if self._lingering:
            return None
        try:
            self._decoder.eof()
        except FrameError:
            self.endpoint.counters.bad_frames += 1
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
        self._writer.large = None
        self._open.clear()
        # What handlers hold is theirs until they end; the rest goes back now: requests, and responses.
        budget = self.endpoint.budget
        budget.forget(self)
        for frame in self._backlog:
            budget.give(len(frame.payload))
            self._incoming -= len(frame.payload)
            self.held -= len(frame.payload)
        self._backlog.clear()
        budget.give(self._incoming)
        budget.sent(self.held - self.with_handlers - self._incoming)
        self.held = self.with_handlers = self._incoming = 0
        aside, self._aside = self._aside, []
        self.endpoint.workers.drop(aside)
        self.endpoint.left(self)

    # Requests.

    def _take(self, frames: Sequence[RequestFrame]) -> None:
        self._taking = True
        queue = self._writer.queue
        for n, frame in enumerate(frames):
            if self._backlog or (self.held > HIGH_WATER and self._full()):
                self._backlog.extend(frames[n:])
                self._hold_back(_BACKLOG)
                break
            self._accept(frame)
            if len(queue) >= TOGETHER:
                self._writer.flush()
        self._taking = False
        if not self._decoder.in_frame:
            self.frame_since = None
        elif (frames or self.frame_since is None) and not self._held_back:
            self.frame_since = self._loop.time()
        if self._writer.queue:
            self._writer.flush()
        self._after_writing()

    def _accept(self, frame: RequestFrame) -> None:
        endpoint = self.endpoint
        counters = endpoint.counters
        counters.requests += 1
        route = endpoint.routes.get(frame.path)
        nbytes = len(frame.payload)
        self._incoming -= nbytes
        self.with_handlers += nbytes
        exchange = Exchange(self, frame.wants_status, nbytes)
        self._open.append(exchange)
        if route is None or endpoint.draining:
            counters.unavailable += 1
            why = "draining" if endpoint.draining else f"unknown endpoint {frame.path}"
            self._turn_away(exchange, STATUS_UNAVAILABLE, f"Server unavailable: {why}")
            return
        exchange.route, exchange.request = route, frame
        if not endpoint.workers.submit(exchange):
            counters.enqueue_rejected += 1
            self._turn_away(exchange, STATUS_OVERLOADED, "Server overloaded: worker at capacity")
        else:
            counters.accepted += 1
            if not route.reply:
                self.answer(exchange, STATUS_OK, b"")

    def _turn_away(self, exchange: Exchange, status: int, text: str) -> None:
        self.with_handlers -= exchange.held
        self.release(exchange.held)
        self.answer(exchange, status, in_short(text))

    def _refuse(self, error: FrameError) -> None:
        """Answer what no frame can follow, and close once everything is answered."""
        if self._backlog:
            self._broken = error
            return
        self.endpoint.counters.bad_frames += 1
        self._refused = True
        exchange = Exchange(self, with_status=False, held=0)
        self._open.append(exchange)
        self.answer(exchange, STATUS_REFUSED, in_short(f"Read error: {error}"))
        self.finish()

    # Responses.

    def answer(self, exchange: Exchange, status: int, body: Payload) -> None:
        """Fill a place in the order, and queue the responses that are next."""
        with_status = exchange.with_status
        if status == STATUS_FAILED and not with_status:
            body = b"Handler failed: " + body
        exchange.ready = True
        exchange.status, exchange.body = status, body
        exchange.to_send = nbytes = len(body)
        if nbytes:
            self.held += nbytes
            self.endpoint.budget.replies += nbytes
        waiting, queue, most = self._open, self._writer.queue, self.endpoint.config.max_message
        while waiting and waiting[0].ready:
            first = waiting.popleft()
            body = first.body
            if first.with_status:
                head = encode_response_head(len(body) + 1, most) + _STATUS[first.status]
            else:
                head = encode_response_head(len(body), most)
            queue.append((head, body, first))

    def flush_soon(self) -> None:
        """Write at once if nothing else is under way, else together with what ends in this turn of the loop."""
        if self._taking or not self._writer.queue:
            return
        if not self._open:
            self._writer.flush()
            self._after_writing()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._writer.flush()
        self._after_writing()

    def _after_writing(self) -> None:
        """Stop or go on reading by what is unanswered, and close if that was all."""
        if len(self._open) + len(self._writer.queue) >= PIPELINE:
            self._hold_back(_ANSWERS)
        elif self._held_back & _ANSWERS:
            self._let_go(_ANSWERS)
        if (self._backlog or self._aside) and not self._catching_up and not self._full():
            self._catching_up = True
            self._loop.call_soon(self._catch_up)
        if self._ending and not self._open and not self._backlog and self._writer.idle and self._transport is not None:
            if self._refused and self._transport.can_write_eof() and not self._transport.is_closing():
                self._linger(self._transport)
                return
            self._transport.close()
            if self._transport.get_write_buffer_size():
                # The last bytes, too, must be read in time.
                self.blocked_since = self._loop.time()

    def _linger(self, transport: asyncio.Transport) -> None:
        """End the responses, but read on for a while: closed with bytes unread, TCP would take back the refusal."""
        if not self._lingering:
            self._lingering = True
            transport.write_eof()
            transport.resume_reading()
            self._loop.call_later(_LINGER, transport.close)

    def _full(self) -> bool:
        """Whether so much is unsent that no more handlers shall be called: those that run may add to it as it is."""
        unsent = self.held - self.with_handlers - self._incoming
        if unsent <= HIGH_WATER:
            return False
        budget = self.endpoint.budget
        return unsent > self.endpoint.config.connection_bytes or budget.used > budget.total

    def set_aside(self, work: Exchange) -> bool:
        """Take a request back whose turn has come while nobody reads its replies; return whether that is so."""
        # What was acknowledged sends nothing more.
        aside = self.held > HIGH_WATER and not work.ready and self._full()
        if aside:
            self._aside.append(work)
        return aside

    def _catch_up(self) -> None:
        """Take the requests that had to wait for their peer to read."""
        self._catching_up = False
        if self.closed:
            return
        aside, self._aside = self._aside, []
        if aside:
            self.endpoint.workers.take_back(aside)
        frames = [*self._backlog]
        self._backlog.clear()
        if self._held_back & _BACKLOG:
            self._let_go(_BACKLOG)
        self._take(frames)
        if self._broken is not None and not self._backlog:
            self._refuse(self._broken)

    # Bounds.

    def _admit(self, nbytes: int) -> bool:
        """Say whether a payload of `nbytes` may be allocated; if not, stop reading until it may."""
        if self.held and self.held + nbytes > self.endpoint.config.connection_bytes:
            self._wanted = nbytes
        elif self.endpoint.budget.take(nbytes, self):
            self.held += nbytes
            self._incoming += nbytes
            return True
        self._hold_back(_BYTES)
        return False

    def release(self, nbytes: int) -> None:
        """Give the bytes of a payload back."""
        if nbytes:
            self.endpoint.budget.give(nbytes)
            self._make_room(nbytes)

    def sent(self, nbytes: int) -> None:
        """Give the bytes of a response back."""
        if nbytes:
            self.endpoint.budget.sent(nbytes)
            self._make_room(nbytes)

    def _make_room(self, nbytes: int) -> None:
        self.held -= nbytes
        wanted = self._wanted
        if wanted is not None and (not self.held or self.held + wanted <= self.endpoint.config.connection_bytes):
            self._wanted = None
            # Later, for requests that were read before may not have been taken yet.
            self._loop.call_soon(self.bytes_free)

    def bytes_free(self) -> None:
        """Read on, if there is room now."""
        if self.closed or not self._held_back & _BYTES:
            return
        try:
            frames = self._decoder.resume()
        except FrameError as error:
            self._take(error.frames_before_error)
            self._refuse(error)
            return
        if not self._decoder.blocked:
            self._let_go(_BYTES)
        self._take(frames)

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
        self._held_back |= _ENDING
        self.frame_since = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._writer.flush()
            self._after_writing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
