"""A trace through ``replay_tiers(pinned=True)`` and through real memory: the same decisions, and the right bytes."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_bytes import BY_LAYER, LAYOUT
from stack_replay import Case, compare

from dynalab.cache import MODES, TIERS, Tier
from dynalab.kv.policies import POLICIES
from dynalab.testing.workloads import prompt
from dynalab.workload import Trace

ONLINE = [name for name, policy in POLICIES.items() if not policy.offline]
PATHS = ("staged", "direct")
LAYOUTS = ((LAYOUT, LAYOUT), (BY_LAYER, LAYOUT), (LAYOUT, BY_LAYER), (BY_LAYER, BY_LAYER))


def as_trace(rows: list[list[int]], gaps: list[float]) -> Trace:
    ids = [block for row in rows for block in row]
    return Trace.from_columns(np.cumsum(gaps), [8 * len(row) for row in rows], [1] * len(rows), ids, block_tokens=8)


def prompts(seed: int, n_requests: int, n_blocks: int) -> Trace:
    """Paths from the roots of a random forest, some far more often than others."""
    rng = np.random.default_rng(seed)
    before = np.arange(n_blocks) - rng.integers(1, 5, n_blocks)
    before[rng.random(n_blocks) < 0.15] = -1
    parent = tuple(np.maximum(before, -1).tolist())
    rows = [prompt(parent, int(leaf)) for leaf in rng.random(n_requests) ** 1.5 * n_blocks]
    return as_trace(rows, rng.choice([0.0, 1.0, 8.0], n_requests).tolist())


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Prompts that continue a part of an earlier one."""
    rows: list[list[int]] = []
    fresh = 0
    for number in range(draw(st.integers(1, 30))):
        shared: list[int] = []
        if number and draw(st.integers(0, 3)):
            earlier = rows[draw(st.integers(0, number - 1))]
            shared = earlier[: draw(st.integers(1, len(earlier)))]
        new = draw(st.integers(0 if shared else 1, 4))
        rows.append(shared + list(range(fresh, fresh + new)))
        fresh += new
    gaps = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0, 40.0]), min_size=len(rows), max_size=len(rows)))
    return as_trace(rows, gaps)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Stacks of any policies, filters and sizes; small ones, that requests fill with what they pin."""
    tiers = []
    for name, low, high in (("device", 1, 9), ("host", 0, 9), ("disk", 0, 14)):
        filters = [None] + ([] if name == "device" else ["all", "presence", "after", "frequency", "priority"])
        tiers.append(
            Tier(
                name,
                draw(st.integers(low, high)),
                policy=draw(st.sampled_from(ONLINE)),
                admission=draw(st.sampled_from(filters)),
                min_frequency=draw(st.integers(1, 3)),
                flush_interval=draw(st.sampled_from([5.0, 600.0])),
                max_entries=draw(st.sampled_from([3, 1_000])),
                min_priority=draw(st.integers(0, 3)),
            )
        )
    return Case(
        tiers,
        mode=draw(st.sampled_from(list(MODES))),
        disk_path=draw(st.sampled_from(PATHS)),
        touch=draw(st.sampled_from(["served", "all"])),
        admit_after=draw(st.integers(1, 3)),
        layouts=draw(st.sampled_from(LAYOUTS)),
    )


@settings(max_examples=60)
@given(trace=traces(), case=cases(), seed=st.integers(0, 9))
def test_any_stack_decides_as_the_replay_does(trace: Trace, case: Case, seed: int) -> None:
    priority = np.random.default_rng(seed).choice([0, 0, 1, 1, 3, 100], trace.n_blocks)
    with tempfile.TemporaryDirectory() as path:
        compare(trace, case, Path(path), priority=priority, every=5)


@pytest.mark.parametrize("policy", ONLINE)
def test_every_policy_in_every_mode(policy: str, tmp_path: Path) -> None:
    """Tiers that hold a part of the blocks, so that blocks go up and down all the time."""
    met: Counter[str] = Counter()
    for i, (mode, disk_path) in enumerate(product(MODES, PATHS)):
        trace = prompts(i, 90, 60)
        tiers = [Tier(name, blocks, policy) for name, blocks in zip(TIERS, (10, 12, 16), strict=True)]
        case = Case(tiers, mode=mode, disk_path=disk_path, layouts=LAYOUTS[i % 4])
        told, n_checked = compare(trace, case, tmp_path / f"{mode}-{disk_path}", every=15)
        assert n_checked > 100
        met += Counter({f"served by {k}": int((told.level == k).sum()) for k in range(4)})
        met += Counter({f"evicted from {k}": told.counts["evictions"][k] for k in range(3)})
    assert min(met.values()) >= 20, met
    assert len(met) == 7, met


FILTERS = {
    "frequency": {"flush_interval": 20.0, "max_entries": 12},
    "after": {"min_frequency": 3},
    "priority": {"min_priority": 1},
    "presence": {},
}


@pytest.mark.parametrize("admission", FILTERS)
def test_filters(admission: str, tmp_path: Path) -> None:
    """In front of host and disk; "frequency" by the trace's own time, "priority" stopping where a prefix would end."""
    rejected = 0
    for i, (mode, disk_path) in enumerate(product(MODES, PATHS)):
        trace = prompts(20 + i, 90, 60)
        ranks = np.random.default_rng(i).choice([0, 1, 1, 1, 50], trace.n_blocks)
        tiers = [
            Tier("device", 10, ONLINE[i]),
            Tier("host", 14, ONLINE[-1 - i], admission=admission if i % 3 else None, **FILTERS[admission]),
            Tier("disk", 18, ONLINE[2 * i], admission=admission, **FILTERS[admission]),
        ]
        case = Case(tiers, mode=mode, disk_path=disk_path)
        told, _ = compare(trace, case, tmp_path / str(i), priority=ranks, every=15)
        rejected += told.counts["rejections"][2]
    assert rejected > 50 or admission == "presence"


@pytest.mark.parametrize(("missing", "blocks"), [("host", (8, 0, 20)), ("disk", (8, 20, 0)), ("both", (9, 0, 0))])
def test_stacks_without_a_tier(missing: str, blocks: tuple[int, ...], tmp_path: Path) -> None:
    for i, (mode, disk_path) in enumerate(product(MODES, PATHS)):
        tiers = [Tier(name, count, ONLINE[3 * i % len(ONLINE)]) for name, count in zip(TIERS, blocks, strict=True)]
        compare(prompts(40 + i, 60, 50), Case(tiers, mode=mode, disk_path=disk_path), tmp_path / str(i))


def test_requests_larger_than_the_device_are_refused_alike(tmp_path: Path) -> None:
    refused = 0
    for i, mode in enumerate(MODES):
        tiers = [Tier("device", 4), Tier("host", 9), Tier("disk", 12)]
        told, _ = compare(prompts(60 + i, 80, 40), Case(tiers, mode=mode, touch="all"), tmp_path / mode)
        refused += told.refused
    assert refused > 20


MOONCAKE = [
    ("lru", "write_through", "staged"),
    ("lru", "selective", "direct"),
    ("s3fifo", "write_back", "direct"),
    ("lineage", "write_through", "staged"),
    ("wtinylfu", "selective", "staged"),
    ("wtinylfu", "write_through", "staged"),
]


@pytest.mark.parametrize(("policy", "mode", "disk_path"), MOONCAKE)
def test_a_public_trace(policy: str, mode: str, disk_path: str, conversation: Trace, tmp_path: Path) -> None:
    """The first 1,500 conversations that Mooncake published, every block of them."""
    trace = conversation.head(1_500)
    tiers = [Tier(name, blocks, policy) for name, blocks in zip(TIERS, (1_000, 2_000, 5_000), strict=True)]
    told, n_checked = compare(trace, Case(tiers, mode=mode, disk_path=disk_path), tmp_path, every=250)
    assert n_checked > 10_000
    assert all((told.level == k).any() for k in range(4))
