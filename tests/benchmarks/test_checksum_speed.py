"""Checksums of blocks out of memory and out of the cache: beside a copy, CRC-32 and (if installed) XXH3.

Run with ``python -m pytest tests/benchmarks/test_checksum_speed.py --benchmark-only -s``.

All sides run in turns, and what is asserted are ratios of medians. A copy counts its payload once; it reads and writes,
while a checksum only reads, so that at the speed of memory the checksum must be ahead.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from dynalab.kernels.checksum import checksum_blocks, checksum_regions

TOTAL, ROUNDS = 512 << 20, 7
COPY_BAR, CRC_BAR = 1.0, 3.0


def gigabytes_per_second(benchmark, sides: dict[str, Callable[[], object]], nbytes: int) -> dict[str, float]:
    """Run all sides once a round, the first by the benchmark's own clock as well."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        sides[name]()
        seconds[name].append(time.perf_counter() - begin)

    ours, *others = sides
    for name in sides:
        sides[name]()
    benchmark.pedantic(lambda: timed(ours), setup=lambda: [timed(name) for name in others] and None, rounds=ROUNDS)
    return {name: nbytes / float(np.median(values)) / 1e9 for name, values in seconds.items()}


def _xxh3() -> Callable[[memoryview], int] | None:
    try:
        import xxhash
    except ImportError:
        return None
    return xxhash.xxh3_64_intdigest


@pytest.mark.parametrize("size", [64 << 10, 1 << 20, 4 << 20], ids=["64KiB", "1MiB", "4MiB"])
@pytest.mark.parametrize("where", ["memory", "cache"])
def test_checksum(benchmark, size, where):
    span = TOTAL if where == "memory" else max(size, 512 << 10)
    memory = np.random.default_rng(0).integers(0, 256, span, dtype=np.uint8)
    target = np.empty_like(memory)
    n = TOTAL // 4 // size  # blocks per round; those of the cache come round again
    starts = (np.arange(n) * 4 * size if where == "memory" else np.arange(n) * size) % span
    addresses = memory.ctypes.data + starts
    pieces = [memory[start : start + size] for start in starts]
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: checksum_blocks(addresses, size),
        "regions": lambda: checksum_regions((addresses[:, None] + np.arange(4) * (size // 4)).ravel(), size // 4, 4),
        "copy": lambda: [
            np.copyto(target[start : start + size], piece) for start, piece in zip(starts, pieces, strict=True)
        ],
        "crc32": lambda: [zlib.crc32(piece) for piece in pieces],
    }
    if xxh3 := _xxh3():
        sides["xxh3"] = lambda: [xxh3(memoryview(piece)) for piece in pieces]
    assert np.array_equal(sides["ours"](), sides["regions"]())
    speed = gigabytes_per_second(benchmark, sides, n * size)
    benchmark.extra_info.update(speed)
    print("\n" + ", ".join(f"{name} {value:.1f} GB/s" for name, value in speed.items()))
    assert speed["ours"] > CRC_BAR * speed["crc32"]
    if where == "memory":
        assert speed["ours"] > COPY_BAR * speed["copy"]
