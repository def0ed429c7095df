"""Copies by table of addresses beside the C library's memcpy and NumPy, of the same bytes, in one process.

Run with ``python -m pytest tests/benchmarks/test_copy_speed.py --benchmark-only -s``.

The two sides take turns, and what is asserted is the ratio of the medians: other work on the machine slows both. The
memory is far larger than the caches and cold, as that of a KV tier is. Both sides copy the same pieces to the same
places; for pieces of 64 KiB in permuted order, one memcpy of as many contiguous bytes is asked for as well, which has
neither jumps nor calls.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import numpy as np
import pytest

from dynalab.kernels import copy_pairs, permute_blocks
from dynalab.kernels.calibrate import calibrate
from dynalab.kernels.paths import regret
from dynalab.kernels.paths_host import DIRECTION, HostRig

BAR = 0.8
ROUNDS = 9
TOTAL = 256 << 20


@pytest.fixture(scope="module")
def arenas():
    source, target = (np.zeros(TOTAL + 4096, np.uint8) for _ in range(2))
    source[:] = np.random.default_rng(0).integers(0, 256, source.size, dtype=np.uint8)
    target[:] = 1
    begins = [-memory.ctypes.data % 4096 for memory in (source, target)]
    return source[begins[0] :][:TOTAL], target[begins[1] :][:TOTAL]


def in_turns(benchmark, sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of every side; the first one is ours."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        sides[name]()
        seconds[name].append(time.perf_counter() - begin)

    ours, *others = sides
    for name in sides:
        sides[name]()
    benchmark.pedantic(timed, args=(ours,), setup=lambda: [timed(name) for name in others] and None, rounds=ROUNDS)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def report(benchmark, label: str, seconds: dict[str, float], nbytes: int) -> list[float]:
    """Print the rates, and return our share of each other side's."""
    (_, mine), *others = seconds.items()
    shares = {name: theirs / mine for name, theirs in others}
    benchmark.extra_info.update(bytes_per_second=nbytes / mine, shares=shares)
    told = "   ".join(f"{name} {nbytes / s / 1e9:5.1f} GB/s" for name, s in seconds.items())
    print(f"\n{label:<34} {told}   shares {', '.join(f'{share:.2f}' for share in shares.values())}")
    return list(shares.values())


@pytest.mark.parametrize("piece", [4096, 65536, 1 << 20])
def test_permuted_pieces_beside_memcpy(benchmark, arenas, piece):
    source, target = arenas
    n = TOTAL // piece
    rng = np.random.default_rng(1)
    src, dst = ((memory.ctypes.data + rng.permutation(n) * piece).astype(np.uint64) for memory in (source, target))
    pairs = list(zip(dst.tolist(), src.tolist(), strict=True))

    def each() -> None:
        for a, b in pairs:
            ctypes.memmove(a, b, piece)

    target[:] = 0
    copy_pairs(src, dst, piece)
    places = [(addresses - np.uint64(memory.ctypes.data)) // np.uint64(piece) for addresses, memory in
              ((src, source), (dst, target))]  # fmt: skip
    assert np.array_equal(target.reshape(n, piece)[places[1]], source.reshape(n, piece)[places[0]])
    sides = {
        "ours": lambda: copy_pairs(src, dst, piece),
        "memmove each": each,
        "one memmove": lambda: ctypes.memmove(target.ctypes.data, source.ctypes.data, TOTAL),
    }
    each_share, whole_share = report(benchmark, f"{piece:,} B permuted", in_turns(benchmark, sides), TOTAL)
    assert each_share >= BAR
    if piece >= 65536:
        assert whole_share >= BAR


def test_one_large_copy_beside_memcpy(benchmark, arenas):
    source, target = arenas
    src, dst = source.ctypes.data, target.ctypes.data
    sides = {
        "ours": lambda: copy_pairs([src], [dst], TOTAL),
        "memmove": lambda: ctypes.memmove(dst, src, TOTAL),
        "np.copyto": lambda: np.copyto(target, source),
    }
    shares = report(benchmark, "one copy of 256 MiB", in_turns(benchmark, sides), TOTAL)
    assert np.array_equal(source, target)
    assert min(shares) >= BAR


def test_pieces_in_cache_beside_memcpy(benchmark, arenas):
    """2 MiB in all, copied again and again: here memcpy's ordinary stores are right, and ours are the same."""
    source, target = arenas
    piece, n = 65536, 16
    order = np.random.default_rng(2).permutation(n) * piece
    src, dst = ((memory.ctypes.data + order).astype(np.uint64) for memory in (source, target))
    pairs = list(zip(dst.tolist(), src.tolist(), strict=True))

    def ours() -> None:
        for _ in range(50):
            copy_pairs(src, dst, piece)

    def each() -> None:
        for _ in range(50):
            for a, b in pairs:
                ctypes.memmove(a, b, piece)

    sides = {"ours": ours, "memmove each": each}
    (share,) = report(benchmark, "65,536 B in cache", in_turns(benchmark, sides), 50 * n * piece)
    assert share >= BAR


@pytest.mark.parametrize(("head_dim", "name"), [(128, "256 B runs"), (64, "128 B runs")])
def test_nhd_to_hnd_beside_numpy(benchmark, arenas, head_dim, name):
    """A layout change beside NumPy's own transposing copy, and beside a plain copy of the same bytes."""
    source, target = arenas
    run, heads, tokens = 2 * head_dim, 8, 16
    region = heads * tokens * run
    n = TOTAL // region
    nhd, hnd = source.reshape(n, tokens, heads, run), target.reshape(n, heads, tokens, run)
    bases = [memory.ctypes.data + np.arange(n) * region for memory in (source, target)]
    arguments = (*bases, (0, run, heads * run), (0, tokens * run, run), (1, heads, tokens), run)
    sides = {
        "ours": lambda: permute_blocks(*arguments),
        "np transpose": lambda: np.copyto(hnd, nhd.transpose(0, 2, 1, 3)),
        "np.copyto": lambda: np.copyto(target, source),
    }
    shares = report(benchmark, f"NHD to HND, {name}", in_turns(benchmark, sides), TOTAL)
    permute_blocks(*arguments)
    assert np.array_equal(hnd, nhd.transpose(0, 2, 1, 3))
    assert shares[0] >= BAR


def test_calls_of_one_small_piece(benchmark, arenas):
    """What a call costs by itself."""
    source, target = arenas
    src, dst = (np.array([memory.ctypes.data], np.uint64) for memory in (source, target))
    benchmark(copy_pairs, src, dst, 64)
    print(f"\none call of copy_pairs: {benchmark.stats.stats.median * 1e6:.1f} us")


def test_choices_of_the_host_emulated_paths(benchmark):
    """A calibration as a user's, and one more after it as the truth: what the choices by the first one cost."""
    rig = HostRig()
    table = benchmark.pedantic(lambda: calibrate(rig), rounds=1)
    truth = calibrate(rig, budget=10, seed=1)
    found = regret(table, truth, DIRECTION)
    benchmark.extra_info.update(mean=found.mean, worst=found.worst)
    print(
        f"\nhost-emulated paths: calibrated in {benchmark.stats.stats.median:.1f} s; regret {found.mean:.1%} on "
        f"average, {found.worst:.1%} at worst, over {found.cells} cells ({found.wrong} not the best)"
    )
    assert found.mean <= 0.05
