"""What the tests of pinned replays share: both drivers side by side, and random stacks and traces under pressure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
from cache_strategies import requests
from hypothesis import strategies as st
from pinned_reference import PinnedStack
from test_tiers import LEVELS, ONLINE, WINDOW, priorities, switches
from tier_reference import EVENTS, plain_tier

from dynalab.cache import MODES, TIERS, Tier
from dynalab.cache import stack as stack_module
from dynalab.cache.accesses import Accesses
from dynalab.cache.stack import TierRun, check_stack, run_stack
from dynalab.kv.policies import PolicyState
from dynalab.kv.tiering.rules import AROUND_HOST, EDGES, EXCLUSIVE, N_SWITCHES, OFFER_ALWAYS, TOUCH_ALL
from dynalab.testing.workloads import prompt
from dynalab.workload import Trace


@dataclass(frozen=True)
class Kernel:
    """What the compiled replay did, and which blocks it left in each tier."""

    run: TierRun
    held: dict[str, list[int]]


def meaning(options: dict[str, Any]) -> dict[str, bool]:
    """What the options mean, in the words of the reference."""
    return switches(options | {"interleaved": False, "match": "prefix"})


def run_kernel(trace: Trace, options: dict[str, Any], priority: list[int], pinned: bool = True) -> Kernel:
    on = meaning(options)
    switch = np.zeros(N_SWITCHES, np.bool_)
    for position, name in (
        (EXCLUSIVE, "exclusive"),
        (TOUCH_ALL, "touch_all"),
        (OFFER_ALWAYS, "offer_always"),
        (AROUND_HOST, "around_host"),
    ):
        switch[position] = on[name]
    made: list[PolicyState] = []

    def remember(*args: Any, **facts: Any) -> PolicyState:
        made.append(PolicyState(*args, **facts))
        return made[-1]

    stack = check_stack(options["tiers"], options["mode"], options["admit_after"])
    with patch.object(stack_module, "PolicyState", remember):
        run = run_stack(Accesses.of(trace), stack, switch, None, priority, WINDOW, pinned)
    return Kernel(run, {name: state.resident().tolist() for name, state in zip(TIERS, made, strict=True)})


def reference(trace: Trace, options: dict[str, Any], priority: list[int]) -> PinnedStack:
    facts = {"position": trace.positions().tolist(), "parent": trace.parents().tolist(), "priority": priority}
    tiers = []
    for tier in options["tiers"]:
        if tier.capacity:
            selective = options["mode"] == "selective" and tier.name != "device"
            admission, frequency = tier.admission, tier.min_frequency
            if admission is None:
                admission, frequency = ("after", options["admit_after"]) if selective else ("all", 1)
            fields = {name: getattr(tier, name) for name in ("flush_interval", "max_entries", "min_priority")}
            made = plain_tier(
                tier.name, tier.capacity, tier.policy, facts, admission, min_frequency=frequency, **fields
            )
            tiers.append(made)
    return PinnedStack(tiers, **meaning(options))


def compare(trace: Trace, options: dict[str, Any], priority: list[int]) -> PinnedStack:
    """Demand the same decisions of both, and return the reference."""
    kernel, plain = run_kernel(trace, options, priority), reference(trace, options, priority)
    levels: list[str] = []
    traffic = np.zeros((int(trace.arrival[-1] // WINDOW) + 1, len(EDGES)), np.int64)
    for blocks, now in zip(requests(trace), trace.arrival.tolist(), strict=True):
        before = plain.moved.copy()
        levels += plain.request(blocks, now)
        traffic[int(now // WINDOW)] += [plain.moved[edge] - before[edge] for edge in EDGES]
    assert [LEVELS[level] for level in kernel.run.level] == levels
    for k, name in enumerate(TIERS):
        tier = plain.tiers.get(name)
        assert kernel.held[name] == (tier.cache.resident() if tier else []), name
        assert kernel.run.events[k].tolist() == ([tier.events[event] for event in EVENTS] if tier else [0] * 4), name
    assert kernel.run.traffic.tolist() == traffic.tolist()
    assert kernel.run.refused == plain.refused
    return plain


@st.composite
def stacks(draw: st.DrawFn, device: int = 9, host: int = 9, disk: int = 14) -> dict[str, Any]:
    """Small stacks: requests of up to a dozen blocks fill them with what they pin."""
    tiers = []
    for name, low, high in (("device", 1, device), ("host", 0, host), ("disk", 0, disk)):
        filters = [None, "all"] + ([] if name == "device" else ["presence", "after", "frequency", "priority"])
        tiers.append(
            Tier(
                name,
                draw(st.integers(low, high)),
                policy=draw(st.sampled_from(["lru", "lru", *ONLINE])),
                admission=draw(st.sampled_from(filters)),
                min_frequency=draw(st.integers(1, 3)),
                flush_interval=draw(st.sampled_from([5.0, 600.0])),
                max_entries=draw(st.sampled_from([3, 1_000])),
                min_priority=draw(st.integers(0, 4)),
            )
        )
    return {
        "tiers": tiers,
        "mode": draw(st.sampled_from(list(MODES))),
        "admit_after": draw(st.integers(1, 3)),
        "touch": draw(st.sampled_from(["served", "all"])),
        "disk_path": draw(st.sampled_from(["staged", "direct"])),
    }


def as_trace(rows: list[list[int]], rng: np.random.Generator) -> Trace:
    arrival = np.cumsum(rng.choice([0.0, 1.0, 8.0], len(rows)))
    ids = [block for row in rows for block in row]
    return Trace.from_columns(arrival, [8 * len(row) for row in rows], [1] * len(rows), ids, block_tokens=8)


def prompts(rng: np.random.Generator, n_requests: int, n_blocks: int, branching: int) -> Trace:
    """Paths from the roots of a random forest; a block hangs on one of the `branching` blocks before it."""
    before = np.arange(n_blocks) - rng.integers(1, branching + 1, n_blocks)
    before[rng.random(n_blocks) < 0.15] = -1
    parent = tuple(np.maximum(before, -1).tolist())
    return as_trace([prompt(parent, int(leaf)) for leaf in rng.random(n_requests) ** 1.5 * n_blocks], rng)


def jumbles(rng: np.random.Generator, n_requests: int, n_blocks: int, longest: int) -> Trace:
    """Blocks in any order, some twice in a request."""
    return as_trace([rng.integers(0, n_blocks, rng.integers(1, longest + 1)).tolist() for _ in range(n_requests)], rng)


FILTERS = ({}, {}, {"admission": "frequency", "max_entries": 4}, {"admission": "priority"}, {"admission": "after"})


def sweep(policy: str, make: Callable[[np.random.Generator], Trace], sizes: Sequence[Sequence[int]]) -> Counter[str]:
    """Compare every mode, touch and path under one policy, and count the cases met."""
    rng = np.random.default_rng(len(policy))
    reached: Counter[str] = Counter()
    for mode, touch, disk_path, extra in product(MODES, ("served", "all"), ("staged", "direct"), FILTERS):
        filters = ({}, extra, extra)
        limits = [int(rng.choice(choices)) for choices in sizes]
        tiers = [Tier(*size, policy, **more) for *size, more in zip(TIERS, limits, filters, strict=True)]
        options = {"tiers": tiers, "mode": mode, "admit_after": 2, "touch": touch, "disk_path": disk_path}
        trace = make(rng)
        plain = compare(trace, options, priorities(trace, len(policy)))
        reached += plain.reached
        reached["evictions"] += sum(tier.events["evicted"] for tier in plain.tiers.values())
    return reached
