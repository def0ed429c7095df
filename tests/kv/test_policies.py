"""Every policy passes the conformance suite and agrees, decision by decision, with its plain-Python reference."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from reference import REFERENCES, mix64, xxh64

from dynalab.errors import ConfigError
from dynalab.kv.policies import POLICIES, PolicyState
from dynalab.testing import PolicyTests
from dynalab.testing.workloads import ACCESS, REMOVE, Run, forest, long_run, prompt, runs

# Policies whose ranking of blocks does not depend on the capacity.
STACK_ALGORITHMS = {"lru", "priority", "belady"}

for _name in POLICIES:
    _body = {"policy": _name, "inclusion": _name in STACK_ALGORITHMS, "__doc__": POLICIES[_name].summary}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (PolicyTests,), _body)


def test_there_is_a_reference_for_every_policy():
    assert set(REFERENCES) == set(POLICIES)


def agree(name: str, run: Run) -> tuple[int, int]:
    """Drive kernel and reference side by side; return (hits, evictions)."""
    kernel = PolicyState(name, run.capacity, run.n_blocks, **run.facts)
    plain = REFERENCES[name](run.capacity, **run.facts)
    hits = evictions = 0
    for i, ((op, block), next_use) in enumerate(zip(run.steps, run.next_uses(), strict=True)):
        if op == ACCESS:
            expected = plain.access(block, next_use)
            assert kernel.access(block, next_use) == expected, f"{name} at capacity {run.capacity}: step {i}"
            hits += expected[0]
            evictions += expected[1] >= 0
        else:
            plain.remove(block)
            kernel.remove(block)
        assert kernel.size == plain.size
    assert list(kernel.resident()) == plain.resident()
    return hits, evictions


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=40, deadline=None)
@given(run=runs())
def test_agrees_step_by_step_with_the_reference(name, run):
    agree(name, run)


def small_run(seed: int) -> Run:
    """A few blocks in a small cache, where corner cases are common; every other run removes blocks as well."""
    rng = np.random.default_rng(seed)
    n_blocks, capacity = int(rng.integers(2, 60)), int(rng.integers(1, 16))
    facts = forest(rng, n_blocks)
    steps: list[tuple[int, int]] = []
    while len(steps) < 400:
        block, kind = int(rng.integers(n_blocks)), rng.random()
        if kind < 0.2:
            steps += [(ACCESS, (block + i) % n_blocks) for i in range(int(rng.integers(1, 20)))]
        elif kind < 0.6:
            steps += [(ACCESS, int(x)) for x in rng.random(8) ** 3 * n_blocks]
        elif kind < 0.8:
            steps += [(ACCESS, x) for x in prompt(facts["parent"], block)]
        elif seed % 2:
            steps += [(REMOVE, int(x)) for x in rng.integers(0, n_blocks, 3)]
    return Run(capacity, n_blocks, tuple(steps), **facts)


@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_over_many_small_runs(name):
    for seed in range(200):
        agree(name, small_run(seed))


def test_arc_full_of_new_blocks_keeps_its_ghosts():
    """Removals can fill T1 while B1 is not empty, which the paper excludes: then T1's LRU leaves without a trace."""
    steps = [(ACCESS, 0), (ACCESS, 1), (ACCESS, 0), (ACCESS, 2), (REMOVE, 0), (ACCESS, 3), (ACCESS, 4), (ACCESS, 1)]
    run = Run(2, 6, tuple(steps), **forest(np.random.default_rng(0), 6))
    agree("arc", run)
    cache = PolicyState("arc", 2, 6)
    for op, block in steps:
        cache.access(block) if op == ACCESS else cache.remove(block)
    # The ghost of 1 was hit, so the target of T1 is one block, 4 is safe there, and 1 in T2 has to go.
    assert cache.access(5) == (False, 1)


@pytest.mark.parametrize("removals", [0.0, 0.05])
@pytest.mark.parametrize("capacity", [7, 50, 333])
@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_over_a_long_zipf_run(name, capacity, removals):
    rng = np.random.default_rng([capacity, int(100 * removals)])
    n_blocks = 10 * capacity
    weights = np.arange(1, n_blocks + 1) ** -0.9
    # The reference searches all residents for a victim where the rule is a minimum: shorter runs for larger caches.
    length = 20_000 if name not in {"priority", "lineage", "length_aware"} or capacity < 333 else 4_000
    accesses = rng.choice(n_blocks, length, p=weights / weights.sum())
    hits, evictions = agree(name, long_run(accesses, capacity, n_blocks, rng, removals))
    assert hits > length // 10
    assert evictions > capacity


@settings(max_examples=40, deadline=None)
@given(run=runs(removals=False, max_capacity=20))
def test_nobody_beats_belady(run):
    bound = agree("belady", run)[0]
    for name in REFERENCES:
        cache = PolicyState(name, run.capacity, run.n_blocks, **run.facts)
        hits = sum(
            cache.access(block, next_use)[0] for (_, block), next_use in zip(run.steps, run.next_uses(), strict=True)
        )
        assert hits <= bound, name


@settings(max_examples=40, deadline=None)
@given(run=runs())
def test_lineage_never_orphans_a_resident_child(run):
    cache = PolicyState("lineage", run.capacity, run.n_blocks, **run.facts)
    for op, block in run.steps:
        if op != ACCESS:
            cache.remove(block)
            continue
        before = set(cache.resident())
        _, victim = cache.access(block)
        if victim >= 0:
            assert not {x for x in before if run.parent[x] == victim}


@settings(max_examples=40, deadline=None)
@given(run=runs())
def test_priority_gives_up_the_lowest_first(run):
    cache = PolicyState("priority", run.capacity, run.n_blocks, **run.facts)
    rank = np.clip(run.priority, 0, 100)
    for op, block in run.steps:
        if op != ACCESS:
            cache.remove(block)
            continue
        before = cache.resident()
        _, victim = cache.access(block)
        if victim >= 0:
            assert rank[victim] == rank[before].min()


def test_facts_default_to_roots_of_no_priority():
    """Without facts, priority order is LRU, every block is a leaf, and length-aware is LFU by last use."""
    rng = np.random.default_rng(3)
    accesses = rng.integers(0, 60, 2_000).tolist()
    for name in ("priority", "lineage"):
        cache, lru = PolicyState(name, 20, 60), PolicyState("lru", 20, 60)
        assert [cache.access(x) for x in accesses] == [lru.access(x) for x in accesses]
    flat = REFERENCES["length_aware"](20, position=[0] * 60)
    cache = PolicyState("length_aware", 20, 60)
    assert [cache.access(x) for x in accesses] == [flat.access(x) for x in accesses]


@pytest.mark.parametrize("name", REFERENCES)
def test_works_at_every_small_capacity(name):
    """Segments of one block or none are where truncation bites."""
    rng = np.random.default_rng(11)
    facts = forest(rng, 120)
    accesses = (rng.random(1_500) ** 2 * 120).astype(int).tolist()
    for capacity in (*range(1, 14), 19, 20, 21, 99, 100, 101):
        agree(name, Run(capacity, 120, tuple((ACCESS, x) for x in accesses), **facts))


def test_hashes_are_the_published_ones():
    from dynalab.kv.policies import _hash

    # As they are used: in compiled code, where products wrap around.
    mix = numba.njit(lambda x, seed: _hash.mix64(x, seed))
    xxh = numba.njit(lambda x, seed: _hash.xxh64(x, seed))
    assert xxh64(1, 0) == 11468921228449061269  # from the xxhash package 4.1.0
    for x in (0, 1, 7, 123_456, 2**31 - 2):
        for seed in (0, 1, 4, 0x12345678):
            assert int(mix(x, seed)) == mix64(x, seed)
            assert int(xxh(x, seed)) == xxh64(x, seed)


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_cache_without_room_is_refused(capacity):
    with pytest.raises(ConfigError, match=f"capacity: {capacity} blocks"):
        PolicyState("lru", capacity, 10)


def test_an_unknown_policy_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match=r"'s3-fifo' does not exist; did you mean 's3fifo'\?"):
        PolicyState("s3-fifo", 3, 10)
