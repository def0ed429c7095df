"""``replay_tiers(pinned=True)``: block by block against plain Python, and by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from cache_strategies import tangles, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from pinned_cases import Kernel, compare, jumbles, prompts, run_kernel, stacks, sweep
from test_tiers import ONLINE, priorities

from dynalab.cache import TIERS, Tier
from dynalab.kv.tiering.rules import COMPUTED, DISK, EDGES, HOST
from dynalab.workload import Trace


@settings(max_examples=150, deadline=None)
@given(
    trace=st.one_of(trees(max_requests=40), trees(max_requests=60, max_new=2)), options=stacks(), seed=st.integers(0, 9)
)
def test_kernel_agrees_with_the_reference_block_by_block(trace, options, seed):
    compare(trace, options, priorities(trace, seed))


@settings(max_examples=150, deadline=None)
@given(trace=tangles(max_requests=40, n_blocks=12), options=stacks(), seed=st.integers(0, 9))
def test_kernel_agrees_on_ids_without_a_prefix_rule(trace, options, seed):
    """Blocks that are held behind one that is not, and blocks that come twice in a request."""
    compare(trace, options, priorities(trace, seed))


@pytest.mark.parametrize("policy", ONLINE)
def test_kernel_agrees_under_pressure_and_meets_every_case(policy):
    sizes = ((2, 3, 5, 7), (0, 1, 2, 4), (0, 1, 2, 4, 20))
    reached = sweep(policy, lambda rng: prompts(rng, 80, 30, int(rng.integers(1, 5))), sizes)
    assert reached["refused to allocate"] > 100
    reached += sweep(policy, lambda rng: jumbles(rng, 80, 16, 6), sizes)
    cases = ["refused to onboard", "computed although held", "host: all pinned", "host: set aside"]
    cases += [] if policy == "lru" else ["device: set aside"]
    assert {case: reached[case] for case in cases if reached[case] < 5} == {}


def test_kernel_agrees_where_requests_pin_the_whole_disk():
    reached: Counter[str] = Counter()
    for policy in ONLINE:
        reached += sweep(policy, lambda rng: jumbles(rng, 50, 9, 4), ((3, 5, 7), (0, 1, 2), (1, 2)))
    assert reached["disk: all pinned"] > 20
    assert reached["disk: set aside"] > 20


@pytest.mark.parametrize("policy", ONLINE)
def test_kernel_agrees_where_queues_and_segments_have_room(policy):
    reached = sweep(policy, lambda rng: prompts(rng, 60, 800, 9), ((100, 200), (0, 40, 150), (0, 300)))
    assert reached["evictions"] > 1_000


# ---------------------------------------------------------------------------- by hand


def hand(rows: list[list[int]], mode: str = "write_through", **sizes: int | tuple[int, str]) -> Kernel:
    """Replay requests a second apart; sizes are capacities, or capacity and policy."""
    tiers = [Tier(name, 0) for name in TIERS if name not in sizes]
    tiers += [Tier(name, *(size if isinstance(size, tuple) else (size,))) for name, size in sizes.items()]
    options = {"tiers": tiers, "mode": mode, "admit_after": 2, "touch": "served", "disk_path": "staged"}
    ids = [block for row in rows for block in row]
    trace = Trace.from_columns(range(len(rows)), [8 * len(row) for row in rows], [1] * len(rows), ids, block_tokens=8)
    compare(trace, options, [0] * trace.n_blocks)
    return run_kernel(trace, options, [0] * trace.n_blocks)


def test_a_block_in_use_gets_a_second_chance():
    """FIFO would give up block 0, which the fourth request uses: 1 goes instead, and 0 is newer than 2 from then on."""
    rows = [[0], [1], [2], [0, 3]]
    assert hand(rows, device=(3, "fifo")).held["device"] == [0, 2, 3]
    assert hand([*rows, [4]], device=(3, "fifo")).held["device"] == [0, 3, 4]


def test_room_is_made_before_blocks_enter():
    """Block 1 is held when 0 must be computed again, but goes with the room that is made for both."""
    run = hand([[0, 1], [2], [0, 1]], device=2).run
    assert run.level.tolist() == [COMPUTED] * 5
    # 0 leaves for 2; then 1 and 2 leave for 0 and 1.
    assert run.events[0].tolist() == [5, 3, 0, 0]


def test_a_block_found_when_it_is_registered_gives_its_room_back():
    """LFU keeps block 1 without its prefix: room is made for 0 and 1, and what 1 did not need is there for 4."""
    rows = [[0, 1], [1], [2], [3], [0, 1]]
    before, after = (hand(rows[:n], device=(3, "lfu")) for n in (4, 5))
    assert before.held["device"] == [1, 2, 3]
    assert after.held["device"] == [0, 1]
    assert after.run.level[-2:].tolist() == [COMPUTED] * 2
    assert after.run.events[0].tolist() == [5, 3, 0, 0]
    assert hand([*rows, [4]], device=(3, "lfu")).run.events[0].tolist() == [6, 3, 0, 0]


def test_a_block_from_disk_passes_a_host_full_of_blocks_in_use():
    """Second uses bring 0, 1 and 2 down, and 2 takes the place of 0 in host memory; then 0 is read from disk."""
    kernel = hand([[0, 1, 2], [0, 1, 2], [3, 4, 5], [0, 1, 2]], "selective", device=3, host=2, disk=6)
    assert kernel.run.level[-3:].tolist() == [DISK, HOST, HOST]
    assert kernel.held == {"device": [0, 1, 2], "host": [1, 2], "disk": [0, 1, 2]}
    expected = {"device_to_host": 3, "host_to_disk": 3, "disk_to_host": 1, "host_to_device": 3}
    assert dict(zip(EDGES, kernel.run.traffic.sum(axis=0).tolist(), strict=True)) == dict.fromkeys(EDGES, 0) | expected
    assert kernel.run.events[HOST].tolist() == [3, 1, 0, 6]


def test_a_victim_that_finds_the_host_in_use_is_gone():
    """Block 3 must leave for 0, while 1 and 2 wait in host memory; when 4 and 5 leave, 1 and 2 have left it."""
    kernel = hand([[0, 1, 2], [3, 4, 5], [0, 1, 2]], "write_back", device=3, host=2, disk=6)
    assert kernel.run.level[-3:].tolist() == [DISK, HOST, HOST]
    assert kernel.held == {"device": [0, 1, 2], "host": [4, 5], "disk": []}
