"""A fixed number of equal host buffers for data on its way: what bounces between GPU, memory and disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError, ConfigError, TierClosed, TierError
from dynalab.pools.arena import ALIGNMENT, HostArena
from dynalab.units import format_size, parse_size


class Buffer:
    """A buffer on loan; give it back with `release`, or use it in a ``with`` statement.

    Attributes
    ----------
    index : int
        Number of the buffer within its pool.
    """

    __slots__ = ("_array", "_pool", "index")

    def __init__(self, pool: BufferPool, index: int, array: npt.NDArray[np.uint8]) -> None:
        self._pool, self.index = pool, index
        self._array: npt.NDArray[np.uint8] | None = array

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory as uint8[buffer size]; whatever the last user left in it."""
        if self._array is None:
            raise BlockStateError(f"buffer {self.index} was given back; acquire another one")
        return self._array

    @property
    def address(self) -> int:
        """Address of the first byte, a multiple of 4096."""
        return self.array.ctypes.data

    def release(self) -> None:
        """Give the buffer back; a second call does nothing."""
        if self._array is not None:
            self._pool._give_back(self)

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class _Waiter:
    """Somebody in the queue: what he gets, and the bell that rings then."""

    __slots__ = ("bell", "index")

    def __init__(self) -> None:
        self.bell = threading.Event()
        self.index: int | None = None


class BufferPool:
    """Equal, aligned host buffers out of one allocation: pinned where there is a GPU, else locked where allowed.

    The pool never grows. Who waits is served in the order of asking; a buffer that comes back goes to the back of the
    queue of free ones. All methods may be called from any thread.

    Parameters
    ----------
    count : int
        Buffers.
    size : int or str
        Bytes of each, or text such as ``"16MiB"``; each begins at a multiple of 4096.
    pinned, lock, numa_node
        As for :class:`~dynalab.pools.HostArena`.

    Raises
    ------
    ConfigError
        If `count` or `size` is not above zero.
    DeviceMemoryError
        If the memory cannot be had.

    Examples
    --------
    >>> with BufferPool(2, "4KiB", pinned=False) as pool:
    ...     with pool.acquire() as buffer:
    ...         buffer.array[:] = 1
    ...         held = pool.available
    ...     held, pool.available, pool.stats()["high_water"]
    (1, 2, 1)
    """

    def __init__(
        self,
        count: int,
        size: int | str,
        *,
        pinned: bool | None = None,
        lock: bool = True,
        numa_node: int | None = None,
    ) -> None:
        if count < 1:
            raise ConfigError(f"count: a pool of {count} buffers serves nobody; ask for at least one")
        self.buffer_bytes = parse_size(size, field="size")
        if self.buffer_bytes == 0:
            raise ConfigError("size: buffers of 0 bytes hold nothing; ask for at least one byte")
        self.capacity = count
        self._stride = -(-self.buffer_bytes // ALIGNMENT) * ALIGNMENT
        self._arena = HostArena(count * self._stride, pinned=pinned, lock=lock, numa_node=numa_node)
        self._lock = threading.Lock()
        self._free = deque(range(count))
        self._waiters: deque[_Waiter] = deque()
        self._closed = False
        self._high_water = self._acquired = self._waited = 0
        self._wait_seconds = 0.0

    @property
    def kind(self) -> str:
        """What the memory is: "pinned", "locked" or "pageable"."""
        return self._arena.kind

    @property
    def locked(self) -> bool:
        """Whether the buffers stay in memory for good."""
        return self._arena.locked

    @property
    def numa_node(self) -> int | None:
        """NUMA node of the first buffer, None where the system does not tell."""
        return self._arena.numa_node

    @property
    def available(self) -> int:
        """Buffers that are free now."""
        return len(self._free)

    def try_acquire(self) -> Buffer | None:
        """Return a buffer, or None where none is free or others have been waiting.

        Raises
        ------
        TierClosed
            If the pool is closed.
        """
        with self._lock:
            self._check_open()
            if not self._free:
                return None
            return self._lend(self._free.popleft())

    def acquire(self, timeout: float | None = None) -> Buffer:
        """Return a buffer, waiting for one behind those who have asked before.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; by default for ever.

        Raises
        ------
        TierError
            If none came free in time.
        TierClosed
            If the pool is closed, or is closed meanwhile.
        """
        with self._lock:
            self._check_open()
            if self._free:
                return self._lend(self._free.popleft())
            waiter = _Waiter()
            self._waiters.append(waiter)
            self._waited += 1
        begin = time.perf_counter()
        try:
            waiter.bell.wait(timeout)
        except BaseException:  # an interrupt: a buffer must not be handed to somebody who is gone
            with self._lock:
                if waiter.index is not None:
                    self._put(waiter.index)
                elif not self._closed:
                    self._waiters.remove(waiter)
            raise
        with self._lock:
            self._wait_seconds += time.perf_counter() - begin
            if waiter.index is not None:  # even if it came just after the time was up
                return self._lend(waiter.index)
            self._check_open()
            self._waiters.remove(waiter)
        raise TierError(
            f"no buffer came free within {timeout} s, all {self.capacity} are held; "
            "give buffers back, wait longer, or make the pool larger"
        )

    def stats(self) -> dict[str, int | float]:
        """Return counts since the pool was built, at one moment.

        Returns
        -------
        dict
            ``capacity``, ``available``, ``in_use``, ``waiting`` (now), ``high_water`` (most in use at once),
            ``acquired``, ``waited`` (calls that found no buffer), ``wait_seconds`` (their sum), ``buffer_bytes``.
        """
        with self._lock:
            return {
                "capacity": self.capacity,
                "available": len(self._free),
                "in_use": self.capacity - len(self._free),
                "waiting": len(self._waiters),
                "high_water": self._high_water,
                "acquired": self._acquired,
                "waited": self._waited,
                "wait_seconds": self._wait_seconds,
                "buffer_bytes": self.buffer_bytes,
            }

    def close(self) -> None:
        """Turn away whoever waits or comes; the memory goes when all buffers are back. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._waiters:
                self._waiters.popleft().bell.set()
            self._close_if_idle()

    def __enter__(self) -> BufferPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.available} free, {self.kind}"
        return f"BufferPool({self.capacity} x {format_size(self.buffer_bytes)}, {state})"

    def _check_open(self) -> None:
        if self._closed:
            raise TierClosed("this buffer pool is closed; build a new one")

    def _lend(self, index: int) -> Buffer:
        """Wrap a buffer that was taken off the free ones; the lock is held."""
        self._acquired += 1
        self._high_water = max(self._high_water, self.capacity - len(self._free))
        begin = index * self._stride
        return Buffer(self, index, self._arena.array[begin : begin + self.buffer_bytes])

    def _give_back(self, buffer: Buffer) -> None:
        with self._lock:
            if buffer._array is None:  # another thread was faster
                return
            buffer._array = None
            self._put(buffer.index)

    def _put(self, index: int) -> None:
        """Pass a buffer on to whoever waits longest, or put it behind the free ones; the lock is held."""
        if self._waiters:
            # Handed over, not put back: who comes now must not overtake who has waited.
            waiter = self._waiters.popleft()
            waiter.index = index
            waiter.bell.set()
            return
        self._free.append(index)
        if self._closed:
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if len(self._free) == self.capacity:
            self._arena.close()
