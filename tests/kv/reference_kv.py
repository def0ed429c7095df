"""References of the policies of KV block managers, and of Belady's bound."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from reference_base import Reference, mix64, pop_oldest


class Ranked(Reference):
    """Base of the policies whose victim is the smallest of a key per block; ``last`` holds the tick of the last use."""

    def start(self) -> None:
        self.last: dict[int, int] = {}
        self.tick = 0

    def blocks(self) -> Iterable[int]:
        return self.last

    @property
    def size(self) -> int:
        return len(self.last)

    def key(self, x: int) -> tuple[int, ...]:
        raise NotImplementedError

    def hit(self, x: int) -> None:
        self.tick += 1
        self.last[x] = self.tick

    def insert(self, x: int) -> None:
        self.hit(x)

    def evict(self, x: int) -> int:
        victim = min(self.last, key=self.key)
        self.remove(victim)
        return victim

    def remove(self, x: int) -> None:
        self.last.pop(x, None)


class Priority(Ranked):
    """KVBM's inactive pool: lowest priority first, oldest first among equals."""

    def key(self, x: int) -> tuple[int, ...]:
        priority = 0 if self.priority is None else self.priority[x]
        return min(100, max(0, priority)), self.last[x]


class LengthAware(Ranked):
    """Mooncake's LengthAwareCache: LFU that among equal counts gives up the block furthest into its request."""

    def start(self) -> None:
        super().start()
        self.count: dict[int, int] = {}

    def hit(self, x: int) -> None:
        super().hit(x)
        self.count[x] = self.count.get(x, 0) + 1

    def key(self, x: int) -> tuple[int, ...]:
        assert self.position is not None
        return self.count[x], -self.position[x], self.last[x]

    def remove(self, x: int) -> None:
        super().remove(x)
        self.count.pop(x, None)


class Lineage(Ranked):
    """KVBM v2: only leaves of the resident forest may go, oldest use first."""

    def evict(self, x: int) -> int:
        assert self.parent is not None
        inner = {self.parent[y] for y in self.last}
        victim = min((y for y in self.last if y not in inner), key=self.last.__getitem__)
        self.remove(victim)
        return victim


class MultiLru(Reference):
    """KVBM v2's multi-LRU: four LRU lists by the frequency that a TinyLFU sketch estimates at each use."""

    def start(self) -> None:
        self.levels: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(4)]
        self.words = max(1, self.capacity // 4)
        self.counters: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.added = 0

    def blocks(self) -> Iterable[int]:
        return [block for level in self.levels for block in level]

    def counters_of(self, x: int) -> list[tuple[int, int]]:
        hashes = [mix64(x, k + 1) for k in range(4)]
        return [(h % self.words, (h >> 32) & 15) for h in hashes]

    def count(self, x: int) -> int:
        """Add one use of ``x``; return its estimated number of uses."""
        moved = False
        for counter in self.counters_of(x):
            if self.counters[counter] < 15:
                self.counters[counter] += 1
                moved = True
        self.added += moved
        if self.added >= 10 * self.capacity:
            odd = sum(value % 2 for value in self.counters.values())
            for counter in self.counters:
                self.counters[counter] //= 2
            self.added = max(0, self.added // 2 - odd // 4)
        return min(self.counters[counter] for counter in self.counters_of(x))

    def hit(self, x: int) -> None:
        estimate = self.count(x)
        self.remove(x)
        level = 0 if estimate < 3 else 1 if estimate < 8 else 2 if estimate < 15 else 3
        self.levels[level][x] = 0

    def insert(self, x: int) -> None:
        self.hit(x)

    def evict(self, x: int) -> int:
        return pop_oldest(next(level for level in self.levels if level))

    def remove(self, x: int) -> None:
        for level in self.levels:
            level.pop(x, None)


class Belady(Reference):
    """Furthest next use goes first, never used again before all; the smallest block id among equals."""

    def start(self) -> None:
        self.next: dict[int, float] = {}
        self.heap: list[tuple[float, int]] = []  # holds outdated entries, told apart by ``next``

    def blocks(self) -> Iterable[int]:
        return self.next

    @property
    def size(self) -> int:
        return len(self.next)

    def hit(self, x: int) -> None:
        self.next[x] = math.inf if self.next_use < 0 else self.next_use
        heapq.heappush(self.heap, (-self.next[x], x))

    def insert(self, x: int) -> None:
        self.hit(x)

    def evict(self, x: int) -> int:
        while True:
            key, victim = heapq.heappop(self.heap)
            if self.next.get(victim) == -key:
                del self.next[victim]
                return victim

    def remove(self, x: int) -> None:
        self.next.pop(x, None)
