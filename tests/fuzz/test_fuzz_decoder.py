"""The fuzzing harness itself: it runs without atheris, on inputs that have once gone wrong and on any others."""

from __future__ import annotations

import pytest
from fuzz_decoder import LONGEST_HEAD, MOST_HEADS, SMALL, check
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.net import decoder


@pytest.fixture(autouse=True)
def small_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "SMALL", SMALL)
    monkeypatch.setattr(decoder, "_LONGEST_HEAD", LONGEST_HEAD)
    monkeypatch.setattr(decoder, "_MOST_HEADS", MOST_HEADS)


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("2effff0001000000"),  # bad bytes behind a refused payload were kept for ever
        b"",
        b"\0\x01a\0\x02{}\0\0\0\x02xy",
    ],
)
def test_inputs_that_have_gone_wrong(data: bytes) -> None:
    check(data)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_input(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "SMALL", SMALL)
        check(data)


def test_the_harness_notices_a_decoder_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = decoder.RequestDecoder._finish
    monkeypatch.setattr(decoder.RequestDecoder, "_finish", lambda self, payload: finish(self, payload[::-1]))
    payload = bytes(range(40))
    stream = b"\0\x01a\0\x02{}" + len(payload).to_bytes(4, "big") + payload
    with pytest.raises(AssertionError):
        check(bytes([5, 1, 2, 1, 0, 0]) + stream)
