"""One trace through the simulation and through real memory: the same decisions, block by block, and the right bytes.

The stack serves each request as an engine would: match, onboard, allocate, write, register, release. What a block holds
follows from its hash, and every block that is onboarded is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynalab.cache import Tier, replay_tiers, stack
from dynalab.cache.accesses import Accesses
from dynalab.cache.stack import check_stack, run_stack
from dynalab.errors import NotEnoughBlocks
from dynalab.kv import KVLayout
from dynalab.kv.policies import POLICIES
from dynalab.kv.tiering.rules import AROUND_HOST, COMPUTED, EXCLUSIVE, N_SWITCHES, OFFER_ALWAYS, TIERS
from dynalab.tiers import DeviceTier, DiskTier, Filter, HostTier, TierStack
from dynalab.workload import Trace

LAYOUT = KVLayout(num_layers=2, outer=1, page_tokens=2, inner=8, dtype="uint16")
ONLINE = [name for name, policy in POLICIES.items() if not policy.offline]
SIZES = {"device": 60, "host": 110, "disk": 180}


@dataclass
class Seen:
    """What a stack did: the tier that served each access, counters, and the blocks held at the end."""

    level: list[int]
    events: np.ndarray
    traffic: np.ndarray
    held: list[list[int]]
    refused: int
    onboarded: int


def contents(hashes: np.ndarray) -> np.ndarray:
    """Bytes of blocks, as (n, layers, outer, tokens, inner) of uint16."""
    words = np.prod([LAYOUT.num_layers, LAYOUT.outer, LAYOUT.page_tokens, LAYOUT.inner])
    mixed = hashes[:, None] * np.uint64(0x9E3779B97F4A7C15) + np.arange(words, dtype=np.uint64)
    shape = (len(hashes), LAYOUT.num_layers, LAYOUT.outer, LAYOUT.page_tokens, LAYOUT.inner)
    return (mixed >> np.uint64(40)).astype(np.uint16).reshape(shape)


def simulated(
    trace: Trace, tiers: list[Tier], mode: str, path: str, priority: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> Seen:
    made: list[Any] = []
    real = stack.PolicyState

    def remembered(*arguments: Any, **options: Any) -> Any:
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(stack, "PolicyState", remembered)
    switch = np.zeros(N_SWITCHES, np.bool_)
    switch[EXCLUSIVE], switch[OFFER_ALWAYS], switch[AROUND_HOST] = (
        mode == "write_back",
        mode == "selective",
        path == "direct",
    )
    run = run_stack(Accesses.of(trace), check_stack(tiers, mode, 2), switch, None, priority, 10.0, True)
    monkeypatch.undo()
    public = replay_tiers(trace, tiers, mode=mode, disk_path=path, priority=priority, pinned=True)
    assert public.hits.values.tolist() == np.bincount(run.level, minlength=4)[:3].tolist()
    held = [state.resident().tolist() for state in made]
    return Seen(run.level.tolist(), run.events, run.traffic.sum(axis=0), held, run.refused, 0)


def served(trace: Trace, tiers: list[Tier], mode: str, path: str, priority: np.ndarray | None, place: Path) -> Seen:
    hashes = np.random.default_rng(7).integers(1, 2**63, trace.n_blocks).astype(np.uint64)
    number = {int(key): block for block, key in enumerate(hashes)}
    # Below the device one slot stays free where blocks change places.
    spare = mode == "write_back"
    slots = {tier.name: int(tier.capacity) + (spare and tier.name != "device") for tier in tiers}
    filters = {
        tier.name: Filter(tier.admission, tier.min_frequency, tier.flush_interval, tier.max_entries, tier.min_priority)
        for tier in tiers
        if tier.name != "device" and tier.admission is not None
    }
    now = [0.0]
    level: list[int] = []
    refused = onboarded = 0
    with TierStack(
        DeviceTier(LAYOUT, capacity=slots["device"]),
        HostTier(LAYOUT, capacity=slots["host"]),
        DiskTier(LAYOUT, capacity=slots["disk"], path=place),
        policy={tier.name: tier.policy for tier in tiers},
        admission=filters or None,
        mode=mode,
        disk_path=path,
        id_capacity=max(trace.n_blocks, sum(slots.values())),
        clock=lambda: now[0],
    ) as real:
        memory = real.device.view_all()
        for r in range(trace.n_requests):
            ids = trace.block_ids[trace.offsets[r] : trace.offsets[r + 1]]
            now[0] = float(trace.arrival[r])
            names = hashes[ids]
            match = real.match(names)
            found = match.level.tolist()
            try:
                blocks = real.onboard(match).result(timeout=60)
            except NotEnoughBlocks:
                refused += 1
                level += [COMPUTED] * len(ids)
                continue
            assert len(blocks) == len(found), "no copy was lost"
            assert np.array_equal(memory[blocks.slots], contents(names[: len(blocks)])), "a block with wrong bytes"
            onboarded += len(blocks)
            level += found + [COMPUTED] * (len(ids) - len(found))
            try:
                new = real.allocate(len(ids) - len(blocks), timeout=60)
            except NotEnoughBlocks:
                refused += 1
                real.release(blocks)
                continue
            memory[new.slots] = contents(names[len(blocks) :])
            ranks = None if priority is None else priority[ids[len(blocks) :]]
            if ranks is None or len(set(ranks.tolist())) <= 1:
                rank = int(ranks[0]) if ranks is not None and len(ranks) else 0
                real.register(new, names[len(blocks) :], priority=rank)
            else:
                raise AssertionError("the cases give a request one priority")
            real.release(blocks + new)
        real.drain()
        directory = real._directory
        held = [sorted(number[int(key)] for key in directory.held(k)) for k in range(3)]
        check_bytes(real)
        return Seen(level, directory.events.copy(), directory.traffic.copy(), held, refused, onboarded)


def check_bytes(real: TierStack) -> None:
    """Every block of every tier holds what its hash says."""
    for k, tier in enumerate((real.device, real.host)):
        names = real._directory.held(k)
        assert np.array_equal(tier.view_all()[real._directory.slot_of(k, names)], contents(names))
    names = real._directory.held(2)
    room = np.zeros((len(names), LAYOUT.block_bytes), np.uint8)
    status = real.disk.read(
        real._directory.slot_of(2, names),
        room.ctypes.data + LAYOUT.block_bytes * np.arange(len(names), dtype=np.uint64),
        names,
    )
    assert not status.any()
    assert np.array_equal(room.view(np.uint16).ravel(), contents(names).ravel())


def compare(
    trace: Trace,
    tiers: list[Tier],
    mode: str,
    path: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    priority: np.ndarray | None = None,
) -> Seen:
    expected = simulated(trace, tiers, mode, path, priority, monkeypatch)
    found = served(trace, tiers, mode, path, priority, place)
    assert found.level == expected.level, "the tier that served each block"
    assert found.events.tolist() == expected.events.tolist(), "insertions, evictions, removals and rejections"
    assert found.traffic.tolist() == expected.traffic.tolist(), "offloads and onboards"
    for name, ours, theirs in zip(TIERS, found.held, expected.held, strict=True):
        assert ours == theirs, f"blocks held by the {name}"
    assert found.refused == expected.refused
    return found


@pytest.fixture(scope="module")
def chats() -> Trace:
    """Twelve conversations that grow turn by turn, and now and then go on from an earlier turn."""
    rng = np.random.default_rng(3)
    count = 0
    heads: list[list[int]] = [[] for _ in range(12)]
    rows, arrival = [], np.cumsum(rng.exponential(1.0, 220))
    for _ in arrival:
        who = int(rng.choice(12, p=np.arange(12, 0, -1) / 78))
        past = heads[who] if rng.random() < 0.8 else heads[who][: int(rng.integers(0, len(heads[who]) + 1))]
        new = int(rng.integers(1, 7))
        past = past if len(past) < 40 else past[: int(rng.integers(1, 12))]
        heads[who] = past + list(range(count, count + new))
        count += new
        rows.append(heads[who])
    ids = np.concatenate(rows)
    return Trace.from_columns(arrival, [8 * len(row) for row in rows], [1] * len(rows), ids, block_tokens=8)


def stack_of(policy: str, **options: Any) -> list[Tier]:
    return [
        Tier("device", SIZES["device"], policy),
        Tier("host", SIZES["host"], policy),
        Tier("disk", SIZES["disk"], policy, **options),
    ]


@pytest.mark.parametrize("mode", ["write_through", "write_back", "selective"])
@pytest.mark.parametrize("policy", ONLINE)
def test_every_policy_in_every_mode(policy, mode, chats, tmp_path, monkeypatch):
    found = compare(chats, stack_of(policy), mode, "staged", tmp_path, monkeypatch)
    assert found.onboarded > 100
    assert found.events[:, 1].min() > 0, "every tier was full and evicted"


@pytest.mark.parametrize("mode", ["write_through", "write_back", "selective"])
@pytest.mark.parametrize("policy", ["lru", "s3fifo", "lineage", "arc"])
def test_around_the_host(policy, mode, chats, tmp_path, monkeypatch):
    compare(chats, stack_of(policy), mode, "direct", tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", ["write_through", "write_back"])
@pytest.mark.parametrize(
    "filtered",
    [
        {"admission": "frequency", "flush_interval": 20.0},
        {"admission": "frequency", "max_entries": 40},
        {"admission": "after", "min_frequency": 2},
        {"admission": "presence"},
    ],
    ids=["decays", "overflows", "after", "presence"],
)
def test_filters(mode, filtered, chats, tmp_path, monkeypatch):
    found = compare(chats, stack_of("lru", **filtered), mode, "staged", tmp_path, monkeypatch)
    assert filtered["admission"] == "presence" or found.events[2, 3] > 0, "the filter refused something"


@pytest.mark.parametrize("policy", ["lru", "priority"])
@pytest.mark.parametrize("path", ["staged", "direct"])
def test_priorities_stop_a_request(policy, path, chats, tmp_path, monkeypatch):
    """Blocks have the priority of the request that computed them; the filter stops at the first that is too low."""
    first = np.full(chats.n_blocks, -1)
    for r in range(chats.n_requests):
        ids = chats.block_ids[chats.offsets[r] : chats.offsets[r + 1]]
        first[ids] = np.where(first[ids] < 0, r, first[ids])
    priority = np.random.default_rng(1).integers(0, 4, chats.n_requests)[first]
    tiers = [
        Tier("device", 900, policy),
        Tier("host", SIZES["host"], policy, admission="priority", min_priority=1),
        Tier("disk", SIZES["disk"], policy, admission="priority", min_priority=2),
    ]
    # The device is wide enough that no block is computed twice, under another priority.
    found = compare(chats, tiers, "write_through", path, tmp_path, monkeypatch, priority)
    assert found.events[1:, 3].min() > 0


@pytest.mark.parametrize("mode", ["write_through", "write_back", "selective"])
@pytest.mark.parametrize("policy", ["lru", "s3fifo", "lineage", "wtinylfu"])
def test_a_real_trace(policy, mode, conversation, tmp_path, monkeypatch):
    sizes = {"device": 300, "host": 2_500, "disk": 7_000}
    tiers = [Tier(name, size, policy) for name, size in sizes.items()]
    found = compare(conversation.head(900), tiers, mode, "staged", tmp_path, monkeypatch)
    assert {0, COMPUTED} < set(found.level), "tiers below the device served blocks, too"
    assert found.onboarded > 500
