"""The tier stack, block by block against plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cache_strategies import requests, tangles, traces, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from tier_reference import COMPUTED, EVENTS, PlainStack, plain_tier

from dynalab.cache import MODES, TIERS, Tier
from dynalab.cache.accesses import Accesses
from dynalab.cache.stack import TierRun, check_stack, run_stack
from dynalab.kv.policies import POLICIES
from dynalab.kv.tiering.rules import (
    ANY_MATCH,
    AROUND_HOST,
    EDGES,
    EXCLUSIVE,
    INTERLEAVED,
    N_SWITCHES,
    OFFER_ALWAYS,
    TOUCH_ALL,
)
from dynalab.workload import Trace

ONLINE = [name for name, policy in POLICIES.items() if not policy.offline]
LEVELS = [*TIERS, COMPUTED]
WINDOW = 10.0


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    """Everything that ``replay_tiers`` can be told."""
    mode = draw(st.sampled_from(list(MODES)))
    tiers = []
    for name, largest in zip(TIERS, (6, 10, 20), strict=True):
        # The device takes every block that is computed: it has no filter.
        filters = [None, "all"] + ([] if name == "device" else ["presence", "after", "frequency", "priority"])
        tiers.append(
            Tier(
                name,
                draw(st.integers(0, largest)),
                policy=draw(st.sampled_from(["lru", "lru", *ONLINE])),
                admission=draw(st.sampled_from(filters)),
                min_frequency=draw(st.integers(1, 4)),
                flush_interval=draw(st.sampled_from([5.0, 600.0])),
                max_entries=draw(st.sampled_from([3, 1_000])),
                min_priority=draw(st.integers(0, 4)),
            )
        )
    return {
        "tiers": tiers,
        "mode": mode,
        "admit_after": draw(st.integers(1, 3)),
        "match": draw(st.sampled_from(["prefix", "any"])),
        "touch": draw(st.sampled_from(["served", "all"])),
        "disk_path": draw(st.sampled_from(["staged", "direct"])),
        "interleaved": draw(st.booleans()),
    }


def switches(options: dict[str, Any]) -> dict[str, bool]:
    """What the options mean, in the words of the reference."""
    inclusive_all = options["touch"] == "all" and options["mode"] == "write_through"
    return {
        "exclusive": options["mode"] == "write_back",
        "match_any": options["match"] == "any",
        "touch_all": options["touch"] == "all",
        "offer_always": options["mode"] == "selective" or inclusive_all,
        "around_host": options["disk_path"] == "direct",
        "interleaved": options["interleaved"],
    }


def run_kernel(trace: Trace, options: dict[str, Any], priority: list[int]) -> TierRun:
    on = switches(options)
    switch = np.zeros(N_SWITCHES, np.bool_)
    for position, name in (
        (EXCLUSIVE, "exclusive"),
        (ANY_MATCH, "match_any"),
        (TOUCH_ALL, "touch_all"),
        (OFFER_ALWAYS, "offer_always"),
        (AROUND_HOST, "around_host"),
        (INTERLEAVED, "interleaved"),
    ):
        switch[position] = on[name]
    stack = check_stack(options["tiers"], options["mode"], options["admit_after"])
    return run_stack(Accesses.of(trace), stack, switch, None, priority, WINDOW)


def run_reference(trace: Trace, options: dict[str, Any], priority: list[int]) -> tuple[PlainStack, list[str], list]:
    """Return the stack, the level of every access, and the traffic of every window."""
    facts = {"position": trace.positions().tolist(), "parent": trace.parents().tolist(), "priority": priority}
    tiers = []
    for tier in options["tiers"]:
        if tier.capacity == 0:
            continue
        admission, frequency = tier.admission, tier.min_frequency
        if admission is None:
            selective = options["mode"] == "selective" and tier.name != "device"
            admission, frequency = ("after", options["admit_after"]) if selective else ("all", 1)
        tiers.append(
            plain_tier(
                tier.name,
                tier.capacity,
                tier.policy,
                facts,
                admission,
                min_frequency=frequency,
                flush_interval=tier.flush_interval,
                max_entries=tier.max_entries,
                min_priority=tier.min_priority,
            )
        )
    stack = PlainStack(tiers, **switches(options))
    levels: list[str] = []
    windows: dict[int, dict[str, int]] = {}
    for blocks, now in zip(requests(trace), trace.arrival.tolist(), strict=True):
        before = stack.moved.copy()
        levels += stack.request(blocks, now)
        row = windows.setdefault(int(now // WINDOW), dict.fromkeys(EDGES, 0))
        for edge in EDGES:
            row[edge] += stack.moved[edge] - before[edge]
    rows = [list(windows.get(w, dict.fromkeys(EDGES, 0)).values()) for w in range(max(windows) + 1)]
    return stack, levels, rows


def compare(trace: Trace, options: dict[str, Any], priority: list[int]) -> PlainStack:
    run = run_kernel(trace, options, priority)
    stack, levels, rows = run_reference(trace, options, priority)
    assert [LEVELS[level] for level in run.level] == levels
    for k, name in enumerate(TIERS):
        tier = stack.tiers.get(name)
        expected = [tier.events[event] for event in EVENTS] if tier else [0, 0, 0, 0]
        assert run.events[k].tolist() == expected, name
        assert run.resident[k] == (tier.cache.size if tier else 0), name
    assert run.traffic.tolist() == rows
    return stack


def priorities(trace: Trace, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 5, trace.n_blocks).tolist()


@settings(max_examples=500, deadline=None)
@given(trace=traces(), options=stacks(), seed=st.integers(0, 9))
def test_kernel_agrees_with_the_reference_block_by_block(trace, options, seed):
    compare(trace, options, priorities(trace, seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("match", ["prefix", "any"])
@pytest.mark.parametrize("touch", ["served", "all"])
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
@pytest.mark.parametrize("interleaved", [False, True])
@settings(max_examples=12, deadline=None)
@given(trace=trees(max_requests=50), options=stacks())
def test_kernel_agrees_in_every_mode(mode, match, touch, disk_path, interleaved, trace, options):
    options |= {
        "mode": mode,
        "match": match,
        "touch": touch,
        "disk_path": disk_path,
        "interleaved": interleaved,
    }
    compare(trace, options, priorities(trace, 0))


# ---------------------------------------------------------------------------- cases that were wrong once

EXCLUSIVE_LRU = {
    "mode": "write_back",
    "admit_after": 1,
    "match": "prefix",
    "touch": "served",
    "disk_path": "staged",
    "interleaved": False,
}


def test_a_block_that_sank_within_its_own_request_leaves_no_second_copy():
    """Block 2 is on the device without its prefix; the prefix pushes it to the host before it is registered again."""
    trace = Trace.from_columns([0.0, 1.0, 2.0], [24, 24, 24], [1, 1, 1], [0, 1, 2] * 3, block_tokens=8)
    stack = compare(trace, EXCLUSIVE_LRU | {"tiers": [Tier("device", 1), Tier("host", 5)]}, [0] * 3)
    assert stack.device.cache.resident() == [2]
    assert stack.host.cache.resident() == [0, 1]


@pytest.mark.parametrize("device", [0, 1])
def test_a_block_that_comes_twice_in_one_request_is_kept_once(device):
    trace = Trace.from_columns([0.0], [32], [1], [0, 1, 0, 1], block_tokens=8)
    compare(trace, EXCLUSIVE_LRU | {"tiers": [Tier("device", device), Tier("host", 3)]}, [0, 0])


def test_a_refused_victim_does_not_stop_the_victims_behind_it():
    """In an inclusive stack it would: there the refused block is a hole in the prompt that is being offered."""
    trace = Trace.from_columns([0.0, 1.0], [24, 24], [1, 1], [0, 1, 2, 3, 4, 5], block_tokens=8)
    tiers = [Tier("device", 3), Tier("host", 6, admission="priority", min_priority=1)]
    important = [0, 9, 9, 0, 9, 9]
    sunk = compare(trace, EXCLUSIVE_LRU | {"tiers": tiers}, important)
    assert sunk.host.cache.resident() == [1, 2]
    offered = compare(trace, EXCLUSIVE_LRU | {"tiers": tiers, "mode": "write_through"}, important)
    assert offered.host.cache.resident() == []


@settings(max_examples=60, deadline=None)
@given(trace=tangles(), options=stacks())
def test_exclusive_stacks_survive_ids_without_a_prefix_rule(trace, options):
    stack = compare(trace, options | {"mode": "write_back"}, priorities(trace, 1))
    held = [block for tier in stack.tiers.values() for block in tier.cache.resident()]
    assert len(held) == len(set(held))
