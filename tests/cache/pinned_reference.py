"""The steps of a block manager in plain Python: the second opinion on ``replay_tiers(pinned=True)``.

Written from the rules, not from the compiled code. A request uses its blocks from the moment they are found until it
ends, and what it uses is *pinned*: no tier gives it up. Its steps:

1. *Match* the longest prefix held anywhere; the blocks behind it are computed, held or not.
2. *Onboard* the matched blocks in order. A request that finds no room for all of them is refused before anything
   moves. An inclusive stack makes room for all of them first, an exclusive one, in which they change places with the
   victims, for one at a time.
3. *Allocate* room for all computed blocks at once, before one of them enters. Room is made in nobody's name: which
   blocks will be written is not known yet. A request that finds no room keeps what it onboarded, and enters no more.
4. *Register* the computed blocks in order. One that the device already holds gives its room back.
5. *Release* everything.

A pinned block that a policy wants to give up is set aside: the policy forgets it, and gets it back as a new block once
it has named a victim (all victims of an allocation) that may really go. A tier with nothing but pinned blocks takes no
block in. Filters, offers and sinking are those of :mod:`tier_reference`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tier_reference import COMPUTED, PlainStack, PlainTier

#: Stands in a policy's books for the blocks that will be written: an id that no request contains.
NOBODY = 10**9


class PinnedStack(PlainStack):
    """See the module's docstring; `reached` counts the cases that a test must not miss."""

    def __init__(self, tiers: Sequence[PlainTier], **switches: bool) -> None:
        super().__init__(tiers, **switches)
        assert self.device is not None
        assert not self.match_any
        assert not self.interleaved
        self.pins: dict[str, Counter[int]] = {name: Counter() for name in self.tiers}
        self.refused = 0
        self.reached: Counter[str] = Counter()

    # ------------------------------------------------------------------ pins and room

    def pinned(self, tier: PlainTier, block: int) -> bool:
        return self.pins[tier.name][block] > 0

    def move_pin(self, block: int, level: str) -> None:
        self.pins[level][block] -= 1
        self.pins["device"][block] += 1

    def free(self, tier: PlainTier) -> int:
        return tier.cache.capacity - tier.cache.size

    def available(self, tier: PlainTier) -> int:
        """Blocks that could enter if all that are not pinned left."""
        return tier.cache.capacity - sum(count > 0 for count in self.pins[tier.name].values())

    def make_room(self, tier: PlainTier, incoming: Sequence[int]) -> list[int]:
        """Evict a block in the name of each incoming one, none of them pinned."""
        victims: list[int] = []
        aside: list[int] = []
        while len(victims) < len(incoming):
            victim = tier.cache.evict(incoming[len(victims)])
            if self.pinned(tier, victim):
                tier.cache.remove(victim)
                aside.append(victim)
            else:
                victims.append(victim)
        for block in aside:
            tier.cache.insert(block)
        tier.events["evicted"] += len(incoming)
        self.reached[f"{tier.name}: set aside"] += len(aside)
        return victims

    def put(self, tier: PlainTier, block: int) -> tuple[bool, int | None]:
        """Take a block in, if there is a way; return whether it entered, and the one that had to leave."""
        assert not tier.holds(block)
        if self.available(tier) == 0:
            self.reached[f"{tier.name}: all pinned"] += 1
            return False, None
        victims = [] if self.free(tier) else self.make_room(tier, [block])
        tier.cache.insert(block)
        tier.events["inserted"] += 1
        return True, victims[0] if victims else None

    # ------------------------------------------------------------------ the steps

    def request(self, blocks: Sequence[int], now: float) -> list[str]:
        """Serve one request; return the tier that served each block."""
        for tier in self.tiers.values():
            tier.stopped = False
        levels = self.match(blocks)
        matched, computed = blocks[: len(levels)], blocks[len(levels) :]
        if self.onboard(matched, levels, now):
            if self.allocate(len(computed), now):
                self.register(computed, now)
            else:
                self.refused += 1
                self.reached["refused to allocate"] += 1
        else:
            self.refused += 1
            self.reached["refused to onboard"] += 1
            levels = []
        for pins in self.pins.values():
            pins.clear()
        return levels + [COMPUTED] * (len(blocks) - len(levels))

    def match(self, blocks: Sequence[int]) -> list[str]:
        levels: list[str] = []
        for block in blocks:
            level = self.find(block)
            if level == COMPUTED:
                break
            levels.append(level)
        for block, level in zip(blocks, levels, strict=False):
            self.observe(block)
            self.pins[level][block] += 1
            for name, tier in self.tiers.items():
                sees = name == "device" if self.exclusive else name == level or self.touch_all
                if sees and tier.holds(block):
                    tier.cache.hit(block)
        return levels

    def observe(self, block: int) -> None:
        for tier in self.tiers.values():
            if tier.uses is not None:
                tier.uses.observe(block)

    def onboard(self, blocks: Sequence[int], levels: Sequence[str], now: float) -> bool:
        if sum(level != "device" for level in levels) > self.available(self.device):
            return False
        if not self.exclusive:
            entering = [block for block in blocks if not self.device.holds(block)]
            self.make_room(self.device, entering[self.free(self.device) :])
        for block, level in zip(blocks, levels, strict=True):
            if self.device.holds(block):
                self.move_pin(block, level)
                if self.exclusive and level != "device" and not self.pins[level][block]:
                    self.tiers[level].drop(block)
                if self.offer_always:
                    self.offer(block, now)
                continue
            self.move_up(level)
            if self.exclusive and self.pins[level][block] == 1:
                self.tiers[level].drop(block)
            elif not self.exclusive and level == "disk" and not self.around_host and not self.host.holds(block):
                self.put(self.host, block)
            entered, victim = self.put(self.device, block)
            assert entered
            self.move_pin(block, level)
            if self.exclusive:
                self.sink(victim, now)
            else:
                self.offer(block, now)
        return True

    def allocate(self, count: int, now: float) -> bool:
        if count > self.available(self.device):
            return False
        for victim in self.make_room(self.device, [NOBODY] * (count - self.free(self.device))):
            if self.exclusive:
                self.sink(victim, now)
        return True

    def register(self, blocks: Sequence[int], now: float) -> None:
        for block in blocks:
            self.observe(block)
        for block in blocks:
            held = self.device.holds(block)
            self.reached["computed although held"] += held
            if self.exclusive and not held:
                self.drop_below(block)
            if not self.exclusive and self.touch_all:
                for tier in self.tiers.values():
                    if tier.holds(block):
                        tier.cache.hit(block)
            elif held:
                self.device.cache.hit(block)
            if not held:
                assert self.free(self.device) > 0
                self.put(self.device, block)
            self.pins["device"][block] += 1
            if not self.exclusive and (not held or self.offer_always):
                self.offer(block, now)

    # ------------------------------------------------------------------ ways down, where a tier may be full of pins

    def sink(self, victim: int | None, now: float) -> None:
        edge = "device_to_disk"
        if self.host and victim is not None:
            victim = self.take(self.host, victim, "device_to_host", now)
            edge = "host_to_disk"
        if self.disk and victim is not None:
            self.take(self.disk, victim, edge, now)

    def take(self, tier: PlainTier, block: int, edge: str, now: float) -> int | None:
        """Let a victim enter the tier below; return the one that leaves for it."""
        if tier.holds(block):
            self.reached["sank onto its copy"] += 1
            tier.cache.hit(block)
            return None
        if not tier.offered(block, now):
            return None
        entered, victim = self.put(tier, block)
        self.moved[edge] += entered
        return victim

    def offer(self, block: int, now: float) -> None:
        registered = False
        if self.host and not self.host.holds(block) and self.host.offered(block, now):
            registered, _ = self.put(self.host, block)
            self.moved["device_to_host"] += registered
        if not self.disk or self.disk.holds(block):
            return
        in_host = registered or (self.offer_always and self.host is not None and self.host.holds(block))
        if (self.around_host or in_host) and self.disk.offered(block, now):
            entered, _ = self.put(self.disk, block)
            self.moved["device_to_disk" if self.around_host else "host_to_disk"] += entered
