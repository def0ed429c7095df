"""Synthetic workloads: consistent blocks, kept promises, and the twin of the Mooncake conversation trace."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.workload import Trace
from dynalab.workload.synth import PRESETS, LogNormals, WorkloadSpec, synthesize
from dynalab.workload.synth.blocks import build_blocks
from dynalab.workload.synth.lengths import alongside, spread, zipf_pick
from dynalab.workload.synth.sessions import draw_turn_counts, draw_turns

PLAIN = [name for name, spec in PRESETS.items() if not spec.mixture]


def lru_hit_ratio(ids: list[int], capacity: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in ids:
        if block in held:
            hits += 1
            held.move_to_end(block)
        else:
            if len(held) >= capacity:
                held.popitem(last=False)
            held[block] = None
    return hits / len(ids)


def infinite_hit_ratio(trace: Trace) -> float:
    return 1 - trace.n_blocks / trace.n_accesses


def hit_blocks(trace: Trace) -> np.ndarray:
    """Per request, how many of its blocks an infinite cache holds."""
    first = np.zeros(trace.n_accesses, bool)
    first[np.unique(trace.block_ids, return_index=True)[1]] = True
    return np.diff(trace.offsets) - np.add.reduceat(first, trace.offsets[:-1])


# ---------------------------------------------------------------- blocks


def check_prefixes(trace: Trace) -> None:
    parent: dict[int, int] = {}
    seen: set[int] = set()
    assert np.array_equal(np.diff(trace.offsets), -(-trace.input_tokens // trace.block_tokens))
    for r in range(trace.n_requests):
        ids = trace.block_ids[trace.offsets[r] : trace.offsets[r + 1]].tolist()
        for before, block in pairwise([-1, *ids]):
            assert parent.setdefault(block, before) == before  # one parent, hence one position
        known = [block for block in ids if block in seen]
        assert known == ids[: len(known)]  # what is known is a prefix
        seen.update(ids)


@settings(deadline=None, max_examples=40)
@given(
    preset=st.sampled_from(list(PRESETS)),
    seed=st.integers(0, 2**32),
    block_tokens=st.sampled_from([16, 128, 512, 1000, 4096]),
    duration=st.floats(1, 40),
    stratified=st.booleans(),
)
def test_ids_have_one_parent_and_known_blocks_come_first(preset, seed, block_tokens, duration, stratified):
    check_prefixes(synthesize(preset, duration, 3.0, seed, block_tokens=block_tokens, stratified=stratified))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    edits=st.floats(0, 0.5),
    retries=st.floats(0, 0.5),
    turns=st.floats(1, 12),
    gap=st.floats(0, 50),
    documents=st.integers(0, 3),
    systems=st.integers(0, 3),
)
def test_edits_retries_and_documents_keep_prefixes_consistent(seed, edits, retries, turns, gap, documents, systems):
    trace = synthesize(
        "conversation",
        60,
        2.0,
        seed,
        block_tokens=32,
        system_prompts=systems,
        system_tokens=(80, 0.5),
        documents=documents,
        document_tokens=(100, 1.0),
        first_tokens=(50, 1.0),
        next_tokens=(30, 1.0),
        output_tokens=(20, 1.0),
        gap_seconds=gap,
        turns=turns,
        edit_probability=edits,
        edit_above=0,
        retry_probability=retries,
    )
    check_prefixes(trace)


def turns_of(**fields) -> tuple[WorkloadSpec, object, np.ndarray, np.ndarray]:
    """Requests in session order with their block ids."""
    spec = PRESETS["conversation"].override(**fields)
    times = np.linspace(0, spec.duration, 3000, endpoint=False)
    turns = draw_turns(spec, times, 3000, np.random.default_rng(7))
    ids, offsets = build_blocks(turns, np.arange(len(turns)), spec.block_tokens)
    return spec, turns, ids, offsets


def test_a_turn_shares_all_full_blocks_of_the_turn_before_and_nothing_else():
    _, turns, ids, offsets = turns_of(edit_probability=0, retry_probability=0, system_prompts=0, block_tokens=64)
    later = np.flatnonzero(~turns.first)
    assert later.size > 1000
    # Prompt, answer, and at least three new tokens (the least that `next_tokens` allows).
    assert (turns.input_tokens[later] >= turns.input_tokens[later - 1] + turns.output_tokens[later - 1] + 3).all()
    for row in later.tolist():
        before, now = ids[offsets[row - 1] : offsets[row]], ids[offsets[row] : offsets[row + 1]]
        full = int(turns.input_tokens[row - 1]) // 64
        assert np.array_equal(now[:full], before[:full])
        assert not np.isin(now[full:], ids[: offsets[row]]).any()


def test_a_retry_repeats_the_prompt_with_its_partial_block():
    _, turns, ids, offsets = turns_of(edit_probability=0, retry_probability=1)
    later = np.flatnonzero(~turns.first)
    assert later.size > 1000
    for row in later.tolist():
        assert np.array_equal(ids[offsets[row - 1] : offsets[row]], ids[offsets[row] : offsets[row + 1]])


def test_an_edit_keeps_a_beginning_and_replaces_the_rest():
    _, turns, ids, offsets = turns_of(
        edit_probability=1, retry_probability=0, edit_above=0, edit_keep=(2, 2), block_tokens=64
    )
    later = np.flatnonzero(~turns.first)
    full = turns.input_tokens[later - 1] // 64 - 880 // 64
    kept = turns.shared[later] - 880 // 64
    assert (kept >= 0).all()
    assert (kept <= full).all()
    long = full > 40
    assert np.mean(kept[long] / full[long]) == pytest.approx(0.5, abs=0.05)  # mean of Beta(2, 2), rounded down
    for row in later.tolist():
        assert not np.isin(ids[offsets[row] + turns.shared[row] : offsets[row + 1]], ids[: offsets[row]]).any()


def test_the_context_window_is_never_exceeded():
    trace = synthesize("agent", "20m", context_tokens=30_000, system_tokens=9000)
    assert (trace.input_tokens + trace.output_tokens).max() <= 30_000
    assert trace.input_tokens.max() > 25_000


def test_one_system_prompt_is_shared_by_all_and_several_by_popularity():
    trace = synthesize("shared_prompt", 600, 10.0, system_prompts=1, system_tokens=1100, turns=1)
    assert (trace.block_ids[trace.offsets[:-1]] == 0).all()
    assert trace.n_blocks == 2 + (np.diff(trace.offsets) - 2).sum()  # two full blocks are shared, the third is not
    trace = synthesize("shared_prompt", 600, 50.0, system_prompts=3, system_tokens=1100, system_zipf=1.0)
    uses = np.unique(trace.block_ids[trace.offsets[:-1]], return_counts=True)[1]
    assert sorted(uses / trace.n_requests) == pytest.approx([2 / 11, 3 / 11, 6 / 11], abs=0.01)


def test_documents_are_shared_between_sessions_but_not_with_each_other():
    trace = synthesize(
        "document", 600, 5.0, turns=1, documents=4, document_tokens=5000, system_tokens=512, document_zipf=0.0
    )
    full = (512 + 5000) // 512
    ids = np.stack([trace.block_ids[o : o + full] for o in trace.offsets[:-1].tolist()])
    assert len(np.unique(ids[:, 0])) == 1
    assert [len(np.unique(ids[:, j])) for j in range(1, full)] == [4] * (full - 1)
    assert trace.n_blocks == 1 + 4 * (full - 1) + (np.diff(trace.offsets) - full).sum()


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize("preset", list(PRESETS))
def test_repeats_bit_for_bit(preset):
    trace = synthesize(preset, "5m", seed=11)
    again = synthesize(preset, 300.0, seed=11)
    assert trace.equals(again)
    assert trace.sha256 == again.sha256
    assert len(trace.sha256) == 64
    assert trace.sha256 != synthesize(preset, "5m", seed=12).sha256


def test_attrs_are_enough_to_make_it_again():
    trace = synthesize("agent", "2m", seed=5, turns=4, arrivals="poisson")
    assert trace.source == "synthetic: agent, 120 s at 4 requests/s, poisson, seed 5"
    assert trace.attrs["preset"] == "agent"
    parameters = {k: v for k, v in trace.attrs["parameters"].items() if k != "name"}
    assert synthesize(trace.attrs["preset"], seed=trace.attrs["seed"], **parameters).equals(trace)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_rate_and_duration_are_kept(preset):
    traces = [synthesize(preset, 900, 5.0, seed, arrivals="poisson") for seed in range(4)]
    n = sum(t.n_requests for t in traces)
    assert abs(n - 4 * 4500) < 4 * np.sqrt(4 * 4500)
    assert all(890 < t.duration < 900 for t in traces)


def test_load_is_stationary():
    """Neither the first nor the last minutes have fewer or shorter prompts: sessions run on through both ends."""
    traces = [synthesize("conversation", seed=seed) for seed in range(8)]
    part = np.concatenate([np.minimum((t.arrival * 6 / 3537).astype(int), 5) for t in traces])
    tokens = np.concatenate([t.input_tokens for t in traces])
    means = np.array([tokens[part == i].mean() for i in range(6)])
    spread_of_mean = np.array([tokens[part == i].std() / np.sqrt((part == i).sum()) for i in range(6)])
    assert (np.abs(means - tokens.mean()) < 5 * spread_of_mean).all()


def test_nothing_is_shared_without_system_prompt_and_with_one_turn():
    for preset in PLAIN:
        trace = synthesize(preset, "5m", system_prompts=0, documents=0, turns=1)
        assert trace.n_blocks == trace.n_accesses


def test_more_turns_share_more():
    found = [infinite_hit_ratio(synthesize("conversation", system_prompts=0, turns=m)) for m in (1, 1.3, 2, 4, 8)]
    assert found[0] == 0
    assert all(b > a + 0.05 for a, b in pairwise(found))


def test_more_time_between_turns_leaves_less_for_a_small_cache():
    found = [
        lru_hit_ratio(synthesize("conversation", "20m", gap_seconds=gap).block_ids.tolist(), 5000)
        for gap in (10, 100, 400)
    ]
    assert found[0] > found[1] + 0.05 > found[2] + 0.1


def test_finer_blocks_share_more_tokens():
    """The same prompts (no edits, which keep whole blocks): finer blocks lose less to the partial last one."""
    traces = [synthesize("conversation", "10m", block_tokens=b, edit_probability=0) for b in (1024, 256, 64)]
    assert all(np.array_equal(t.input_tokens, traces[0].input_tokens) for t in traces)
    found = [np.minimum(hit_blocks(t) * t.block_tokens, t.input_tokens).sum() for t in traces]
    assert found[0] * 1.02 < found[1] < found[2]


def test_a_mixture_has_its_shares():
    trace = synthesize("mixed", 600, 20.0, mixture={"document": 3, "agent": 1}, arrivals="constant")
    # All documents are read with one system prompt, agents have four others.
    uses = np.unique(trace.block_ids[trace.offsets[:-1]], return_counts=True)[1]
    assert uses.size == 5
    assert uses.max() == 9000
    check_prefixes(trace)


def test_short_traces_of_a_preset_are_short_windows_of_long_ones():
    """Ten seconds of a busy service show little reuse, but prompts as long as ever."""
    short = [synthesize("conversation", 10, 50.0, seed) for seed in range(20)]
    long = synthesize("conversation", seed=1)
    assert np.concatenate([t.input_tokens for t in short]).mean() == pytest.approx(long.input_tokens.mean(), rel=0.08)
    assert max(infinite_hit_ratio(t) for t in short) < 0.1


# ---------------------------------------------------------------- distributions


def test_lognormal_parts_have_their_medians_and_weights():
    model = LogNormals(parts=((3.0, 10.0, 0.1), (1.0, 1000.0, 0.1)))
    drawn = model.sample(spread(np.random.default_rng(0), 100_000))
    assert np.mean(drawn < 100) == pytest.approx(0.75, abs=1e-4)
    assert np.median(drawn[drawn < 100]) == pytest.approx(10, rel=0.01)
    assert np.log(drawn[drawn > 100]).std() == pytest.approx(0.1, rel=0.02)
    assert drawn.max() <= model.largest


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1e5), st.floats(0, 5), st.floats(0, 100), st.floats(0, 1e4))
def test_draws_stay_in_range(u, median, sigma, low, more):
    model = LogNormals(parts=((1.0, median, sigma),), low=low, high=low + more)
    value = float(model.sample(np.array([u]))[0])
    assert low <= value <= min(low + more, model.largest) + 1e-9


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_stratified_draws_take_one_of_every_slice(n):
    u = spread(np.random.default_rng(n), n)
    assert sorted((u * n).astype(int).tolist()) == list(range(n))


def test_points_alongside_are_even_for_keys_of_every_size():
    rng = np.random.default_rng(0)
    key = rng.random(10_000)
    points = alongside(rng, key, 3)
    assert points.shape == (3, 10_000)
    for low in np.arange(0, 1, 0.05):
        near = points[:, (key >= low) & (key < low + 0.05)]
        # 500 independent points would stray by 0.04 or so.
        for u in near:
            assert np.abs(np.sort(u) - (np.arange(u.size) + 0.5) / u.size).max() < 0.02
    assert not np.array_equal(points, alongside(rng, key, 3))


@pytest.mark.parametrize("mean", [1.0, 1.8, 6.0])
@pytest.mark.parametrize("tail", [3.0, 8.0, 500.0])
def test_turn_counts_have_the_wanted_mean_and_tail(mean, tail):
    spec = WorkloadSpec(name="test", turns=mean, turns_tail=tail, max_turns=10_000)
    turns = draw_turn_counts(spec, (np.arange(200_000) + 0.5) / 200_000)
    assert turns.min() == 1
    assert turns.mean() == pytest.approx(mean, rel=0.02)
    b = (mean - 1) * (tail - 1)
    two, three = np.count_nonzero(turns > 1), np.count_nonzero(turns > 2)
    assert two / turns.size == pytest.approx(b / (tail + b), abs=1e-4)
    assert three == pytest.approx(two * (b + 1) / (tail + b + 1), abs=2)


def test_turn_counts_respect_their_limit():
    spec = WorkloadSpec(name="test", turns=20, turns_tail=2, max_turns=9)
    turns = draw_turn_counts(spec, np.linspace(0, 1 - 1e-12, 1000))
    assert turns.max() == 9
    one = WorkloadSpec(name="test", turns=20, max_turns=1)
    assert (draw_turn_counts(one, np.linspace(0, 0.999, 10)) == 1).all()


def test_zipf_picks_in_proportion():
    picks = zipf_pick((np.arange(60_000) + 0.5) / 60_000, 3, 1.0)
    assert np.bincount(picks) / 60_000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=1e-4)


def test_independent_draws_have_the_same_distribution():
    even = synthesize("conversation", 3537, 20.0, seed=3)
    free = synthesize("conversation", 3537, 20.0, seed=3, stratified=False)
    for column in ("input_tokens", "output_tokens"):
        a, b = getattr(even, column), getattr(free, column)
        assert b.mean() == pytest.approx(a.mean(), abs=6 * b.std() / np.sqrt(b.size))
        assert np.percentile(b, [10, 50, 90]) == pytest.approx(np.percentile(a, [10, 50, 90]), rel=0.05)
    assert infinite_hit_ratio(free) == pytest.approx(infinite_hit_ratio(even), abs=0.02)


# ---------------------------------------------------------------- the twin


@pytest.mark.parametrize("seed", [0, 1, 2, 17, 2026])
def test_conversation_is_a_twin_of_the_mooncake_trace(seed):
    """Published facts of the real trace, whose 12,031 requests span 3,537 s."""
    trace = synthesize("conversation", seed=seed)
    assert trace.n_requests == pytest.approx(12_031, rel=0.06)
    assert trace.input_tokens.mean() == pytest.approx(12_035, rel=0.05)
    assert trace.output_tokens.mean() == pytest.approx(343, rel=0.05)
    assert np.percentile(trace.input_tokens, [50, 90, 99]) == pytest.approx([6909, 27_367, 85_401], rel=0.1)
    assert infinite_hit_ratio(trace) == pytest.approx(0.3664, abs=0.02)
    ids = trace.block_ids.tolist()
    for capacity, ratio in ((1000, 0.0445), (5859, 0.1355), (10_000, 0.2112), (30_000, 0.3257), (50_000, 0.3546)):
        assert lru_hit_ratio(ids, capacity) == pytest.approx(ratio, abs=0.025), capacity


def test_other_policies_see_similar_reuse():
    """Published hit ratios of the real trace at 5,859, 10,000 and 30,000 blocks, and the orders that they show."""
    from dynalab.cache import replay

    real = {
        "fifo": (0.1270, 0.1865, 0.3021),
        "lru": (0.1355, 0.2112, 0.3257),
        "lfu": (0.0966, 0.1318, 0.2759),
        "arc": (0.1436, 0.2225, 0.3108),
        "s3fifo": (0.1575, 0.1925, 0.2549),
        "lirs": (0.1603, 0.1946, 0.2451),
        "belady": (0.3531, 0.3664, 0.3664),
    }
    capacities = [5859, 10_000, 30_000]
    runs = [replay(synthesize(seed=seed), list(real), capacities).hit_ratio for seed in range(3)]
    for policy, wanted in real.items():
        found = np.mean([run.sel(policy=policy).values for run in runs], axis=0)
        assert found == pytest.approx(wanted, abs=0.025), policy
    for run in runs:
        small, large = run.sel(capacity=5859), run.sel(capacity=30_000)
        assert small.sel(policy="s3fifo") > small.sel(policy="lru") > small.sel(policy="lfu")
        assert large.sel(policy="lru") > large.sel(policy="fifo") > large.sel(policy="s3fifo") + 0.03


def test_conversation_twin_beside_the_real_trace(conversation):
    """Structure beyond the published figures: where the hits lie, and how often blocks come again."""
    twin = synthesize("conversation", seed=1)

    def facts(trace: Trace) -> dict[str, float]:
        hits, counts = hit_blocks(trace), np.diff(trace.offsets)
        uses = np.bincount(trace.block_ids)
        full = np.minimum(hits, trace.input_tokens // 512).sum() / (trace.input_tokens // 512).sum()
        return {
            "hit ratio, mean over requests": float((hits / counts).mean()),
            "hit ratio of full blocks": float(full),
            "requests that only share block 0": float(np.mean(hits <= 1)),
            "requests with over 90% hits": float(np.mean(hits > 0.9 * counts)),
            "blocks used twice or more": float(np.mean(uses >= 2)),
            "blocks used four times or more": float(np.mean(uses >= 4)),
        }

    real, ours = facts(conversation), facts(twin)
    bounds = dict.fromkeys(real, 0.03) | {"requests with over 90% hits": 0.06, "requests that only share block 0": 0.06}
    for name, value in real.items():
        assert ours[name] == pytest.approx(value, abs=bounds[name]), name
    quantiles = [5, 10, 25, 50, 75, 90, 95, 99]
    for column, bound in (("input_tokens", 0.1), ("output_tokens", 0.25)):
        found = np.percentile(getattr(twin, column), quantiles)
        assert found == pytest.approx(np.percentile(getattr(conversation, column), quantiles), rel=bound), column


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"preset": "conversatoin"}, "preset: 'conversatoin' does not exist; did you mean conversation?"),
        ({"preset": 3}, "preset: 3 does not exist; choose one of conversation, shared_prompt"),
        ({"arrivals": "poison"}, "arrivals: 'poison' .* did you mean poisson?"),
        ({"arrivals": "uniform"}, "arrivals: 'uniform' .* choose one of poisson, gamma, sinusoidal, bursty, constant"),
        ({"rate": -1}, "rate: -1 cannot be used: input should be greater than 0"),
        ({"rate": 0}, "rate: 0 cannot be used"),
        ({"rate": float("nan")}, "rate: nan cannot be used"),
        ({"rate": "fast"}, "rate: 'fast' cannot be used"),
        ({"duration": 0}, "duration: 0.0 cannot be used: input should be greater than 0"),
        ({"duration": -5}, "duration: -5 is negative"),
        ({"duration": "1 fortnight"}, "duration: '1 fortnight' is not a duration; write"),
        ({"duration": "1000h", "rate": 1e5}, "rate 100000 requests/s .* choose both so that it is 1 to 20,000,000"),
        ({"duration": 0.001}, "makes about 0.0034 requests; choose both"),
        ({"block_tokens": 1, "rate": 50}, "touch .* blocks of 1 tokens, more than 400,000,000; choose a lower rate"),
        ({"block_tokens": 0}, "block_tokens: 0 cannot be used"),
        ({"turnz": 3}, "turnz: no such workload parameter; did you mean turns"),
        ({"name": "mine"}, "name: no such workload parameter"),
        ({"turns": 0.5}, "turns: 0.5 cannot be used: input should be greater than or equal to 1"),
        ({"first_tokens": "long"}, "first_tokens: 'long' cannot be used: .* give a number, a pair"),
        ({"first_tokens": {"parts": ((1, -5, 1),)}}, "first_tokens.parts.0.1: -5 cannot be used"),
        ({"first_tokens": {"parts": ((1, 9, 1),), "low": 5, "high": 2}}, r"low \(5\) lies above high \(2\)"),
        ({"gap_seconds": -1}, "gap_seconds.* -1 cannot be used"),
        ({"edit_probability": 0.9, "retry_probability": 0.2}, "add up to more than 1; lower one of them"),
        ({"edit_keep": (0, 1)}, "edit_keep .* must be above 0"),
        ({"context_tokens": 500}, "context_tokens: 500 cannot hold a system prompt of 880 tokens"),
        ({"seed": -1}, "seed: -1 cannot be used; give a whole number from 0 up"),
        ({"seed": 1.5}, "seed: 1.5 cannot be used"),
        ({"preset": "mixed", "turns": 3}, "turns: 3 would change nothing, .* Trace.merge"),
        ({"preset": "mixed", "mixture": {"agnt": 1}}, "mixture: 'agnt' cannot be a part; did you mean agent?"),
        ({"preset": "mixed", "mixture": {"mixed": 1}}, "mixture: 'mixed' cannot be a part"),
        ({"preset": "mixed", "mixture": {"agent": 0}}, "every share must be above 0"),
        ({"preset": "mixed", "mixture": {}}, "mixture: {} is empty; give shares"),
        ({"mixture": {"agent": 1}}, "mixture: preset 'conversation' has sessions of its own; use preset 'mixed'"),
    ],
)
def test_bad_input_names_field_value_and_cure(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        synthesize(**call)
    assert "\n" not in str(error.value)


def test_a_specification_of_ones_own_and_shorthands():
    own = {"first_tokens": 300, "next_tokens": (50, 0.5), "output_tokens": 10, "turns": 1, "system_prompts": 0}
    trace = synthesize(PRESETS["agent"].override(**own), 60)
    assert set(trace.input_tokens.tolist()) == {300}
    assert set(trace.output_tokens.tolist()) == {10}
    assert PRESETS["agent"].turns == 15.0  # presets are frozen: overriding makes a copy
