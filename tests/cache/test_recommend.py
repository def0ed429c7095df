"""Properties of whole recommendations, each held against a direct replay of what it recommends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from advice_cases import ask, scan_and_hot, small
from cache_strategies import BLOCK, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.cache import DEPLOYABLE, Recommendation, Tier, recommend, replay_tiers
from dynalab.cache._advice import (
    kvbm_settings,
)
from dynalab.cache._reasons import _serves
from dynalab.cache.sizing import Stack, evaluate
from dynalab.errors import ConfigError, TraceError
from dynalab.workload import ModelSpec, Trace, hardware_spec, model_spec

GIB = 2**30
DECISIONS = {"device", "host", "disk", "policy", "block_tokens", "disk_filter", "disks", "settings"}


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
    advice = recommend(conversation, model, device="40GiB", host="512GiB", disk="4TB")
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


def test_full_blocks_keep_their_size(trace: Trace) -> None:
    full = trace.full_blocks()
    advice = ask(full)
    assert list(advice.evidence["block_tokens"]) == [str(full.block_tokens)]
