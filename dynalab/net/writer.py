"""Frames on their way into a transport: small ones together, large ones in slices, none faster than the peer reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

#: A payload up to this many bytes is joined with its neighbours: one copy costs less than a call of the system.
JOIN: Final = 64 << 10
#: Frames that are kept to be written together. More would save calls of the system, but both sides would take turns
#: instead of working at the same time: 16 callers on one connection get twice as far with 8 as with 16.
TOGETHER: Final = 8
#: Bytes that are joined before they are written.
BATCH: Final = 64 << 10
#: Bytes of a large payload that are handed to the transport at a time. What the socket does not take at once, the
#: transport may copy: this bounds that copy.
SLICE: Final = 1 << 20
#: Bytes that the transport may hold before it asks for a pause.
HIGH_WATER: Final = 64 << 10

Payload = bytes | bytearray | memoryview


class Owner(Protocol):
    """Whose frame it is."""

    def begin(self) -> bool:
        """Learn that the frame is about to be written; return False to withdraw it."""


class Counters(Protocol):
    """Who wants to know how much was sent."""

    bytes_sent: int


class FrameWriter:
    """Writes the frames of one connection in the order in which they were put.

    Parameters
    ----------
    counters : Counters
        Their ``bytes_sent`` grows.
    keep_payloads : bool
        Whether a payload may be written from where it lies. If not, what is not ``bytes`` is copied slice by slice as
        it is written, since its owner may change it once it has given the request up.

    Attributes
    ----------
    queue : deque of (head, payload, owner)
        Frames of which no byte was written; whoever appends one calls `flush`.
    large : (memoryview, int, owner), optional
        The payload that is half written, and how many bytes of it were.
    paused : bool
        Whether the transport has enough.

    Notes
    -----
    `pause` and `resume` are what the transport calls on its protocol.
    """

    __slots__ = ("_counters", "_keep", "_transport", "large", "paused", "queue")

    def __init__(self, counters: Counters, *, keep_payloads: bool) -> None:
        self._counters = counters
        self._keep = keep_payloads
        self.queue: deque[tuple[bytes, Payload, Owner | None]] = deque()
        self.large: tuple[memoryview, int, Owner | None] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self.paused = False

    def open(self, transport: asyncio.WriteTransport) -> None:
        """Begin to write into `transport`."""
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER, low=0)

    @property
    def idle(self) -> bool:
        """Whether the transport has taken everything."""
        return not self.queue and self.large is None and not self.paused

    def flush(self) -> None:
        """Write what the transport takes."""
        if self._transport is None or self._transport.is_closing():
            return
        queue, write = self.queue, self._transport.write
        if len(queue) == 1 and self.large is None and not self.paused and len(queue[0][1]) <= JOIN:
            # The common case of little traffic.
            head, payload, owner = queue.popleft()
            if owner is None or owner.begin():
                data = head + payload
                self._counters.bytes_sent += len(data)
                write(data)
            return
        if self.large is not None:
            self._write_large()
        parts: list[Payload] = []
        size = 0
        while queue and not self.paused:
            head, payload, owner = queue.popleft()
            if owner is not None and not owner.begin():
                continue
            parts.append(head)
            length = len(payload)
            if length <= JOIN:
                parts.append(payload)
                size += len(head) + length
                if size < BATCH:
                    continue
            else:
                # With its first bytes: a head alone would wake the peer for nothing.
                view = memoryview(payload)
                parts.append(view[:JOIN])
                size += len(head) + JOIN
                self.large = (view, JOIN, owner)
            self._counters.bytes_sent += size
            write(parts[0] if len(parts) == 1 else b"".join(parts))
            parts, size = [], 0
            if self.large is not None:
                self._write_large()
        if parts:
            self._counters.bytes_sent += size
            write(b"".join(parts))

    def _write_large(self) -> None:
        assert self.large is not None
        assert self._transport is not None
        view, at, owner = self.large
        copied = not (self._keep or isinstance(view.obj, bytes))
        while at < len(view) and not self.paused:
            piece = view[at : at + SLICE]
            at += len(piece)
            self._counters.bytes_sent += len(piece)
            self._transport.write(bytes(piece) if copied else piece)
        self.large = None if at >= len(view) else (view, at, owner)

    def pause(self) -> None:
        """Stop: the peer reads more slowly than frames come."""
        self.paused = True

    def resume(self) -> None:
        """Go on: the transport is empty."""
        self.paused = False
        self.flush()

    def detach(self, owner: Owner) -> None:
        """Make the rest of a frame that is half written independent of the memory of its owner."""
        if self.large is not None and self.large[2] is owner and not isinstance(self.large[0].obj, bytes):
            view, at, _ = self.large
            self.large = (memoryview(bytes(view[at:])), 0, None)

    def withdraw(self) -> list[Owner]:
        """Take back the frames of which no byte was written, and return their owners in order."""
        owners = [owner for _, _, owner in self.queue if owner is not None]
        self.queue.clear()
        return owners
