"""One trace through the replay and through a stack on real memory, and everything that must be the same of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import xarray as xr
from stack_bytes import DEVICE, DISK, HOST, LAYOUT, Words, check_all_bytes, content, peek, poke, resident

from dynalab.cache import TIERS, Tier, replay_tiers
from dynalab.cache import stack as stack_module
from dynalab.errors import NotEnoughBlocks
from dynalab.kv import KVLayout
from dynalab.kv.policies import PolicyState
from dynalab.kv.tiering.rules import COMPUTED
from dynalab.tiers import DeviceTier, DiskTier, HostTier, TierStack
from dynalab.tiers.directory import Filter
from dynalab.workload import Trace

Ints = npt.NDArray[np.int64]
_COUNTERS = ("insertions", "evictions", "removals", "rejections", "resident")


@dataclass(frozen=True)
class Case:
    """A stack as the replay describes it.

    Attributes
    ----------
    tiers : sequence of Tier
        Device, host and disk; capacity 0 leaves one out.
    layouts : (KVLayout, KVLayout)
        Of device and host.
    """

    tiers: Sequence[Tier]
    mode: str = "write_through"
    disk_path: str = "staged"
    touch: str = "served"
    admit_after: int = 2
    layouts: tuple[KVLayout, KVLayout] = (LAYOUT, LAYOUT)

    def options(self) -> dict[str, Any]:
        """Return what replay and stack call by the same names."""
        return {name: getattr(self, name) for name in ("mode", "disk_path", "touch", "admit_after")}

    def slots(self) -> tuple[int, ...]:
        """Return the slots of the tiers: in write-back mode one below the device stays free."""
        spare = self.mode == "write_back"
        return tuple(int(t.capacity) + (spare and t.capacity != 0 and t.name != "device") for t in self.tiers)

    def filters(self) -> dict[str, Filter]:
        """Return the filters that are not the mode's own."""
        fields = ("min_frequency", "flush_interval", "max_entries", "min_priority")
        return {
            tier.name: Filter(tier.admission, **{name: getattr(tier, name) for name in fields})
            for tier in self.tiers[1:]
            if tier.admission is not None and tier.capacity
        }

    def stack(self, path: Path, **options: Any) -> TierStack:
        """Return the stack on real memory."""
        slots = self.slots()
        return TierStack(
            DeviceTier(self.layouts[0], capacity=slots[DEVICE], device="host-emulated"),
            HostTier(self.layouts[1], capacity=slots[HOST]) if slots[HOST] else None,
            DiskTier(LAYOUT, capacity=slots[DISK], path=path) if slots[DISK] else None,
            policy={tier.name: tier.policy for tier in self.tiers},
            admission=self.filters(),
            **self.options(),
            **options,
        )


@dataclass(frozen=True)
class Told:
    """What one of the two did.

    Attributes
    ----------
    level : int8, shape (n_accesses,)
        Tier that served each access, 3 where it was computed.
    held : dict of int to list of 3 sets
        After so many requests: the blocks in each tier.
    counts : dict of str to list
        Insertions, evictions, removals, rejections and resident blocks per tier, blocks moved per edge.
    refused : int
    """

    level: npt.NDArray[np.int8]
    held: dict[int, list[set[int]]]
    counts: dict[str, list[int]]
    refused: int


def by_replay(trace: Trace, case: Case, priority: Ints, every: int) -> Told:
    """Run the metadata-only replay, and those of the trace's beginnings for what the tiers held then."""
    ends = [*range(every, len(trace), every), len(trace)]
    held = {}
    for n in ends:
        made: list[PolicyState] = []
        runs: list[stack_module.TierRun] = []
        part = trace.head(n)
        ds = _replay(part, case, priority[: part.n_blocks], made, runs)
        held[n] = [
            set(state.resident().tolist()) if tier.capacity else set()
            for tier, state in zip(case.tiers, made, strict=True)
        ]
    counts = {name: ds[name].values.tolist() for name in _COUNTERS} | {"moved": ds.moved_blocks.values.tolist()}
    assert ds.hits.values.tolist() == [int((runs[0].level == k).sum()) for k in range(3)]
    return Told(runs[0].level, held, counts, int(ds.refused_requests))


def _replay(
    trace: Trace, case: Case, priority: Ints, made: list[PolicyState], runs: list[stack_module.TierRun]
) -> xr.Dataset:
    """Run ``replay_tiers``, and keep its policies and counts, which the Dataset sums up."""

    def remember(*args: Any, **facts: Any) -> PolicyState:
        made.append(PolicyState(*args, **facts))
        return made[-1]

    real = stack_module.run_stack

    def run(*args: Any) -> stack_module.TierRun:
        runs.append(real(*args))
        return runs[-1]

    with patch.object(stack_module, "PolicyState", remember), patch("dynalab.cache.tiers.run_stack", run):
        return replay_tiers(trace, case.tiers, pinned=True, priority=priority, **case.options())


class StackReplay:
    """Serves the requests of a trace by a stack, as an engine would, and checks every byte that it is given.

    Parameters
    ----------
    trace : Trace
    stack : TierStack
    priority : int, shape (n_blocks,)

    Attributes
    ----------
    n_checked : int
        Blocks whose bytes were compared on the device, because they were found somewhere.
    """

    def __init__(self, trace: Trace, stack: TierStack, priority: Ints) -> None:
        self.trace, self.stack, self.priority = trace, stack, priority
        rng = np.random.default_rng(trace.n_blocks)
        self.hashes: Words = rng.choice(2**62, trace.n_blocks, replace=False).astype(np.uint64) + np.uint64(1)
        self._block = {key: i for i, key in enumerate(self.hashes.tolist())}
        self._content = content(self.hashes)
        self.n_checked = self.refused = 0

    def request(self, r: int) -> npt.NDArray[np.int8]:
        """Serve one request; return the tier that served each block."""
        ids = self.trace.block_ids[self.trace.offsets[r] : self.trace.offsets[r + 1]]
        stack, hashes = self.stack, self.hashes[ids]
        match = stack.match(hashes)
        level = np.full(len(ids), COMPUTED, np.int8)
        try:
            onboarding = stack.onboard(match)
        except NotEnoughBlocks:
            self.refused += 1
            return level
        level[: len(match)] = match.level
        blocks = onboarding.result(60)
        n = len(blocks)
        assert n == len(match)
        assert blocks.hashes.tolist() == hashes[:n].tolist()
        assert (peek(stack.device, blocks.slots) == self._content[ids[:n]]).all(), "a block is not what it was"
        self.n_checked += n
        try:
            new = stack.allocate(len(ids) - n, timeout=60)
        except NotEnoughBlocks:
            self.refused += 1
            stack.release(blocks)
            return level
        poke(stack.device, new.slots, self._content[ids[n:]])
        self._register(new, ids[n:], int(hashes[n - 1]) if n else 0)
        stack.release(blocks + new)
        return level

    def _register(self, new: Any, ids: npt.NDArray[np.int32], parent: int) -> None:
        """Register blocks, those of one priority in a row at once."""
        ranks = self.priority[ids]
        edges = [0, *(np.flatnonzero(np.diff(ranks)) + 1).tolist(), len(ids)]
        for begin, end in pairwise(edges):
            if begin < end:
                hashes = self.hashes[ids[begin:end]]
                self.stack.register(new[begin:end], hashes, parent=parent, priority=int(ranks[begin]))
                parent = int(hashes[-1])

    def held(self) -> list[set[int]]:
        """Return the blocks in each tier."""
        found = [resident(self.stack, k)[0].tolist() if self.stack._directory.capacity[k] else [] for k in range(3)]
        return [{self._block[key] for key in keys} for keys in found]

    def counts(self) -> dict[str, list[int]]:
        """Return the stack's own counters, by the replay's names."""
        ds = self.stack.stats()
        assert (ds.failed_blocks == 0).all()
        assert (ds.in_use == 0).all()
        return {name: ds[name].values.tolist() for name in _COUNTERS} | {"moved": ds.decided_blocks.values.tolist()}


def by_stack(trace: Trace, case: Case, priority: Ints, every: int, path: Path, **options: Any) -> tuple[Told, int]:
    """Run the trace through real memory; also return how many blocks were compared byte by byte."""
    now = [0.0]
    with case.stack(path, clock=lambda: now[0], id_capacity=max(trace.n_blocks, sum(case.slots())), **options) as stack:
        served = StackReplay(trace, stack, priority)
        levels, held = [], {}
        for r in range(len(trace)):
            now[0] = float(trace.arrival[r])
            levels.append(served.request(r))
            if (r + 1) % every == 0 or r + 1 == len(trace):
                held[r + 1] = served.held()
        stack.drain()
        n_checked = served.n_checked + check_all_bytes(stack)
        told = Told(np.concatenate(levels), held, served.counts(), served.refused)
        _check_copies(stack)
    return told, n_checked


def _check_copies(stack: TierStack) -> None:
    """Every copy that was decided was made, once."""
    ds = stack.stats()
    decided, moved = (
        dict(zip(ds.edge.values, ds[name].values.tolist(), strict=True)) for name in ("decided_blocks", "moved_blocks")
    )
    # A copy that only passes host memory counts on both edges, and is one.
    passing = moved["disk_to_device"] - decided["disk_to_device"]
    assert passing >= 0
    for edge in ("disk_to_host", "host_to_device"):
        moved[edge] += passing
    moved["disk_to_device"] -= passing
    assert moved == decided


def compare(trace: Trace, case: Case, path: Path, *, priority: Ints | None = None, every: int = 10) -> tuple[Told, int]:
    """Demand the same of both, block by block; return it, and how many blocks were compared byte by byte."""
    ranks = np.zeros(trace.n_blocks, np.int64) if priority is None else priority
    expected = by_replay(trace, case, ranks, every)
    told, n_checked = by_stack(trace, case, ranks, every, path)
    differ = np.flatnonzero(told.level != expected.level)
    assert not len(differ), f"access {differ[0]}: {told.level[differ[0]]}, the replay says {expected.level[differ[0]]}"
    for n, tiers in expected.held.items():
        for name, mine, theirs in zip(TIERS, told.held[n], tiers, strict=True):
            assert mine == theirs, f"after {n} requests the {name} holds other blocks"
    assert told.counts == expected.counts
    assert told.refused == expected.refused
    return told, n_checked


def with_capacity(tiers: Sequence[Tier], *blocks: int) -> list[Tier]:
    """Return the same tiers of other sizes."""
    return [replace(tier, capacity=n) for tier, n in zip(tiers, blocks, strict=True)]
