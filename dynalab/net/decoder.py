"""Incremental decoders of requests and responses, made for :class:`asyncio.BufferedProtocol`.

Bytes are received into a scratch buffer that all decoders of a thread share: event loops ask for a buffer, fill it and
report it without letting anything else run, so that a connection without a frame under way holds no buffer at all.
Complete frames are read straight out of the scratch; what is left of an incomplete one goes into a small bytearray of
its own. A large payload gets its bytearray as soon as its length is known and admitted, and from then on the socket is
received into that, in place: no byte of it is copied more than once in user space, and most are never.

**What arrives.** A payload of at most `SMALL` bytes is `bytes`, a larger one a `bytearray` that belongs to the
receiver. (It must not be resized before the callback that delivered it has returned: the loop may still look at it.)

**Invalid input** raises as soon as the field that is wrong has arrived, in the order of the wire. The frames before it
are in the error's ``frames_before_error``. The stream cannot be found again: close the connection; further calls raise
the same error without frames.

**Admission.** `admit` is asked with the length of every payload, small ones too, before it is allocated. Where it says
no, the decoder is `blocked`: it keeps what it has (`pending` bytes: less than a scratch buffer and a head), makes
nothing of it, and asks again for the same payload at each `resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from types import MappingProxyType
from typing import Final

import orjson

from dynalab.errors import FrameError
from dynalab.net._assembly import SCRATCH_BYTES, SMALL, Assembly
from dynalab.net.frames import MAX_MESSAGE, MAX_PATH, REPLY_HEADER, REPLY_STATUS

__all__ = ["SCRATCH_BYTES", "SMALL", "RequestDecoder", "RequestFrame", "ResponseDecoder"]

_U16: Final = Struct(">H").unpack_from
_U32: Final = Struct(">I").unpack_from

# A connection's own few heads: no peer can push out another's, and a flood of new ones costs their decoding only.
_MOST_HEADS: Final = 8
_LONGEST_HEAD: Final = 2048

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class RequestFrame:
    """A request as it came.

    Attributes
    ----------
    path : str
    headers : mapping of str to str
        Read-only; where a name came twice, its last value.
    payload : bytes or bytearray
    wants_status : bool
        Whether the response's data begins with a status byte.
    nbytes : int
        Bytes of the whole frame.
    """

    __slots__ = ("headers", "nbytes", "path", "payload", "wants_status")

    def __init__(
        self, path: str, headers: Mapping[str, str], payload: bytes | bytearray, wants_status: bool, nbytes: int
    ) -> None:
        self.path, self.headers, self.payload = path, headers, payload
        self.wants_status, self.nbytes = wants_status, nbytes

    def __repr__(self) -> str:
        return f"RequestFrame({self.path!r}, {dict(self.headers)!r}, {len(self.payload)} bytes)"


# A request up to its payload: as bytes, its size with the payload's length field, path, headers, wants_status. A plain
# tuple: where each request has headers of its own, a class would be a fifth of the cost.
_Head = tuple[bytes, int, str, Mapping[str, str], bool]

# What no valid request begins with; and longer than any stream, so that a scan leaves what does to be refused.
_NO_HEAD: Final[_Head] = (b"\0\0", 2**62, "", _NO_HEADERS, False)


class RequestDecoder(Assembly[RequestFrame]):
    r"""Turns bytes into requests.

    Parameters
    ----------
    max_message : int
        Most bytes of a whole frame.
    admit : callable, optional
        Asked with the length of a payload in bytes; False blocks the decoder until `resume`. Must not raise.

    Examples
    --------
    >>> decoder = RequestDecoder()
    >>> decoder.feed(b"\x00\x04echo\x00\x02{}\x00\x00\x00\x05he"), decoder.pending
    ([], 16)
    >>> decoder.feed(b"llo")
    [RequestFrame('echo', {}, 5 bytes)]
    """

    _least = 2
    _what = "request"

    def __init__(self, max_message: int = MAX_MESSAGE, admit: Callable[[int], bool] | None = None) -> None:
        super().__init__(max_message)
        self._admit = admit
        self._heads: dict[bytes, _Head] = {}
        self._last = _NO_HEAD
        self._length = 0

    def _scan(self, data: bytes | bytearray, view: memoryview, pos: int, end: int, frames: list[RequestFrame]) -> int:
        admit, most = self._admit, self.max_message
        key, size, path, headers, wants = self._last
        while pos < end:
            # Heads tell their own length, so that bytes which begin like a known head have that head.
            if not data.startswith(key, pos):
                found = self._head_at(view, pos, end)
                if found is None:
                    break
                key, size, path, headers, wants = self._last = found
            start = pos + size
            if start > end:
                break
            length = _U32(data, start - 4)[0]
            stop = start + length
            if stop > end or stop - pos > most:
                break
            if admit is not None and not admit(length):
                self.blocked = True
                break
            payload = view[start:stop].tobytes() if length <= SMALL else bytearray(view[start:stop])
            frames.append(RequestFrame(path, headers, payload, wants, stop - pos))
            pos = stop
        return pos

    def _step(self, begun: bytearray, frames: list[RequestFrame]) -> int:
        if self._stage == 0:
            self._stage = 1
            return 4 + self._path_length(_U16(begun)[0])
        if self._stage == 1:
            self._stage = 2
            _decode_path(bytes(begun[2:-2]))
            size = len(begun) + _U16(begun, len(begun) - 2)[0] + 4
            if size > self.max_message:
                self._too_large(size)
            return size
        if self._stage == 2:
            self._stage = 3
            self._last = self._head_of(bytes(begun[:-4]), _U16(begun)[0])
            self._length = _U32(begun, len(begun) - 4)[0]
            if len(begun) + self._length > self.max_message:
                self._too_large(len(begun) + self._length)
        if self._stage == 3:
            if self._admit is not None and not self._admit(self._length):
                self.blocked = True
                return 0
            if self._length > SMALL:
                self._start_body(self._length)
                return 0
            self._stage = 4
            return len(begun) + self._length
        frames.append(self._finish(memoryview(begun)[self._last[1] :].tobytes()))
        self._forget()
        return 0

    def _finish(self, payload: bytes | bytearray) -> RequestFrame:
        _, size, path, headers, wants = self._last
        return RequestFrame(path, headers, payload, wants, size + len(payload))

    def _head_at(self, view: memoryview, pos: int, end: int) -> _Head | None:
        """Return the head at `pos`, None if it is incomplete."""
        if end - pos < 2:
            return None
        path_length = self._path_length(_U16(view, pos)[0])
        mark = pos + 4 + path_length
        if mark > end:
            return None
        stop = mark + _U16(view, mark - 2)[0]
        return None if stop + 4 > end else self._head_of(view[pos:stop].tobytes(), path_length)

    def _head_of(self, key: bytes, path_length: int) -> _Head:
        heads = self._heads
        head = heads.get(key)
        if head is None:
            path = _decode_path(key[2 : 2 + path_length])
            size = len(key) + 4
            if size > self.max_message:
                self._too_large(size)
            headers = _decode_headers(key[4 + path_length :])
            head = (key, size, path, headers, headers.get(REPLY_HEADER) == REPLY_STATUS)
            if size <= _LONGEST_HEAD:
                if len(heads) >= _MOST_HEADS:
                    heads.clear()
                heads[key] = head
        return head

    def _path_length(self, length: int) -> int:
        if not 1 <= length <= MAX_PATH:
            raise FrameError(
                f"request: a path of {length} bytes, and paths have 1 to {MAX_PATH}; does the peer speak this "
                "protocol, and do both sides speak TLS, or neither?"
            )
        return length


class ResponseDecoder(Assembly[bytes | bytearray]):
    r"""Turns bytes into the data of responses.

    Parameters
    ----------
    max_message : int
        Most bytes of a whole frame.

    Examples
    --------
    >>> ResponseDecoder().feed(b"\x00\x00\x00\x02ok\x00\x00\x00\x00")
    [b'ok', b'']
    """

    _least = 4
    _what = "response"

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        super().__init__(max_message)

    def _scan(
        self, data: bytes | bytearray, view: memoryview, pos: int, end: int, frames: list[bytes | bytearray]
    ) -> int:
        most = self.max_message - 4
        while (start := pos + 4) <= end:
            length = _U32(data, pos)[0]
            stop = start + length
            if stop > end or length > most:
                break
            frames.append(view[start:stop].tobytes() if length <= SMALL else bytearray(view[start:stop]))
            pos = stop
        return pos

    def _step(self, begun: bytearray, frames: list[bytes | bytearray]) -> int:
        if self._stage:
            frames.append(memoryview(begun)[4:].tobytes())
            self._forget()
            return 0
        length = _U32(begun)[0]
        if 4 + length > self.max_message:
            self._too_large(4 + length)
        if length > SMALL:
            self._start_body(length)
            return 0
        self._stage = 1
        return 4 + length

    def _finish(self, payload: bytes | bytearray) -> bytes | bytearray:
        return payload


def _decode_path(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError(
            f"request: the path {data!r:.80} is no UTF-8 ({error.reason} at byte {error.start}); send paths as UTF-8"
        ) from None


def _decode_headers(data: bytes) -> Mapping[str, str]:
    """Read headers; none at all are no headers, and of those that come twice the last one counts."""
    if data in (b"{}", b""):
        return _NO_HEADERS
    try:
        headers = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise FrameError(
            f"request: the headers {data!r:.80} are no JSON ({error}); send an object of strings"
        ) from None
    if type(headers) is not dict:
        raise FrameError(f"request: the headers {data!r:.80} are no JSON object; send an object of strings")
    for name, value in headers.items():
        if type(value) is not str:
            raise FrameError(f"request: header {name!r:.80} is {value!r:.80}, and headers are strings; send a string")
    return MappingProxyType(headers)
