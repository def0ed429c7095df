"""The columnar request trace that every other room of dynalab starts from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TraceError
from dynalab.workload.checks import checked_columns
from dynalab.workload.parts import full_blocks, merge, take

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Requests in file order, one column per fact.

    A trace either has block ids (``block_tokens`` is set) or not (``block_tokens`` is None, ``block_ids`` is empty and
    every offset is 0). Block ids are *dense*: ``0 .. n_blocks - 1`` in order of first appearance, so that simulators
    can use them as array indices; every method that returns a trace keeps them so. Request ``r`` owns
    ``block_ids[offsets[r]:offsets[r + 1]]``, of which only the last may cover fewer than ``block_tokens`` tokens. Equal
    ids stand for equal tokens *and* an equal prefix. A trace has at least one request, and the first arrives at 0.

    Build one with :func:`dynalab.workload.read_trace`, :func:`dynalab.workload.synthesize` or :meth:`from_columns`; the
    bare constructor checks nothing.

    Attributes
    ----------
    arrival : ndarray of float64, shape (n_requests,)
        Arrival times in seconds since the first request, never falling.
    input_tokens, output_tokens : ndarray of int32, shape (n_requests,)
        Prompt and generated lengths in tokens.
    block_ids : ndarray of int32, shape (n_accesses,)
    offsets : ndarray of int64, shape (n_requests + 1,)
    block_tokens : int or None
        Tokens per block.
    source : str
        Where the trace came from: a path, or the synthesiser's own description.
    sha256 : str
        Of the (uncompressed) text it was read from, or of its columns where it was made here.
    attrs : dict
        Anything else worth keeping (format, seed, parameters). Traces derived from another one carry its
        ``source_sha256`` and the list of ``steps`` that lead here.
    lineage : tuple of (str, ndarray of int32) or None
        Where the blocks of a part of a trace came from: the sha256 of the whole, and each block's id there. None where
        the blocks are the trace's own.
    """

    arrival: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    block_ids: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    block_tokens: int | None = None
    source: str = "memory"
    sha256: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    lineage: tuple[str, npt.NDArray[np.int32]] | None = None

    @classmethod
    def from_columns(
        cls,
        arrival: npt.ArrayLike,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        block_ids: npt.ArrayLike | None = None,
        offsets: npt.ArrayLike | None = None,
        block_tokens: int | None = None,
        source: str = "memory",
        sha256: str | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> Trace:
        """Build a trace from plain columns after checking them.

        Parameters
        ----------
        arrival : array_like of float, shape (n_requests,)
            Seconds, never falling; the first one becomes 0.
        input_tokens, output_tokens : array_like of int, shape (n_requests,)
        block_ids : array_like of int, shape (n_accesses,), optional
            Any integers, 64-bit hashes included: they are replaced by dense ids.
        offsets : array_like of int, shape (n_requests + 1,), optional
            Where each request's ids begin; by default every request owns ``ceil(input_tokens / block_tokens)``.
        block_tokens : int, optional
            Tokens per block; needed with `block_ids`.
        source, sha256, attrs
            See the class; the sha256 of the columns is computed where none is given.

        Returns
        -------
        Trace

        Raises
        ------
        TraceError
            If a column has the wrong length or type, or a request breaks a rule of the class.

        Examples
        --------
        >>> Trace.from_columns([0.0, 1.5], [600, 500], [10, 20], [7, 8, 7], block_tokens=512).block_ids
        array([0, 1, 0], dtype=int32)
        """
        columns = checked_columns(arrival, input_tokens, output_tokens, block_ids, offsets, block_tokens)
        trace = cls(**columns, source=source, sha256=sha256 or "", attrs=dict(attrs or {}))
        return trace if sha256 else trace._hashed()

    # ------------------------------------------------------------------ what it is

    def __len__(self) -> int:
        return self.n_requests

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return int(self.arrival.size)

    @property
    def n_accesses(self) -> int:
        """Number of block accesses: the blocks of all requests, repeats included."""
        return int(self.block_ids.size)

    @property
    def n_blocks(self) -> int:
        """Number of different blocks."""
        # Ids are dense in order of first appearance, so the largest one names their number.
        return int(self.block_ids.max()) + 1 if self.block_ids.size else 0

    @property
    def duration(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival[-1])

    @property
    def has_blocks(self) -> bool:
        """Whether requests carry block ids."""
        return self.block_tokens is not None

    def require_blocks(self) -> int:
        """Return ``block_tokens``, or raise a TraceError that says how to get block ids."""
        if self.block_tokens is None:
            raise TraceError(
                f"{self.source} has no block ids; give it synthetic ones with trace.with_prefixes(...)"
                " (dynalab trace PATH --with-prefixes --write OUT.jsonl), or read a trace that has hash_ids"
            )
        return self.block_tokens

    def block_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens that every access covers: ``block_tokens``, fewer for a partial last block.

        Returns
        -------
        ndarray of int32, shape (n_accesses,)
        """
        size = self.require_blocks()
        lengths = np.full(self.n_accesses, size, np.int32)
        counts = np.diff(self.offsets)
        some = counts > 0
        tail = self.input_tokens[some] - (counts[some] - 1) * size
        lengths[self.offsets[1:][some] - 1] = np.minimum(tail, size)
        return lengths

    def _first_accesses(self) -> npt.NDArray[np.int64]:
        """Index of the first access to every block."""
        ids = self.block_ids
        seen = np.maximum.accumulate(ids) if ids.size else ids
        new = np.ones(ids.size, bool)
        new[1:] = ids[1:] > seen[:-1]
        return np.flatnonzero(new)

    def _access_parents(self) -> npt.NDArray[np.int32]:
        """Return the block before every access in its request, -1 for the first."""
        parents = np.empty(self.n_accesses, np.int32)
        parents[1:] = self.block_ids[:-1]
        parents[self.offsets[:-1][np.diff(self.offsets) > 0]] = -1
        return parents

    def parents(self) -> npt.NDArray[np.int32]:
        """Return the block before each block where it was first seen; -1 for the first block of a prompt.

        Returns
        -------
        ndarray of int32, shape (n_blocks,)
        """
        self.require_blocks()
        return self._access_parents()[self._first_accesses()]

    def positions(self) -> npt.NDArray[np.int32]:
        """Return the place of each block in the prompt where it was first seen, from 0.

        Returns
        -------
        ndarray of int32, shape (n_blocks,)
        """
        self.require_blocks()
        first = self._first_accesses()
        owner = np.searchsorted(self.offsets, first, side="right") - 1
        return (first - self.offsets[owner]).astype(np.int32)

    @property
    def prefix_consistent(self) -> bool:
        """Whether every block always follows the same block, so that an id stands for its whole prefix."""
        return bool(np.array_equal(self._access_parents(), self.parents()[self.block_ids]))

    def equals(self, other: Trace) -> bool:
        """Whether both traces have equal columns and block size; source, sha256 and attrs do not count."""
        columns = ("arrival", "input_tokens", "output_tokens", "block_ids", "offsets")
        return self.block_tokens == other.block_tokens and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in columns
        )

    # ------------------------------------------------------------------ parts and changes

    def slice(
        self, start: float | None = None, stop: float | None = None, *, by: Literal["time", "index"] = "time"
    ) -> Trace:
        """Cut out the requests of an interval; the first of them arrives at 0.

        Parameters
        ----------
        start, stop : float, optional
            Seconds since the first request (`by` "time") or request numbers ("index"), `stop` excluded. None: no bound.
        by : {"time", "index"}

        Returns
        -------
        Trace

        Raises
        ------
        TraceError
            If no request lies in the interval.
        """
        if by not in ("time", "index"):
            raise ConfigError(f"by: {by!r} is not a way to slice; use 'time' or 'index'")
        if by == "time":
            low = 0 if start is None else int(np.searchsorted(self.arrival, start, side="left"))
            high = len(self) if stop is None else int(np.searchsorted(self.arrival, stop, side="left"))
        else:
            bounds = [None if bound is None else int(bound) for bound in (start, stop)]
            low, high, _ = slice(*bounds).indices(len(self))
        if high <= low:
            raise TraceError(
                f"no request lies between {start} and {stop} ({by}); the trace has {len(self)} requests"
                f" over {self.duration:.6g} s"
            )
        return take(self, np.arange(low, high), f"slice({start}, {stop}, by={by!r})")

    def head(self, n: int) -> Trace:
        """Return the first `n` requests (all, where there are fewer)."""
        if n < 1:
            raise ConfigError(f"n: {n} is no number of requests; use 1 or more")
        return take(self, np.arange(min(n, len(self))), f"head({n})")

    def filter(self, mask: npt.ArrayLike) -> Trace:
        """Keep the requests where `mask` is true; the first of them arrives at 0.

        Parameters
        ----------
        mask : array_like of bool, shape (n_requests,)

        Examples
        --------
        >>> trace = Trace.from_columns([0, 1, 2], [5, 900, 7], [1, 1, 1])
        >>> trace.filter(trace.input_tokens < 100).arrival
        array([0., 2.])
        """
        keep = np.asarray(mask)
        if keep.dtype != bool or keep.shape != self.arrival.shape:
            raise TraceError(
                f"a mask is one bool per request, shape {self.arrival.shape}, not {keep.dtype} {keep.shape}"
            )
        if not keep.any():
            raise TraceError("the mask keeps no request; a trace has at least one")
        digest = hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()[:12]
        return take(self, np.flatnonzero(keep), f"filter({int(keep.sum())} of {keep.size} requests, mask {digest})")

    def speedup(self, factor: float) -> Trace:
        """Let requests arrive `factor` times as fast (0.5: at half the rate)."""
        if not (math.isfinite(factor) and factor > 0):
            raise ConfigError(f"factor: {factor} is no speed-up; use a number above 0, such as 2")
        return self._derived(f"speedup({factor:g})", arrival=self.arrival / factor)

    def merge(self, other: Trace, *, shared_blocks: bool = False) -> Trace:
        """Interleave two traces by arrival; on a tie the requests of this one go first.

        Parameters
        ----------
        other : Trace
            With the same block size.
        shared_blocks : bool
            False: no block of one trace equals a block of the other. True: blocks that are the same in the trace from
            which both were cut are the same again.

        Returns
        -------
        Trace

        Raises
        ------
        TraceError
            If block sizes differ, or blocks shall be shared by traces of different origin.
        """
        return merge(self, other, shared_blocks)

    def reblock(self, tokens: int) -> Trace:
        """Cut blocks into smaller ones or join them to larger ones: see :func:`dynalab.workload.reblock.reblock`."""
        from dynalab.workload.reblock import reblock

        return reblock(self, tokens)

    def full_blocks(self) -> Trace:
        """Return the same requests without their partial last blocks, of which engines reuse none.

        Lengths stay as they are, so that a request of 700 tokens keeps one block of 512. Such a trace can be replayed,
        sliced and merged, but neither written nor re-blocked.
        """
        return full_blocks(self)

    def with_prefixes(self, **options: Any) -> Trace:
        """Give a trace without block ids synthetic ones: see :func:`dynalab.workload.synth.prefixes.with_prefixes`."""
        from dynalab.workload.synth.prefixes import with_prefixes

        return with_prefixes(self, **options)

    # ------------------------------------------------------------------ ways out

    def write(self, path: str | Path) -> Path:
        """Write Mooncake JSONL (``.gz`` too) for replay: see :func:`dynalab.workload.writing.write_trace`.

        AIPerf 0.13 replays it at its own times, prefixes and lengths with ::

            aiperf profile --input-file t.jsonl --custom-dataset-type mooncake_trace --fixed-schedule --streaming
                --isl-block-size 512 --extra-inputs ignore_eos:true --random-seed 1 --model NAME --url HOST:PORT

        where 512 is ``block_tokens`` (leave that flag out where there are no block ids); without ``ignore_eos``
        outputs end when the model likes.
        """
        from dynalab.workload.writing import write_trace

        return write_trace(self, path)

    def summary(self) -> dict[str, Any]:
        """Key figures with units in their names: see :func:`dynalab.workload.display.summary`."""
        from dynalab.workload.display import summary

        return summary(self)

    def to_dataset(self) -> xr.Dataset:
        """Columns as an xarray data set: see :func:`dynalab.workload.display.to_dataset`."""
        from dynalab.workload.display import to_dataset

        return to_dataset(self)

    def __repr__(self) -> str:
        from dynalab.workload.display import one_line

        return one_line(self)

    def _repr_html_(self) -> str:
        from dynalab.workload.display import to_html

        return to_html(self)

    # ------------------------------------------------------------------ machinery

    def _origin(self) -> tuple[str, npt.NDArray[np.int32]]:
        """Return the trace that the blocks come from and each block's id there."""
        return self.lineage or (self.sha256, np.arange(self.n_blocks, dtype=np.int32))

    def _derived(self, step: str, **changes: Any) -> Trace:
        """Return a changed copy that tells where it comes from and how."""
        attrs = {
            **self.attrs,
            "source_sha256": self.attrs.get("source_sha256", self.sha256),
            "steps": [*self.attrs.get("steps", []), step],
        }
        if self.has_blocks:
            changes.setdefault("lineage", self._origin())
        return replace(self, attrs=attrs, **changes)._hashed()

    def _hashed(self) -> Trace:
        """Return a copy with the sha256 of its columns."""
        digest = hashlib.sha256(f"dynalab trace, blocks of {self.block_tokens}\n".encode())
        for column in (self.arrival, self.input_tokens, self.output_tokens, self.block_ids, self.offsets):
            digest.update(np.ascontiguousarray(column).data)
        return replace(self, sha256=digest.hexdigest())
