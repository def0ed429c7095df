"""What naming and placing blocks costs: sequence hashes beside the xxHash package, and tables of addresses.

Run with ``python -m pytest tests/benchmarks/test_kv_speed.py --benchmark-only -s``.

Two bars are absolute, far above what any machine needs, because the budget that they are a part of is: matching,
allocating and registering a block may cost 2 microseconds in all. The third is a ratio within one run.
"""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from dynalab.kv import KVLayout, sequence_hashes

BLOCKS, PAGE = 1_000, 16
HASH_BAR, TABLE_BAR, PEER_BAR = 0.2e-6, 1e-3, 5.0
PROMPT = np.random.default_rng(0).integers(0, 128_000, BLOCKS * PAGE, np.uint32)


@pytest.mark.parametrize("form", ["uint32", "int64", "list"])
def test_hashing_a_prompt(benchmark, form: str) -> None:
    tokens = PROMPT.tolist() if form == "list" else PROMPT.astype(form)
    benchmark(sequence_hashes, tokens, PAGE)
    seconds = benchmark.stats.stats.median / BLOCKS
    print(f"\n{form:<7} {seconds * 1e9:6.1f} ns per block, {PAGE / seconds / 1e6:6.0f} M tokens/s")
    assert seconds < HASH_BAR


def test_hashing_beside_the_xxhash_package(benchmark) -> None:
    """The package's fastest way: its one-shot function on slices of one buffer, a chain of packed pairs."""
    xxhash = pytest.importorskip("xxhash", reason="the xxhash package is absent")
    buffer, pair = memoryview(PROMPT.view(np.uint8)), struct.Struct("<QQ").pack
    one_shot, size = xxhash.xxh3_64_intdigest, 4 * PAGE

    def theirs() -> list[int]:
        chain = [one_shot(buffer[:size], 1337)]
        for at in range(size, len(buffer), size):
            chain.append(one_shot(pair(chain[-1], one_shot(buffer[at : at + size], 1337)), 1337))
        return chain

    assert theirs() == sequence_hashes(PROMPT, PAGE).tolist()
    seconds: list[float] = []

    def time_theirs() -> None:
        begin = time.perf_counter()
        theirs()
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(sequence_hashes, args=(PROMPT, PAGE), setup=time_theirs, rounds=50)
    ratio = float(np.median(seconds)) / benchmark.stats.stats.median
    print(f"\n{ratio:.0f} times as fast as the package, {np.median(seconds) / BLOCKS * 1e9:.0f} ns per block there")
    assert ratio >= PEER_BAR


@pytest.mark.parametrize("order", [{}, {"order": "layer_first"}, {"order": "layer_first", "outer_contiguous": False}])
def test_a_table_of_regions(benchmark, order: dict[str, object]) -> None:
    layout = KVLayout(num_layers=32, outer=2, page_tokens=16, inner=1024, **order)
    bases = [2**40 * (n + 1) for n in range(layout.n_storages)]
    blocks = np.random.default_rng(0).permutation(10 * BLOCKS)[:BLOCKS]
    addresses, _ = benchmark(layout.regions, bases, 10 * BLOCKS, blocks)
    assert addresses.size == 64 * BLOCKS
    print(f"\n{benchmark.stats.stats.median * 1e6:.0f} us for {addresses.size:,} regions")
    assert benchmark.stats.stats.median < TABLE_BAR
