"""Admission filters in plain Python, after Dynamo's KVBM: what ``dynalab.kv.admission`` must decide.

Dynamo's block manager keeps a map from hash to count. A query doubles the count of a known block and sets that of an
unknown one to 1; the block is worth a copy once its count reaches the minimum. A timer takes one from every count per
interval and forgets what reaches zero; a map that has outgrown its bound is treated so until it fits, and the timer
starts anew.
"""

from __future__ import annotations

SATURATED = 2**63 - 1


class FrequencyFilter:
    def __init__(self, min_frequency: int = 2, flush_interval: float = 600.0, max_entries: int = 1_000_000) -> None:
        self.min_frequency = min_frequency
        self.flush_interval = flush_interval
        self.max_entries = max_entries
        self.count: dict[int, int] = {}
        self.next_flush = flush_interval

    def decay(self) -> None:
        self.count = {block: count - 1 for block, count in self.count.items() if count > 1}

    def admit(self, x: int, now: float, present: bool = False) -> bool:
        if present:
            return False  # nothing to copy, so the filter is not even asked
        while now >= self.next_flush:
            self.decay()
            self.next_flush += self.flush_interval
        self.count[x] = min(2 * self.count[x], SATURATED) if x in self.count else 1
        admitted = self.count[x] >= self.min_frequency
        if len(self.count) > self.max_entries:
            while len(self.count) > self.max_entries:
                self.decay()
            self.next_flush = now + self.flush_interval
        return admitted


class UseCountFilter:
    """Admit a block once it has been used often enough, ever."""

    def __init__(self, min_frequency: int = 2) -> None:
        self.min_frequency = min_frequency
        self.uses: dict[int, int] = {}

    def observe(self, x: int) -> None:
        self.uses[x] = self.uses.get(x, 0) + 1

    def admit(self, x: int, present: bool = False) -> bool:
        return not present and self.uses.get(x, 0) >= self.min_frequency
