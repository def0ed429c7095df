"""What framing costs: decoders fed as an event loop feeds them, encoders, and a plain copy of the same bytes beside.

Bars: at most 1 microsecond per response and 2 per request of 64 bytes, when many come in one piece. A decoder makes an
object of each payload, and Python's share of that is the limit for small ones: the floor is the time to cut the same
pieces out of the same buffer, with the boundaries known. For large ones the limit is the memory: what comes with the
head is copied once, the rest was received in place; the copy into the buffer, which stands for the kernel's, is counted
with both. "memcpy" is one copy of all bytes, 8 MiB at most, into memory that is there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dynalab.net.decoder import SCRATCH_BYTES, RequestDecoder, ResponseDecoder
from dynalab.net.frames import encode_request_head, encode_response_head

STREAM = 8 * 2**20
SIZES = (0, 64, 4096, 65_536, 2**20)


def request(size: int, number: int | None = None) -> bytes:
    headers = None if number is None else {"traceparent": f"00-{number:032x}-{number:016x}-01"}
    return encode_request_head("generate", headers, size) + bytes(size)


def response(size: int, number: int | None = None) -> bytes:
    return encode_response_head(size) + bytes(size)


def fastest(run: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of the fastest of several runs: CPU time of this thread, so that a busy machine counts less."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
    return best


def receive_all(decoder: RequestDecoder | ResponseDecoder, stream: memoryview) -> int:
    """Hand over a stream as a loop does, the buffer filled each time; return the number of frames."""
    pos, end, frames = 0, len(stream), 0
    while pos < end:
        buffer = decoder.get_buffer(-1)
        n = min(len(buffer), end - pos)
        buffer[:n] = stream[pos : pos + n]
        frames += len(decoder.buffer_updated(n))
        pos += n
    return frames


def cut_all(stream: memoryview, size: int, whole: int, count: int) -> None:
    """The least that Python must do for as many payloads: copy the stream in, and cut them out."""
    buffer = memoryview(bytearray(SCRATCH_BYTES))
    per_piece = max(len(buffer) // whole, 1)
    for first in range(0, count, per_piece):
        n = min(per_piece, count - first)
        if whole > len(buffer):
            bytearray(stream[first * whole : (first + 1) * whole])
            continue
        buffer[: n * whole] = stream[first * whole : (first + n) * whole]
        [buffer[at : at + size].tobytes() for at in range(whole - size, n * whole, whole)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["response", "request", "request, each with its own headers"])
def test_decoding(benchmark, kind, size):
    make = response if kind == "response" else request
    count = max(min(STREAM // (size + 32), 10_000), 1)
    frames = [make(size, number if "own" in kind else None) for number in range(count)]
    stream = memoryview(b"".join(frames))
    decoder = ResponseDecoder() if kind == "response" else RequestDecoder()
    assert receive_all(decoder, stream) == count
    target = bytearray(stream)

    seconds = fastest(lambda: receive_all(decoder, stream))
    copy = fastest(lambda: target.__setitem__(slice(None), stream))
    floor = fastest(lambda: cut_all(stream, size, len(stream) // count, count))
    benchmark.pedantic(receive_all, (decoder, stream), rounds=3)
    benchmark.extra_info |= {
        "us_per_frame": round(seconds / count * 1e6, 3),
        "frames_per_second": round(count / seconds),
        "GB_per_second": round(len(stream) / seconds / 1e9, 3),
        "memcpy_GB_per_second": round(len(stream) / copy / 1e9, 3),
        "floor_us_per_frame": round(floor / count * 1e6, 3),
        "times_floor": round(seconds / floor, 2),
    }
    if size == 64 and "own" not in kind:
        assert seconds / count <= (1e-6 if kind == "response" else 2e-6)


@pytest.mark.parametrize("headers", [None, {"traceparent": "00-00000000000000000000000000000001-0000000000000001-01"}])
def test_encoding(benchmark, headers):
    def run() -> None:
        for _ in range(10_000):
            encode_request_head("generate", headers, 64)

    benchmark.extra_info["us_per_head"] = round(fastest(run) / 10_000 * 1e6, 3)
    benchmark.pedantic(run, rounds=3)


def test_one_byte_at_a_time(benchmark):
    """Twice the bytes take twice the time, however finely they are cut."""

    def run(size: int) -> float:
        data = request(size)

        def once() -> None:
            decoder = RequestDecoder()
            for at in range(len(data)):
                frames = decoder.feed(data[at : at + 1])
            assert len(frames) == 1

        return fastest(once, 3)

    short, long = run(30_000), run(60_000)
    benchmark.pedantic(run, (1000,), rounds=1)
    benchmark.extra_info |= {"us_per_byte": round(long / 60_000 * 1e6, 3), "twice_the_bytes": round(long / short, 2)}
    assert long / short < 3


def test_a_large_payload_that_is_only_announced(benchmark):
    """Memory for 32 MiB is set up without being touched."""
    head = encode_request_head("generate", None, 32 * 2**20 - 100)

    def announce() -> RequestDecoder:
        decoder = RequestDecoder()
        decoder.feed(head)
        return decoder

    zeroed = fastest(lambda: bytearray(32 * 2**20), 3)
    seconds = fastest(announce)
    benchmark.pedantic(announce, rounds=3)
    benchmark.extra_info |= {"us": round(seconds * 1e6, 1), "us_of_bytearray": round(zeroed * 1e6, 1)}
    assert seconds < zeroed / 10
