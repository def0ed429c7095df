"""References of the policies that keep history or segments: ARC, 2Q, SLRU, W-TinyLFU, LIRS."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from reference_base import Reference, oldest, pop_oldest, xxh64


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
        self.known: set[int] = set()  # blocks on their way in that were found in the ghost list

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
            self.known.add(x)

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
        (self.am if x in self.known else self.ain)[x] = 0
        self.known.discard(x)

    def remove(self, x: int) -> None:
        for queue in (self.ain, self.aout, self.am):
            queue.pop(x, None)
        self.known.discard(x)


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
            self.demote()

    def demote(self) -> None:
        """The LIR block at the stack's bottom leaves the stack and becomes the queue's newest."""
        self.prune()
        bottom = pop_oldest(self.stack)
        self.lirs.remove(bottom)
        self.queue[bottom] = 0
        self.prune()

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
        if not self.queue:
            self.demote()  # several blocks leave before one enters, and none but LIR blocks are left
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
