"""A stack of device, host and disk in plain Python: the second opinion on ``dynalab.cache.stack.run_stack``.

Written from the rules, not from the compiled loop. A request passes three stages:

1. *Look up*: the highest tier that holds a block serves it. Engines reuse a prefix: with ``match="prefix"`` all blocks
   behind the first one found nowhere are computed, held or not.
2. *Touch*. Inclusive stack: the tier that serves a block sees the use, or with ``touch="all"`` every tier that holds
   it; the device sees the use of a block that it holds, computed or not. Exclusive stack: the device sees the use of a
   block that it holds; any other copy leaves its tier, and has moved up if it served.
3. *Admit*. A block that the device did not serve and does not hold enters it. Inclusive: what a lower tier served
   moves up, and on the way from disk through host memory stays there; a block new to the device (any block, where
   tiers select for themselves or see every use) is then offered to the host, and from there, or around it, to the
   disk. Exclusive: what the device evicts sinks to the host, what the host evicts sinks to the disk; a block that sank
   since it was looked up comes back as a new one, and its copy goes.

The filter "priority" of an inclusive tier refuses all blocks of a request behind the first one that it refuses: a
prefix with a hole is of no use. What sinks in an exclusive stack belongs to other requests, and is judged by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from admission_reference import FrequencyFilter, UseCountFilter
from reference import REFERENCES, Reference

COMPUTED = "computed"
EVENTS = ("inserted", "evicted", "removed", "rejected")


@dataclass
class PlainTier:
    """One tier; `wants(block, now)` is its filter."""

    name: str
    cache: Reference
    wants: Callable[[int, float], bool]
    uses: UseCountFilter | None = None
    contiguous: bool = False
    stopped: bool = False
    events: Counter[str] = field(default_factory=Counter)

    def holds(self, block: int) -> bool:
        return self.cache.contains(block)

    def offered(self, block: int, now: float) -> bool:
        """Ask the filter about a block that the tier lacks."""
        wanted = self.wants(block, now) and not self.stopped
        self.stopped = self.contiguous and not wanted
        self.events["rejected"] += not wanted
        return wanted

    def enter(self, block: int) -> int | None:
        """Take a block in; return the one that had to leave."""
        assert not self.holds(block)
        victim = self.cache.evict(block) if self.cache.size >= self.cache.capacity else None
        self.cache.insert(block)
        self.events["inserted"] += 1
        self.events["evicted"] += victim is not None
        assert self.cache.size <= self.cache.capacity
        return victim

    def drop(self, block: int) -> None:
        self.cache.remove(block)
        self.events["removed"] += 1


def plain_tier(
    name: str, capacity: int, policy: str, facts: dict[str, Any], admission: str, **options: Any
) -> PlainTier:
    """Build a tier from the same words as :class:`dynalab.cache.Tier`."""
    cache = REFERENCES[policy](capacity, **facts)
    uses = None
    if admission == "after":
        uses = UseCountFilter(options["min_frequency"])
        counted = uses

        def wants(block: int, now: float) -> bool:
            return counted.admit(block)

    elif admission == "frequency":
        kvbm = FrequencyFilter(options["min_frequency"], options["flush_interval"], options["max_entries"])
        wants = kvbm.admit
    elif admission == "priority":

        def wants(block: int, now: float) -> bool:
            return facts["priority"][block] >= options["min_priority"]

    else:

        def wants(block: int, now: float) -> bool:
            return True

    return PlainTier(name, cache, wants, uses, contiguous=admission == "priority")


class PlainStack:
    """See the module's docstring; `tiers` holds the tiers that have room, from the top."""

    def __init__(
        self,
        tiers: Sequence[PlainTier],
        *,
        exclusive: bool = False,
        match_any: bool = False,
        touch_all: bool = False,
        offer_always: bool = False,
        around_host: bool = False,
        interleaved: bool = False,
    ) -> None:
        self.tiers = {tier.name: tier for tier in tiers}
        self.device, self.host, self.disk = (self.tiers.get(name) for name in ("device", "host", "disk"))
        self.exclusive = exclusive
        self.match_any = match_any
        self.touch_all = touch_all
        self.offer_always = offer_always
        self.around_host = around_host or self.host is None
        self.interleaved = interleaved
        self.moved: Counter[str] = Counter()
        if exclusive:
            for tier in tiers:
                tier.contiguous = False

    def request(self, blocks: Sequence[int], now: float) -> list[str]:
        """Serve one request; return the tier that served each block."""
        for tier in self.tiers.values():
            tier.stopped = False
        groups = [[block] for block in blocks] if self.interleaved else [list(blocks)]
        served: list[str] = []
        for group in groups:
            levels: list[str] = []
            for block in group:
                broken = COMPUTED in served + levels
                levels.append(COMPUTED if broken and not self.match_any else self.find(block))
            for block, level in zip(group, levels, strict=True):
                self.touch(block, level)
            for block, level in zip(group, levels, strict=True):
                self.admit(block, level, now)
            served += levels
        return served

    def find(self, block: int) -> str:
        return next((name for name, tier in self.tiers.items() if tier.holds(block)), COMPUTED)

    def touch(self, block: int, level: str) -> None:
        for tier in self.tiers.values():
            if tier.uses is not None:
                tier.uses.observe(block)
        if self.exclusive:
            if self.device and self.device.holds(block):
                self.device.cache.hit(block)
                return
            self.drop_below(block)
            self.move_up(level)
            return
        for name, tier in self.tiers.items():
            sees = self.touch_all or name == level or name == "device"
            if sees and tier.holds(block):
                tier.cache.hit(block)

    def drop_below(self, block: int) -> None:
        for tier in (self.host, self.disk):
            if tier and tier.holds(block):
                tier.drop(block)

    def move_up(self, level: str) -> None:
        """Count the way from the serving tier to the device."""
        if level == "host":
            self.moved["host_to_device"] += 1
        elif level == "disk" and self.around_host:
            self.moved["disk_to_device"] += 1
        elif level == "disk":
            self.moved["disk_to_host"] += 1
            self.moved["host_to_device"] += 1

    def admit(self, block: int, level: str, now: float) -> None:
        known = level == "device" or (self.device is not None and self.device.holds(block))
        if self.exclusive:
            if not known:
                self.drop_below(block)
                self.sink(self.device.enter(block) if self.device else block, now)
            return
        self.move_up(level)
        if level == "disk" and not self.around_host and self.host and not self.host.holds(block):
            self.host.enter(block)
        if self.device and not known:
            self.device.enter(block)
        if not known or self.offer_always:
            self.offer(block, now)

    def sink(self, block: int | None, now: float) -> None:
        edge = "device_to_disk"
        if self.host:
            if block is None or not self.host.offered(block, now):
                return
            block = self.host.enter(block)
            self.moved["device_to_host"] += 1
            edge = "host_to_disk"
        if self.disk and block is not None and self.disk.offered(block, now):
            self.disk.enter(block)
            self.moved[edge] += 1

    def offer(self, block: int, now: float) -> None:
        registered = False
        if self.host and not self.host.holds(block) and self.host.offered(block, now):
            self.host.enter(block)
            self.moved["device_to_host"] += 1
            registered = True
        if not self.disk or self.disk.holds(block):
            return
        if self.around_host:
            if self.disk.offered(block, now):
                self.disk.enter(block)
                self.moved["device_to_disk"] += 1
        elif self.host:
            in_host = registered or (self.offer_always and self.host.holds(block))
            if in_host and self.disk.offered(block, now):
                self.disk.enter(block)
                self.moved["host_to_disk"] += 1
