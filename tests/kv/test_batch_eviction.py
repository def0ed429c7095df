"""Room made before anything enters, as a block manager makes it: every policy against its plain-Python reference.

A cache evicts one block and enters one. A block manager evicts for a whole request first, in nobody's name, so that the
policies pass through states that their papers do not know; a victim that is in use is removed and comes back as new.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import REFERENCES, Reference

from dynalab.kv.policies import POLICIES, PolicyState
from dynalab.testing.workloads import ACCESS, Run, long_run, runs

ONLINE = [name for name, policy in POLICIES.items() if not policy.offline]


class Pair:
    """A compiled policy and its reference, driven together."""

    def __init__(self, name: str, run: Run) -> None:
        run = run.with_a_stranger()
        self.nobody = run.n_blocks - 1
        self.kernel = PolicyState(name, run.capacity, run.n_blocks, **run.facts)
        self.plain: Reference = REFERENCES[name](run.capacity, **run.facts)
        self.victims: list[int] = []
        self.set_aside = 0

    def use(self, block: int) -> None:
        self.kernel.hit(block)
        self.plain.hit(block)

    def enter(self, block: int) -> None:
        assert self.plain.size < self.plain.capacity
        self.kernel.insert(block)
        self.plain.insert(block)

    def forget(self, block: int) -> None:
        self.kernel.remove(block)
        self.plain.remove(block)

    def evict(self, count: int, incoming: int, pinned: set[int]) -> None:
        """Make room for `count` blocks without losing one that is pinned."""
        aside: list[int] = []
        while count > 0:
            victim = self.kernel.evict(incoming)
            assert victim == self.plain.evict(incoming)
            self.victims.append(victim)
            count -= victim not in pinned
            if victim in pinned:
                self.forget(victim)
                aside.append(victim)
        for block in aside:
            self.enter(block)
        self.set_aside += len(aside)

    def request(self, blocks: list[int], at_once: bool) -> None:
        """Use what is held and bring the rest in: room for all of it first, or for one block at a time."""
        held = [block for block in blocks if self.plain.contains(block)]
        missing = [block for block in blocks if block not in held]
        for block in held:
            self.use(block)
        if at_once:
            self.evict(self.plain.size + len(missing) - self.plain.capacity, self.nobody, set(held))
        for i, block in enumerate(missing):
            if self.plain.size == self.plain.capacity:
                self.evict(1, block, {*held, *missing[:i]})
            self.enter(block)
        assert self.kernel.resident().tolist() == self.plain.resident()
        assert set(blocks) <= set(self.plain.resident())


def drive(name: str, run: Run, rng: np.random.Generator, widest: int) -> Pair:
    """Cut a run into requests of a random number of blocks; a removal stays one."""
    pair, waiting = Pair(name, run), list[int]()
    width = int(rng.integers(1, widest + 1))
    for op, block in run.steps:
        if op != ACCESS:
            pair.forget(block)
            continue
        waiting.append(block)
        if len(waiting) == width:
            distinct = list(dict.fromkeys(waiting))[: run.capacity]
            pair.request(distinct, at_once=bool(rng.random() < 0.7))
            waiting, width = [], int(rng.integers(1, widest + 1))
    return pair


@pytest.mark.parametrize("name", ONLINE)
@settings(max_examples=50, deadline=None)
@given(run=runs(max_capacity=24), seed=st.integers(0, 2**32 - 1), widest=st.sampled_from([2, 5, 24]))
def test_agrees_with_the_reference_when_room_is_made_in_advance(name, run, seed, widest):
    drive(name, run, np.random.default_rng(seed), widest)


@pytest.mark.parametrize("capacity", [10, 120, 333])
@pytest.mark.parametrize("name", ONLINE)
def test_agrees_over_a_long_run_of_requests(name, capacity):
    """Large enough for every segment, window and queue to hold several blocks."""
    rng = np.random.default_rng(capacity)
    n_blocks = 4 * capacity
    weights = np.arange(1, n_blocks + 1) ** -0.8
    length = 6_000 if name not in {"priority", "lineage", "length_aware"} or capacity < 333 else 2_500
    accesses = rng.choice(n_blocks, length, p=weights / weights.sum())
    pair = drive(name, long_run(accesses, capacity, n_blocks, rng), rng, capacity // 2)
    assert len(pair.victims) > capacity


def test_victims_in_use_are_met():
    """The law above would be idle for policies that never choose a pinned block; most do, LRU cannot."""
    rng = np.random.default_rng(5)
    run = long_run(rng.integers(0, 60, 4_000), 20, 60, rng)
    met = {name: drive(name, run, np.random.default_rng(6), 12).set_aside for name in ONLINE}
    assert met["lru"] == 0
    assert sum(count > 50 for count in met.values()) >= 10, met


@pytest.mark.parametrize(("hits", "victims"), [([], [4, 0, 1, 2, 3]), ([0], [4, 1, 2, 3, 0]), ([4], [0, 1, 2, 3, 4])])
def test_lirs_gives_up_its_lir_blocks_from_the_bottom_of_the_stack(hits, victims):
    """Four LIR blocks and one HIR block: when the queue is empty, the LIR block of the longest recency follows."""
    cache = PolicyState("lirs", 5, 6)
    for block in range(5):
        cache.access(block)
    for block in hits:
        assert cache.access(block) == (True, -1)
    assert [cache.evict(5) for _ in range(5)] == victims
    assert cache.size == 0
    assert [cache.access(block) for block in [*range(5), *range(5)]] == [(False, -1)] * 5 + [(True, -1)] * 5
