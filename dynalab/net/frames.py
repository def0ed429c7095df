"""What goes before a payload on the wire: lengths (big-endian), the path and the headers of a request.

=========  ==================================================================================================
request    u16 path length, path (UTF-8), u16 headers length, headers (a JSON object of strings), u32 payload
           length, payload
response   u32 length, data
=========  ==================================================================================================

Responses carry no number: they come in the order of the requests of a connection. The first byte of a response's data
is one of the ``STATUS_*`` below where the request had the header ``x-reply: status``; without it an empty response
acknowledges, and any other is the reply, or the text of an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Final

import orjson

from dynalab.errors import FrameError, MessageTooLarge
from dynalab.units import format_size

#: Most bytes of a whole frame, unless both sides agree on something else.
MAX_MESSAGE: Final = 32 * 2**20
#: Most bytes of a path that a receiver takes; the wire has room for `MAX_U16`.
MAX_PATH: Final = 1024
#: Most bytes of encoded headers, and of a path on the wire.
MAX_U16: Final = 65_535
#: Most bytes of a payload on the wire.
MAX_U32: Final = 2**32 - 1

#: The header by which a client asks for a status byte before each response, with its only value.
REPLY_HEADER: Final = "x-reply"
REPLY_STATUS: Final = "status"
#: The header that holds the path where the caller gave none.
PATH_HEADER: Final = "x-endpoint-path"

#: Handled, or accepted where the body is empty.
STATUS_OK: Final = 0
#: Not handled: the queue is full.
STATUS_OVERLOADED: Final = 1
#: Not handled: unknown path, or the server is draining.
STATUS_UNAVAILABLE: Final = 2
#: The handler failed; the body says how.
STATUS_FAILED: Final = 3
#: Not handled: the request is none; the body says why.
STATUS_REFUSED: Final = 4

_U16: Final = Struct(">H").pack
_U32: Final = Struct(">I").pack

# Clients send to few paths, mostly without headers of their own: their heads are encoded once. The bound is for those
# who make paths up (one per session, say), and the dictionary is simply emptied when it is reached.
_HEADS: Final[dict[tuple[str, bool], bytes]] = {}
_MOST_HEADS: Final = 1024
_LONGEST_HEAD: Final = 2048


def encode_request_head(
    path: str | None,
    headers: Mapping[str, str] | None,
    payload_len: int,
    max_message: int = MAX_MESSAGE,
    *,
    wants_status: bool = True,
    max_path: int = MAX_PATH,
) -> bytes:
    r"""Return the bytes of a request that come before its payload.

    Parameters
    ----------
    path : str or None
        Path of the endpoint; None takes it from the header ``x-endpoint-path``.
    headers : mapping of str to str, or None
    payload_len : int
        Bytes of the payload.
    max_message : int
        Most bytes of the whole frame.
    wants_status : bool
        Add the header ``x-reply: status``.
    max_path : int
        Most bytes of the path. A receiver closes the connection, with all that others wait for on it, when it meets a
        path of more than 1024; the wire has room for 65,535.

    Raises
    ------
    FrameError
        If the path or the headers cannot be encoded.
    MessageTooLarge
        If path, headers, payload or the whole frame are too long.

    Examples
    --------
    >>> encode_request_head("echo", None, 5, wants_status=False)
    b'\x00\x04echo\x00\x02{}\x00\x00\x00\x05'
    """
    if not headers and path is not None:
        head = _HEADS.get((path, wants_status))
        if head is None:
            head = _encode(path, {}, wants_status)
            if len(_HEADS) >= _MOST_HEADS:
                _HEADS.clear()
            if len(head) <= _LONGEST_HEAD:
                _HEADS[path, wants_status] = head
    else:
        head = _encode(path, headers or {}, wants_status)
    if len(head) + payload_len > max_message - 4 or payload_len > MAX_U32:
        raise _too_large("request", len(head) + 4 + payload_len, max_message)
    # Looked at behind the cache: another caller may have encoded the same path for a peer with more room.
    path_len = head[0] << 8 | head[1]
    if path_len > max_path:
        raise MessageTooLarge(
            f"path: {path_len} bytes as UTF-8, and the peer takes {max_path}; use a shorter path, and put data into "
            "the payload"
        )
    return head + _U32(payload_len)


def encode_response_head(length: int, max_message: int = MAX_MESSAGE) -> bytes:
    r"""Return the bytes of a response that come before its `length` bytes of data (the status byte among them).

    Raises
    ------
    MessageTooLarge
        If the whole frame is longer than `max_message`.

    Examples
    --------
    >>> encode_response_head(0), encode_response_head(258)
    (b'\x00\x00\x00\x00', b'\x00\x00\x01\x02')
    """
    if length > max_message - 4 or length > MAX_U32:
        raise _too_large("response", length + 4, max_message)
    return _U32(length)


def _encode(path: str | None, headers: Mapping[str, str], wants_status: bool) -> bytes:
    """Encode path and headers with their lengths."""
    stated = headers.get(PATH_HEADER)
    if path is None:
        if stated is None:
            raise FrameError(f"path: none given, and no header {PATH_HEADER!r} that holds one; give one of them")
        path = stated
    elif stated is not None and stated != path:
        raise FrameError(f"path: {path!r:.80} and header {PATH_HEADER}={stated!r:.80} are two; give one of them")
    for name, value in headers.items():
        if type(name) is not str or type(value) is not str:
            raise FrameError(f"header {name!r:.80}: {value!r:.80}: both must be str; convert them")
    if wants_status:
        headers = {**headers, REPLY_HEADER: REPLY_STATUS}
    try:
        path_bytes = path.encode()
    except (UnicodeEncodeError, AttributeError):
        raise FrameError(f"path: {path!r:.80} cannot be written as UTF-8; give a text without surrogates") from None
    try:
        header_bytes = orjson.dumps(headers if type(headers) is dict else dict(headers))
    except TypeError as error:
        raise FrameError(f"headers: {error}; give texts without surrogates") from None
    if not path_bytes:
        raise FrameError("path: it is empty; give the one under which the handler is registered")
    for what, data in (("path", path_bytes), ("headers", header_bytes)):
        if len(data) > MAX_U16:
            raise MessageTooLarge(
                f"{what}: {len(data)} bytes when encoded, and the frame has room for {MAX_U16}; put data into "
                "the payload"
            )
    return b"".join((_U16(len(path_bytes)), path_bytes, _U16(len(header_bytes)), header_bytes))


def _too_large(what: str, nbytes: int, most: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"{what}: a frame of {nbytes} bytes ({format_size(nbytes)}), and the limit is {most}; send less at once, "
        "or raise DYN_TCP_MAX_MESSAGE_SIZE (max_message) on both sides"
    )
