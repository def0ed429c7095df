"""Laws of a stack that pins what a request uses, and how ``replay_tiers`` lets one ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from cache_strategies import requests, trees
from hypothesis import given, settings
from pinned_cases import FILTERS, Kernel, meaning, prompts, reference, run_kernel, stacks
from test_tiers import LEVELS, priorities
from tier_reference import COMPUTED

from dynalab.cache import TIERS, Tier, replay_tiers
from dynalab.errors import ConfigError
from dynalab.kv.tiering.rules import DEVICE, DISK, EDGES, EVICTED, HOST, INSERTED
from dynalab.workload import Trace


def step_by_step(trace: Trace, options: dict[str, Any]) -> Iterator[tuple[list[int], list[str], Kernel, Kernel]]:
    """Yield each request's blocks and levels, and the compiled stack before and after it."""
    priority = priorities(trace, 3)
    before: Kernel | None = None
    for k in range(1, len(trace) + 1):
        head = trace.head(k)
        after = run_kernel(head, options, priority[: head.n_blocks])
        blocks = requests(head)[-1]
        if before is not None:
            yield blocks, [LEVELS[level] for level in after.run.level[-len(blocks) :]], before, after
        before = after


@settings(max_examples=50, deadline=None)
@given(trace=trees(max_requests=15), options=stacks())
def test_what_a_request_uses_stays_until_it_ends(trace, options):
    """A request that fits on the device is served there as a whole; one that does not is refused, and no other is."""
    capacity = options["tiers"][0].capacity
    for blocks, _, before, after in step_by_step(trace, options):
        refused = after.run.refused - before.run.refused
        assert refused == (len(blocks) > capacity)
        if not refused:
            assert set(blocks) <= set(after.held["device"])
        if options["mode"] == "write_back":
            copies = [block for blocks in after.held.values() for block in blocks]
            assert len(copies) == len(set(copies))


@settings(max_examples=50, deadline=None)
@given(trace=trees(max_requests=15), options=stacks(device=3))
def test_a_request_larger_than_the_device_brings_nothing_new(trace, options):
    """It leaves what it found on the device, having made room for that alone; where all was there, nothing moves."""
    offers = meaning(options)["offer_always"]
    for blocks, levels, before, after in step_by_step(trace, options):
        if after.run.refused == before.run.refused:
            continue
        found = [block for block, level in zip(blocks, levels, strict=True) if level != COMPUTED]
        assert set(found) <= set(after.held["device"]) <= set(before.held["device"]) | set(found)
        assert set().union(*after.held.values()) <= set().union(*before.held.values())
        if set(levels) <= {"device", COMPUTED} and not offers:
            assert after.held == before.held
            assert after.run.events.tolist() == before.run.events.tolist()


@settings(max_examples=100, deadline=None)
@given(trace=trees(max_requests=40), options=stacks())
def test_blocks_are_conserved_on_every_edge(trace, options):
    run = run_kernel(trace, options, priorities(trace, 1)).run
    hits = np.bincount(run.level, minlength=4)
    moved = dict(zip(EDGES, run.traffic.sum(axis=0).tolist(), strict=True))
    inserted = run.events[:, INSERTED].tolist()
    # Each block served below the device is brought up once, and only computed blocks enter the device besides.
    assert moved["host_to_device"] + moved["disk_to_device"] == hits[HOST] + hits[DISK]
    assert moved["disk_to_host"] + moved["disk_to_device"] == hits[DISK]
    assert hits[HOST] + hits[DISK] <= inserted[DEVICE] <= run.level.size - hits[DEVICE]
    assert moved["host_to_disk"] + moved["device_to_disk"] == inserted[DISK]
    assert moved["device_to_host"] <= inserted[HOST] <= moved["device_to_host"] + moved["disk_to_host"]
    assert (run.resident <= run.blocks).all()


def test_without_pressure_lru_cannot_tell_pinned_from_unpinned():
    """Where no tier is smaller than a request, LRU gives up nothing that is in use, and the order of steps is moot.

    Up to the first request that finds a block behind one that is nowhere: room may be made for it at its own cost.
    Inclusive stacks only: in an exclusive one, blocks leave the tiers below one by one, each making room for a victim.
    """
    rng = np.random.default_rng(2)
    evictions = 0
    for mode, touch, disk_path, extra, _ in product(
        ("write_through", "selective"), ("served", "all"), ("staged", "direct"), FILTERS, range(3)
    ):
        trace = prompts(rng, 80, 60, int(rng.integers(1, 6)))
        longest = max(len(blocks) for blocks in requests(trace))
        limits = longest + rng.integers(0, 12, 3)
        limits[1:] *= rng.random(2) < 0.8
        filters = ({}, extra, extra)
        tiers = [Tier(name, int(n), **more) for name, n, more in zip(TIERS, limits, filters, strict=True)]
        options = {"tiers": tiers, "mode": mode, "admit_after": 2, "touch": touch, "disk_path": disk_path}
        priority = priorities(trace, 0)
        plain = reference(trace, options, priority)
        whole = 0
        for blocks, now in zip(requests(trace), trace.arrival.tolist(), strict=True):
            held = [plain.find(block) != COMPUTED for block in blocks]
            if held != sorted(held, reverse=True):
                break
            plain.request(blocks, now)
            whole += 1
        head = trace.head(whole)
        pinned, unpinned = (run_kernel(head, options, priority[: head.n_blocks], flag) for flag in (True, False))
        assert not +plain.reached
        assert pinned.held == unpinned.held
        assert pinned.run.level.tolist() == unpinned.run.level.tolist()
        assert pinned.run.events.tolist() == unpinned.run.events.tolist()
        assert pinned.run.traffic.tolist() == unpinned.run.traffic.tolist()
        evictions += int(pinned.run.events[:, EVICTED].sum())
    assert evictions > 1_000, evictions


# ---------------------------------------------------------------------------- the way in


@pytest.fixture(scope="module")
def trace() -> Trace:
    rows = [[0, 1, 2], [0, 1, 3], [4, 5], [0, 1, 2, 6], [4, 5, 7]]
    ids = [block for row in rows for block in row]
    return Trace.from_columns(range(5), [8 * len(row) for row in rows], [1] * 5, ids, block_tokens=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interleaved": True}, "pinned: True goes with match='prefix' and interleaved=False only"),
        ({"match": "any"}, "pinned: True goes with match='prefix' and interleaved=False only"),
        ({"tiers": {"host": 5, "disk": 9}}, "pinned: True needs a device tier"),
        ({"tiers": {"device": 0, "host": 5}}, "pinned: True needs a device tier"),
        ({"tiers": {"device": "1KiB", "host": 5}, "model": "llama-3-8b"}, "pinned: True needs a device tier"),
        ({"tiers": {}}, "pinned: True needs a device tier"),
    ],
)
def test_what_a_block_manager_cannot_do_is_refused(trace, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        replay_tiers(trace, **{"tiers": {"device": 3}} | options, pinned=True)
    assert "\n" not in str(error.value)


def test_the_dataset_tells_refused_requests(trace):
    ds = replay_tiers(trace, {"device": 3, "host": 6}, pinned=True)
    assert int(ds.refused_requests) == 1
    assert ds.refused_requests.attrs["units"] == "requests"
    assert ds.attrs["pinned"] == 1
    # The fourth request finds three blocks in host memory, brings them up, and there is no room to compute the last.
    assert ds.hits.values.tolist() == [2, 3 + 2, 0]
    unpinned = replay_tiers(trace, {"device": 3, "host": 6})
    assert int(unpinned.refused_requests) == 0
    assert unpinned.attrs["pinned"] == 0
