"""The values of a pool in their queue, and those who wait for them in theirs, under one lock.

The lock guards pools of tasks too: their items may be released, or collected as garbage, in any thread. A destructor
may run in the middle of anything, even while its own thread holds the lock, so it does not wait for the lock: it leaves
what it brings in `_orphans`, and whoever let go of the lock last looks there.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, NoReturn, TypeVar

from dynalab.errors import PoolClosed, PoolExhausted, PoolTimeout
from dynalab.pools._waiting import State, Waiter
from dynalab.pools.item import Share
from dynalab.pools.pool_metrics import WAIT_BOUNDS, PoolMetrics

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Condemned:
    """A value whose `on_return` failed, or that could not be replaced: unhealthy without a further check."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Store(Generic[T]):
    """Who has which value and who is next: every change of it is made here, or in `PoolItem.release`.

    Parameters
    ----------
    values : iterable
    name : str
    on_return : callable or None
        Takes a value that comes home.
    """

    def __init__(self, values: Iterable[T], name: str, on_return: Callable[[T], object] | None) -> None:
        self.name = name
        self._free: deque[Any] = deque(values)
        self._capacity = len(self._free)
        self._on_return = on_return
        #: Whether values must be looked at before they are lent.
        self._careful = False
        self._lock = threading.Lock()
        #: In the order of asking; wherever somebody waits, no value is free.
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._orphans: deque[Share[T]] = deque()
        self._closed = False
        self._home: list[Any] = []
        self._closers: list[Waiter] = []
        self._acquires = self._high_water = self._waits = self._waited = 0
        self._timeouts = self._cancelled = self._leaked = self._unhealthy = 0
        self._wait_counts = [0] * (len(WAIT_BOUNDS) + 1)
        self._wait_seconds = 0.0

    @property
    def capacity(self) -> int:
        """Values that belong to the pool, lent or free; unhealthy ones that were not replaced have left it."""
        return self._capacity

    @property
    def available(self) -> int:
        """Values that are free now."""
        return len(self._free)

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return self._closed

    @property
    def metrics(self) -> PoolMetrics:
        """Counts since the pool was built, of one moment."""
        with self._lock:
            counts = [self._acquires - self._waited + self._wait_counts[0], *self._wait_counts[1:]]
            found = PoolMetrics(
                name=self.name,
                capacity=self._capacity,
                in_use=self._in_use(),
                waiting=len(self._waiters),
                high_water=self._high_water,
                acquires=self._acquires,
                waits=self._waits,
                timeouts=self._timeouts,
                cancelled=self._cancelled,
                leaked=self._leaked,
                unhealthy=self._unhealthy,
                wait_counts=tuple(counts),
                wait_seconds=self._wait_seconds,
            )
        if self._orphans:
            self._drain()
        return found

    def close(self) -> None:
        """Turn away whoever waits or comes; items that are out may be released as ever. A second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._fail_all(State.CLOSED)
                self._home.extend(self._free)
                self._free.clear()
                self._ring_closers()
        if self._orphans:
            self._drain()

    # The queue of those who wait

    def _enter(self, waiter: Waiter, first: bool) -> None:
        """Give somebody a free value, or a place in the queue: the last, or the first one if he had it before."""
        with self._lock:
            if self._closed or not self._capacity:
                self._turn_away()
            if self._free:
                waiter.value = self._free.popleft()
                waiter.state = State.GIVEN
                self._high_water = max(self._high_water, self._in_use())
                return
            waiter.state = State.WAITING
            self._waiters[waiter] = None
            if first:
                self._waiters.move_to_end(waiter, last=False)
            else:
                self._waits += 1
        if self._orphans:
            self._drain()

    def _expire(self, waiter: Waiter) -> None:
        """Take somebody out of the queue whose time is up, unless he was served meanwhile."""
        with self._lock:
            if waiter.state == State.WAITING:
                self._waiters.pop(waiter, None)
                self._timeouts += waiter.tell(State.EXPIRED)
        if self._orphans:
            self._drain()

    def _leave(self, waiter: Waiter) -> None:
        """Let somebody go who was cancelled or interrupted: what he was given goes to the next one."""
        with self._lock:
            if waiter.state == State.WAITING:
                self._waiters.pop(waiter, None)
                self._cancelled += 1
            elif waiter.state == State.GIVEN:
                self._put(waiter.value)
                self._cancelled += 1
            waiter.state = State.DONE
        if self._orphans:
            self._drain()

    # Coming home

    def _come_home(self, value: Any) -> None:
        """Run the hook, then pass the value on; without the lock."""
        try:
            if self._on_return is not None:
                self._on_return(value)
        except BaseException:
            self._careful = True
            value = Condemned(value)
            raise
        finally:
            with self._lock:
                self._put(value)

    def _put_back(self, value: Any) -> None:
        with self._lock:
            self._put(value)
        if self._orphans:
            self._drain()

    def _put(self, value: Any) -> None:
        """Pass a value on to whoever waits longest, or put it behind the free ones; the lock is held."""
        while self._waiters:
            # Handed over, not put back: who comes now must not overtake who has waited.
            waiter, _ = self._waiters.popitem(last=False)
            waiter.value = value
            if waiter.tell(State.GIVEN):
                return
        if self._closed:
            self._home.append(value)
            self._ring_closers()
        else:
            self._free.append(value)

    def _abandon(self, share: Share[T]) -> None:
        """Take what a destructor brings, which must not wait for the lock: its own thread may hold it."""
        self._orphans.append(share)
        # If the lock is held, its holder looks for orphans after letting go of it, which is later than this.
        if self._lock.acquire(False):
            self._lock.release()
            if self._orphans:
                self._drain()

    def _drain(self) -> None:
        """Bring home what was abandoned; without the lock."""
        while self._orphans:
            try:
                share = self._orphans.popleft()
            except IndexError:  # another thread was faster
                return
            with self._lock:
                self._leaked += 1
                share.count -= 1
                last = not share.count
            if last:
                try:
                    self._come_home(share.value)
                except Exception as error:
                    # Nobody is there who could catch it.
                    _log.warning("pool %r: on_return of an abandoned value raised %r", self.name, error)

    # The end

    def _begin_closing(self, waiter: Waiter) -> bool:
        """Close, and ring for `waiter` when all values are home; True if they are already."""
        self.close()
        with self._lock:
            if not self._in_use():
                return True
            self._closers.append(waiter)
            return False

    def _values_home(self) -> list[T]:
        with self._lock:
            return [value.value if type(value) is Condemned else value for value in self._home]

    def _refuse_to_end(self, timeout: float | None) -> NoReturn:
        raise PoolTimeout(
            f"pool {self.name!r}: {self._in_use()} of {self._capacity} items are still out after {timeout} s; it is "
            "closed all the same: release them, or wait longer"
        )

    def _fail_all(self, state: int) -> None:
        """Send everybody away who waits; the lock is held."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            waiter.tell(state)

    def _ring_closers(self) -> None:
        if not self._in_use():
            for waiter in self._closers:
                waiter.tell(State.GIVEN)
            self._closers.clear()

    def _in_use(self) -> int:
        return self._capacity - len(self._free) - len(self._home)

    def _turn_away(self) -> NoReturn:
        if self._closed:
            raise PoolClosed(f"pool {self.name!r} is closed; build a new one")
        raise PoolExhausted(
            f"pool {self.name!r}: no healthy value is left, the last one failed its check or its on_return; build a "
            "new pool, with a `replace` function"
        )
