"""Laws of a tier stack that hold whatever the numbers, and figures that others measured."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from cache_strategies import traces, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiers import ONLINE, stacks

from dynalab.cache import Tier, lru_curve, replay, replay_tiers
from dynalab.workload import Trace, synthesize

CALL = ("mode", "admit_after", "match", "touch", "disk_path", "interleaved")
TEXTBOOK = {"match": "any", "touch": "all", "interleaved": True}


def replayed(trace: Trace, options: dict, **more: object) -> xr.Dataset:
    return replay_tiers(trace, options["tiers"], **{name: options[name] for name in CALL}, **more)


@pytest.fixture(scope="module")
def twin() -> Trace:
    return synthesize("conversation", duration=600, seed=11)


# ---------------------------------------------------------------------------- nothing from nothing


def numbers(ds: xr.Dataset) -> bytes:
    return b"".join(name.encode() + np.ascontiguousarray(ds[name]).tobytes() for name in ds.variables)


@settings(max_examples=80, deadline=None)
@given(trace=traces(), options=stacks(), empty=st.sets(st.sampled_from([0, 1, 2]), min_size=1), data=st.data())
def test_tiers_without_capacity_change_nothing(trace, options, empty, data):
    """Byte for byte, whatever policy and filter they would have had."""
    kept = [tier for k, tier in enumerate(options["tiers"]) if k not in empty]
    idle = [
        Tier(
            options["tiers"][k].name,
            0,
            policy=data.draw(st.sampled_from(ONLINE)),
            admission=data.draw(st.sampled_from(["frequency", "priority", "after"])),
        )
        for k in empty
    ]
    more = {"model": "llama-3-8b", "per_request": True, "priority": np.arange(trace.n_blocks) % 5}
    without = replayed(trace, options | {"tiers": kept}, **more)
    with_idle = replayed(trace, options | {"tiers": [*idle, *kept]}, **more)
    assert numbers(without) == numbers(with_idle)


def test_no_tiers_at_all_compute_everything(twin):
    ds = replay_tiers(twin, {}, model="llama-3-8b", per_request=True)
    assert int(ds.hits.sum()) == int(ds.moved_blocks.sum()) == int(ds.resident.sum()) == 0
    assert float(ds.total_hit_ratio) == float(ds.token_hit_ratio) == float(ds.disk_dwpd) == 0
    assert np.array_equal(ds.ttft, ds.ttft_recomputed)
    assert float(ds.requests_slowed) == 0
    assert np.isinf(ds.disk_years)


# ---------------------------------------------------------------------------- conservation


@settings(max_examples=150, deadline=None)
@given(trace=traces(), options=stacks())
def test_blocks_are_conserved_on_every_edge(trace, options):
    ds = replayed(trace, options, priority=np.arange(trace.n_blocks) % 5)
    hits, moved = ds.hits.to_series(), ds.moved_blocks.to_series()
    inserted, evicted, resident = (ds[name].to_series() for name in ("insertions", "evictions", "resident"))
    # Each block served below the device is brought up once.
    assert moved.host_to_device + moved.disk_to_device == hits.host + hits.disk
    assert moved.disk_to_host + moved.disk_to_device == hits.disk
    # The disk gets no block but over an edge; the host may keep what is staged through it.
    assert moved.host_to_disk + moved.device_to_disk == inserted.disk
    assert moved.device_to_host <= inserted.host <= moved.device_to_host + moved.disk_to_host
    capacity = ds.capacity_blocks.to_series()
    assert (resident <= capacity).all()
    assert (resident >= 0).all()
    if options["mode"] != "write_back":
        assert (inserted - evicted == resident).all()
        # What the device did not serve enters it; the same block may be looked up twice before it does.
        assert capacity.device == 0 or inserted.device <= trace.n_accesses - hits.device
    assert (inserted - evicted >= resident).all()
    assert float(ds.total_hit_ratio) == pytest.approx(hits.sum() / trace.n_accesses)


@settings(max_examples=60, deadline=None)
@given(trace=trees(max_requests=15), options=stacks())
def test_blocks_are_conserved_at_every_step(trace, options):
    """The replay of the first k requests is the state after k steps: no step makes or loses a block."""
    held = {"device": 0, "host": 0, "disk": 0}
    for k in range(1, len(trace) + 1):
        head = trace.head(k)
        ds = replayed(head, options, priority=np.arange(head.n_blocks) % 5)
        new = int(ds.resident.sum()) - sum(held.values())
        computed = head.n_accesses - int(ds.hits.sum())
        held = dict(zip(ds.tier.values.tolist(), ds.resident.values.tolist(), strict=True))
        assert all(held[name] <= int(ds.capacity_blocks.sel(tier=name)) for name in held)
        blocks_of_step = int(np.diff(head.offsets)[-1])
        # A step adds at most one copy of each of its blocks to each tier.
        assert new <= 3 * blocks_of_step
        if options["mode"] == "write_back":
            assert sum(held.values()) <= min(head.n_blocks, computed)


# ---------------------------------------------------------------------------- one tier is one cache


@settings(max_examples=100, deadline=None)
@given(trace=traces(), capacity=st.integers(1, 20), policy=st.sampled_from(ONLINE))
def test_one_device_tier_is_a_single_cache(trace, capacity, policy):
    one = replay(trace, policy, capacity, progress=False).squeeze()
    ds = replay_tiers(trace, [Tier("device", capacity, policy)], match="any", interleaved=True)
    assert float(ds.hit_ratio.sel(tier="device")) == float(one.hit_ratio) == float(ds.total_hit_ratio)
    assert int(ds.evictions.sel(tier="device")) == int(one.evictions)
    prefix = replay_tiers(trace, [Tier("device", capacity, policy)], match="prefix", interleaved=True, touch="all")
    assert float(prefix.total_hit_ratio) == float(one.prefix_hit_ratio)


# ---------------------------------------------------------------------------- LRU includes


def check_inclusion(trace: Trace, capacities: list[int], **more: object) -> None:
    """Tiers that all see every use hold the LRU caches of their sizes, one within the other."""
    tiers = dict(zip(("device", "host", "disk"), capacities, strict=True))
    ds = replay_tiers(trace, tiers, **TEXTBOOK, **more)
    largest = np.maximum.accumulate(capacities)
    curve = lru_curve(trace, largest)
    hits = np.cumsum(ds.hits.values)
    expected = [float(curve.hit_ratio.sel(capacity=c)) * trace.n_accesses if c else 0.0 for c in largest]
    assert hits == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    trace=traces(),
    capacities=st.lists(st.integers(1, 25), min_size=3, max_size=3),
    disk_path=st.sampled_from(["staged", "direct"]),
)
def test_hits_down_to_a_tier_are_those_of_one_lru_of_the_largest(trace, capacities, disk_path):
    check_inclusion(trace, capacities, disk_path=disk_path)


def test_inclusion_on_the_conversation_trace(conversation):
    check_inclusion(conversation, [2_000, 10_000, 50_000])
    check_inclusion(conversation, [2_000, 30_000, 10_000], disk_path="direct")


@settings(max_examples=80, deadline=None)
@given(
    trace=trees(max_requests=40),
    device=st.integers(0, 6),
    host=st.lists(st.integers(0, 25), min_size=2, max_size=5, unique=True),
    match=st.sampled_from(["any", "prefix"]),
)
def test_more_host_never_lowers_lru_hits(trace, device, host, match):
    totals = [
        float(replay_tiers(trace, {"device": device, "host": h}, **TEXTBOOK | {"match": match}).total_hit_ratio)
        for h in sorted(host)
    ]
    assert totals == sorted(totals)


@pytest.mark.parametrize("mode", ["write_through", "write_back"])
def test_a_tier_below_adds_hits_on_a_real_workload(twin, mode):
    totals = [
        float(replay_tiers(twin, tiers, mode=mode).total_hit_ratio)
        for tiers in (
            {"device": 500},
            {"device": 500, "host": 3_000},
            {"device": 500, "host": 3_000, "disk": 20_000},
        )
    ]
    assert totals[0] + 0.02 < totals[1] < totals[2] - 0.02


def test_exclusive_tiers_hold_more_than_inclusive_ones(twin):
    """Two tiers of equal size hold every block twice when inclusive, so that the second is of no use."""
    tiers = {"device": 2_000, "host": 2_000}
    inclusive, exclusive = (
        replay_tiers(twin, tiers, mode=mode, **TEXTBOOK) for mode in ("write_through", "write_back")
    )
    assert int(inclusive.hits.sel(tier="host")) == 0
    one = float(lru_curve(twin, 4_000).hit_ratio.item())
    # Victims of the upper tier enter the lower one at its most recent end: together they are one LRU.
    assert float(exclusive.total_hit_ratio) == pytest.approx(one, abs=1e-12)


# ---------------------------------------------------------------------------- published figures

# disk blocks, admit after k uses: hits of device, host and disk, writes to disk, drive writes per day
WEAR = [
    (100_000, 1, (0.0537, 0.1575, 0.1525), 183_576, 39.2),
    (100_000, 2, (0.0537, 0.1575, 0.0761), 44_144, 9.4),
    (100_000, 3, (0.0537, 0.1575, 0.0454), 18_689, 4.0),
    (30_000, 1, (0.0537, 0.1575, 0.1145), 194_533, 41.5),
    (30_000, 2, (0.0537, 0.1575, 0.0760), 44_185, 9.4),
]


@pytest.mark.parametrize(("disk", "admit_after", "hits", "writes", "dwpd"), WEAR)
def test_wear_of_the_conversation_trace(conversation, disk, admit_after, hits, writes, dwpd):
    ds = replay_tiers(
        conversation,
        [Tier("device", 2_000), Tier("host", 10_000, admission="all"), Tier("disk", disk)],
        mode="selective",
        admit_after=admit_after,
        model="llama-3-8b",
        **TEXTBOOK,
    )
    assert ds.hit_ratio.values == pytest.approx(hits, abs=5e-5)
    assert float(ds.moved_blocks.sel(edge="host_to_disk")) == writes
    assert float(ds.moved_bytes.sel(edge="host_to_disk")) == writes * 512 * 131_072
    assert float(ds.disk_dwpd) == pytest.approx(dwpd, abs=0.05)
