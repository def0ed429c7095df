"""What is written on the wire, byte by byte, and what cannot be written there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import FrameError, MessageTooLarge
from dynalab.net import frames
from dynalab.net.frames import MAX_MESSAGE, encode_request_head, encode_response_head


def plain(path, headers, length, **options) -> bytes:
    return encode_request_head(path, headers, length, wants_status=False, **options)


@pytest.mark.parametrize(
    ("head", "wire"),
    [
        (plain("a", None, 0), "0001 61 0002 7b7d 00000000"),
        (plain("a", {}, 1), "0001 61 0002 7b7d 00000001"),
        (plain("generate", None, 258), "0008 67656e6572617465 0002 7b7d 00000102"),
        (plain("é/ü", None, 5), "0005 c3a92fc3bc 0002 7b7d 00000005"),
        (plain("a", {"k": "v"}, 0x1FFFF), "0001 61 0009 7b226b223a2276227d 0001ffff"),
        (plain("a", {"k": '"\n'}, 0), "0001 61 000c 7b226b223a225c225c6e227d 00000000"),
        (plain("a", {"ö": "€"}, 0), "0001 61 000c 7b22c3b6223a22e282ac227d 00000000"),
        (encode_request_head("a", None, 2), "0001 61 0014 7b22782d7265706c79223a22737461747573227d 00000002"),
        (encode_response_head(0), "00000000"),
        (encode_response_head(1), "00000001"),
        (encode_response_head(0x01020304 % MAX_MESSAGE), "01020304"),
    ],
)
def test_the_wire(head: bytes, wire: str) -> None:
    assert head == bytes.fromhex(wire)


def test_the_status_header_joins_those_of_the_caller() -> None:
    given_headers = {"trace": "1"}
    head = encode_request_head("a", given_headers, 0)
    assert json.loads(head[5:-4]) == {"trace": "1", "x-reply": "status"}
    assert given_headers == {"trace": "1"}


def test_heads_with_and_without_the_status_header_are_not_confused() -> None:
    for _ in range(2):
        assert plain("both", None, 7) == b"\0\x04both\0\x02{}\0\0\0\x07"
        assert encode_request_head("both", None, 7) == b'\0\x04both\0\x14{"x-reply":"status"}\0\0\0\x07'


def test_the_path_may_come_by_header() -> None:
    by_header = plain(None, {"x-endpoint-path": "generate"}, 3)
    assert by_header[:10] == b"\0\x08generate"
    assert plain("generate", {"x-endpoint-path": "generate"}, 3) == by_header


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        (None, None, "x-endpoint-path"),
        (None, {"other": "a"}, "x-endpoint-path"),
        ("a", {"x-endpoint-path": "b"}, "two"),
        ("", None, "empty"),
        (None, {"x-endpoint-path": ""}, "empty"),
        ("\ud800", None, "surrogates"),
        (b"generate", None, "path: b'generate'"),
        ("a", {"k": 1}, "header 'k': 1"),
        ("a", {1: "v"}, "header 1: 'v'"),
        ("a", {"k": None}, "header 'k': None"),
        ("a", {"k": b"v"}, "header 'k'"),
        ("a", {"k": "\udfff"}, "headers"),
        ("a", {"\udfff": "v"}, "headers"),
    ],
)
@pytest.mark.parametrize("wants_status", [True, False])
def test_what_is_no_request(path, headers, words: str, wants_status: bool) -> None:
    with pytest.raises(FrameError) as refusal:
        encode_request_head(path, headers, 0, wants_status=wants_status)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert ";" in str(refusal.value), "it must tell the cure"


def test_how_long_a_path_may_be() -> None:
    assert len(plain("x" * 1024, None, 0)) == 1024 + 10
    with pytest.raises(MessageTooLarge, match="path: 1025 bytes"):
        plain("x" * 1025, None, 0)
    with pytest.raises(MessageTooLarge, match="path: 1026 bytes"):
        plain("é" * 513, None, 0)
    assert len(plain("x" * 65_535, None, 0, max_path=65_535)) == 65_535 + 10
    with pytest.raises(MessageTooLarge, match="path: 65536 bytes"):
        plain("x" * 65_536, None, 0, max_path=65_536)


def test_a_long_path_is_refused_also_after_it_was_let_pass_once() -> None:
    path = "y" * 1500
    plain(path, None, 0, max_path=2000)
    with pytest.raises(MessageTooLarge):
        plain(path, None, 0)


def test_how_long_headers_may_be() -> None:
    overhead = len(b'{"k":""}')
    head = plain("a", {"k": "v" * (65_535 - overhead)}, 0)
    assert head[3:5] == b"\xff\xff"
    with pytest.raises(MessageTooLarge, match="headers: 65536 bytes"):
        plain("a", {"k": "v" * (65_536 - overhead)}, 0)


@pytest.mark.parametrize("max_message", [1024, MAX_MESSAGE, 2**32 - 1])
def test_how_long_a_frame_may_be(max_message: int) -> None:
    fits = max_message - len(plain("a", None, 0))
    assert plain("a", None, fits, max_message=max_message)[-4:] == fits.to_bytes(4, "big")
    with pytest.raises(MessageTooLarge, match="DYN_TCP_MAX_MESSAGE_SIZE") as refusal:
        plain("a", None, fits + 1, max_message=max_message)
    assert str(max_message) in str(refusal.value)
    assert encode_response_head(max_message - 4, max_message) == (max_message - 4).to_bytes(4, "big")
    with pytest.raises(MessageTooLarge, match="response"):
        encode_response_head(max_message - 3, max_message)


def test_what_the_lengths_cannot_tell_is_refused_whatever_the_limit() -> None:
    with pytest.raises(MessageTooLarge):
        plain("a", None, 2**32, max_message=2**40)
    with pytest.raises(MessageTooLarge):
        encode_response_head(2**32, max_message=2**40)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
    st.none() | st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))),
    st.integers(0, MAX_MESSAGE // 2),
)
def test_a_head_says_what_it_was_made_of(path: str, headers: dict[str, str] | None, length: int) -> None:
    headers = {name: value for name, value in (headers or {}).items() if name != "x-endpoint-path"}
    head = plain(path, headers, length)
    size = int.from_bytes(head[:2], "big")
    assert head[2 : 2 + size].decode() == path
    assert int.from_bytes(head[2 + size : 4 + size], "big") == len(head) - size - 8
    assert json.loads(head[4 + size : -4]) == headers
    assert int.from_bytes(head[-4:], "big") == length


def test_made_up_paths_do_not_fill_the_memory() -> None:
    for number in range(3000):
        plain(f"session-{number}-{'x' * 900}", None, 0)
    for number in range(200):
        plain(f"session-{number}-{'x' * 60_000}", None, 0, max_path=65_535)
    assert sum(map(len, frames._HEADS.values())) < 3 * 2**20
