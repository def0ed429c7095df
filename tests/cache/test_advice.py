"""Policy, block size, the next GiB and settings against direct replays."""

from __future__ import annotations

import math

import pytest
from advice_cases import scan_and_hot, small
from cache_strategies import BLOCK

from dynalab.cache import DEPLOYABLE, recommend, replay_tiers
from dynalab.cache._advice import (
    best_block_tokens,
    best_policy,
    kvbm_settings,
    next_gib,
    with_better_policies,
)
from dynalab.cache.sizing import Stack, evaluate, stack_at
from dynalab.kv.policies import POLICIES
from dynalab.workload import HardwareSpec, ModelSpec, Trace

GIB = 2**30


@pytest.mark.parametrize("stack", [Stack(50, 0, 0), Stack(30, 200, 0), Stack(30, 100, 600, disk_filter="frequency")])
def test_best_policy_is_deployable_and_measured(
    trace: Trace, model: ModelSpec, machine: HardwareSpec, stack: Stack
) -> None:
    chosen, reason, evidence = best_policy(trace, model, machine, stack, DEPLOYABLE)
    assert chosen.policy in DEPLOYABLE
    assert (chosen.device, chosen.host, chosen.disk, chosen.disk_filter) == (
        stack.device,
        stack.host,
        stack.disk,
        stack.disk_filter,
    )
    rows = {
        name: evaluate(trace, model, machine, [Stack(*_sizes(stack), name, stack.disk_filter)]) for name in DEPLOYABLE
    }
    for name, ratio in evidence["deployable"].items():
        assert ratio == round(float(rows[name].hit_ratio[0]), 4)
    lru, taken = rows["lru"], rows[chosen.policy]
    if chosen.policy != "lru":
        assert float(taken.hit_ratio[0]) >= float(lru.hit_ratio[0]) + 0.002
        assert float(taken.cost[0]) <= float(lru.cost[0])
        assert float(taken.ttft_mean[0]) <= float(lru.ttft_mean[0])
    alone, top = evidence["alone_in_largest"], evidence["best_of_registry"]
    assert alone["policy"] == chosen.policy
    assert alone["hit_ratio"] <= top["hit_ratio"] <= evidence["belady_bound"]
    assert not POLICIES[top["policy"]].offline
    assert all(f"{name} " in reason for name in DEPLOYABLE if name != chosen.policy)


def _sizes(stack: Stack) -> tuple[int, int, int]:
    return stack.device, stack.host, stack.disk


def test_a_clearly_better_policy_is_taken(model: ModelSpec, machine: HardwareSpec) -> None:
    hot = scan_and_hot()
    chosen, _, evidence = best_policy(hot, model, machine, Stack(6, 0, 0), ["lru", "lfu"])
    assert chosen.policy == "lfu"
    assert evidence["deployable"]["lfu"] > evidence["deployable"]["lru"] + 0.1
    table = evaluate(hot, model, machine, [Stack(6, 0, 0), Stack(6, 8, 0)])
    more = with_better_policies(hot, model, machine, table, ["fifo", "lfu", "lru"])
    added = [stack_at(more, index) for index in range(2, more.sizes["stack"])]
    assert Stack(6, 0, 0, "lfu") in added
    assert {stack.policy for stack in added} == {"lfu"}
    assert more["stack"].values.tolist() == list(range(more.sizes["stack"]))


def test_block_sizes_have_equal_bytes(trace: Trace, model: ModelSpec, machine: HardwareSpec) -> None:
    stack = Stack(41, 203, 0)
    best, reason, evidence = best_block_tokens(trace, model, stack, machine)
    own = int(trace.block_tokens or 0)
    assert list(evidence) == [str(size) for size in (own // 4, own // 2, own, 2 * own)]
    for size, ratio in evidence.items():
        tokens = int(size)
        tiers = {"device": 41 * own // tokens, "host": 203 * own // tokens}
        direct = replay_tiers(trace.reblock(tokens), tiers, model=model, hardware=machine)
        assert ratio == round(float(direct.token_hit_ratio), 4)
        assert all(count * tokens <= limit * own for count, limit in zip(tiers.values(), (41, 203), strict=True))
    assert evidence[str(best)] - evidence[str(own)] >= 0.0019 or best == own
    assert "may find more" in reason


def test_smaller_blocks_only_for_a_gain(model: ModelSpec, machine: HardwareSpec) -> None:
    # Repeats within unlimited memory: every size reuses the same tokens.
    best, _, evidence = best_block_tokens(small([[0, 1], [0, 1]], [16, 16]), model, Stack(9, 0, 0), machine)
    assert best == BLOCK
    assert set(evidence.values()) == {0.5}
    # A prompt of 9 tokens takes two blocks of 8 but room for nine tokens: smaller blocks fit where two do not.
    rows = [[0, 1], [2, 3]] * 20
    best, reason, evidence = best_block_tokens(small(rows, [9, 9] * 20), model, Stack(3, 0, 0), machine)
    assert best < BLOCK
    assert evidence[str(best)] > evidence[str(BLOCK)] + 0.002
    assert reason.endswith(f"for {BLOCK}")


def test_block_size_of_one_token(model: ModelSpec, machine: HardwareSpec) -> None:
    ones = small([[0, 1], [0, 1, 2]], [2, 3], block=1)
    best, reason, evidence = best_block_tokens(ones, model, Stack(4, 0, 0), machine)
    assert list(evidence) == ["1", "2"]
    assert best == 1
    assert "smaller" not in reason


def test_refused_block_sizes_are_left_out(model: ModelSpec, machine: HardwareSpec) -> None:
    # Block 1 follows 0 and 2: ids that do not stand for their prefix cannot be joined.
    tangle = small([[0, 1, 3], [2, 1, 3]], [3, 3], block=1)
    best, reason, evidence = best_block_tokens(tangle, model, Stack(4, 0, 0), machine)
    assert (best, list(evidence)) == (1, ["1"])
    assert "the only size this trace allows" in reason
    advice = recommend(tangle, model, machine, device="1GiB")
    assert advice.block_tokens == 1


def test_next_gib_is_the_slope_between_two_replays(trace: Trace, model: ModelSpec, machine: HardwareSpec) -> None:
    stack = Stack(40, 200, 1000)
    gains = next_gib(trace, model, machine, stack)
    block = model.block_bytes(int(trace.block_tokens or 0))
    sizes = {"device": 40, "host": 200, "disk": 1000}
    base = replay_tiers(trace, sizes, model=model, hardware=machine)
    for name, step in (("device", 2), ("host", 10), ("disk", 50)):
        grown = replay_tiers(trace, {**sizes, name: sizes[name] + step}, model=model, hardware=machine)
        gib = step * block / GIB
        hits = float(grown.total_hit_ratio - base.total_hit_ratio) / gib
        saved = float(base.ttft_mean - grown.ttft_mean) / gib
        assert gains[name]["hit_ratio_per_gib"] == pytest.approx(hits, rel=5e-3, abs=1e-12)
        assert gains[name]["ttft_saved_s_per_gib"] == pytest.approx(saved, rel=5e-3, abs=1e-12)
    assert gains["disk"]["hit_ratio_per_gib"] > 0


def test_next_gib_of_an_absent_tier_is_its_first_block(trace: Trace, model: ModelSpec, machine: HardwareSpec) -> None:
    gains = next_gib(trace, model, machine, Stack(0, 0, 0))
    block = model.block_bytes(int(trace.block_tokens or 0))
    alone = replay_tiers(trace, {"device": 1}, model=model, hardware=machine)
    assert gains["device"]["hit_ratio_per_gib"] == pytest.approx(float(alone.total_hit_ratio) / (block / GIB), rel=5e-3)


def test_next_gib_without_a_hit_more_is_zero(model: ModelSpec, machine: HardwareSpec) -> None:
    # Hits move between tiers as the device grows, and 1/49 + 2/49 + ... rounds with the way they are split.
    loop = small([list(range(7))] * 7, [56] * 7)
    for device in range(8):
        gain = next_gib(loop, model, machine, Stack(device, 7, 0))["device"]
        assert gain["hit_ratio_per_gib"] == 0.0


def test_next_gib_never_says_minus_zero(machine: HardwareSpec, model: ModelSpec) -> None:
    gains = next_gib(small([[0], [1]], [8, 8]), model, machine, Stack(1, 1, 1))
    values = [value for gain in gains.values() for value in gain.values()]
    assert values == [0.0] * 6
    assert [math.copysign(1, value) for value in values] == [1] * 6


@pytest.mark.parametrize(
    ("host", "disk", "chosen", "expected"),
    [
        (0, 0, "none", {}),
        (1, 0, "none", {"CPU_CACHE_GB": "1"}),
        (40 * GIB, 0, "none", {"CPU_CACHE_GB": "43"}),
        (43 * 10**9, 0, "none", {"CPU_CACHE_GB": "43"}),
        (0, 10**9 + 1, "all", {"DISK_CACHE_GB": "2", "DISABLE_DISK_OFFLOAD_FILTER": "true"}),
        (
            5 * 10**8,
            10**12,
            "frequency",
            {"CPU_CACHE_GB": "1", "DISK_CACHE_GB": "1000", "DISABLE_DISK_OFFLOAD_FILTER": "false"},
        ),
    ],
)
def test_kvbm_settings(host: int, disk: int, chosen: str, expected: dict[str, str]) -> None:
    settings = kvbm_settings({"device": 7, "host": host, "disk": disk}, chosen)
    assert settings == {f"DYN_KVBM_{name}": value for name, value in expected.items()}
