"""Decoders meet single frames: valid ones, at their limits and beyond, and bytes that are none."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from dynalab.errors import FrameError, MessageTooLarge
from dynalab.net.decoder import SMALL, RequestDecoder, RequestFrame, ResponseDecoder
from dynalab.net.frames import encode_request_head


def wire(path: bytes, headers: bytes, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return b"".join(
        (len(path).to_bytes(2, "big"), path, len(headers).to_bytes(2, "big"), headers, size.to_bytes(4, "big"), payload)
    )


def one_by_one(decoder: RequestDecoder | ResponseDecoder, data: bytes) -> tuple[list, FrameError | None, int]:
    """Feed single bytes; return the frames, the error, and after how many bytes it came."""
    frames: list = []
    for at in range(len(data)):
        try:
            frames += decoder.feed(data[at : at + 1])
        except FrameError as error:
            return [*frames, *error.frames_before_error], error, at + 1
    return frames, None, len(data)


def test_a_request_by_hand() -> None:
    data = bytes.fromhex("0003 c3a961 0016 7b2278223a2279222c22782d7265706c79223a22227d 00000002 fffe")
    (frame,) = RequestDecoder().feed(data)
    assert (frame.path, dict(frame.headers), frame.payload) == ("éa", {"x": "y", "x-reply": ""}, b"\xff\xfe")
    assert (frame.wants_status, frame.nbytes) == (False, len(data))
    assert type(frame.payload) is bytes


def test_responses_by_hand() -> None:
    assert ResponseDecoder().feed(bytes.fromhex("00000000 00000001 00 00000002 6f6b 0000")) == [b"", b"\0", b"ok"]


@pytest.mark.parametrize(
    ("headers", "wants_status"),
    [
        (b'{"x-reply":"status"}', True),
        (b' {"a":"b" , "x-reply" : "status"}\n', True),
        (b'{"x-reply":"no","x-reply":"status"}', True),
        (b'{"x-reply":"status","x-reply":"no"}', False),
        (b'{"x-reply":"STATUS"}', False),
        (b'{"X-Reply":"status"}', False),
        (b"{}", False),
        (b"", False),
    ],
)
def test_who_wants_a_status(headers: bytes, wants_status: bool) -> None:
    for decoder in (RequestDecoder(), RequestDecoder()):
        for _ in range(2):
            (frame,) = decoder.feed(wire(b"a", headers, b""))
            assert frame.wants_status is wants_status


def test_headers_cannot_be_changed_for_the_next_request() -> None:
    decoder = RequestDecoder()
    first, second = decoder.feed(wire(b"a", b'{"k":"v"}', b"") * 2)
    assert isinstance(first.headers, MappingProxyType)
    with pytest.raises(TypeError):
        first.headers["k"] = "w"
    assert second.headers == {"k": "v"}


INVALID_HEADERS = [
    *(b"[]", b'"a"', b"null", b"1", b"true", b'["a","b"]', b'{"a":1}', b'{"a":null}', b'{"a":true}', b'{"a":{}}'),
    *(b'{"a":["b"]}', b'{"a":"b"', b'{"a"}', b"{a:1}", b"{'a':'b'}", b'{"a":"b",}', b'{"a":"b"}}', b'{"a":"b"} x'),
    *(b"{", b" ", b"\0", b'{"a":"\xff"}', b'{"\xc3":"b"}', b'\xef\xbb\xbf{"a":"b"}', b'{"a":"\\ud800"}', b'{"a":"\n"}'),
    *(b'{"a":"\\x"}', b'{"a":NaN}', b'{1:"b"}', b"[" * 20_000, b'{"a":' * 5000, '{"a":"b"}'.encode("utf-16")),
    *(b'{"a":' + b"9" * 5000 + b"}", b'{"a":"b"}\0', b'{"a":"\0"}'),
]


@pytest.mark.parametrize("headers", INVALID_HEADERS, ids=lambda data: repr(data[:20]))
def test_invalid_headers(headers: bytes) -> None:
    data = wire(b"a", headers, b"payload")
    with pytest.raises(FrameError, match="header") as refusal:
        RequestDecoder().feed(data)
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 400
    frames, error, after = one_by_one(RequestDecoder(), data)
    assert (frames, type(error), after) == ([], FrameError, len(data) - len(b"payload"))


@pytest.mark.parametrize("path", [b"\xff", b"\xc3", b"a\xe2\x82", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_a_path_that_is_no_text(path: bytes) -> None:
    data = wire(path, b"{}", b"payload")
    with pytest.raises(FrameError, match="no UTF-8"):
        RequestDecoder().feed(data)
    frames, error, after = one_by_one(RequestDecoder(), data)
    assert (frames, type(error), after) == ([], FrameError, 4 + len(path))


@pytest.mark.parametrize("length", [0, 1025, 18_245, 65_535])
def test_a_path_of_a_length_that_is_none(length: int) -> None:
    data = length.to_bytes(2, "big") + b"T / HTTP/1.1\r\n\r\n"
    for pieces in (data, data[:2]):
        with pytest.raises(FrameError, match=f"a path of {length} bytes"):
            RequestDecoder().feed(pieces)
    assert one_by_one(RequestDecoder(), data)[2] == 2


@pytest.mark.parametrize("length", [1, 1023, 1024])
def test_paths_up_to_the_limit(length: int) -> None:
    for data in (wire(b"x" * length, b"{}", b"p"), encode_request_head("x" * length, None, 1) + b"p"):
        for decode in (lambda one, data: one.feed(data), lambda one, data: one_by_one(one, data)[0]):
            (frame,) = decode(RequestDecoder(), data)
            assert (frame.path, frame.payload, frame.nbytes) == ("x" * length, b"p", len(data))


def test_headers_up_to_the_limit() -> None:
    headers = b'{"k":"' + b"v" * (65_535 - 8) + b'"}'
    data = wire(b"a", headers, b"p")
    for frames in (RequestDecoder().feed(data * 3), one_by_one(RequestDecoder(), data * 3)[0]):
        assert [(len(frame.headers["k"]), frame.nbytes) for frame in frames] == [(65_527, len(data))] * 3


@pytest.mark.parametrize("most", [1024, SMALL + 100, 300_000])
def test_frames_up_to_the_limit_and_one_byte_beyond(most: int) -> None:
    overhead = len(wire(b"a", b"{}", b""))
    for excess in (0, 1):
        payload = b"p" * (most - overhead + excess)
        data = wire(b"a", b"{}", payload)
        for decoder in (RequestDecoder(most), RequestDecoder(most)):
            decoder.feed(wire(b"a", b"{}", b""))  # the second frame's head is known
            if excess:
                with pytest.raises(MessageTooLarge, match=f"a frame of {most + 1} bytes"):
                    decoder.feed(data)
            else:
                (frame,) = decoder.feed(data)
                assert (frame.payload, frame.nbytes) == (payload, most)
        data = (most - 4 + excess).to_bytes(4, "big") + b"p" * (most - 4 + excess)
        if excess:
            with pytest.raises(MessageTooLarge, match="DYN_TCP_MAX_MESSAGE_SIZE"):
                ResponseDecoder(most).feed(data)
            assert one_by_one(ResponseDecoder(most), data[:10])[2] == 4
        else:
            assert ResponseDecoder(most).feed(data) == [data[4:]]


def test_a_frame_is_too_large_as_soon_as_its_lengths_say_so() -> None:
    announced = wire(b"a", b"{}", b"", length=2**32 - 1)
    assert one_by_one(RequestDecoder(), announced)[2] == len(announced)
    headers_alone = b"\0\x01a\xff\xff"
    assert isinstance(one_by_one(RequestDecoder(2000), headers_alone)[1], MessageTooLarge)


def test_every_prefix_of_a_frame_is_no_frame_yet() -> None:
    data = wire("é".encode(), b'{"k":"v"}', b"payload")
    for cut in range(len(data)):
        decoder = RequestDecoder()
        assert decoder.feed(data[:cut]) == []
        assert (decoder.pending, decoder.in_frame) == (cut, cut > 0)
        if cut:
            with pytest.raises(FrameError, match=f"{cut} bytes into a frame"):
                decoder.eof()
        else:
            decoder.eof()
        (frame,) = decoder.feed(data[cut:])
        assert frame.payload == b"payload"
        assert (decoder.pending, decoder.in_frame) == (0, False)
        decoder.eof()


def test_every_prefix_of_a_response_is_no_response_yet() -> None:
    data = b"\0\0\0\x05reply"
    for cut in range(1, len(data)):
        decoder = ResponseDecoder()
        assert decoder.feed(data[:cut]) == []
        with pytest.raises(FrameError, match="response"):
            decoder.eof()
        assert decoder.feed(data[cut:] + data) == [b"reply", b"reply"]
        decoder.eof()


@pytest.mark.parametrize("garbage", [b"\0\0", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\0\x01\0", b"\xff" * 50])
def test_garbage_before_and_after_a_frame(garbage: bytes) -> None:
    valid = wire(b"a", b"{}", b"payload")
    decoder = RequestDecoder()
    with pytest.raises(FrameError) as refusal:
        decoder.feed(garbage + valid)
    assert refusal.value.frames_before_error == ()

    decoder = RequestDecoder()
    with pytest.raises(FrameError) as refusal:
        decoder.feed(valid + valid + garbage + valid)
    assert [frame.payload for frame in refusal.value.frames_before_error] == [b"payload"] * 2
    for again in (valid, b""):
        with pytest.raises(type(refusal.value)) as repeated:
            decoder.feed(again)
        assert str(repeated.value) == str(refusal.value)
        assert repeated.value.frames_before_error == ()
    assert (decoder.pending, decoder.in_frame) == (0, False)
    decoder.eof()


def test_small_payloads_are_bytes_and_large_ones_bytearrays_of_their_own() -> None:
    for size, kind in ((0, bytes), (SMALL, bytes), (SMALL + 1, bytearray), (3 * SMALL, bytearray)):
        payload = b"p" * size
        request, response = wire(b"a", b"{}", payload), size.to_bytes(4, "big") + payload
        for cut in (0, 3, 20, len(request)):
            one = RequestDecoder()
            (frame,) = one.feed(request[:cut]) + one.feed(request[cut:])
            other = ResponseDecoder()
            (data,) = other.feed(response[:cut]) + other.feed(response[cut:])
            assert type(frame.payload) is type(data) is kind
            assert frame.payload == data == payload
            if kind is bytearray:
                frame.payload += b"x"  # nobody else looks at it


def test_without_memory_for_a_payload_the_connection_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(body: bytearray, size: int) -> None:
        raise MemoryError

    monkeypatch.setattr("dynalab.net._assembly._resize", no_memory)
    decoder = RequestDecoder()
    with pytest.raises(MessageTooLarge, match="no memory") as refusal:
        decoder.feed(wire(b"a", b"{}", b"p") + wire(b"a", b"{}", b"", length=10**6))
    assert [frame.payload for frame in refusal.value.frames_before_error] == [b"p"]
    assert (decoder.pending, decoder.in_frame) == (0, False)


def test_a_frame_tells_what_it_is_in_short() -> None:
    frame = RequestFrame("a", {"k": "v"}, b"x" * 1000, True, 1020)
    assert repr(frame) == "RequestFrame('a', {'k': 'v'}, 1000 bytes)"
    assert not hasattr(frame, "__dict__")
