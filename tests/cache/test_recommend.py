"""Choices on tables made by hand, decisions against direct replays, and properties of whole recommendations."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from cache_strategies import BLOCK, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.cache import DEPLOYABLE, Recommendation, Tier, recommend, replay_tiers
from dynalab.cache._advice import (
    best_block_tokens,
    best_policy,
    choose,
    front,
    harmful,
    kvbm_settings,
    next_gib,
    with_better_policies,
)
from dynalab.cache._reasons import _serves
from dynalab.cache.sizing import Stack, evaluate, stack_at
from dynalab.errors import ConfigError, TraceError
from dynalab.kv.policies import POLICIES
from dynalab.workload import HardwareSpec, ModelSpec, Trace, hardware_spec, model_spec, synthesize

GIB = 2**30
DECISIONS = {"device", "host", "disk", "policy", "block_tokens", "disk_filter", "disks", "settings"}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthesize("conversation", duration=120, seed=1)


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return model_spec("llama-3-8b")


@pytest.fixture(scope="module")
def machine() -> HardwareSpec:
    return hardware_spec("h100-sxm")


def ask(trace: Trace, **wish: Any) -> Recommendation:
    options = {"device": "2GiB", "host": "60GiB", "disk": "400GB", **wish}
    return recommend(trace, options.pop("model", "llama-3-8b"), **options)


# ---------------------------------------------------------------- choosing from a table


def table(*rows: tuple[float, float, int, int, float, float]) -> xr.Dataset:
    """Candidates of (hit ratio, cost, host, disk, TTFT, TB per day)."""
    names = ("hit_ratio", "cost", "host_blocks", "disk_blocks", "ttft_mean", "disk_tb_per_day")
    data = {name: ("stack", np.array(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return xr.Dataset(data | {"policy": ("stack", np.array(["lru"] * len(rows)))})


#: Neither sorted nor on one line: the knee over cost is row 3.
TABLE = table(
    (0.10, 0, 0, 0, 1.0, 0),
    (0.42, 5000, 20, 40, 0.7, 9),
    (0.20, 400, 10, 0, 0.9, 0),
    (0.35, 900, 0, 20, 0.8, 5),
    (0.30, 1000, 20, 0, 0.85, 0),
    (0.40, 3000, 10, 40, 0.7, 9),
)


@pytest.mark.parametrize(
    ("target", "row", "met"),
    [
        (0.05, 0, True),
        (0.2, 2, True),
        (0.21, 3, True),
        (0.35, 3, True),
        (0.36, 5, True),
        (0.42, 1, True),
        (0.5, 1, False),
    ],
)
def test_target_takes_the_cheapest_that_reaches_it(target: float, row: int, met: bool) -> None:
    assert choose(TABLE, target, 0.0) == (row, f"a hit ratio of at least {target:g}", met)


@pytest.mark.parametrize(
    ("budget", "row"), [(1, 0), (399.99, 0), (400, 2), (899, 2), (900, 3), (2999, 3), (3000, 5), (1e9, 1)]
)
def test_budget_takes_the_most_hits_that_it_pays_for(budget: float, row: int) -> None:
    index, wish, met = choose(TABLE, 0.0, budget)
    assert (index, met) == (row, True)
    assert wish.endswith(" US$")


def test_budget_below_everything_takes_the_cheapest() -> None:
    rows = table((0.3, 500, 5, 0, 1.0, 0), (0.2, 400, 2, 0, 1.0, 0))
    index, wish, met = choose(rows, 0.0, 100)
    assert (index, wish, met) == (1, "the highest hit ratio for at most 100 US$", False)


def test_knee_of_a_table() -> None:
    assert front(TABLE) == [0, 2, 3, 5, 1]
    assert choose(TABLE, 0.0, 0.0) == (3, "the knee of hit ratio over cost", True)


def test_knee_ignores_gains_within_the_noise() -> None:
    # Two expensive rows that gain next to nothing would stretch the axis of cost and move the knee.
    rows = table((0.1, 0, 0, 0, 1, 0), (0.3, 100, 1, 0, 1, 0), (0.4, 1000, 2, 0, 1, 0), (0.4005, 1e6, 3, 0, 1, 0))
    assert front(rows) == [0, 1, 2, 3]
    assert front(rows, 0.002) == [0, 1, 2]
    assert choose(rows, 0.0, 0.0)[0] == 1


def test_no_gain_costs_nothing() -> None:
    rows = table((0.1, 0, 0, 0, 1, 0), (0.1, 100, 1, 0, 1, 0), (0.101, 1e6, 0, 5, 1, 1))
    assert choose(rows, 0.0, 0.0) == (0, "the knee of hit ratio over cost", True)


def test_rising_returns_have_no_knee() -> None:
    rows = table((0.1, 0, 0, 0, 1, 0), (0.15, 1000, 1, 0, 1, 0), (0.2, 2000, 2, 0, 1, 0), (0.6, 3000, 3, 0, 1, 0))
    assert choose(rows, 0.0, 0.0) == (3, "the knee of hit ratio over cost", False)


def test_a_single_step_is_taken() -> None:
    assert choose(table((0.1, 0, 0, 0, 1, 0), (0.2, 10, 1, 0, 1, 0)), 0.0, 0.0)[::2] == (1, True)


HARM = table(
    (0.10, 0, 0, 0, 1.0, 0),  # nothing
    (0.20, 100, 10, 0, 1.1, 0),  # host slower than computing
    (0.30, 200, 0, 40, 1.2, 1),  # disk slower than computing
    (0.40, 300, 10, 40, 0.9, 1),  # both together pay
    (0.50, 400, 20, 0, 0.8, 0),  # a larger host pays
    (0.60, 500, 20, 40, 0.85, 1),  # but not with the disk
)


def test_tiers_that_slow_down_are_harmful() -> None:
    assert harmful(HARM).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("target", "budget"), [(0.15, 0), (0.3, 0), (0.55, 0), (0.9, 0), (0, 150), (0, 250), (0, 1e6), (0, 0)]
)
def test_harmful_ones_are_never_chosen(target: float, budget: float) -> None:
    assert not harmful(HARM)[choose(HARM, target, budget)[0]]


def test_ties_go_to_the_cheaper_then_the_less_worn_then_the_first() -> None:
    rows = table(
        (0.1, 0, 0, 0, 1, 0),
        (0.5, 200, 4, 0, 1, 0),
        (0.5, 100, 0, 9, 1, 7),
        (0.5, 100, 0, 8, 1, 3),
        (0.5, 100, 0, 7, 1, 3),
    )
    assert [choose(rows, *wish)[0] for wish in ((0.5, 0), (0.9, 0), (0, 150), (0, 1000), (0, 0))] == [3] * 5


@st.composite
def tables(draw: st.DrawFn) -> xr.Dataset:
    number = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9])
    row = st.tuples(number, st.integers(0, 9), st.integers(0, 2), st.integers(0, 2), number, st.integers(0, 3))
    return table((draw(number), 0, 0, 0, draw(number), 0), *draw(st.lists(row, max_size=12)))


@given(tables(), st.lists(st.integers(1, 10), min_size=2, max_size=2))
def test_more_budget_never_brings_fewer_hits(rows: xr.Dataset, budgets: list[int]) -> None:
    less, more = (rows.isel(stack=choose(rows, 0.0, budget)[0]) for budget in sorted(budgets))
    assert float(less.hit_ratio) <= float(more.hit_ratio)
    assert float(more.cost) <= max(budgets)


@given(tables(), st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.4, 0.8]), min_size=2, max_size=2))
def test_a_higher_target_never_costs_less(rows: xr.Dataset, targets: list[float]) -> None:
    (low, _, _), (high, _, met) = (choose(rows, target, 0.0) for target in sorted(targets))
    if met:
        assert float(rows.cost[low]) <= float(rows.cost[high])
        assert float(rows.hit_ratio[high]) >= max(targets)


@given(tables())
def test_the_knee_is_on_the_front(rows: xr.Dataset) -> None:
    points = front(rows)
    assert choose(rows, 0.0, 0.0)[0] in points
    assert (np.diff(rows.cost.values[points]) > 0).all()
    assert (np.diff(rows.hit_ratio.values[points]) > 0).all()


# ---------------------------------------------------------------- policy, block size, next GiB, settings


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


def scan_and_hot() -> Trace:
    """One hot block between long scans: LRU loses it, a policy that counts uses does not."""
    rows = [[0] if index % 2 or index < 4 else list(range(10 * index, 10 * index + 8)) for index in range(60)]
    ids = [block for row in rows for block in row]
    return Trace.from_columns(range(60), [4 * len(row) for row in rows], [1] * 60, ids, block_tokens=4)


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


def test_recommendation_with_another_policy_is_priced_with_it() -> None:
    advice = recommend(scan_and_hot(), "llama-3-8b", device=6 * 4 * 131_072, host=0, disk=0, policies=["lru", "lfu"])
    assert (advice.policy, advice.evidence["hit_ratio"] > 0.1) == ("lfu", True)


def test_policies_are_checked(trace: Trace) -> None:
    with pytest.raises(ConfigError, match=r"belady.*needs the future"):
        ask(trace, policies=["lru", "belady"])
    with pytest.raises(ConfigError, match="lruu"):
        ask(trace, policies=["lruu"])
    with pytest.raises(ConfigError, match=r"policies: none given"):
        ask(trace, policies=[])


def test_one_policy_by_name(trace: Trace) -> None:
    advice = ask(trace, policies="fifo")
    assert advice.policy == "fifo"
    assert set(advice.candidates.policy.values) == {"fifo"}
    assert list(advice.evidence["policies"]["deployable"]) == ["fifo"]


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


def small(rows: list[list[int]], tokens: list[int], block: int = BLOCK) -> Trace:
    ids = [block_id for row in rows for block_id in row]
    return Trace.from_columns(range(len(rows)), tokens, [1] * len(rows), ids, block_tokens=block)


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


def test_full_blocks_keep_their_size(trace: Trace) -> None:
    full = trace.full_blocks()
    advice = ask(full)
    assert list(advice.evidence["block_tokens"]) == [str(full.block_tokens)]


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


# ---------------------------------------------------------------- whole recommendations


def check(advice: Recommendation, trace: Trace, model: ModelSpec, limits: dict[str, int]) -> None:
    """What holds for every recommendation."""
    block = model.block_bytes(int(trace.block_tokens or 0))
    assert list(advice.sizes) == list(advice.blocks) == ["device", "host", "disk"]
    for name, size in advice.sizes.items():
        assert size == advice.blocks[name] * block <= limits[name]
        assert advice.blocks[name] <= trace.n_blocks
    assert set(advice.reasons) == DECISIONS
    assert all(text and "\n" not in text and "nan" not in text.split() for text in advice.reasons.values())
    assert (advice.disks > 0) == (advice.sizes["disk"] > 0) == (advice.disk_filter != "none")
    assert advice.policy in DEPLOYABLE
    assert advice.settings == kvbm_settings(advice.sizes, advice.disk_filter)
    tiers = [
        Tier(name, count, advice.policy, "frequency" if (name, advice.disk_filter) == ("disk", "frequency") else "all")
        for name, count in advice.blocks.items()
    ]
    machine = hardware_spec("h100-sxm").fitted(model, limits["device"])
    direct = replay_tiers(trace, tiers, model=model, hardware=machine)
    evidence = advice.evidence
    assert evidence["gpus"] == machine.gpus
    for name, value in (
        ("hit_ratio", direct.total_hit_ratio),
        ("token_hit_ratio", direct.token_hit_ratio),
        ("ttft_mean_s", direct.ttft_mean),
        ("ttft_recomputed_mean_s", direct.ttft_recomputed_mean),
        ("disk_tb_per_day", direct.disk_tb_per_day),
    ):
        assert evidence[name] == pytest.approx(float(value), rel=1e-3, abs=1e-12), name
    for name, ratio in evidence["hit_ratio_by_tier"].items():
        assert ratio == pytest.approx(float(direct.hit_ratio.sel(tier=name)), rel=1e-3)
    assert evidence["hit_ratio"] <= evidence["infinite_hit_ratio"] * (1 + 1e-3)
    assert evidence["ttft_mean_s"] <= evidence["ttft_recomputed_mean_s"]
    priced = evaluate(trace, model, machine, [Stack(*advice.blocks.values(), advice.policy, _admission(advice))])
    assert (advice.disks, advice.cost) == (int(priced.disks[0]), float(priced.cost[0]))
    assert evidence["disks_because"] == str(priced.disks_because.values[0])
    assert plain(advice.to_dict())
    assert yaml.safe_load(advice.to_yaml()) == advice.to_dict()


def _admission(advice: Recommendation) -> str:
    return "frequency" if advice.disk_filter == "frequency" else "all"


def plain(value: Any) -> bool:
    """No numpy anywhere: exactly the types that YAML has."""
    if type(value) is dict:
        return all(type(key) is str and plain(inner) for key, inner in value.items())
    if type(value) is list:
        return all(plain(inner) for inner in value)
    return type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


LIMITS = {"device": 2 * GIB, "host": 60 * GIB, "disk": 400 * 10**9}
WISHES: list[dict[str, float]] = [
    {},
    {"target_hit_ratio": 0.05},
    {"target_hit_ratio": 0.9},
    {"budget": 1.0},
    {"budget": 300.0},
    {"budget": 1e6},
]


@pytest.mark.parametrize(
    ("hits", "saved", "expected"),
    [
        (0.002, 0.0, "one more GiB would add 0.2 percentage points"),
        (0.0, 0.001, "one more GiB would save 1 ms of the mean TTFT"),
        (0.002, 0.001, "one more GiB would add 0.2 percentage points and save 1 ms of the mean TTFT"),
        (-0.002, -0.001, "one more GiB would bring nothing"),
        (0.0, 0.0, "one more GiB would bring nothing"),
    ],
)
def test_words_for_the_next_gib(hits: float, saved: float, expected: str) -> None:
    gain = {"hit_ratio_per_gib": hits, "ttft_saved_s_per_gib": saved}
    text = _serves({"next_gib": {"host": gain}, "hit_ratio_by_tier": {"host": 0.123}}, "host")
    assert text == f"serves 12.3% of all blocks; {expected}"


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_wishes(trace: Trace, model: ModelSpec, wish: dict[str, float]) -> None:
    advice = ask(trace, **wish)
    check(advice, trace, model, LIMITS)
    best = float(advice.candidates.hit_ratio.max())
    if "target_hit_ratio" in wish:
        assert advice.evidence["wish_met"] == (wish["target_hit_ratio"] < best)
        assert any("not reached" in text for text in advice.warnings) == (not advice.evidence["wish_met"])
    if "budget" in wish:
        assert advice.cost <= wish["budget"]
    if wish == {"budget": 1.0}:
        assert advice.settings == {}
        assert advice.reasons["settings"].startswith("none")
        assert all(advice.reasons[name].startswith("left out: with it") for name in ("host", "disk"))
    if wish == {"budget": 1e6}:
        assert advice.evidence["hit_ratio"] == pytest.approx(best, abs=0.01)


def test_same_question_same_text(trace: Trace) -> None:
    assert ask(trace).to_yaml() == ask(trace).to_yaml()


def test_more_budget_and_higher_targets(trace: Trace) -> None:
    hits = [ask(trace, budget=budget).evidence["hit_ratio"] for budget in (1, 50, 120, 300, 900, 2000, 1e5)]
    assert hits == sorted(hits)
    assert hits[0] < hits[-1]
    reach = hits[-1]
    costs = [ask(trace, target_hit_ratio=share * reach).cost for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@pytest.mark.parametrize(
    "given_sizes",
    [
        {"host": 0},
        {"disk": 0},
        {"host": 0, "disk": 0},
        {"device": 0},
        {"device": 0, "host": 0},
        {"device": 0, "disk": 0},
    ],
    ids=str,
)
def test_tiers_that_are_not_allowed(trace: Trace, model: ModelSpec, given_sizes: dict[str, int]) -> None:
    advice = ask(trace, target_hit_ratio=1.0, **given_sizes)
    check(advice, trace, model, LIMITS | given_sizes)
    for name in given_sizes:
        assert advice.sizes[name] == 0
        assert advice.reasons[name] in ("none was given", "none was allowed")
    if "disk" in given_sizes:
        assert (advice.reasons["disks"], advice.reasons["disk_filter"]) == (
            "no disk tier",
            "no disk tier to filter for",
        )
    elif "host" in given_sizes:
        assert advice.disk_filter == "all"
        assert "does nothing without one" in advice.reasons["disk_filter"]


def test_without_limits_everything_fits(trace: Trace, model: ModelSpec) -> None:
    advice = recommend(trace, model, device="2GiB", target_hit_ratio=0.001)
    whole = trace.n_blocks * model.block_bytes(int(trace.block_tokens or 0))
    check(advice, trace, model, {"device": 2 * GIB, "host": whole, "disk": whole})
    assert int(advice.candidates.host_blocks.max()) == int(advice.candidates.disk_blocks.max()) == trace.n_blocks


def one_request() -> Trace:
    return small([[0, 1, 2]], [20])


def identical() -> Trace:
    return small([[0, 1, 2]] * 8, [20] * 8)


def nothing_shared() -> Trace:
    return small([[3 * n, 3 * n + 1, 3 * n + 2] for n in range(8)], [20] * 8)


def at_once() -> Trace:
    return Trace.from_columns([0] * 8, [20] * 8, [1] * 8, [0, 1, 2] * 8, block_tokens=BLOCK)


@pytest.mark.parametrize("wish", WISHES[:5], ids=str)
@pytest.mark.parametrize("device", [0, BLOCK * 131_072, 10 * BLOCK * 131_072])
@pytest.mark.parametrize("make", [one_request, identical, nothing_shared, at_once])
def test_tiny_traces(make: Any, device: int, wish: dict[str, float], model: ModelSpec) -> None:
    trace = make()
    limits = {"device": device, "host": GIB, "disk": GIB}
    advice = recommend(trace, model, **limits, **wish)
    check(advice, trace, model, limits)
    if make in (one_request, nothing_shared):
        assert advice.evidence["infinite_hit_ratio"] == 0
        assert advice.cost == 0
        assert (advice.sizes["host"], advice.sizes["disk"]) == (0, 0)


@settings(max_examples=15, deadline=None)
@given(
    trees(),
    st.integers(0, 6),
    st.integers(0, 12),
    st.integers(0, 20),
    st.sampled_from([{}, {"target_hit_ratio": 0.2}, {"budget": 0.5}, {"budget": 5000.0}]),
)
def test_any_trace(trace: Trace, device: int, host: int, disk: int, wish: dict[str, float]) -> None:
    model = model_spec("llama-3-8b")
    block = model.block_bytes(int(trace.block_tokens or 0))
    limits = {"device": device * block, "host": host * block, "disk": disk * block}
    if not device + host + disk:
        with pytest.raises(ConfigError, match="all are 0"):
            recommend(trace, model, **limits, **wish)
        return
    check(recommend(trace, model, **limits, **wish), trace, model, limits)


def test_infinities_are_words(trace: Trace) -> None:
    # Links so slow that loading never beats computing: neither tier may be chosen, however many hits it has.
    crawl = hardware_spec("h100-sxm", h2d="1MB/s", disk_to_host="1MB/s")
    advice = ask(trace, hardware=crawl, target_hit_ratio=0.3)
    assert advice.evidence["break_even_tokens"] == {"host": "never", "disk": "never"}
    assert advice.sizes["host"] == advice.sizes["disk"] == 0
    assert advice.reasons["host"].startswith("left out: the best combination with it")
    assert yaml.safe_load(advice.to_yaml())["evidence"]["break_even_tokens"]["host"] == "never"


def test_a_tier_that_only_slows_is_left_out_for_that() -> None:
    crawl = hardware_spec("h100-sxm", h2d="1MB/s", disk_to_host="1MB/s")
    advice = recommend(small([[0]] * 8, [8] * 8), "llama-3-8b", crawl, device=0)
    assert advice.blocks == {"device": 0, "host": 0, "disk": 0}
    for name in ("host", "disk"):
        assert "makes the mean TTFT longer" in advice.reasons[name]
    assert advice.reasons["policy"] == "no tier is recommended that would need one"
    assert advice.evidence["ttft_mean_s"] == advice.evidence["ttft_recomputed_mean_s"]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"device": "1MiB"}, "device: 1 MiB does not hold a block of 64 MiB \\(512 tokens of llama-3-8b\\)"),
        ({"host": "1MiB"}, "host: 1 MiB does not hold a block of 64 MiB"),
        ({"disk": 1}, "disk: 1 B does not hold a block of 64 MiB"),
        ({"device": 0, "host": 0, "disk": 0}, "all are 0; give one of them at least a block of 64 MiB"),
        ({"device": "much"}, "device: 'much' is not a size"),
        ({"host": -1}, "host: -1 is negative"),
        ({"disk": float("nan")}, "disk: nan is not a size"),
        ({"target_hit_ratio": 1.01}, "target_hit_ratio: 1.01"),
        ({"target_hit_ratio": -0.1}, "target_hit_ratio: -0.1"),
        ({"target_hit_ratio": float("nan")}, "target_hit_ratio: nan"),
        ({"target_hit_ratio": "high"}, "target_hit_ratio: 'high' is not a number"),
        ({"budget": -1}, "budget: -1"),
        ({"budget": float("nan")}, "budget: nan"),
        ({"budget": float("inf")}, "budget: inf"),
        ({"budget": "10k"}, "budget: '10k' is not a number"),
        ({"budget": True}, "budget: True is not a number"),
        ({"budget": 100, "target_hit_ratio": 0.5}, "target_hit_ratio and budget: give one"),
        ({"model": "llama-99"}, "llama-99"),
        ({"hardware": "abacus"}, "abacus"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_questions(trace: Trace, wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ask(trace, **wish)
    assert "\n" not in str(caught.value)


def test_traces_without_blocks() -> None:
    with pytest.raises(TraceError, match="with_prefixes"):
        recommend(Trace.from_columns([0, 1], [5, 6], [1, 1]), "llama-3-8b", device="1GiB")
    with pytest.raises(TraceError, match="no block at all"):
        recommend(small([[0]], [5]).full_blocks(), "llama-3-8b", device="1GiB")


def test_html_is_escaped(trace: Trace) -> None:
    advice = ask(trace)
    page = advice._repr_html_()
    assert page.count("<tr>") == 8
    hostile = Recommendation(**{**vars(advice), "policy": "<script>", "reasons": {"policy": "a < b & c"}})
    shown = hostile._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a &lt; b &amp; c" in shown


def test_a_host_tier_that_only_feeds_the_filter_says_so(conversation: Trace) -> None:
    model = model_spec("llama-3-70b")
    limits = {"device": 40 * GIB, "host": 512 * GIB, "disk": 4 * 10**12}
    begin = time.perf_counter()
    advice = recommend(conversation, model, device="40GiB", host="512GiB", disk="4TB")
    assert time.perf_counter() - begin < 15
    check(advice, conversation, model, limits)
    assert advice.disk_filter == "frequency"
    assert advice.evidence["hit_ratio_by_tier"]["host"] < 0.001
    assert "KVBM's disk filter only works behind a host tier" in advice.reasons["host"]
    assert any("serves next to no block" in text for text in advice.warnings)
    assert advice.evidence["disks_because"] == "endurance"
    assert any("wears out disks" in text for text in advice.warnings)
    # The same sizes without the filter are named in its reason: more hits for many more disks.
    other = advice.candidates.where(
        (advice.candidates.disk_filter == "all")
        & (advice.candidates.host_blocks == advice.blocks["host"])
        & (advice.candidates.disk_blocks == advice.blocks["disk"]),
        drop=True,
    )
    assert (
        f"{float(other.hit_ratio[0]):.1%} of blocks served and {float(other.cost[0]):,.0f} US$"
        in advice.reasons["disk_filter"]
    )
