"""What all plain-Python references share: hashes, the interface, queues that remember their order."""

from __future__ import annotations

from collections import OrderedDict
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
