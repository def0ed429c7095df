"""One request of a connection on the server's side, from its frame to its response."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dynalab.errors import FrameError
from dynalab.net.call import flat
from dynalab.net.decoder import RequestFrame
from dynalab.net.frames import STATUS_FAILED, STATUS_OK
from dynalab.net.writer import Payload

if TYPE_CHECKING:
    from dynalab.net.session import Session
    from dynalab.net.workers import Route

#: Longest text of an error that is sent [bytes]: it fits into the smallest `max_message`.
_LONGEST_TEXT: Final = 980


class Exchange:
    """A place in the order of a connection: a request, who handles it, and the response once there is one.

    Attributes
    ----------
    held, to_send : int
        Bytes of the payload and of the response that count against the endpoint's bounds.
    ready : bool
        Whether `status` and `body` may be written when its turn comes.
    ended : bool
        Whether the handler has been told off the books.
    """

    # Of a request with a handler, set before that is asked for; the request is gone when it has ended.
    route: Route
    request: RequestFrame

    __slots__ = (
        "body",
        "ended",
        "held",
        "queued_at",
        "ready",
        "request",
        "route",
        "session",
        "status",
        "to_send",
        "with_status",
    )

    def __init__(self, session: Session, with_status: bool, held: int) -> None:
        self.session = session
        self.with_status = with_status
        self.held = held
        self.to_send = 0
        self.ready = False
        self.ended = False
        self.queued_at = 0.0
        self.status = STATUS_OK
        self.body: Payload = b""

    def wanted(self) -> bool:
        """Whether its handler shall still be called: what was acknowledged is, though the peer may have gone."""
        return not self.session.closed or not self.route.reply

    def done(self, result: Any, error: BaseException | None) -> None:
        """Take the outcome of the handler."""
        del self.request
        session = self.session
        held, self.held = self.held, 0
        if session.closed:
            session.endpoint.budget.give(held)
            return
        session.with_handlers -= held
        session.release(held)
        if not self.route.reply:
            # Acknowledged when it was accepted.
            return
        if error is not None:
            session.answer(self, STATUS_FAILED, _told(error))
        elif isinstance(result, bytes | bytearray):
            self._reply(result)
        elif result is None:
            self._reply(b"")
        else:
            try:
                body = flat(result)
            except FrameError:
                self._fail(f"the handler returned {type(result).__name__}, not bytes")
            else:
                self._reply(body)
        session.flush_soon()

    def _reply(self, body: Payload) -> None:
        most = self.session.endpoint.config.max_message
        # A response is longer than its body by four bytes of length and one of status.
        if len(body) > most - 5:
            self._fail(f"the reply of {len(body)} bytes does not fit into max_message={most}")
        else:
            self.session.answer(self, STATUS_OK, body)

    def _fail(self, text: str) -> None:
        self.session.endpoint.counters.failed += 1
        self.session.answer(self, STATUS_FAILED, in_short(text))

    def begin(self) -> bool:
        """Be written: what it held is on its way."""
        self.session.sent(self.to_send)
        return True


def in_short(text: str) -> bytes:
    """Encode any text for a response, cut to what fits into one."""
    return text[:_LONGEST_TEXT].encode(errors="backslashreplace")[:_LONGEST_TEXT]


def _told(error: BaseException) -> bytes:
    if isinstance(error, asyncio.CancelledError):
        return b"cancelled"
    try:
        return in_short(f"{type(error).__name__}: {error}")
    except Exception:
        # An error that cannot be written as text is one all the same.
        return in_short(type(error).__name__)
