"""``replay`` against plain Python: one ordered dictionary, and each definition of "hit ratio" counted by hand."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import xarray as xr
from cache_strategies import BLOCK, requests, traces, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import REFERENCES

from dynalab.cache import DEFINITIONS, infinite_hit_ratios, replay
from dynalab.errors import ConfigError, TraceError
from dynalab.kv.policies import CLASSIC, KV_SPECIFIC, POLICIES
from dynalab.workload import Trace, synthesize

# Published for this trace, or measured by independent code on it.
CONVERSATION_INFINITE = {
    "hit_ratio": 0.3664,
    "full_block_hit_ratio": 0.3819,
    "token_hit_ratio": 0.3736,
    "request_hit_ratio": 0.4094,
}
CONVERSATION_LRU = {1_000: 0.0445, 5_859: 0.1355, 10_000: 0.2112, 30_000: 0.3257, 50_000: 0.3546}
FOUR_DIGITS = 5e-5


class Lru(OrderedDict):
    """The textbook: the last used at the end, the first goes."""

    def use(self, block: int, capacity: float) -> bool:
        found = block in self
        self[block] = True
        self.move_to_end(block)
        if len(self) > capacity:
            self.popitem(last=False)
        return found


def lru_flags(rows: list[list[int]], capacity: float, order: str = "forward") -> list[list[bool]]:
    cache = Lru()
    flags = []
    for row in rows:
        step = 1 if order == "forward" else -1
        flags.append([cache.use(block, capacity) for block in row[::step]][::step])
    return flags


def by_hand(trace: Trace, flags: list[list[bool]], *, full_only: bool = False) -> dict[str, float]:
    """Every definition, one request after the other, as its description says it."""
    found = blocks = prefix_found = full_found = full = reused_tokens = 0
    shares = []
    for row, tokens in zip(flags, trace.input_tokens.tolist(), strict=True):
        whole = tokens // BLOCK
        unbroken = row.index(False) if False in row else len(row)
        found += sum(row)
        blocks += len(row)
        prefix_found += unbroken
        full_found += sum(row[:whole])
        full += len(row[:whole])
        tokens_found = min(unbroken * BLOCK, tokens)
        reused_tokens += tokens_found
        shares.append(tokens_found / tokens)
    return {
        "hit_ratio": found / max(blocks, 1),
        "prefix_hit_ratio": prefix_found / max(blocks, 1),
        "full_block_hit_ratio": full_found / max(full, 1),
        "token_hit_ratio": reused_tokens / int(trace.input_tokens.sum()),
        "request_hit_ratio": sum(shares) / len(shares),
    }


def selected(trace: Trace, blocks: str) -> list[list[int]]:
    rows = requests(trace)
    if blocks == "all":
        return rows
    return [row[: tokens // BLOCK] for row, tokens in zip(rows, trace.input_tokens.tolist(), strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    trace=traces(),
    capacities=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    blocks=st.sampled_from(["all", "full"]),
    order=st.sampled_from(["forward", "leaf_first"]),
)
def test_lru_and_every_definition_by_hand(trace, capacities, blocks, order):
    ds = replay(trace, "lru", capacities, blocks=blocks, order=order, progress=False)
    rows = selected(trace, blocks)
    assert list(ds.capacity.values) == sorted(capacities)
    for capacity in capacities:
        expected = by_hand(trace, lru_flags(rows, capacity, order))
        for name in DEFINITIONS:
            got = float(ds[name].sel(policy="lru", capacity=capacity))
            assert got == pytest.approx(expected[name], abs=1e-12), (name, capacity)


@settings(max_examples=100, deadline=None)
@given(trace=traces(), blocks=st.sampled_from(["all", "full"]))
def test_infinite_cache_by_hand(trace, blocks):
    expected = by_hand(trace, lru_flags(selected(trace, blocks), float("inf")))
    assert infinite_hit_ratios(trace, blocks=blocks) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(trace=traces(), capacity=st.integers(1, 12), order=st.sampled_from(["forward", "leaf_first"]))
def test_every_policy_sees_the_accesses_in_order_with_its_facts(trace, capacity, order):
    """The policies have their own tests; this is about what replay feeds them: ids, positions, parents, future."""
    rows = requests(trace)
    step = 1 if order == "forward" else -1
    stream = [block for row in rows for block in row[::step]]
    position: dict[int, int] = {}
    parent: dict[int, int] = {}
    for row in rows:
        for i, block in enumerate(row):
            position.setdefault(block, i)
            parent.setdefault(block, row[i - 1] if i else -1)
    future = [stream.index(x, i + 1) if x in stream[i + 1 :] else -1 for i, x in enumerate(stream)]
    names = range(trace.n_blocks)
    facts = {"position": [position[x] for x in names], "parent": [parent[x] for x in names]}
    ds = replay(trace, "all", capacity, order=order, progress=False)
    assert list(ds.policy.values) == list(POLICIES)
    for name, reference in REFERENCES.items():
        cache = reference(capacity, priority=[0] * trace.n_blocks, **facts)
        outcomes = [cache.access(x, nxt) for x, nxt in zip(stream, future, strict=True)]
        cell = ds.sel(policy=name, capacity=capacity)
        assert float(cell.hit_ratio) * len(stream) == pytest.approx(sum(hit for hit, _ in outcomes)), name
        assert int(cell.evictions) == sum(victim >= 0 for _, victim in outcomes), name


@settings(max_examples=60, deadline=None)
@given(trace=trees(), capacities=st.lists(st.integers(1, 30), min_size=2, max_size=5, unique=True))
def test_laws_of_the_definitions(trace, capacities):
    ds = replay(trace, ["lru", "belady", "fifo"], capacities, progress=False)
    limit = infinite_hit_ratios(trace)
    for name in DEFINITIONS:
        assert (ds[name] >= 0).all()
        assert (ds[name] <= 1).all()
    # A prefix is a part of what was found, and no policy finds more than a cache without limit.
    assert (ds.prefix_hit_ratio <= ds.hit_ratio).all()
    assert (ds.hit_ratio <= limit["hit_ratio"] + 1e-12).all()
    assert (ds.token_hit_ratio <= limit["token_hit_ratio"] + 1e-12).all()
    for policy in ("lru", "belady"):
        assert (ds.hit_ratio.sel(policy=policy).diff("capacity") >= 0).all()
    assert (ds.hit_ratio.sel(policy="belady") >= ds.hit_ratio).all()
    # A cache that holds everything evicts nothing and reaches the limit.
    large = replay(trace, "all", trace.n_blocks, progress=False)
    offline_or_plain = ["lru", "fifo", "clock", "lfu", "belady", "lineage", "length_aware", "priority"]
    roomy = large.sel(policy=offline_or_plain)
    assert (roomy.evictions == 0).all()
    assert np.allclose(roomy.hit_ratio, limit["hit_ratio"], rtol=0, atol=1e-12)


def test_same_input_same_numbers_bit_for_bit():
    trace = synthesize("conversation", duration=200, seed=3)
    first, again = (replay(trace, "all", [50, 400], progress=False) for _ in range(2))
    xr.testing.assert_identical(first, again)
    # One policy alone, or in other company and order, gives the same numbers too.
    for name in POLICIES:
        alone = replay(trace, name, [400, 50, 400], progress=False)
        xr.testing.assert_identical(alone, first.sel(policy=[name]))


def test_groups_resolve_without_repeats():
    trace = synthesize("conversation", duration=30, seed=1)
    assert tuple(replay(trace, "classic", 10).policy.values) == CLASSIC
    assert tuple(replay(trace, ["kv", "lru", "kv"], 10).policy.values) == (*KV_SPECIFIC, "lru")
    assert list(replay(trace, ["arc", "ARC", "arc"], 10).policy.values) == ["arc"]


def test_whole_floats_are_capacities():
    trace = synthesize("conversation", duration=30, seed=1)
    assert replay(trace, "lru", np.array([1e1, 2e1])).capacity.values.tolist() == [10, 20]


def test_result_describes_itself():
    trace = synthesize("conversation", duration=30, seed=1)
    ds = replay(trace, "lru", [10])
    assert ds.hit_ratio.dims == ("policy", "capacity")
    assert {name: ds[name].attrs["description"] for name in DEFINITIONS} == DEFINITIONS
    assert all("units" in ds[name].attrs and "long_name" in ds[name].attrs for name in ds)
    assert ds.capacity.attrs["units"] == "blocks"
    assert ds.attrs["trace_sha256"] == trace.sha256
    assert ds.attrs["n_accesses"] == trace.n_accesses


# ---------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def small() -> Trace:
    return synthesize("conversation", duration=30, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": "lruu"}, r"policy: 'lruu' does not exist; did you mean 'lru'\? choose from .*sieve"),
        ({"policies": ["lru", "wtinylfo"]}, r"did you mean 'wtinylfu'\?"),
        ({"policies": []}, "policies: none given"),
        ({"capacities": 0}, "capacities: 0 blocks cannot hold anything; give at least 1"),
        ({"capacities": [100, -5]}, "capacities: -5 blocks cannot hold anything"),
        ({"capacities": [10.5]}, r"capacities: \[10.5\] are not whole numbers of blocks"),
        ({"capacities": float("nan")}, "not whole numbers"),
        ({"capacities": "40GiB"}, "capacities: .*40GiB.* not whole numbers of blocks"),
        ({"capacities": []}, "capacities: none given"),
        ({"order": "backward"}, "order: 'backward' does not exist; choose from forward, leaf_first"),
        ({"blocks": "half"}, "blocks: 'half' does not exist; choose from all, full"),
    ],
)
def test_bad_options_are_named_in_one_line(small, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        replay(small, **{"policies": "lru", "capacities": 10, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("capacity", [float("inf"), 1e300])
def test_capacity_beyond_any_integer_is_named_as_given(small, capacity):
    with pytest.raises(ConfigError, match=rf"capacities: .*{capacity}".replace("+", r"\+")):
        replay(small, "lru", [capacity])


@pytest.mark.parametrize("function", [lambda t: replay(t, "lru", 10), infinite_hit_ratios])
def test_a_trace_without_ids_is_refused_with_the_way_out(function):
    trace = Trace.from_columns([0.0, 1.0], [100, 200], [1, 1])
    with pytest.raises(TraceError, match=r"no block ids.*with_prefixes") as error:
        function(trace)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- known figures


def test_published_figures_of_the_conversation_trace(conversation):
    limit = infinite_hit_ratios(conversation)
    for name, figure in CONVERSATION_INFINITE.items():
        assert limit[name] == pytest.approx(figure, abs=FOUR_DIGITS), name
    ds = replay(conversation, "lru", list(CONVERSATION_LRU), progress=False)
    for capacity, figure in CONVERSATION_LRU.items():
        assert float(ds.hit_ratio.sel(policy="lru", capacity=capacity)) == pytest.approx(figure, abs=FOUR_DIGITS)


def test_full_blocks_evicted_leaf_first_on_the_conversation_trace(conversation):
    """The definition that comes closest to the published plot: .1470 at 3 million tokens."""
    ds = replay(conversation, "lineage", 5_859, blocks="full", progress=False)
    assert ds.hit_ratio.item() == pytest.approx(0.1470, abs=FOUR_DIGITS)


def test_conversation_lru_by_ordered_dictionary(conversation):
    flags = lru_flags(requests(conversation), 10_000)
    ds = replay(conversation, "lru", 10_000, progress=False)
    assert ds.hit_ratio.item() == sum(map(sum, flags)) / conversation.n_accesses
