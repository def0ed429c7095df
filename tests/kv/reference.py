"""Eviction policies in plain Python, written for obvious correctness: the second opinion on ``dynalab.kv.policies``.

One class per policy over dictionaries that remember their order (oldest first, newest last). They were written without
a look at the package's state machines; both follow the papers with libCacheSim's parameters, and the tests demand that
both make the same decisions. Blocks are of unit size, ``capacity`` is in blocks, ``int`` truncates.
"""

from __future__ import annotations

from reference_adaptive import Arc, Lirs, Segments, Slru, TwoQ, WTinyLfu
from reference_base import Reference, mix64, pop_oldest, xxh64
from reference_kv import Belady, LengthAware, Lineage, MultiLru, Priority
from reference_queues import Clock, Fifo, Lfu, Lru, S3Fifo, Sieve

__all__ = [
    "REFERENCES",
    "Fifo",
    "Lirs",
    "Lru",
    "Reference",
    "Segments",
    "Slru",
    "WTinyLfu",
    "mix64",
    "pop_oldest",
    "xxh64",
]

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
