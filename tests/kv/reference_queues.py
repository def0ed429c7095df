"""References of the policies that are queues and counts: FIFO, LRU, CLOCK, LFU, SIEVE, S3-FIFO."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from reference_base import OneQueue, Reference, oldest, pop_oldest


class Fifo(OneQueue):
    def hit(self, x: int) -> None:
        pass


class Lru(OneQueue):
    def hit(self, x: int) -> None:
        self.queue.move_to_end(x)


class Clock(OneQueue):
    """FIFO with one bit of second chance."""

    def hit(self, x: int) -> None:
        self.queue[x] = 1

    def evict(self, x: int) -> int:
        while True:
            block, bit = self.queue.popitem(last=False)
            if not bit:
                return block
            self.queue[block] = 0


class Lfu(Reference):
    """One queue per count; a block joins the newest end of the queue it moves to."""

    def start(self) -> None:
        self.count: dict[int, int] = {}
        self.at_count: defaultdict[int, OrderedDict[int, int]] = defaultdict(OrderedDict)

    def blocks(self) -> Iterable[int]:
        return self.count

    @property
    def size(self) -> int:
        return len(self.count)

    def leave(self, x: int) -> int:
        count = self.count.pop(x)
        del self.at_count[count][x]
        if not self.at_count[count]:
            del self.at_count[count]
        return count

    def enter(self, x: int, count: int) -> None:
        self.count[x] = count
        self.at_count[count][x] = 0

    def hit(self, x: int) -> None:
        self.enter(x, self.leave(x) + 1)

    def insert(self, x: int) -> None:
        self.enter(x, 1)

    def evict(self, x: int) -> int:
        victim = oldest(self.at_count[min(self.at_count)])
        self.leave(victim)
        return victim

    def remove(self, x: int) -> None:
        if x in self.count:
            self.leave(x)


class Sieve(Reference):
    """Zhang et al., NSDI 2024: a hand goes from the oldest to the newest and clears marks; no block moves."""

    def start(self) -> None:
        self.order: list[int] = []
        self.visited: dict[int, bool] = {}
        self.hand: int | None = None

    def blocks(self) -> Iterable[int]:
        return self.visited

    @property
    def size(self) -> int:
        return len(self.visited)

    def hit(self, x: int) -> None:
        self.visited[x] = True

    def insert(self, x: int) -> None:
        self.order.append(x)
        self.visited[x] = False

    def take(self, index: int) -> int:
        block = self.order.pop(index)
        del self.visited[block]
        return block

    def evict(self, x: int) -> int:
        index = 0 if self.hand is None else self.hand
        while self.visited[self.order[index]]:
            self.visited[self.order[index]] = False
            index = (index + 1) % len(self.order)
        victim = self.take(index)
        self.hand = index if index < len(self.order) else None
        return victim

    def remove(self, x: int) -> None:
        if x not in self.visited:
            return
        index = self.order.index(x)
        self.take(index)
        if self.hand is not None:
            if index < self.hand:
                self.hand -= 1
            if self.hand == len(self.order):
                self.hand = None


class S3Fifo(Reference):
    """Yang et al., SOSP 2023, with libCacheSim's parameters: small 10%, ghost 90%, two further uses to leave small."""

    def start(self) -> None:
        self.small_size = max(1, int(0.1 * self.capacity))
        self.main_size = self.capacity - self.small_size
        self.ghost_size = int(0.9 * self.capacity)
        self.small: OrderedDict[int, int] = OrderedDict()  # block -> uses since insertion
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghost: OrderedDict[int, int] = OrderedDict()
        self.known: set[int] = set()  # blocks on their way in that were found in the ghost list
        self.has_evicted = False

    def blocks(self) -> Iterable[int]:
        return [*self.small, *self.main]

    def contains(self, x: int) -> bool:
        return x in self.small or x in self.main

    @property
    def size(self) -> int:
        return len(self.small) + len(self.main)

    def hit(self, x: int) -> None:
        (self.small if x in self.small else self.main)[x] += 1

    def consult_ghost(self, x: int) -> None:
        if x in self.ghost:
            del self.ghost[x]
            self.known.add(x)

    def evict(self, x: int) -> int:
        self.consult_ghost(x)
        self.has_evicted = True
        if self.small and len(self.main) <= self.main_size:
            while self.small:
                block, uses = self.small.popitem(last=False)
                if uses < 2:
                    self.remember(block)
                    return block
                self.main[block] = 0
        while True:
            block, uses = self.main.popitem(last=False)
            if uses == 0:
                return block
            self.main[block] = min(uses, 3) - 1

    def remember(self, block: int) -> None:
        self.ghost[block] = 0
        if len(self.ghost) > self.ghost_size:
            pop_oldest(self.ghost)

    def insert(self, x: int) -> None:
        self.consult_ghost(x)
        filling = not self.has_evicted and len(self.small) >= self.small_size
        (self.main if x in self.known or filling else self.small)[x] = 0
        self.known.discard(x)

    def remove(self, x: int) -> None:
        for queue in (self.small, self.main, self.ghost):
            queue.pop(x, None)
        self.known.discard(x)
