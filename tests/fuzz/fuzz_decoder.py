"""Coverage-guided fuzzing of the decoders: any bytes, in any pieces, with any admission, against the plain decoders.

Needs atheris, which the tests do not (``pip install atheris``). From the root of a checkout::

    mkdir -p corpus && python tests/fuzz/fuzz_decoder.py corpus -max_total_time=600 -max_len=4096

An input that breaks a promise is written to ``crash-*``; give the file as the only argument to see it again. The
promises: the same frames, the same kind of error after the same byte, no more bytes kept than came, none delivered that
lie in the shared buffer, a blocked decoder that delivers nothing until it is resumed, and an end inside a frame told.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "net")]

try:
    import atheris
except ImportError:  # its test runs this harness on a few inputs without atheris
    atheris = None

FUZZING = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["dynalab.net"]) if FUZZING else nullcontext():
    from dynalab.net import decoder as decoding

from plain_decoder import Plain, plain_requests, plain_responses  # noqa: E402

from dynalab.errors import FrameError  # noqa: E402

SHARED = decoding.ResponseDecoder().get_buffer(-1).obj
# Small, so that inputs of some hundred bytes reach what large payloads, long heads and full caches take.
SMALL, LONGEST_HEAD, MOST_HEADS = 16, 48, 2
LIMITS = (64, 300, 4096, 32 * 2**20)
# Mostly valid, so that what comes behind is reached.
PATHS = (b"a", b"generate", b"a", b"\xc3\xa9", b"generate", b"a" * 40, b"b", b"a", b"\xff", b"")
HEADERS = (
    *(b"{}", b"", b'{"x-reply":"status"}', b'{"a":"b"}', b'{"x-reply":"status","t":"00000000000000000000000000"}') * 4,
    *(b'{"a":"b","a":"c"}', b'{"a":1}', b'["a"]', b'{"a":"\\ud800"}', b"\xff"),
)


class Choices:
    """Reads choices from the front of an input and lengths of pieces from its back, as long as there are bytes."""

    def __init__(self, data: bytes) -> None:
        cut = min(data[0] if data else 0, len(data) // 2)
        self._choices, self._used = data[1 : 1 + cut], 0
        self.rest = data[1 + cut :]

    def byte(self) -> int:
        """Return the next choice; the choices go round."""
        if not self._choices:
            return 0
        self._used += 1
        return self._choices[(self._used - 1) % len(self._choices)]


def build_stream(choices: Choices, requests: bool) -> bytes:
    """Return the rest of the input as it is, or cut into frames that are mostly valid."""
    rest = choices.rest
    if choices.byte() % 2:
        return rest
    stream = bytearray()
    while rest:
        size = choices.byte() % 80
        payload, rest = rest[:size], rest[max(size, 1) :]
        # Now and then a length that is a lie.
        lie = choices.byte()
        length = (len(payload) + (lie - 250 if lie >= 248 else 0)) % 2**32
        if requests:
            path = PATHS[choices.byte() % len(PATHS)]
            headers = HEADERS[choices.byte() % len(HEADERS)]
            stream += len(path).to_bytes(2, "big") + path + len(headers).to_bytes(2, "big") + headers
        stream += length.to_bytes(4, "big") + payload
    return bytes(stream)


def as_plain(frame: Any) -> Any:
    """Return a frame in the form of the plain decoders, with its bytes copied."""
    if isinstance(frame, decoding.RequestFrame):
        return frame.path, dict(frame.headers), bytes(frame.payload), frame.wants_status, frame.nbytes
    return bytes(frame)


def check(data: bytes) -> None:
    """Decode one input in pieces and hold the outcome against the plain decoder's."""
    choices = Choices(data)
    requests = choices.byte() % 4 != 0
    most = LIMITS[choices.byte() % len(LIMITS)]
    stream = build_stream(choices, requests)
    expected = (plain_requests if requests else plain_responses)(stream, most)
    mood = choices.byte()
    refused = 0

    def admit(size: int) -> bool:
        nonlocal refused
        assert size <= most
        # Never for ever: a run of refusals ends.
        refused = refused + 1 if mood % 2 and choices.byte() % 3 == 0 and refused < 3 else 0
        return refused == 0

    one = decoding.RequestDecoder(most, admit) if requests else decoding.ResponseDecoder(most)
    delivered: list[Any] = []
    failed: FrameError | None = None
    consumed = 0
    while consumed < len(stream) and failed is None:
        size = (1, 2, 3, 7, 16, 64, 1 << 18, choices.byte() + 1)[choices.byte() % 8]
        fed = mood & 2 and choices.byte() % 4 == 0
        buffer = one.get_buffer(-1)
        piece = stream[consumed : consumed + (size if fed else min(size, len(buffer)))]
        consumed += len(piece)
        try:
            delivered += one.feed(piece) if fed else receive(one, buffer, piece, stream)
            while one.blocked and choices.byte() % 2 == 0:
                delivered += one.resume()
        except FrameError as error:
            failed = error
        assert one.pending <= consumed
        late = expected.error_at is not None and consumed >= expected.error_at
        assert failed is not None or one.blocked or not late, "an error that was there to be seen"
    while one.blocked and failed is None:
        try:
            delivered += one.resume()
        except FrameError as error:
            failed = error
    compare(one, expected, delivered, failed, consumed, len(stream))


def receive(one: Any, buffer: memoryview, piece: bytes, stream: bytes) -> list[Any]:
    """Do what an event loop does, with what others left in the shared buffer behind the new bytes."""
    n = len(piece)
    buffer[:n] = piece
    stale = stream[: min(256, len(buffer) - n)]
    buffer[n : n + len(stale)] = stale
    try:
        frames = one.buffer_updated(n)
        copies = [as_plain(frame) for frame in frames]
    except FrameError as error:
        error.frames_before_error = tuple(as_plain(frame) for frame in error.frames_before_error)
        raise
    finally:
        if buffer.obj is SHARED:
            buffer[: n + len(stale)] = b"\xaa" * (n + len(stale))
    assert copies == [as_plain(frame) for frame in frames], "a frame changed with the shared buffer"
    return frames


def compare(
    one: Any, expected: Plain, delivered: list[Any], failed: FrameError | None, consumed: int, whole: int
) -> None:
    """Hold what came out against what the stream holds."""
    before = () if failed is None else failed.frames_before_error
    got = [frame if isinstance(frame, tuple) else as_plain(frame) for frame in (*delivered, *before)]
    assert got == expected.frames, (got, expected.frames)
    kind = None if failed is None else type(failed).__name__
    assert kind == expected.error, (kind, expected)
    if expected.error_at is not None:
        assert consumed >= expected.error_at
        assert one.pending == 0
        try:
            one.feed(b"\x00\x01a\x00\x00\x00\x00\x00\x00")
        except FrameError:
            return
        raise AssertionError("a broken stream was read on")
    assert one.in_frame == (expected.rest < whole)
    assert one.pending <= whole - expected.rest
    try:
        one.eof()
    except FrameError:
        assert one.in_frame
    else:
        assert not one.in_frame


def shrink_thresholds() -> None:
    """Let small inputs reach everything."""
    decoding.SMALL, decoding._LONGEST_HEAD, decoding._MOST_HEADS = SMALL, LONGEST_HEAD, MOST_HEADS  # type: ignore


if __name__ == "__main__":
    if atheris is None:
        sys.exit("fuzz_decoder needs atheris; run: pip install atheris")
    shrink_thresholds()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
