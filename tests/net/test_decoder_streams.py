"""Decoders meet streams: cut anywhere, interleaved over one shared buffer, refused and resumed, hostile."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decoder import plain_requests, plain_responses

from dynalab.errors import FrameError
from dynalab.net._assembly import PEEK_BYTES
from dynalab.net.decoder import SCRATCH_BYTES, SMALL, RequestDecoder, ResponseDecoder
from dynalab.net.frames import encode_request_head, encode_response_head


def request(path: str = "a", payload: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    return encode_request_head(path, headers, len(payload), wants_status=False) + payload


def receive(decoder, data: bytes, most: int = 2**30) -> list:
    """Hand over bytes as a loop does: ask for a buffer, fill it, report."""
    frames, pos = [], 0
    while pos < len(data):
        buffer = decoder.get_buffer(-1)
        n = min(len(buffer), most, len(data) - pos)
        buffer[:n] = data[pos : pos + n]
        pos += n
        frames += decoder.buffer_updated(n)
    return frames


texts = st.text(st.characters(codec="utf-8"), max_size=12)
paths = st.sampled_from(["a", "generate", "é"]) | texts.filter(bool)
header_sets = st.sampled_from([None, {"x-reply": "status"}, {"k": "v"}]) | st.dictionaries(texts, texts, max_size=3)
payloads = st.binary(max_size=100) | st.integers(0, 300_000).map(lambda size: (b"0123456789abcdef" * 18_751)[:size])
cuts = st.lists(st.integers(1, 5) | st.integers(1, 400_000), min_size=1, max_size=12)


def cut_up(data: bytes, sizes: list[int]):
    """Cut data into pieces of these sizes, over and over; at most 3,000 pieces."""
    pos = turn = 0
    while pos < len(data):
        size = sizes[turn % len(sizes)] if turn < 3000 else len(data)
        yield data[pos : pos + size]
        pos, turn = pos + size, turn + 1


@settings(max_examples=60)
@given(st.lists(st.tuples(paths, header_sets, payloads), max_size=6), cuts, st.booleans())
def test_requests_come_out_as_they_went_in(messages, sizes: list[int], fed: bool) -> None:
    stream = b"".join(request(path, payload, headers) for path, headers, payload in messages)
    decoder = RequestDecoder()
    frames = []
    for piece in cut_up(stream, sizes):
        frames += decoder.feed(piece) if fed else receive(decoder, piece)
        assert decoder.pending <= len(stream)
    assert [(frame.path, dict(frame.headers), frame.payload) for frame in frames] == [
        (path, headers or {}, payload) for path, headers, payload in messages
    ]
    assert sum(frame.nbytes for frame in frames) == len(stream)
    assert (decoder.pending, decoder.in_frame) == (0, False)


@settings(max_examples=40)
@given(st.lists(payloads, max_size=8), cuts, st.booleans())
def test_responses_come_out_as_they_went_in(replies: list[bytes], sizes: list[int], fed: bool) -> None:
    decoder = ResponseDecoder()
    frames = []
    for piece in cut_up(b"".join(encode_response_head(len(data)) + data for data in replies), sizes):
        frames += decoder.feed(piece) if fed else receive(decoder, piece)
    assert frames == replies
    assert (decoder.pending, decoder.in_frame) == (0, False)


alphabet = st.sampled_from(
    [b"\0", b"\x01", b"\x02", b"{}", b"a", b'"', b"\xff", b'{"a":"b"}', request(), b"\0\0\0\x03"]
)


@settings(max_examples=300)
@given(
    st.lists(alphabet | st.binary(max_size=6), max_size=30).map(b"".join),
    st.integers(1, 9),
    st.sampled_from([40, 1024, 2**25]),
    st.booleans(),
)
def test_any_bytes_mean_what_a_plain_decoder_says(data: bytes, size: int, most: int, requests: bool) -> None:
    expected = (plain_requests if requests else plain_responses)(data, most)
    decoder = RequestDecoder(most) if requests else ResponseDecoder(most)
    frames: list = []
    error, consumed = None, 0
    for piece in cut_up(data, [size]):
        consumed += len(piece)
        try:
            frames += decoder.feed(piece)
        except FrameError as refusal:
            error = refusal
            frames += refusal.frames_before_error
            break
    if requests:
        frames = [(f.path, dict(f.headers), bytes(f.payload), f.wants_status, f.nbytes) for f in frames]
    assert frames == expected.frames
    assert (None if error is None else type(error).__name__) == expected.error
    if expected.error_at is not None:
        assert 0 <= consumed - expected.error_at < size, "told in the piece that showed it"
    else:
        assert decoder.in_frame == (expected.rest < len(data))


def test_two_connections_take_turns_in_one_buffer() -> None:
    one, other = RequestDecoder(), RequestDecoder()
    streams = [b"".join(request("p", bytes([65 + n]) * (n * 37 % 500)) for n in range(26)) for _ in range(2)]
    got: list[list[bytes]] = [[], []]
    for at in range(0, len(streams[0]), 11):
        for decoder, stream, frames in zip((one, other), streams, got, strict=True):
            buffer = decoder.get_buffer(-1)
            piece = stream[at : at + 11]
            buffer[: len(piece)] = piece
            frames += [frame.payload for frame in decoder.buffer_updated(len(piece))]
            buffer[:] = b"\xaa" * SCRATCH_BYTES
    assert got[0] == got[1] == [bytes([65 + n]) * (n * 37 % 500) for n in range(26)]


def test_what_others_left_behind_the_new_bytes_is_not_read() -> None:
    decoder = RequestDecoder()
    whole = request("generate", b"secret of another connection")
    receive(RequestDecoder(), whole * 2)
    receive(decoder, whole)  # it knows the head now
    for n in (0, 1, 2, 9, len(whole) - 1):
        assert decoder.buffer_updated(n) == []
        assert decoder.pending == n
        decoder = RequestDecoder()
        receive(decoder, whole)


def test_all_decoders_of_a_thread_share_one_buffer_and_no_other_thread_does() -> None:
    mine = [RequestDecoder().get_buffer(), ResponseDecoder().get_buffer()]
    theirs: list[memoryview] = []
    decoder = RequestDecoder()
    thread = threading.Thread(target=lambda: theirs.append(decoder.get_buffer()))
    thread.start()
    thread.join()
    assert mine[0].obj is mine[1].obj is decoder.get_buffer().obj
    assert theirs[0].obj is not mine[0].obj
    assert len(mine[0]) == len(theirs[0]) == SCRATCH_BYTES


@pytest.mark.parametrize("kind", [RequestDecoder, ResponseDecoder])
def test_a_large_payload_is_received_in_place(kind) -> None:
    size = 3 * 2**20
    payload = bytes(range(256)) * (size // 256)
    stream = request("a", payload) if kind is RequestDecoder else encode_response_head(size) + payload
    decoder = kind()
    assert receive(decoder, stream[:1000]) == []
    rest = decoder.get_buffer(-1)
    assert len(rest) == len(stream) - 1000
    body = rest.obj
    (frame,) = receive(decoder, stream[1000:], 100_000)
    assert (frame.payload if kind is RequestDecoder else frame) is body
    assert body == payload
    # Its head alone is asked for next, so that a payload behind it is received in place, too; then all there is.
    assert len(decoder.get_buffer(-1)) == PEEK_BYTES
    assert receive(decoder, stream[:3]) == []
    rest.release()
    body += b"x"


@pytest.mark.parametrize("kind", [RequestDecoder, ResponseDecoder])
def test_after_a_large_payload_the_next_one_is_received_in_place_but_for_its_first_bytes(kind) -> None:
    size = 2 * 2**20
    one = (request("a", b"x" * size) if kind is RequestDecoder else encode_response_head(size) + b"x" * size) * 2
    decoder = kind()
    (first,) = receive(decoder, one[: len(one) // 2])
    peek = decoder.get_buffer(-1)
    assert len(peek) == PEEK_BYTES
    assert peek.obj is kind().get_buffer(-1).obj, "it is the shared buffer's beginning"
    peek[:] = one[:PEEK_BYTES]
    assert decoder.buffer_updated(PEEK_BYTES) == []
    assert len(decoder.get_buffer(-1)) == len(one) // 2 - PEEK_BYTES
    (second,) = receive(decoder, one[PEEK_BYTES : len(one) // 2])
    assert getattr(first, "payload", first) == getattr(second, "payload", second) == b"x" * size
    # Where something small follows, reading goes on as before.
    assert len(receive(decoder, request("b") if kind is RequestDecoder else encode_response_head(0))) == 1
    assert len(decoder.get_buffer(-1)) == SCRATCH_BYTES


def test_a_large_payload_may_also_be_fed_with_what_follows() -> None:
    decoder = RequestDecoder()
    payload = b"x" * (SMALL * 5)
    stream = request("a", payload) + request("b", b"y")
    frames = receive(decoder, stream[:50]) + decoder.feed(stream[50:])
    assert [(frame.path, frame.payload) for frame in frames] == [("a", payload), ("b", b"y")]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_an_announced_payload_takes_no_memory_until_it_comes() -> None:
    head = encode_request_head("a", None, 32 * 2**20 - 100)
    before = resident()
    decoders = [RequestDecoder() for _ in range(64)]  # 2 GiB are announced
    for decoder in decoders:
        receive(decoder, head + b"x" * 100)
    assert resident() - before < 64 * 2**20
    assert all(len(decoder.get_buffer()) == 32 * 2**20 - 200 for decoder in decoders)


def test_thousands_of_idle_connections_cost_little() -> None:
    stream = request("generate", b"x" * 1000, {"trace": "0" * 32}) * 3
    receive(RequestDecoder(), stream)
    tracemalloc.start()
    try:
        decoders = [RequestDecoder() for _ in range(2000)]
        for decoder in decoders:
            receive(decoder, stream)
        per_connection = tracemalloc.get_traced_memory()[0] / len(decoders)
    finally:
        tracemalloc.stop()
    assert per_connection < 4096


def test_a_flood_of_headers_fills_no_memory_and_pushes_nobody_out() -> None:
    good, hostile = RequestDecoder(), RequestDecoder()
    receive(good, request("generate", b"", {"k": "v"}))
    kept = dict(good._heads)
    tracemalloc.start()
    try:
        for number in range(300):
            receive(hostile, request("p" * 900 + str(number), b"", {"k": f"{number}" * 300}))
        for number in range(15):
            receive(hostile, request("p", b"", {"k": f"{number:02d}" * 30_000}))
        receive(hostile, request("p"))
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    assert good._heads == kept


@pytest.mark.parametrize("cut", [1, 1000, 65_000])
def test_an_incomplete_frame_keeps_no_more_than_came(cut: int) -> None:
    head = encode_request_head("a" * 1024, {"k": "v" * 65_000}, SMALL)
    stream = head + b"x" * (SMALL - 1)
    decoder = RequestDecoder()
    tracemalloc.start()
    try:
        for piece in cut_up(stream, [cut]):
            decoder.feed(piece)
        assert tracemalloc.get_traced_memory()[0] < 3 * len(stream)
    finally:
        tracemalloc.stop()
    assert decoder.pending == len(stream)
    (frame,) = decoder.feed(b"x")
    assert frame.payload == b"x" * SMALL
