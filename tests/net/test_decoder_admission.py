"""Payloads are admitted before they are allocated, and a decoder that was refused keeps still until it is resumed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_decoder import plain_requests

from dynalab.errors import FrameError
from dynalab.net.decoder import SCRATCH_BYTES, SMALL, RequestDecoder
from dynalab.net.frames import encode_request_head


def request(payload: bytes, path: str = "a") -> bytes:
    return encode_request_head(path, None, len(payload), wants_status=False) + payload


class Gate:
    """Admits while it is open; writes down what it was asked."""

    def __init__(self, is_open: bool = True) -> None:
        self.is_open, self.asked = is_open, []

    def __call__(self, size: int) -> bool:
        self.asked.append(size)
        return self.is_open


@pytest.mark.parametrize("sizes", [[0, 1, 5], [SMALL, SMALL + 1, 7, 300_000, 0]])
@pytest.mark.parametrize("cut", [1, 13, 70_000, 10**9])
def test_every_payload_is_asked_for_once(sizes: list[int], cut: int) -> None:
    cut = max(cut, sum(sizes) // 3000)
    gate = Gate()
    decoder = RequestDecoder(admit=gate)
    stream = b"".join(request(b"x" * size) for size in sizes)
    frames = []
    for at in range(0, len(stream), cut):
        frames += decoder.feed(stream[at : at + cut])
    assert gate.asked == sizes == [len(frame.payload) for frame in frames]


@pytest.mark.parametrize("size", [0, 5, SMALL, SMALL + 1, 200_000])
@pytest.mark.parametrize("known_head", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_refused_payload_waits(size: int, known_head: bool, together: bool) -> None:
    gate = Gate()
    decoder = RequestDecoder(admit=gate)
    if known_head:
        decoder.feed(request(b""))
    gate.is_open = False
    head, payload = request(b"x" * size)[:11], b"x" * size
    assert decoder.feed(head + payload if together else head) == []
    assert decoder.blocked
    assert decoder.in_frame
    assert decoder.pending == 11 + (size if together else 0)
    assert decoder.resume() == []
    assert decoder.blocked
    decoder.eof()  # tells nothing yet
    gate.is_open = True
    frames = decoder.resume()
    assert not decoder.blocked
    if not together:
        frames += decoder.feed(payload)
    assert [frame.payload for frame in frames] == [payload]
    assert (decoder.pending, decoder.in_frame) == (0, False)
    assert gate.asked == [0] * known_head + [size] * 3
    assert decoder.resume() == []


def test_frames_before_a_refused_one_are_delivered_and_those_behind_wait_their_turn() -> None:
    admitted: list[int] = []
    room = 2

    def admit(size: int) -> bool:
        if len(admitted) >= room:
            return False
        admitted.append(size)
        return True

    decoder = RequestDecoder(admit=admit)
    stream = b"".join(request(b"x" * size) for size in range(7)) + request(b"begun")[:-2]
    assert [len(frame.payload) for frame in decoder.feed(stream)] == [0, 1]
    room = 4
    assert [len(frame.payload) for frame in decoder.resume()] == [2, 3]
    assert decoder.blocked
    assert decoder.feed(b"un" + request(b"last")) == [], "bytes that were under way already are kept"
    room = 100
    assert [bytes(frame.payload) for frame in decoder.resume()] == [b"xxxx", b"xxxxx", b"xxxxxx", b"begun", b"last"]
    assert admitted == [0, 1, 2, 3, 4, 5, 6, 5, 4]


def test_what_a_blocked_decoder_keeps_is_bounded_by_what_was_received() -> None:
    decoder = RequestDecoder(admit=Gate(False))
    buffer = decoder.get_buffer(-1)
    stream = request(b"x" * 100) * (SCRATCH_BYTES // 111)
    buffer[: len(stream)] = stream
    assert decoder.buffer_updated(len(stream)) == []
    buffer[:] = b"\xaa" * SCRATCH_BYTES
    assert decoder.pending == len(stream)
    assert len(decoder.get_buffer(-1)) == SCRATCH_BYTES


def test_many_frames_resumed_one_by_one_are_not_copied_again_each_time() -> None:
    """A full buffer of tiny frames, one admitted at a time: by the count of bytes copied, not by the clock."""
    turn = [False]

    def admit(size: int) -> bool:
        turn[0] = not turn[0]
        return turn[0]

    decoder = RequestDecoder(admit=admit)
    one = request(b"")
    stream = one * (SCRATCH_BYTES // len(one))
    frames = decoder.feed(stream)
    held = decoder._held
    while decoder.blocked:
        assert decoder._held is held
        frames += decoder.resume()
    assert len(frames) == SCRATCH_BYTES // len(one)


def test_bad_bytes_behind_a_refused_payload_are_told_when_it_was_delivered() -> None:
    gate = Gate(False)
    decoder = RequestDecoder(admit=gate)
    assert decoder.feed(request(b"fine") + b"\0\0garbage") == []
    gate.is_open = True
    with pytest.raises(FrameError, match="a path of 0 bytes") as refusal:
        decoder.resume()
    assert [frame.payload for frame in refusal.value.frames_before_error] == [b"fine"]
    assert (decoder.blocked, decoder.pending, decoder.in_frame) == (False, 0, False)
    assert decoder.resume() == []


def test_an_end_inside_a_frame_is_told_after_the_refusal() -> None:
    gate = Gate(False)
    decoder = RequestDecoder(admit=gate)
    decoder.feed(request(b"fine") + request(b"broken off")[:-1])
    decoder.eof()
    gate.is_open = True
    assert [frame.payload for frame in decoder.resume()] == [b"fine"]
    with pytest.raises(FrameError, match="20 bytes into a frame"):
        decoder.eof()


@given(
    st.lists(st.integers(0, 40) | st.integers(65_530, 65_545), max_size=8),
    st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
    st.lists(st.integers(1, 60) | st.integers(60_000, 80_000), min_size=1, max_size=6),
    st.booleans(),
)
def test_however_it_is_refused_the_same_frames_come(sizes, answers, cuts, eager: bool) -> None:
    stream = b"".join(request(bytes([65 + n]) * size, "ab"[n % 2]) for n, size in enumerate(sizes))
    asked = 0

    def admit(size: int) -> bool:
        nonlocal asked
        asked += 1
        return answers[asked % len(answers)]

    decoder = RequestDecoder(admit=admit)
    frames: list = []
    pos = turn = 0
    while pos < len(stream):
        size = cuts[turn % len(cuts)] if turn < 500 else len(stream)
        frames += decoder.feed(stream[pos : pos + size])
        pos, turn = pos + size, turn + 1
        while decoder.blocked and eager:
            frames += decoder.resume()
    while decoder.blocked:
        frames += decoder.resume()
    assert [(f.path, f.payload) for f in frames] == [(f[0], f[2]) for f in plain_requests(stream, 2**25).frames]
    assert len(frames) == len(sizes)
    assert decoder.pending == 0
