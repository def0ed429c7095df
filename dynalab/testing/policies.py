"""The laws that every eviction policy obeys, whatever it prefers to keep."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dynalab.testing.workloads import ACCESS, Run, long_run, runs

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("dynalab.testing needs hypothesis: install dynalab with its extra 'test'") from error

# The first step of a policy may compile it, which no deadline survives. All policies inherit the same test functions.
# The verdict on a policy must not change from run to run.
_laws = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


class PolicyTests:
    """Conformance suite of :mod:`dynalab.kv.policies`; subclass it and set ``policy``.

    Attributes
    ----------
    policy : str
        Name in ``POLICIES`` of the candidate; its file must have been imported.
    inclusion : bool
        Set it for policies that rank blocks by something that does not depend on the capacity (LRU, Belady): then a
        larger cache always holds all that a smaller one holds, and the suite demands it.

    Examples
    --------
    >>> class TestLru(PolicyTests):
    ...     policy = "lru"
    ...     inclusion = True
    """

    policy: str
    inclusion: bool = False

    def make_trace(self, rng: np.random.Generator, n_blocks: int, length: int) -> npt.NDArray[np.int64]:
        """Return the accesses of the long run, block ids below ``n_blocks``; override to stress what is special.

        By default a Zipf law of exponent 1 over shuffled ids, with a scan through an eighth of the blocks now and then.
        """
        weights = 1.0 / np.arange(1, n_blocks + 1)
        trace = rng.permutation(n_blocks)[rng.choice(n_blocks, length, p=weights / weights.sum())]
        width = max(1, n_blocks // 8)
        for start in rng.integers(0, max(1, length - width), 5):
            piece = trace[start : start + width]
            piece[:] = (int(start) + np.arange(piece.size)) % n_blocks
        return trace.astype(np.int64)

    def cache(self, run: Run) -> Any:
        """Return a new cache for ``run``."""
        from dynalab.kv.policies import PolicyState

        return PolicyState(self.policy, run.capacity, run.n_blocks, **run.facts)

    def decisions(self, run: Run) -> list[tuple[bool, int]]:
        """Drive a new cache through ``run`` and return (hit, victim) of every access."""
        cache, answers = self.cache(run), []
        for (op, block), next_use in zip(run.steps, run.next_uses(), strict=True):
            if op == ACCESS:
                answers.append(cache.access(block, next_use))
            else:
                cache.remove(block)
        return answers

    def audit(self, run: Run) -> None:
        """Drive a new cache through ``run`` beside a set that holds what should be resident."""
        cache, held = self.cache(run), set[int]()
        assert cache.size == 0
        for i, ((op, block), next_use) in enumerate(zip(run.steps, run.next_uses(), strict=True)):
            where = f"{self.policy}, step {i}, block {block}"
            assert cache.contains(block) == (block in held), where
            if op == ACCESS:
                full = len(held) >= run.capacity
                hit, victim = cache.access(block, next_use)
                assert hit == (block in held), where
                if hit or not full:
                    assert victim == -1, f"{where}: {victim} was evicted without need"
                else:
                    assert victim in held, f"{where}: the victim {victim} was not resident"
                    held.remove(victim)
                    assert not cache.contains(victim), f"{where}: the victim {victim} stayed"
                held.add(block)
                assert cache.contains(block), f"{where}: not resident after its access"
            else:
                cache.remove(block)
                held.discard(block)
                assert not cache.contains(block), f"{where}: resident after its removal"
            assert cache.size == len(held) <= run.capacity, where
            assert list(cache.resident()) == sorted(held), where

    @_laws
    @given(runs())
    def test_books_are_right_at_every_step(self, run: Run) -> None:
        """Hits, victims, size and residents agree with a set; nothing is evicted without need."""
        self.audit(run)

    @_laws
    @given(runs(max_capacity=12))
    def test_access_is_hit_or_evict_and_insert(self, run: Run) -> None:
        """The single operations, driven by hand, decide as ``access`` does."""
        from dynalab.kv.policies import POLICIES

        if POLICIES[self.policy].offline:
            pytest.skip("only access() tells an offline bound the future")
        whole, parts = self.cache(run), self.cache(run)
        for op, block in run.steps:
            if op != ACCESS:
                whole.remove(block)
                parts.remove(block)
                continue
            expected = whole.access(block)
            hit, victim = parts.contains(block), -1
            if hit:
                parts.hit(block)
            else:
                if parts.size >= run.capacity:
                    victim = parts.evict(block)
                parts.insert(block)
            assert (hit, victim) == expected
        assert list(parts.resident()) == list(whole.resident())

    @_laws
    @given(runs(max_capacity=24), st.integers(1, 12), st.integers(0, 2**32 - 1))
    def test_room_can_be_made_before_blocks_enter(self, run: Run, width: int, seed: int) -> None:
        """A block manager evicts for a whole request first, in nobody's name, and takes pinned victims back."""
        from dynalab.kv.policies import POLICIES

        if POLICIES[self.policy].offline:
            pytest.skip("only access() tells an offline bound the future")
        rng = np.random.default_rng(seed)
        nobody = run.n_blocks
        cache = self.cache(run.with_a_stranger())
        held = set[int]()
        accesses = run.accesses
        for start in range(0, len(accesses), width):
            group = list(dict.fromkeys(accesses[start : start + width]))[: run.capacity]
            for block in group:
                if block in held:
                    cache.hit(block)
            pinned = held & set(group)
            entering = [block for block in group if block not in held]
            aside = []
            missing = len(held) + len(entering) - run.capacity
            while missing > 0:
                victim = cache.evict(nobody)
                assert victim in held, f"{self.policy}: {victim} was evicted, which is not resident"
                held.discard(victim)
                assert not cache.contains(victim)
                if victim in pinned:
                    cache.remove(victim)
                    aside.append(victim)
                else:
                    missing -= 1
            for block in [*aside, *entering]:
                assert not cache.contains(block)
                cache.insert(block)
                held.add(block)
            if rng.random() < 0.2:
                gone = int(rng.integers(run.n_blocks))
                cache.remove(gone)
                held.discard(gone)
            assert list(cache.resident()) == sorted(held)
            assert cache.size == len(held) <= run.capacity

    @_laws
    @given(runs(removals=False), st.integers(0, 3))
    def test_enough_room_means_no_eviction(self, run: Run, spare: int) -> None:
        """Where all blocks fit, only their first accesses miss."""
        run = run.with_capacity(len(set(run.accesses)) + spare)
        decisions = self.decisions(run)
        assert all(victim == -1 for _, victim in decisions)
        assert sum(hit for hit, _ in decisions) == len(run.accesses) - len(set(run.accesses))

    @_laws
    @given(runs(removals=False))
    def test_one_block_of_room(self, run: Run) -> None:
        """At capacity 1 only an immediate repeat hits, and the predecessor is the victim."""
        accesses = run.accesses
        expected = [(False, -1)]
        for before, block in pairwise(accesses):
            expected.append((True, -1) if block == before else (False, before))
        assert self.decisions(run.with_capacity(1)) == expected

    @_laws
    @given(runs(), st.randoms(use_true_random=False))
    def test_everything_can_be_removed_and_come_back(self, run: Run, order: Any) -> None:
        """After any run, removing all blocks (resident, ghost or unknown, twice) empties the cache, which works on."""
        cache = self.cache(run)
        for (op, block), next_use in zip(run.steps, run.next_uses(), strict=True):
            if op == ACCESS:
                cache.access(block, next_use)
            else:
                cache.remove(block)
        ids = list(range(run.n_blocks))
        order.shuffle(ids)
        left = set(cache.resident())
        for block in [*ids, *ids]:
            cache.remove(block)
            left.discard(block)
            assert set(cache.resident()) == left
        assert cache.size == 0
        for block in ids[: run.capacity]:
            assert cache.access(block) == (False, -1)
        for block in ids[: run.capacity]:
            assert cache.access(block) == (True, -1)
        for block in ids[run.capacity :]:
            hit, victim = cache.access(block)
            assert not hit
            assert victim != block
            assert 0 <= victim < run.n_blocks

    @_laws
    @given(runs(), runs())
    def test_caches_repeat_themselves_and_share_nothing(self, run: Run, other: Run) -> None:
        """Two caches that work in turns decide as each would alone."""
        alone, beside = self.decisions(run), self.decisions(other)
        answers: tuple[list[Any], list[Any]] = ([], [])
        caches = self.cache(run), self.cache(other)
        futures = run.next_uses(), other.next_uses()
        for i in range(max(len(run.steps), len(other.steps))):
            for which, steps in enumerate((run.steps, other.steps)):
                if i < len(steps):
                    op, block = steps[i]
                    if op == ACCESS:
                        answers[which].append(caches[which].access(block, futures[which][i]))
                    else:
                        caches[which].remove(block)
        assert answers == (alone, beside)

    @_laws
    @given(runs(), st.integers(0, 2**32 - 1))
    def test_names_do_not_matter(self, run: Run, seed: int) -> None:
        """Renaming the blocks renames the victims and changes nothing else (policies that hash ids excepted)."""
        from dynalab.kv.policies import POLICIES

        if POLICIES[self.policy].exact_ids:
            pytest.skip("the policy declares that ids matter: it hashes them or breaks ties by them")
        new_id = np.random.default_rng(seed).permutation(run.n_blocks)
        expected = [(hit, -1 if victim < 0 else int(new_id[victim])) for hit, victim in self.decisions(run)]
        assert self.decisions(run.relabelled(new_id)) == expected

    @_laws
    @given(runs(max_capacity=20), st.integers(1, 5))
    def test_a_larger_cache_holds_what_a_smaller_one_holds(self, run: Run, extra: int) -> None:
        """Inclusion, for the policies that declare it: more capacity never costs a hit."""
        if not self.inclusion:
            pytest.skip("not a stack algorithm: more capacity may cost hits")
        small, large = self.cache(run), self.cache(run.with_capacity(run.capacity + extra))
        for (op, block), next_use in zip(run.steps, run.next_uses(), strict=True):
            for cache in (small, large):
                if op == ACCESS:
                    cache.access(block, next_use)
                else:
                    cache.remove(block)
            assert set(small.resident()) <= set(large.resident())

    @pytest.mark.parametrize("capacity", [7, 50, 333])
    def test_long_run(self, capacity: int) -> None:
        """The books stay right over thousands of steps, ghosts come and go, and removals leave no trace."""
        rng = np.random.default_rng(capacity)
        n_blocks = 6 * capacity
        run = long_run(self.make_trace(rng, n_blocks, 6_000), capacity, n_blocks, rng)
        self.audit(run)
