"""Decoders as plain as can be, over a whole stream at once: what the incremental ones are compared with.

They share no code with dynalab: lengths by hand, JSON by the standard library.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Plain(NamedTuple):
    """What a stream holds.

    `frames` are tuples ``(path, headers, payload, wants_status, nbytes)``, or the data of responses. `error` is the
    name of the error's class, and `error_at` the number of bytes that suffice to see it. `rest` is where the frame
    begins that is invalid or incomplete.
    """

    frames: list[Any]
    rest: int
    error: str | None = None
    error_at: int | None = None


def plain_requests(data: bytes, most: int) -> Plain:
    frames: list[Any] = []
    pos = 0
    while True:
        rest = data[pos:]
        if len(rest) < 2:
            return Plain(frames, pos)
        path_len = rest[0] * 256 + rest[1]
        if path_len == 0 or path_len > 1024:
            return Plain(frames, pos, "FrameError", pos + 2)
        before = 2 + path_len + 2
        if len(rest) < before:
            return Plain(frames, pos)
        try:
            path = str(rest[2 : 2 + path_len], "utf-8", "strict")
        except ValueError:
            return Plain(frames, pos, "FrameError", pos + before)
        headers_len = rest[before - 2] * 256 + rest[before - 1]
        head = before + headers_len + 4
        if head > most:
            return Plain(frames, pos, "MessageTooLarge", pos + before)
        if len(rest) < head:
            return Plain(frames, pos)
        headers = plain_headers(rest[before : before + headers_len])
        if headers is None:
            return Plain(frames, pos, "FrameError", pos + head)
        payload_len = int.from_bytes(rest[head - 4 : head], "big")
        if head + payload_len > most:
            return Plain(frames, pos, "MessageTooLarge", pos + head)
        if len(rest) < head + payload_len:
            return Plain(frames, pos)
        payload = rest[head : head + payload_len]
        frames.append((path, headers, payload, headers.get("x-reply") == "status", head + payload_len))
        pos += head + payload_len


def plain_responses(data: bytes, most: int) -> Plain:
    frames: list[Any] = []
    pos = 0
    while len(data) - pos >= 4:
        length = int.from_bytes(data[pos : pos + 4], "big")
        if 4 + length > most:
            return Plain(frames, pos, "MessageTooLarge", pos + 4)
        if len(data) - pos < 4 + length:
            break
        frames.append(data[pos + 4 : pos + 4 + length])
        pos += 4 + length
    return Plain(frames, pos)


def plain_headers(data: bytes) -> dict[str, str] | None:
    """Return the headers, None if they are no JSON object of strings; nothing stands for none."""
    if data == b"":
        return {}
    try:
        found = json.loads(str(data, "utf-8", "strict"), object_pairs_hook=_whole, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    return found


def _whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse half characters, which Python's own reader lets pass, also in what a later value replaces."""
    json.dumps(pairs, ensure_ascii=False).encode("utf-8")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(constant)
