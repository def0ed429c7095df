"""A client's connection: many requests in flight, responses in the order of the requests."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from dynalab.errors import ConnectionLost, FrameError
from dynalab.net.call import Call
from dynalab.net.decoder import ResponseDecoder
from dynalab.net.tls import explain_tls
from dynalab.net.writer import TOGETHER, FrameWriter

if TYPE_CHECKING:
    from dynalab.net.host import Host


class ClientConnection(asyncio.BufferedProtocol):
    """One connection to one address, owned by its :class:`~dynalab.net.host.Host`.

    Responses carry no number: the first response answers the first request. So a request that was given up keeps its
    place until its response has come, and counts as in flight until then.

    Attributes
    ----------
    unanswered : deque of Call
        Requests that were written, or begun, in order.
    healthy : bool
        Whether it may be given requests.
    last_read : float
        When bytes last came, or were first waited for, in the loop's time [s].
    """

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, max_message: int) -> None:
        self._host = host
        self._loop = loop
        self._decoder = ResponseDecoder(max_message)
        self._transport: asyncio.Transport | None = None
        self._flush_scheduled = False
        self._lost: Exception | None = None
        self.writer = FrameWriter(host.counters, keep_payloads=False)
        self.unanswered: deque[Call] = deque()
        self.healthy = False
        self.last_read = loop.time()
        self._heard = False
        self.closed = loop.create_future()
        # The transport asks for these two at every read: spare it the way through this class.
        self.get_buffer = self._decoder.get_buffer  # type: ignore[method-assign]
        self.pause_writing = self.writer.pause  # type: ignore[method-assign]
        self.resume_writing = self.writer.resume  # type: ignore[method-assign]

    @property
    def in_flight(self) -> int:
        """Requests that were handed to it and not answered, those given up included."""
        return len(self.unanswered) + len(self.writer.queue)

    def send(self, call: Call) -> None:
        """Queue a request; all that come in one turn of the loop leave together."""
        call.connection = self
        writer = self.writer
        busy = bool(self.unanswered or writer.queue)
        writer.queue.append((call.head, call.payload, call))
        if not busy:
            self.last_read = self._loop.time()
            writer.flush()
        elif len(writer.queue) >= TOGETHER:
            writer.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.writer.flush()

    def abandoned(self, call: Call) -> None:
        """Learn that nobody waits for the response to `call` any more."""
        self.writer.detach(call)

    @property
    def stuck_since(self) -> float | None:
        """When the connection last gave a sign of life, if the request it should answer next was given up [s]."""
        return self.last_read if self.unanswered and self.unanswered[0].future.done() else None

    @property
    def live(self) -> bool:
        """Whether anybody waits for a response."""
        queued = (cast(Call, owner) for _, _, owner in self.writer.queue)
        return any(not call.future.done() for call in (*self.unanswered, *queued))

    def give_up(self) -> list[Call]:
        """Take no more requests; return those not begun, for another connection."""
        self.healthy = False
        return cast(list[Call], self.writer.withdraw())

    def abort(self, error: Exception) -> None:
        """Close at once: whoever waits gets `error`, or its request is tried elsewhere if it was not begun."""
        self.healthy = False
        if self._lost is None:
            self._lost = error
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self.writer.open(self._transport)
        self.healthy = True

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        self.last_read = self._loop.time()
        host = self._host
        host.counters.bytes_received += nbytes
        try:
            responses = self._decoder.buffer_updated(nbytes)
        except FrameError as error:
            self._take(error.frames_before_error)
            host.counters.bad_frames += 1
            self.abort(ConnectionLost(f"{host.address}: closed the connection, for what came is no response: {error}"))
            return
        self._heard = True
        self._take(responses)

    def _take(self, responses: Sequence[bytes | bytearray]) -> None:
        host = self._host
        unanswered = self.unanswered
        for response in responses:
            if not unanswered:
                host.counters.bad_frames += 1
                self.abort(ConnectionLost(f"{host.address}: closed the connection, for a response came unasked"))
                return
            call = unanswered.popleft()
            if not response:
                host.counters.bad_frames += 1
                self.abort(ConnectionLost(f"{host.address}: closed the connection, for a response has no status"))
                call.fail(cast(Exception, self._lost))
                return
            if call.future.done():
                host.counters.late += 1
                continue
            host.counters.responses += 1
            call.future.set_result(response)
        if not unanswered and responses and self.writer.large is not None:
            # Answered before it was read: whoever asked may now change what is still being sent.
            self.writer.detach(call)
        if host.waiting:
            host.assign()

    def eof_received(self) -> bool:  # noqa: D102
        error: FrameError | None = None
        try:
            self._decoder.eof()
        except FrameError as truncated:
            self._host.counters.bad_frames += 1
            error = truncated
        # At once: the transport would wait until what is not sent yet is read, and nobody may ever read it.
        self.abort(self._ended(error))
        return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        lost = self._lost or self._ended(error)
        unsent = self.give_up()
        self.writer.large = None
        for call in self.unanswered:
            call.fail(lost)
        self.unanswered.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._host.lost(self, unsent)

    def _ended(self, error: Exception | None) -> ConnectionLost:
        """Say that the peer ended the connection, and why if that is known."""
        why = "" if error is None else f": {explain_tls(error) if isinstance(error, ssl.SSLError) else error}"
        if not self._heard and self._transport is not None and self._transport.get_extra_info("sslcontext"):
            # In TLS 1.3 a client has finished before the server has looked at its certificate.
            why += (
                "; it never answered: where it checks its clients' certificates (DYN_TCP_TLS_CLIENT_CA_CERT_PATH), "
                "give client_cert and client_key of an authority that it trusts"
            )
        return ConnectionLost(f"{self._host.address} closed the connection before the response came{why}")
