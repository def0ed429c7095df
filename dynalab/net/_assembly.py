"""How frames are put together from whatever pieces a stream comes in: what decoders of both directions share."""

from __future__ import annotations

import ctypes
import threading
from typing import Final, Generic, NoReturn, TypeVar

from dynalab.errors import FrameError, MessageTooLarge
from dynalab.units import format_size

#: Bytes of the receive buffer that the decoders of a thread share.
SCRATCH_BYTES: Final = 256 * 1024
#: Payloads up to this many bytes are delivered as `bytes`, larger ones as `bytearray`, received in place.
SMALL: Final = 64 * 1024

# bytearray(n) writes n zeros first: 20 ms and 32 MiB of resident memory for a peer that only announces 32 MiB. This
# leaves the pages untouched until bytes arrive; nothing but what was received is ever delivered.
_resize = ctypes.pythonapi.PyByteArray_Resize
_resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]
_resize.restype = ctypes.c_int


#: Bytes that are read to see the head of what follows a large payload.
PEEK_BYTES: Final = 1024


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.data = bytearray(SCRATCH_BYTES)
        self.view = memoryview(self.data)
        self.first = self.view[:PEEK_BYTES]


_scratch: Final = _Scratch()

Frame = TypeVar("Frame")


class Assembly(Generic[Frame]):
    """What both directions share: buffers, the frame that is incomplete, and what has been refused.

    Of an incomplete frame `_begun` holds the bytes so far. When there are `_need` of them, `_step` looks at the field
    that has just become complete, and says how many bytes are needed next. So every byte is looked at once, however
    finely the stream is cut.
    """

    #: Bytes of the first field, and what the errors call a frame.
    _least: int
    _what: str

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message
        #: Whether a payload awaits admission; call `resume` when there may be room.
        self.blocked = False
        self._begun = bytearray()
        self._need = self._least
        self._stage = 0
        self._body: bytearray | None = None
        self._filled = 0
        #: Read little at first: after a large payload another is likely, and what comes with its head is copied.
        self._peek = False
        self._held = bytearray()
        self._held_from = 0
        self._error: FrameError | None = None

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Return where the next bytes are to be received; report them by `buffer_updated` before anything else."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        return _scratch.first if self._peek else _scratch.view

    def buffer_updated(self, nbytes: int) -> list[Frame]:
        """Take `nbytes` that were received into the last buffer; return the frames that they complete.

        Raises
        ------
        FrameError
            If they are no frames; see this module about the frames before the fault.
        """
        if self._body is None:
            self._peek = False
            return self._take(_scratch.data, _scratch.view, 0, nbytes)
        self._filled += nbytes
        return [] if self._filled < len(self._body) else [self._finish_body(self._body)]

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take bytes from elsewhere; otherwise as `buffer_updated`."""
        if not isinstance(data, bytes):
            data = bytes(data)
        return self._take(data, memoryview(data), 0, len(data))

    def resume(self) -> list[Frame]:
        """Ask for admission again; return the frames that are complete by what was kept."""
        if not self.blocked:
            return []
        self.blocked = False
        with memoryview(self._held) as view:
            frames = self._take(self._held, view, self._held_from, len(self._held))
        if not self.blocked:
            self._held, self._held_from = bytearray(), 0
        return frames

    def eof(self) -> None:
        """Say that no more bytes will come. While `blocked` this tells nothing: ask again after `resume`.

        Raises
        ------
        FrameError
            If they end inside a frame.
        """
        if self.in_frame and not self.blocked:
            raise FrameError(
                f"{self._what}: the peer ended the stream {self.pending} bytes into a frame; see there why"
            )

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._begun) or self._body is not None or self.blocked

    @property
    def pending(self) -> int:
        """Bytes that are kept: of an incomplete frame, and behind one that awaits admission."""
        return len(self._begun) + self._filled + len(self._held) - self._held_from

    def _take(self, data: bytes | bytearray, view: memoryview, pos: int, end: int) -> list[Frame]:
        """Read frames out of ``data[pos:end]``, of which `view` is a view."""
        frames: list[Frame] = []
        if self._error is not None:
            raise self._error
        if self.blocked:
            self._held += view[pos:end]
            return frames
        try:
            while True:
                if self._body is not None:
                    pos = self._fill(self._body, view, pos, end, frames)
                elif self._begun:
                    pos = self._continue(view, pos, end, frames)
                else:
                    pos = self._scan(data, view, pos, end, frames)
                    # What the scan has left is the beginning of a frame, or one that it does not know.
                    if pos < end and not self.blocked:
                        pos = self._continue(view, pos, end, frames)
                if self.blocked:
                    self._hold(data, view, pos, end)
                    return frames
                if pos == end:
                    return frames
        except FrameError as error:
            error.frames_before_error = tuple(frames)
            self._fail(error)
            raise

    def _continue(self, view: memoryview, pos: int, end: int, frames: list[Frame]) -> int:
        """Add to the frame that has begun, until it is complete, has a body of its own, or awaits admission."""
        begun = self._begun
        while True:
            cut = min(pos + self._need - len(begun), end)
            begun += view[pos:cut]
            pos = cut
            if len(begun) < self._need:
                return pos
            need = self._step(begun, frames)
            if need <= 0:
                return pos
            self._need = need

    def _fill(self, body: bytearray, view: memoryview, pos: int, end: int, frames: list[Frame]) -> int:
        """Copy to a body what came in one piece with its head, or is fed."""
        cut = min(pos + len(body) - self._filled, end)
        filled = self._filled + cut - pos
        body[self._filled : filled] = view[pos:cut]
        self._filled = filled
        if filled == len(body):
            frames.append(self._finish_body(body))
        return cut

    def _hold(self, data: bytes | bytearray, view: memoryview, pos: int, end: int) -> None:
        if data is self._held:
            self._held_from = pos
        else:
            self._held, self._held_from = bytearray(view[pos:end]), 0

    def _finish_body(self, body: bytearray) -> Frame:
        self._body, self._filled = None, 0
        self._peek = True
        return self._finish(body)

    def _forget(self) -> None:
        """Begin a new frame."""
        self._begun.clear()
        self._need, self._stage = self._least, 0

    def _start_body(self, size: int) -> None:
        """Set up memory for a large payload, which takes the place of the frame that has begun."""
        self._forget()
        body = bytearray()
        try:
            _resize(body, size)
        except MemoryError:
            raise MessageTooLarge(
                f"{self._what}: no memory for a payload of {size} bytes ({format_size(size)}); send less at once"
            ) from None
        self._body = body

    def _fail(self, error: FrameError) -> None:
        """Remember the error for later calls, and let go of everything else."""
        self._error = type(error)(str(error))
        self._forget()
        self._body, self._filled = None, 0
        self._held, self._held_from = bytearray(), 0

    def _too_large(self, nbytes: int) -> NoReturn:
        raise MessageTooLarge(
            f"{self._what}: the peer announces a frame of {nbytes} bytes ({format_size(nbytes)}), and the limit is "
            f"{self.max_message}; send less at once, or raise DYN_TCP_MAX_MESSAGE_SIZE (max_message) on both sides"
        )

    def _scan(self, data: bytes | bytearray, view: memoryview, pos: int, end: int, frames: list[Frame]) -> int:
        """Read complete and valid frames; return where the first other one begins."""
        raise NotImplementedError

    def _step(self, begun: bytearray, frames: list[Frame]) -> int:
        """Look at the field that has just become complete; return the bytes needed next, or 0: stop here."""
        raise NotImplementedError

    def _finish(self, payload: bytes | bytearray) -> Frame:
        """Make the frame of a payload that is complete."""
        raise NotImplementedError
