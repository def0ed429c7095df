"""A model of CUDA's stream-ordered memory pool: what it holds after any row of allocations and frees, without a GPU.

It follows the chapter "Stream-Ordered Memory Allocator" of the CUDA programming guide and the reference of
``cudaMemPoolAttr``. From there:

- memory freed on a stream can be used again at once by the same stream; by another one if that waits for the free by
  an event (``reuse_follow_event_dependencies``), if the GPU has passed the free (``reuse_allow_opportunistic``), or if
  the host has waited for it (always); and where the operating system gives nothing more, the pool may make the
  allocating stream wait for the freeing one (``reuse_allow_internal_dependencies``);
- what is free stays reserved until the host synchronises; then, and where more than the release threshold is reserved,
  memory goes back to the operating system, but only such as the host knows to be free;
- ``used`` counts what is allocated and not free for use again, ``reserved`` what is taken from the operating system.

What the guide leaves open, and the model assumes: memory is reserved and released in granules of one size (2 MiB, the
driver's page; a driver may reserve more at once); an allocation takes whole granules of its own only if it needs more
than is free side by side, is rounded up to 512 bytes, and goes into the smallest gap that fits, the oldest of equals; a
free lowers ``used`` when it is called; granules that were released are not joined to others again; releasing stops
before ``reserved`` falls below the threshold, and takes the granules that were reserved last. Streams do not
synchronise with the legacy default stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dynalab.errors import BlockStateError, ConfigError, DeviceMemoryError
from dynalab.units import format_size, parse_size

_ROUNDING: Final = 512


@dataclass(slots=True)
class _Span:
    """A piece of reserved memory: allocated, free behind a point of a stream, or free for everyone."""

    begin: int
    end: int
    allocated: bool = False
    stream: int | None = None  # that freed it, until the host has seen that; None: free for everyone
    mark: int = 0  # how many operations that stream had been given by then
    done_at: float = 0.0  # when the GPU reaches that point [s]

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass(slots=True)
class _Stream:
    """What was put into a stream: its own operations, and those of others that it waits for."""

    marks: int = 0
    busy_until: float = 0.0
    seen: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Allocation:
    """Memory in a modelled pool: its size as it was asked, and the stream that it was allocated on."""

    nbytes: int
    stream: int
    _span: _Span


class PoolModel:
    """A stream-ordered pool without memory.

    Parameters
    ----------
    release_threshold : int or str
        Reserved bytes to keep when the host synchronises. CUDA's own default is 0.
    granularity : int or str
        Bytes in which memory is taken from the operating system and given back.
    capacity : int or str, optional
        Most bytes that the operating system gives; by default any number.
    reuse_follow_event_dependencies, reuse_allow_opportunistic, reuse_allow_internal_dependencies : bool
        The pool's attributes of these names.

    Attributes
    ----------
    now : float
        The host's clock [s]; set it to let the GPU work on. Waiting for the GPU sets it, too.

    Examples
    --------
    >>> pool = PoolModel("8MiB")
    >>> table = pool.allocate(204_800, stream=1)
    >>> pool.free(table)
    >>> pool.synchronize()
    >>> pool.stats()
    {'used': 0, 'used_high': 204800, 'reserved': 2097152, 'reserved_high': 2097152}
    """

    def __init__(
        self,
        release_threshold: int | str = 0,
        *,
        granularity: int | str = "2MiB",
        capacity: int | str | None = None,
        reuse_follow_event_dependencies: bool = True,
        reuse_allow_opportunistic: bool = True,
        reuse_allow_internal_dependencies: bool = True,
    ) -> None:
        self.release_threshold = parse_size(release_threshold, field="release_threshold")
        self.granularity = parse_size(granularity, field="granularity")
        if self.granularity == 0 or self.granularity % _ROUNDING:
            raise ConfigError(f"granularity: {granularity} is no multiple of {_ROUNDING} bytes; the driver's is 2MiB")
        self.capacity = None if capacity is None else parse_size(capacity, field="capacity")
        self._follow = reuse_follow_event_dependencies
        self._opportunistic = reuse_allow_opportunistic
        self._internal = reuse_allow_internal_dependencies
        self.now = 0.0
        self._segments: list[list[_Span]] = []  # each without holes, by address; in the order of reserving
        self._next_address = 0
        self._streams: dict[int, _Stream] = {}
        self._used = self._used_high = self._reserved = self._reserved_high = 0

    def allocate(self, nbytes: int, stream: int) -> Allocation:
        """Allocate for what is started on a stream from now on.

        Raises
        ------
        ConfigError
            If the size is not above zero.
        DeviceMemoryError
            If the operating system gives no more, and nothing can be used again.
        """
        if nbytes < 1:
            raise ConfigError(f"nbytes: {nbytes} bytes have no address; ask for at least one")
        size = -(-nbytes // _ROUNDING) * _ROUNDING
        gap = (
            self._gap(size, stream)
            or self._reserve(size)
            or (self._gap(size, stream, wait=True) if self._internal else None)
        )
        if gap is None:
            raise DeviceMemoryError(
                f"modelled pool: {format_size(nbytes)} asked, {format_size(self._reserved)} of "
                f"{format_size(self.capacity or 0)} reserved; free memory, or raise capacity"
            )
        span = self._carve(*gap, size, stream)
        self._stream(stream).marks += 1
        self._used += size
        self._used_high = max(self._used_high, self._used)
        return Allocation(nbytes, stream, span)

    def free(self, allocation: Allocation, stream: int | None = None) -> None:
        """Free behind what a stream was given so far, by default the one that it was allocated on.

        Raises
        ------
        BlockStateError
            If it is free already.
        """
        span = allocation._span
        if not span.allocated:
            raise BlockStateError(f"an allocation of {format_size(allocation.nbytes)} is freed twice; free it once")
        where = allocation.stream if stream is None else stream
        its = self._stream(where)
        its.marks += 1
        span.allocated, span.stream, span.mark = False, where, its.marks
        span.done_at = max(self.now, its.busy_until)
        self._used -= span.size

    def work(self, stream: int, seconds: float) -> None:
        """Give a stream something that keeps the GPU busy."""
        its = self._stream(stream)
        its.marks += 1
        its.busy_until = max(self.now, its.busy_until) + seconds

    def wait(self, stream: int, other: int) -> None:
        """Let a stream wait, by an event, for what another one was given so far."""
        its, theirs = self._stream(stream), self._stream(other)
        its.marks += 1
        for name, marks in {**theirs.seen, other: theirs.marks}.items():
            its.seen[name] = max(its.seen.get(name, 0), marks)
        its.busy_until = max(self.now, its.busy_until, theirs.busy_until)

    def synchronize(self, stream: int | None = None) -> None:
        """Let the host wait for a stream, by default for all of them; memory above the threshold is released."""
        for name in list(self._streams) if stream is None else [stream]:
            its = self._stream(name)
            self.now = max(self.now, its.busy_until)
            self._host_has_seen({**its.seen, name: its.marks})
        self._release(self.release_threshold)

    def trim(self, keep: int = 0) -> None:
        """Release what nobody uses, down to `keep` bytes (``cudaMemPoolTrimTo``)."""
        self._release(keep)

    def stats(self) -> dict[str, int]:
        """Return bytes used and reserved, now and at most, as `CudaMemoryPool.stats` does."""
        return {
            "used": self._used,
            "used_high": self._used_high,
            "reserved": self._reserved,
            "reserved_high": self._reserved_high,
        }

    def reset_high_water(self) -> None:
        """Let the high-water marks begin anew at what is used and reserved now."""
        self._used_high, self._reserved_high = self._used, self._reserved

    def _stream(self, name: int) -> _Stream:
        return self._streams.setdefault(name, _Stream())

    def _usable(self, span: _Span, stream: int, wait: bool) -> bool:
        """Tell whether a stream may have a span now; with `wait` it would be made to wait for it."""
        if span.allocated:
            return False
        if span.stream is None or span.stream == stream or wait:
            return True
        if self._follow and self._stream(stream).seen.get(span.stream, 0) >= span.mark:
            return True
        return self._opportunistic and span.done_at <= self.now

    def _gap(self, size: int, stream: int, wait: bool = False) -> tuple[list[_Span], int, int] | None:
        """Return the smallest row of usable spans that holds `size` bytes, as (segment, first, behind the last)."""
        best, best_size = None, 0
        for segment in self._segments:
            first, total = 0, 0
            for n, span in enumerate([*segment, None]):
                if span is not None and self._usable(span, stream, wait):
                    total += span.size
                    continue
                if total >= size and (best is None or total < best_size):
                    best, best_size = (segment, first, n), total
                first, total = n + 1, 0
        return best

    def _reserve(self, size: int) -> tuple[list[_Span], int, int] | None:
        """Take memory from the operating system, if it gives so much."""
        whole = -(-size // self.granularity) * self.granularity
        if self.capacity is not None and self._reserved + whole > self.capacity:
            return None
        segment = [_Span(self._next_address, self._next_address + whole)]
        self._next_address += whole + self.granularity  # apart, so that nothing joins them
        self._segments.append(segment)
        self._reserved += whole
        self._reserved_high = max(self._reserved_high, self._reserved)
        return segment, 0, 1

    def _carve(self, segment: list[_Span], first: int, behind: int, size: int, stream: int) -> _Span:
        """Allocate the beginning of a row of free spans; the rest of the last one that it touches stays as it was."""
        its = self._stream(stream)
        taken = _Span(segment[first].begin, segment[first].begin + size, allocated=True)
        rest = []
        for span in segment[first:behind]:
            if span.begin < taken.end and span.stream is not None:
                # Whoever uses it has waited for it, if only because the pool made him (or the GPU was ready).
                its.seen[span.stream] = max(its.seen.get(span.stream, 0), span.mark)
                its.busy_until = max(its.busy_until, span.done_at)
            if span.end > taken.end:
                span.begin = max(span.begin, taken.end)
                rest.append(span)
        segment[first:behind] = [taken, *rest]
        return taken

    def _host_has_seen(self, marks: dict[int, int]) -> None:
        """Make free for everyone what the host knows to be, and join what lies side by side."""
        for segment in self._segments:
            joined: list[_Span] = []
            for span in segment:
                if span.stream is not None and marks.get(span.stream, 0) >= span.mark:
                    span.stream = None
                both_free = joined and not (span.allocated or joined[-1].allocated)
                if both_free and span.stream is None and joined[-1].stream is None:
                    joined[-1].end = span.end
                else:
                    joined.append(span)
            segment[:] = joined

    def _release(self, keep: int) -> None:
        """Give whole free granules back, the last reserved ones first, while at least `keep` bytes stay."""
        unit = self.granularity
        excess = max(0, self._reserved - keep) // unit * unit
        for n in range(len(self._segments) - 1, -1, -1):
            pieces: list[list[_Span]] = [[]]
            for span in reversed(self._segments[n]):
                free_for_all = not span.allocated and span.stream is None
                high = span.end // unit * unit
                gone = min(excess, high + -span.begin // unit * unit) if free_for_all else 0
                if gone <= 0:
                    pieces[-1].insert(0, span)
                    continue
                excess -= gone
                self._reserved -= gone
                if high < span.end:
                    pieces[-1].insert(0, _Span(high, span.end))
                pieces.append([_Span(span.begin, high - gone)] if span.begin < high - gone else [])
            self._segments[n : n + 1] = [piece for piece in reversed(pieces) if piece]
