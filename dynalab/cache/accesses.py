"""A trace as the replay loops want it: block accesses in order, with the facts that policies and metrics need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dynalab.cache._drive import previous_and_next
from dynalab.errors import unknown
from dynalab.workload import Trace

#: Orders in which the blocks of one request are touched.
ORDERS = {
    "forward": "first block first: the order of the file, and the usual definition",
    "leaf_first": "last block first, as a manager touches them that returns children before their parents",
}
#: Which blocks count as accesses.
BLOCKS = {"all": "every block, the partial last one too", "full": "only blocks that are full of tokens"}


@dataclass(frozen=True, eq=False)
class Accesses:
    """The block accesses of a trace, in the order in which a cache sees them.

    Build it with :meth:`of`. ``ids`` may run against the trace's order (``order="leaf_first"``); hit flags are brought
    back by :meth:`in_trace_order`.
    """

    trace: Trace
    ids: npt.NDArray[np.int32]
    order: str
    blocks: str

    @classmethod
    def of(cls, trace: Trace, *, blocks: str = "all", order: str = "forward") -> Accesses:
        """Select and order the accesses of `trace`.

        Raises
        ------
        TraceError
            If the trace has no block ids.
        ConfigError
            If `blocks` or `order` is unknown.
        """
        if order not in ORDERS:
            raise unknown("order", order, ORDERS)
        if blocks not in BLOCKS:
            raise unknown("blocks", blocks, BLOCKS)
        trace.require_blocks()
        if blocks == "full":
            trace = trace.full_blocks()
        ids = np.ascontiguousarray(trace.block_ids)
        if order == "leaf_first":
            ids = ids[_reversed_within(trace.offsets)]
        return cls(trace, ids, order, blocks)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each request's accesses begin, and the end."""
        return self.trace.offsets

    @property
    def n_blocks(self) -> int:
        """Distinct blocks."""
        return self.trace.n_blocks

    def in_trace_order(self, values: npt.NDArray) -> npt.NDArray:
        """Return per-access `values`, given in the cache's order, in the trace's."""
        return values if self.order == "forward" else values[_reversed_within(self.offsets)]

    @cached_property
    def neighbours(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Index of the previous and of the next access to the same block, -1 for none."""
        return previous_and_next(self.ids, self.n_blocks)

    @cached_property
    def positions(self) -> npt.NDArray[np.int32]:
        """Index of each block within its prompt."""
        return self.trace.positions()

    @cached_property
    def parents(self) -> npt.NDArray[np.int32]:
        """The block before each block, -1 for a prompt's first."""
        return self.trace.parents()

    @cached_property
    def full(self) -> npt.NDArray[np.uint8]:
        """1 where an access covers a whole block."""
        return (self.trace.block_lengths() == self.trace.block_tokens).astype(np.uint8)


def _reversed_within(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the permutation that reverses the accesses of each request (its own inverse)."""
    ends = np.repeat(offsets[1:] + offsets[:-1] - 1, np.diff(offsets))
    return ends - np.arange(int(offsets[-1]))
