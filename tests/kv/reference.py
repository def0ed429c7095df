"""Eviction policies in plain Python, written for obvious correctness: the second opinion on ``dynalab.kv.policies``.

One class per policy over dictionaries that remember their order (oldest first, newest last). They were written without
a look at the package's state machines; both follow the papers with libCacheSim's parameters, and the tests demand that
both make the same decisions. Blocks are of unit size, ``capacity`` is in blocks, ``int`` truncates.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence

MASK64 = 2**64 - 1


def mix64(x: int, seed: int) -> int:
    """Splitmix64's finaliser of ``x`` and ``seed``: 64 well-mixed bits, shared by all sketches."""
    z = ((x + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def xxh64(value: int, seed: int) -> int:
    """XXH64 of the eight little-endian bytes of ``value``: the hash of libCacheSim's sketch."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

    def rotl(z: int, bits: int) -> int:
        return (z << bits | z >> (64 - bits)) & MASK64

    h = (seed + p5 + 8) & MASK64
    h ^= rotl(value * p2 & MASK64, 31) * p1 & MASK64
    h = (rotl(h, 27) * p1 + p4) & MASK64
    h = ((h ^ h >> 33) * p2) & MASK64
    h = ((h ^ h >> 29) * p3) & MASK64
    return h ^ h >> 32


class Reference:
    """What every policy can do; the subclasses decide."""

    def __init__(
        self,
        capacity: int,
        position: Sequence[int] | None = None,
        parent: Sequence[int] | None = None,
        priority: Sequence[int] | None = None,
    ) -> None:
        self.capacity = capacity
        self.position = position
        self.parent = parent
        self.priority = priority
        self.next_use = -1
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def blocks(self) -> Iterable[int]:
        """Every resident block, in any order."""
        raise NotImplementedError

    def contains(self, x: int) -> bool:
        return x in self.blocks()

    def hit(self, x: int) -> None:
        raise NotImplementedError

    def evict(self, x: int) -> int:
        """Make room for ``x``, return the victim."""
        raise NotImplementedError

    def insert(self, x: int) -> None:
        raise NotImplementedError

    def remove(self, x: int) -> None:
        """Forget ``x``, resident or ghost, as if never seen (sketches excepted: they cannot forget)."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(list(self.blocks()))

    def resident(self) -> list[int]:
        return sorted(self.blocks())

    def access(self, x: int, next_use: int = -1) -> tuple[bool, int]:
        self.next_use = next_use
        if self.contains(x):
            self.hit(x)
            return True, -1
        victim = self.evict(x) if self.size >= self.capacity else -1
        self.insert(x)
        return False, victim


def oldest(queue: OrderedDict[int, int]) -> int:
    return next(iter(queue))


def pop_oldest(queue: OrderedDict[int, int]) -> int:
    return queue.popitem(last=False)[0]


class OneQueue(Reference):
    """Base of the policies that keep all resident blocks in one ordered dictionary."""

    def start(self) -> None:
        self.queue: OrderedDict[int, int] = OrderedDict()

    def blocks(self) -> Iterable[int]:
        return self.queue

    @property
    def size(self) -> int:
        return len(self.queue)

    def insert(self, x: int) -> None:
        self.queue[x] = 0

    def evict(self, x: int) -> int:
        return pop_oldest(self.queue)

    def remove(self, x: int) -> None:
        self.queue.pop(x, None)


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
        self.known: int | None = None  # a block on its way in that was found in the ghost list
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
            self.known = x

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
        (self.main if x == self.known or filling else self.small)[x] = 0
        self.known = None

    def remove(self, x: int) -> None:
        for queue in (self.small, self.main, self.ghost):
            queue.pop(x, None)


class Arc(Reference):
    """Megiddo & Modha, FAST 2003, figure 4; ``the target ``p`` is a real number."""

    def start(self) -> None:
        self.t1: OrderedDict[int, int] = OrderedDict()
        self.t2: OrderedDict[int, int] = OrderedDict()
        self.b1: OrderedDict[int, int] = OrderedDict()
        self.b2: OrderedDict[int, int] = OrderedDict()
        self.p = 0.0

    def blocks(self) -> Iterable[int]:
        return [*self.t1, *self.t2]

    def contains(self, x: int) -> bool:
        return x in self.t1 or x in self.t2

    @property
    def size(self) -> int:
        return len(self.t1) + len(self.t2)

    def hit(self, x: int) -> None:
        self.t1.pop(x, None)
        self.t2.pop(x, None)
        self.t2[x] = 0

    def evict(self, x: int) -> int:
        c = self.capacity
        t1, t2, b1, b2 = len(self.t1), len(self.t2), len(self.b1), len(self.b2)
        if x in self.b1:
            self.p = min(c, self.p + max(b2 / b1, 1))
        elif x in self.b2:
            self.p = max(0, self.p - max(b1 / b2, 1))
        elif t1 + b1 >= c:
            if t1 >= c:
                return pop_oldest(self.t1)
            pop_oldest(self.b1)
        elif t1 + t2 + b1 + b2 >= 2 * c:
            pop_oldest(self.b2)
        return self.replace(x)

    def replace(self, x: int) -> int:
        t1 = len(self.t1)
        from_t1 = t1 > 0 and (t1 > self.p or (t1 == self.p and x in self.b2))
        if from_t1 or not self.t2:
            victim = pop_oldest(self.t1)
            self.b1[victim] = 0
        else:
            victim = pop_oldest(self.t2)
            self.b2[victim] = 0
        return victim

    def insert(self, x: int) -> None:
        if x in self.b1 or x in self.b2:
            self.b1.pop(x, None)
            self.b2.pop(x, None)
            self.t2[x] = 0
        else:
            self.t1[x] = 0

    def remove(self, x: int) -> None:
        for queue in (self.t1, self.t2, self.b1, self.b2):
            queue.pop(x, None)


class TwoQ(Reference):
    """Johnson & Shasha, VLDB 1994, full version: Kin 25%, Kout 50%."""

    def start(self) -> None:
        self.kin = int(0.25 * self.capacity)
        self.kout = int(0.5 * self.capacity)
        self.ain: OrderedDict[int, int] = OrderedDict()
        self.aout: OrderedDict[int, int] = OrderedDict()
        self.am: OrderedDict[int, int] = OrderedDict()
        self.known: int | None = None

    def blocks(self) -> Iterable[int]:
        return [*self.ain, *self.am]

    def contains(self, x: int) -> bool:
        return x in self.ain or x in self.am

    @property
    def size(self) -> int:
        return len(self.ain) + len(self.am)

    def hit(self, x: int) -> None:
        if x in self.am:
            self.am.move_to_end(x)

    def consult_ghost(self, x: int) -> None:
        if x in self.aout:
            del self.aout[x]
            self.known = x

    def evict(self, x: int) -> int:
        self.consult_ghost(x)
        if self.am and len(self.ain) <= self.kin:
            return pop_oldest(self.am)
        victim = pop_oldest(self.ain)
        self.aout[victim] = 0
        if len(self.aout) > self.kout:
            pop_oldest(self.aout)
        return victim

    def insert(self, x: int) -> None:
        self.consult_ghost(x)
        (self.am if x == self.known else self.ain)[x] = 0
        self.known = None

    def remove(self, x: int) -> None:
        for queue in (self.ain, self.aout, self.am):
            queue.pop(x, None)


class Segments:
    """A segmented LRU over segments of bounded size, the lowest first; used by SLRU and inside W-TinyLFU."""

    def __init__(self, limits: Sequence[int]) -> None:
        self.limits = limits
        self.overflowed = False  # did the last hit push a block down into a lowest segment that was full?
        self.segments: list[OrderedDict[int, int]] = [OrderedDict() for _ in limits]

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    def __contains__(self, x: int) -> bool:
        return any(x in segment for segment in self.segments)

    def blocks(self) -> list[int]:
        return [block for segment in self.segments for block in segment]

    def insert(self, x: int) -> None:
        free = [s for s, limit in zip(self.segments, self.limits, strict=True) if len(s) < limit]
        (free[0] if free else self.segments[0])[x] = 0

    def hit(self, x: int) -> None:
        level = next(i for i, segment in enumerate(self.segments) if x in segment)
        del self.segments[level][x]
        level = min(level + 1, len(self.segments) - 1)
        self.segments[level][x] = 0
        self.overflowed = False
        for i in range(level, 0, -1):
            while len(self.segments[i]) > self.limits[i]:
                self.segments[i - 1][pop_oldest(self.segments[i])] = 0
                self.overflowed = i == 1 and len(self.segments[0]) > self.limits[0]

    def victim(self) -> int:
        return oldest(next(segment for segment in self.segments if segment))

    def remove(self, x: int) -> None:
        for segment in self.segments:
            segment.pop(x, None)


class Slru(Reference):
    """Segmented LRU with four equal segments."""

    def start(self) -> None:
        self.store = Segments([self.capacity // 4] * 4)

    def blocks(self) -> Iterable[int]:
        return self.store.blocks()

    def contains(self, x: int) -> bool:
        return x in self.store

    @property
    def size(self) -> int:
        return len(self.store)

    def hit(self, x: int) -> None:
        self.store.hit(x)

    def insert(self, x: int) -> None:
        self.store.insert(x)

    def evict(self, x: int) -> int:
        victim = self.store.victim()
        self.store.remove(victim)
        return victim

    def remove(self, x: int) -> None:
        self.store.remove(x)


class CountingBloom:
    """W-TinyLFU's sketch: ten counters per block out of ``n``, all of which count; the smallest is the estimate."""

    def __init__(self, entries: int) -> None:
        bits = -math.log(0.001) / 0.480453013918201
        self.counters = [0] * max(20, math.ceil(bits * entries))
        self.known: dict[int, list[int]] = {}

    def indices(self, x: int) -> list[int]:
        if x not in self.known:
            a, b = xxh64(x + 1, 0x12345678) % 2**32, xxh64(x + 1, 0x12344321) % 2**32
            self.known[x] = [((a + i * b) % 2**32) % len(self.counters) for i in range(10)]
        return self.known[x]

    def add(self, x: int) -> None:
        for i in self.indices(x):
            self.counters[i] += 1

    def estimate(self, x: int) -> int:
        return min(self.counters[i] for i in self.indices(x))

    def halve(self) -> None:
        self.counters = [c // 2 for c in self.counters]


class WTinyLfu(Reference):
    """Einziger, Friedman & Manes, TOS 2017: LRU window of 1%, SLRU main (20/80), admission by sketched frequency.

    Where the two segments' truncated sizes fall short of main's, libCacheSim evicts within a hit that overfills the
    probation segment, which lets the next window block in unjudged. Here a hit evicts nothing: the victim is owed and
    paid at the next miss.
    """

    def start(self) -> None:
        self.main_size = self.capacity - max(1, int(0.01 * self.capacity))
        self.window: OrderedDict[int, int] = OrderedDict()
        self.main = Segments([int(1 / 5 * self.main_size), int(4 / 5 * self.main_size)])
        self.sketch = CountingBloom(self.main_size)
        self.main_hits = 0
        self.owed = False

    def blocks(self) -> Iterable[int]:
        return [*self.window, *self.main.blocks()]

    def contains(self, x: int) -> bool:
        return x in self.window or x in self.main

    @property
    def size(self) -> int:
        return len(self.window) + len(self.main)

    def hit(self, x: int) -> None:
        if x in self.window:
            self.window.move_to_end(x)
            return
        self.main.hit(x)
        self.owed = self.owed or (self.main.overflowed and self.main.limits[0] > 0)
        self.sketch.add(x)
        self.main_hits += 1
        if self.main_hits >= 32 * self.main_size:
            self.main_hits = 0
            self.sketch.halve()

    def insert(self, x: int) -> None:
        self.window[x] = 0
        self.sketch.add(x)

    def evict(self, x: int) -> int:
        if self.main_size == 0:
            return pop_oldest(self.window)
        if self.owed:
            self.owed = False
            if len(self.main.segments[0]) > self.main.limits[0]:
                return self.evict_from_main()
        while self.window:
            candidate = pop_oldest(self.window)
            if len(self.main) < self.main_size:
                self.main.insert(candidate)
                self.sketch.add(candidate)
                continue
            rival = self.main.victim()
            wins = self.sketch.estimate(candidate) > self.sketch.estimate(rival)
            self.sketch.add(candidate)
            if not wins:
                return candidate
            self.main.remove(rival)
            self.main.insert(candidate)
            return rival
        return self.evict_from_main()

    def evict_from_main(self) -> int:
        victim = self.main.victim()
        self.main.remove(victim)
        return victim

    def remove(self, x: int) -> None:
        self.window.pop(x, None)
        self.main.remove(x)


class Lirs(Reference):
    """Jiang & Zhang, SIGMETRICS 2002: 1% of the cache for blocks of high inter-reference recency (HIR)."""

    LIR, HIR, GONE = 0, 1, 2

    def start(self) -> None:
        self.hir_size = max(1, int(0.01 * self.capacity))
        self.lir_size = self.capacity - self.hir_size
        self.stack: OrderedDict[int, int] = OrderedDict()  # block -> LIR, resident HIR or GONE; the bottom comes first
        self.queue: OrderedDict[int, int] = OrderedDict()  # resident HIR blocks
        self.gone: OrderedDict[int, int] = OrderedDict()  # the stack's GONE blocks in order of their eviction
        self.lirs: set[int] = set()

    def blocks(self) -> Iterable[int]:
        return [*self.lirs, *self.queue]

    def contains(self, x: int) -> bool:
        return x in self.lirs or x in self.queue

    @property
    def size(self) -> int:
        return len(self.lirs) + len(self.queue)

    def put(self, x: int, kind: int) -> None:
        """Put ``x`` on top of the stack."""
        self.stack.pop(x, None)
        self.gone.pop(x, None)
        self.stack[x] = kind

    def promote(self, x: int) -> None:
        """``x``, just put on top, is LIR now; the LIR block at the bottom pays where there are too many."""
        self.put(x, self.LIR)
        self.queue.pop(x, None)
        self.lirs.add(x)
        while len(self.lirs) > self.lir_size:
            self.prune()
            bottom = pop_oldest(self.stack)
            self.lirs.remove(bottom)
            self.queue[bottom] = 0

    def prune(self) -> None:
        """The stack's bottom is LIR, always."""
        while self.stack and self.stack[oldest(self.stack)] != self.LIR:
            self.gone.pop(pop_oldest(self.stack), None)

    def tidy(self) -> None:
        self.prune()
        while len(self.stack) > 2 * self.capacity and self.gone:
            del self.stack[pop_oldest(self.gone)]

    def hit(self, x: int) -> None:
        if x in self.lirs:
            self.put(x, self.LIR)
        elif x in self.stack:
            self.promote(x)
        else:
            self.put(x, self.HIR)
            self.queue.move_to_end(x)
        self.tidy()

    def evict(self, x: int) -> int:
        victim = pop_oldest(self.queue)
        if victim in self.stack:
            self.stack[victim] = self.GONE
            self.gone[victim] = 0
        return victim

    def insert(self, x: int) -> None:
        if x in self.stack or len(self.lirs) < self.lir_size:
            self.promote(x)
        else:
            self.put(x, self.HIR)
            self.queue[x] = 0
        self.tidy()

    def remove(self, x: int) -> None:
        for queue in (self.stack, self.queue, self.gone):
            queue.pop(x, None)
        self.lirs.discard(x)
        self.prune()


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


REFERENCES: dict[str, type[Reference]] = {
    "fifo": Fifo,
    "lru": Lru,
    "lfu": Lfu,
    "clock": Clock,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "arc": Arc,
    "2q": TwoQ,
    "slru": Slru,
    "wtinylfu": WTinyLfu,
    "lirs": Lirs,
    "priority": Priority,
    "multilru": MultiLru,
    "lineage": Lineage,
    "length_aware": LengthAware,
    "belady": Belady,
}
