"""A stack of tiers, checked and driven with metadata alone; :func:`dynalab.cache.replay_tiers` is the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.cache._tier_drive import drive_pinned, drive_tiers
from dynalab.cache.accesses import Accesses
from dynalab.cache.replay import MAX_BLOCKS
from dynalab.errors import ConfigError, unknown
from dynalab.kv.admission import AdmissionState
from dynalab.kv.policies import PolicyState, get_policy
from dynalab.kv.tiering.rules import COMPUTED, EDGES, EVICTED, INSERTED, N_EVENTS, REMOVED, TIERS
from dynalab.units import parse_size

#: What happens to blocks on their way down.
MODES = {
    "write_through": "inclusive: a block entering the device is offered to the tiers below at once (Dynamo's KVBM)",
    "write_back": "exclusive: a block sinks when it is evicted, and leaves the lower tier when it is used again",
    "selective": "inclusive, but a tier below takes a block only at its k-th use",
}
#: Facts about the block that stands for nobody.
_NOBODY = {"priority": 0, "position": 0, "parent": -1}


@dataclass(frozen=True)
class Tier:
    """One tier of a stack.

    Attributes
    ----------
    name : {"device", "host", "disk"}
    capacity : int or str
        Blocks (int) or bytes ("512GiB", which needs the model to become blocks). 0 leaves the tier out.
    policy : str
        Name in :data:`dynalab.kv.policies.POLICIES`; offline bounds are refused.
    admission : str, optional
        Name in :data:`dynalab.kv.admission.ADMISSIONS`: which blocks may enter. By default all; in mode "selective"
        those used at least `admit_after` times. The device takes everything that is computed.
    min_frequency, flush_interval, max_entries, min_priority
        Parameters of the filter, see :class:`~dynalab.kv.admission.AdmissionState`.
    """

    name: str
    capacity: int | str
    policy: str = "lru"
    admission: str | None = None
    min_frequency: int = 2
    flush_interval: float = 600.0
    max_entries: int = 1_000_000
    min_priority: int = 1

    def blocks(self, block_bytes: int | None) -> int:
        """Return the capacity in whole blocks of `block_bytes`."""
        if isinstance(self.capacity, str):
            if block_bytes is None:
                raise ConfigError(
                    f"{self.name}: {self.capacity!r} is a size in bytes; give model=... to turn it into blocks"
                )
            return min(parse_size(self.capacity, field=self.name) // block_bytes, MAX_BLOCKS)
        if not _is_whole(self.capacity) or not 0 <= self.capacity <= MAX_BLOCKS:
            raise ConfigError(
                f"{self.name}: {self.capacity!r} blocks; give 0 (no such tier) or more, a whole number up to "
                f"{MAX_BLOCKS:,}, or a size such as '512GiB'"
            )
        return int(self.capacity)


@dataclass(frozen=True, eq=False)
class TierRun:
    """What a replay of a stack counted, before it is turned into a Dataset.

    Attributes
    ----------
    blocks : ndarray of int64, shape (3,)
        Capacities.
    level : ndarray of int8, shape (n_accesses,)
        0 device, 1 host, 2 disk, 3 computed.
    events : ndarray of int64, shape (3, 4)
        Insertions, evictions, removals, rejections per tier.
    traffic : ndarray of int64, shape (n_windows, 6)
        Blocks moved per window of time and edge.
    resident : ndarray of int64, shape (3,)
        Blocks held at the end.
    refused : int
        Requests that found no room on the device (`pinned` replays only).
    """

    blocks: npt.NDArray[np.int64]
    level: npt.NDArray[np.int8]
    events: npt.NDArray[np.int64]
    traffic: npt.NDArray[np.int64]
    resident: npt.NDArray[np.int64]
    refused: int


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_stack(tiers: Mapping[str, int | str] | Sequence[Tier], mode: str, admit_after: int) -> tuple[Tier, ...]:
    """Return the three tiers of a stack from the top, absent ones with capacity 0, filters filled in."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if not _is_whole(admit_after) or admit_after < 1:
        raise ConfigError(f"admit_after: {admit_after!r} uses; give at least 1, a whole number")
    given = [Tier(name, capacity) for name, capacity in tiers.items()] if isinstance(tiers, Mapping) else list(tiers)
    strangers = [tier for tier in given if not isinstance(tier, Tier)]
    if strangers:
        raise ConfigError(f"tiers: {strangers[0]!r} is no Tier; give {{'device': 2000, ...}} or a list of Tier(...)")
    by_name: dict[str, Tier] = {}
    for tier in given:
        if tier.name not in TIERS:
            raise ConfigError(f"tiers: {tier.name!r} is not a tier; choose from {', '.join(TIERS)}")
        if tier.name in by_name:
            raise ConfigError(f"tiers: {tier.name!r} is given twice")
        if get_policy(tier.policy).offline:
            raise ConfigError(f"{tier.name}: policy {tier.policy!r} needs the future and cannot run in a tier stack")
        if tier.name == "device" and tier.capacity != 0 and tier.admission not in (None, "all"):
            raise ConfigError(f"device: admission {tier.admission!r}; the device takes every block that is computed")
        if tier.admission is None:
            selective = mode == "selective" and tier.name != "device"
            frequency = admit_after if selective else tier.min_frequency
            tier = replace(tier, admission="after" if selective else "all", min_frequency=frequency)
        by_name[tier.name] = tier
    return tuple(by_name.get(name, Tier(name, 0, admission="all")) for name in TIERS)


def run_stack(
    accesses: Accesses,
    stack: Sequence[Tier],
    switch: npt.NDArray[np.bool_],
    block_bytes: int | None,
    priority: npt.ArrayLike | None,
    window: float,
    pinned: bool = False,
) -> TierRun:
    """Drive the stack with metadata alone; see :func:`replay_tiers` for the parameters."""
    n = accesses.n_blocks
    blocks = np.array([tier.blocks(block_bytes) for tier in stack], np.int64)
    ranks = np.zeros(n, np.int64) if priority is None else np.asarray(priority)
    if ranks.dtype.kind not in "iu":
        raise ConfigError(f"priority: values of type {ranks.dtype}; give whole numbers from 0 to 100")
    ranks = ranks.astype(np.int64)
    if ranks.shape != (n,):
        raise ConfigError(f"priority: {ranks.size} values for {n} blocks; give one per block")
    needs = {need for tier in stack for need in get_policy(tier.policy).needs}
    facts: dict[str, Any] = {"priority": ranks}
    if "position" in needs:
        facts["position"] = accesses.positions
    if "parent" in needs:
        facts["parent"] = accesses.parents
    # Room is made in the name of a block that exists in no request, see drive_pinned.
    n_ids = n + 1 if pinned else n
    if pinned:
        facts = {name: np.append(values, _NOBODY[name]) for name, values in facts.items()}
    states = [
        PolicyState(tier.policy, max(int(size), 1), n_ids if size else 0, **(facts if size else {}))
        for tier, size in zip(stack, blocks, strict=True)
    ]
    filters = [
        AdmissionState(
            str(tier.admission),
            n,
            min_frequency=tier.min_frequency,
            flush_interval=tier.flush_interval,
            max_entries=tier.max_entries,
            min_priority=tier.min_priority,
            contiguous=True,
        )
        for tier in stack
    ]
    arrival = np.ascontiguousarray(accesses.trace.arrival)
    row = (arrival // window).astype(np.int64)
    level = np.full(accesses.ids.size, COMPUTED, np.int8)
    events = np.zeros((len(TIERS), N_EVENTS), np.int64)
    traffic = np.zeros((int(row.max(initial=0)) + 1, len(EDGES)), np.int64)
    arguments = (
        *(state.step for state in states),
        (
            tuple(state.f for state in states),
            tuple(state.s for state in states),
            tuple(state.t for state in states),
        ),
        (tuple(filter.v for filter in filters), tuple(filter.p for filter in filters)),
        blocks > 0,
        switch,
        accesses.ids,
        accesses.offsets,
        arrival,
        ranks,
        row,
        level,
        events,
        traffic,
    )
    refused = 0
    if pinned:
        hold = (
            np.zeros((len(TIERS), n_ids), np.int32),
            np.zeros((2, len(TIERS)), np.int64),
            np.zeros((len(TIERS), int(min(blocks.max(), n_ids))), np.int32),
        )
        refused = drive_pinned(*arguments, hold, np.zeros((2, n_ids), np.uint8))
    else:
        drive_tiers(*arguments)
    held = events[:, INSERTED] - events[:, EVICTED] - events[:, REMOVED]
    resident = np.array([state.size for state in states], np.int64)
    if not np.array_equal(held, resident):
        raise AssertionError(f"blocks are not conserved: {held.tolist()} counted, {resident.tolist()} held")
    return TierRun(blocks, level, events, traffic, resident, refused)
