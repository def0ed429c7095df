"""Replaying the conversation trace: dynalab beside libcachesim, in one process, on the same accesses.

Run with ``python -m pytest tests/benchmarks/test_replay_speed.py --benchmark-only -s``.

Other people's work on the machine slows both sides, and not evenly: the two sides run in turns, a round of one after a
round of the other, and what is asserted is the ratio of the medians. libcachesim reads its own binary format
(oracleGeneral, 24 bytes per access, mapped into memory and in the page cache by then), which is the fastest of its
readers that we tried (LRU at 10,000 blocks: 143 ms, plain text 155 ms, CSV 180 ms); it has none for arrays. Our side
begins with the trace's raw ids in an int64 array: it makes them dense (``pandas.factorize``), allocates the policy's
arrays and replays. Belady's table of next uses is part of our time, whereas libcachesim finds it ready in the file.

Where our time goes, on one core of a 2-core cloud machine, best of 15: factorize 8 ms on the ids of the file, 11 ms on
64-bit hashes (the reader's own ``densify`` 1.7 ms on the former), LRU itself 3.3 ms, which is 11 ns per access: a walk
over 182,790 rows of 16 bytes (3 MB), a miss of the second level cache or two. W-TinyLFU takes 31 ms, for its sketch is
read and written at every access. libcachesim's 500 ns are a hash table, an object per block and a read per request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from libcachesim_peer import THEIRS, their_hit_ratio, write_oracle

from dynalab.cache import Tier, lru_curve, replay_tiers
from dynalab.cache._distances import distance_histogram
from dynalab.cache._drive import drive, previous_and_next
from dynalab.cache.accesses import Accesses
from dynalab.cache.stack import check_stack, run_stack
from dynalab.kv.policies import PolicyState
from dynalab.kv.tiering.rules import EXCLUSIVE, N_SWITCHES, OFFER_ALWAYS
from dynalab.workload.dense import densify

LRU_BAR, POLICY_BAR, CURVE_BAR, TIER_BAR = 8.0, 4.0, 1.0, 10e6
ROUNDS = 7
NONE = np.empty(0, np.int32)


def in_turns(benchmark, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of both sides, which run one after the other in every round."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours(), theirs()  # compile, and bring the file into memory

    def timed(name: str, function: Callable[[], object]) -> None:
        begin = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - begin)

    def between_rounds() -> None:
        timed("theirs", theirs)

    benchmark.pedantic(lambda: timed("ours", ours), setup=between_rounds, rounds=ROUNDS)
    return float(np.median(seconds["ours"])), float(np.median(seconds["theirs"]))


@pytest.fixture(scope="module")
def raw(conversation) -> np.ndarray:
    """The trace's ids: those of this file are dense already, but nobody tells the replay."""
    return conversation.block_ids.astype(np.int64)


@pytest.fixture(scope="module")
def hashes(raw) -> np.ndarray:
    """The same trace with ids as hashing prompts gives them."""
    return ((raw.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


@pytest.fixture(scope="module")
def oracle(raw, tmp_path_factory) -> Path:
    return write_oracle(raw + 1, tmp_path_factory.mktemp("oracle") / "conversation.bin")


@pytest.fixture(scope="module")
def hashed_oracle(hashes, tmp_path_factory) -> Path:
    return write_oracle(hashes, tmp_path_factory.mktemp("oracle") / "hashes.bin")


def factorize(raw: np.ndarray) -> tuple[np.ndarray, int]:
    codes, uniques = pd.factorize(raw)
    return codes.astype(np.int32), len(uniques)


def our_replay(name: str, capacity: int, raw: np.ndarray, make_dense=factorize) -> float:
    ids, n_blocks = make_dense(raw)
    state = PolicyState(name, capacity, n_blocks)
    following = previous_and_next(ids, n_blocks)[1] if name == "belady" else NONE
    hit = np.empty(ids.size, np.uint8)
    drive(state.step, state.f, state.s, state.t, ids, following, hit)
    return float(hit.mean())


def report(benchmark, label: str, ours: float, theirs: float, accesses: int) -> float:
    ratio = theirs / ours
    benchmark.extra_info.update(ratio=ratio, their_seconds=theirs, accesses_per_second=accesses / ours)
    print(
        f"\n{label:<28} {ratio:6.1f}x   ours {ours * 1e3:7.2f} ms, {accesses / ours / 1e6:6.1f} M accesses/s, "
        f"{ours / accesses * 1e9:5.1f} ns each   theirs {theirs * 1e3:7.1f} ms, {accesses / theirs / 1e6:5.1f} M/s"
    )
    return ratio


@pytest.mark.parametrize("capacity", [10_000, 30_000])
@pytest.mark.parametrize("name", THEIRS)
def test_replay_beside_libcachesim(benchmark, raw, oracle, name, capacity):
    assert our_replay(name, capacity, raw) == pytest.approx(their_hit_ratio(name, capacity, oracle), abs=1e-3)
    ours, theirs = in_turns(
        benchmark, lambda: our_replay(name, capacity, raw), lambda: their_hit_ratio(name, capacity, oracle)
    )
    ratio = report(benchmark, f"{name} at {capacity:,} blocks", ours, theirs, raw.size)
    assert ratio >= (LRU_BAR if name == "lru" else POLICY_BAR)


def test_lru_with_the_ids_made_dense_as_the_reader_does(benchmark, raw, oracle):
    times = in_turns(
        benchmark, lambda: our_replay("lru", 10_000, raw, densify), lambda: their_hit_ratio("lru", 10_000, oracle)
    )
    assert report(benchmark, "lru, densify", *times, raw.size) >= LRU_BAR


def test_lru_of_hashes(benchmark, hashes, hashed_oracle):
    """Hashes take three quarters of our time to become dense and cost libcachesim little: our least favourable case."""
    assert our_replay("lru", 10_000, hashes) == pytest.approx(their_hit_ratio("lru", 10_000, hashed_oracle), abs=1e-6)
    times = in_turns(
        benchmark, lambda: our_replay("lru", 10_000, hashes), lambda: their_hit_ratio("lru", 10_000, hashed_oracle)
    )
    assert report(benchmark, "lru of 64-bit hashes", *times, hashes.size) >= LRU_BAR


def test_whole_curve_beside_two_capacities(benchmark, raw, oracle):
    """Every capacity at once, in less time than libcachesim needs for two."""

    def ours() -> np.ndarray:
        return np.cumsum(distance_histogram(*factorize(raw))[1:]) / raw.size

    def theirs() -> list[float]:
        return [their_hit_ratio("lru", capacity, oracle) for capacity in (10_000, 30_000)]

    assert ours()[[9_999, 29_999]] == pytest.approx(theirs(), abs=1e-6)
    ratio = report(benchmark, "exact curve, two runs", *in_turns(benchmark, ours, theirs), raw.size)
    assert ratio >= CURVE_BAR


def test_whole_curve_through_the_front_door(benchmark, conversation, oracle):
    """The same by ``lru_curve``, which labels the result."""
    times = in_turns(
        benchmark,
        lambda: lru_curve(conversation),
        lambda: [their_hit_ratio("lru", c, oracle) for c in (10_000, 30_000)],
    )
    assert report(benchmark, "lru_curve, two runs", *times, conversation.n_accesses) >= CURVE_BAR


STACK = [Tier("device", 2_000), Tier("host", 10_000), Tier("disk", 100_000)]


@pytest.mark.parametrize("mode", ["write_through", "write_back", "selective"])
@pytest.mark.parametrize("part", ["kernel", "replay_tiers"])
def test_three_tiers(benchmark, conversation, mode, part):
    """Blocks per second through device, host and disk: the compiled loop with its arrays, and the whole call."""
    if part == "kernel":
        accesses, stack = Accesses.of(conversation), check_stack(STACK, mode, 2)
        switch = np.zeros(N_SWITCHES, np.bool_)
        switch[EXCLUSIVE] = mode == "write_back"
        switch[OFFER_ALWAYS] = mode == "selective"

        def run() -> object:
            return run_stack(accesses, stack, switch, None, None, 10.0)

    else:

        def run() -> object:
            return replay_tiers(conversation, STACK, mode=mode, model="llama-3-8b")

    benchmark.pedantic(run, rounds=25, warmup_rounds=1)
    best, median = (conversation.n_accesses / getattr(benchmark.stats.stats, name) for name in ("min", "median"))
    benchmark.extra_info.update(blocks_per_second=best, median_blocks_per_second=median)
    print(
        f"\n{part:<13} {mode:<14} {best / 1e6:5.1f} M blocks/s at best ({1e9 / best:.0f} ns each), "
        f"median {median / 1e6:5.1f} M blocks/s"
    )
    assert median >= TIER_BAR
