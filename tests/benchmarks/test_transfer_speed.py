"""What the transfer engine adds to the copies it arranges: beside a thread pool, and beside one plain copy.

Run with ``python -m pytest tests/benchmarks/test_transfer_speed.py --benchmark-only -s``.

On a 2-core cloud machine 16 transfers of 16 blocks are made in 17 us and submitted in another 17 us; a batch costs the
worker 6 us, and 14 us more for the tables of a copy between tiers. `concurrent.futures` takes 15 us for each call of a
function that does nothing, futures and all, without priorities or dependencies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from dynalab.kv import KVLayout
from dynalab.tiers import DeviceTier, HostTier, Transfer, TransferEngine
from dynalab.tiers.movers import movers

SUBMIT_BAR, COPY_BAR = 1.0, 0.8
ROUNDS = 15
LAYOUT = KVLayout(num_layers=32, outer=2, page_tokens=16, inner=1024)  # 2 MiB blocks
BLOCKS = 64
PASSES = 4  # waking a worker is no part of what is compared


def in_turns(benchmark, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of both sides, which run one after the other in every round."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours(), theirs()

    def timed(name: str, function: Callable[[], object]) -> None:
        begin = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - begin)

    benchmark.pedantic(lambda: timed("ours", ours), setup=lambda: timed("theirs", theirs), rounds=ROUNDS)
    return float(np.median(seconds["ours"])), float(np.median(seconds["theirs"]))


def test_transfers_cost_less_than_futures(benchmark) -> None:
    """A thousand transfers from submission to the last outcome, against as many calls through a thread pool."""
    slots = np.arange(16, dtype=np.int32)
    with TransferEngine({"a": lambda _, lo, hi: np.ones(hi - lo, bool)}) as engine, ThreadPoolExecutor(4) as pool:

        def transfers() -> None:
            engine.submit(Transfer("a", slots, slots) for _ in range(1000))
            engine.drain()

        def futures() -> None:
            wait([pool.submit(np.ones, 16, bool) for _ in range(1000)])

        ours, theirs = in_turns(benchmark, transfers, futures)
    print(f"\n{ours * 1e3:.1f} us a transfer, {theirs * 1e3:.1f} us a future")
    assert ours <= SUBMIT_BAR * theirs


@pytest.mark.parametrize("order", ["block_first", "layer_first"])
def test_moved_blocks_keep_the_bandwidth_of_a_plain_copy(benchmark, order) -> None:
    """128 MiB of permuted blocks to the host tier by the engine, one batch at a time, against one memcpy of as much."""
    source, target = np.ones(BLOCKS * LAYOUT.block_bytes, np.uint8), np.ones(BLOCKS * LAYOUT.block_bytes, np.uint8)
    rng = np.random.default_rng(1)
    src, dst = rng.permutation(BLOCKS), rng.permutation(BLOCKS)
    with (
        DeviceTier(LAYOUT.with_(order=order), capacity=BLOCKS, device="host-emulated") as device,
        HostTier(LAYOUT, capacity=BLOCKS) as host,
        TransferEngine(movers(device, host), concurrency=1) as engine,
    ):

        def move() -> None:
            engine.submit(Transfer("device_to_host", src, dst) for _ in range(PASSES))
            engine.drain()

        def copy() -> None:
            for _ in range(PASSES):
                np.copyto(target, source)

        device.view(int(src[5]))[...] = 3
        ours, theirs = in_turns(benchmark, move, copy)
        assert (host.view(int(dst[5])) == 3).all()
    moved = PASSES * source.nbytes / 1e9
    print(f"\n{order}: {moved / ours:.1f} GB/s by the engine, {moved / theirs:.1f} plain")
    assert theirs >= COPY_BAR * ours
