"""What both kinds of pool do with values: lend them, see to their health, and let threads wait for them."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from dynalab.errors import ConfigError, PoolError, PoolTimeout
from dynalab.pools._store import Condemned, Store
from dynalab.pools._waiting import State, ThreadWaiter, Waiter
from dynalab.pools.item import Place, PoolItem, here
from dynalab.pools.pool_metrics import WAIT_BOUNDS, metrics_dataset, prometheus_text

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")
_log = logging.getLogger(__name__)
_GONE: Final = object()
_new_item: Final = object.__new__


class BasePool(Store[T], Generic[T]):
    """What :class:`~dynalab.pools.Pool` and :class:`~dynalab.pools.SyncPool` share; made by way of these alone."""

    def __init__(
        self,
        values: Iterable[T],
        *,
        name: str = "pool",
        on_return: Callable[[T], object] | None = None,
        check: Callable[[T], object] | None = None,
        replace: Callable[[T], T] | None = None,
        trace: bool = False,
    ) -> None:
        for hook, function in (("on_return", on_return), ("check", check), ("replace", replace)):
            if function is None:
                continue
            if not callable(function):
                raise ConfigError(f"{hook}: {function!r} cannot be called; give a function of the value")
            if inspect.iscoroutinefunction(function):
                raise ConfigError(f"{hook}: {function!r} is async, but hooks run at once; give a plain function")
        if isinstance(values, str | bytes):
            raise ConfigError(f"values: {values!r} is one value; give a list of values")
        super().__init__(values, name, on_return)
        if not self._capacity:
            raise ConfigError(f"values: pool {name!r} of no values serves nobody; give it at least one")
        self._check, self._replace = check, replace
        self._careful = check is not None
        self._trace = trace

    def stats(self) -> xr.Dataset:
        """Return `metrics` as a Dataset: scalars with units, and ``wait_counts`` over ``wait_bound`` [s]."""
        return metrics_dataset(self.metrics, kind=type(self).__name__)

    def prometheus(self) -> str:
        """Return `metrics` in Prometheus' text format, labelled with the pool's name."""
        return prometheus_text(self.metrics)

    def try_acquire(self) -> PoolItem[T] | None:
        """Return an item if a value is free, which none is while others wait; else None.

        Raises
        ------
        PoolClosed
            If the pool is closed.
        PoolExhausted
            If no healthy value is left in it.
        PoolError
            If an unhealthy value could not be replaced.
        """
        frame = sys._getframe(1)
        place = here(frame) if self._trace else (frame.f_code, frame.f_lasti, None)
        item = self._try(place)
        if item is None and self._orphans:
            self._drain()
            item = self._try(place)
        if item is None and (self._closed or not self._capacity):
            self._turn_away()
        return item

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._free)} free, {len(self._waiters)} waiting"
        return f"{type(self).__name__}({self.name!r}, {self._capacity} values, {state})"

    # Lending

    def _try(self, place: Place) -> PoolItem[T] | None:
        """Lend the first free value to whoever asks at `place`; None if there is none."""
        if self._careful:
            return self._try_carefully(place)
        free = self._free
        if not free:
            return None
        with self._lock:
            if not free:
                return None
            careful = self._careful
            if not careful:
                value = free.popleft()
                self._acquires += 1
                in_use = self._capacity - len(free)
                if in_use > self._high_water:
                    self._high_water = in_use
        if careful:  # since a moment ago: another thread has condemned a value
            return self._try_carefully(place)
        if self._orphans:
            self._drain()
        return self._lend(value, place)

    def _try_carefully(self, place: Place) -> PoolItem[T] | None:
        while True:
            with self._lock:
                if not self._free:
                    return None
                value = self._free.popleft()
                self._high_water = max(self._high_water, self._in_use())
            if self._orphans:
                self._drain()
            value = self._healthy(value)
            if value is not _GONE:
                with self._lock:
                    self._acquires += 1
                return self._lend(value, place)

    def _lend(self, value: T, place: Place) -> PoolItem[T]:
        item: Any = _new_item(PoolItem)
        item._pool = self
        item._value = value
        item._place = place
        item._live = True
        return item

    def _healthy(self, value: Any) -> Any:
        """Return a value that may be lent, the same or its replacement; `_GONE` if it has left the pool.

        No lock is held. Whatever a hook raises, the value does not get lost.
        """
        if type(value) is Condemned:
            value = value.value
        else:
            try:
                if self._check is None or self._check(value):
                    return value
            except Exception as error:
                _log.warning("pool %r: check of %r raised %r; it counts as unhealthy", self.name, value, error)
            except BaseException:
                self._put_back(value)
                raise
        with self._lock:
            self._unhealthy += 1
            if self._replace is None:
                self._capacity -= 1
                if not self._capacity:
                    self._fail_all(State.EXHAUSTED)
                if self._closed:
                    self._ring_closers()
                return _GONE
        try:
            return self._replace(value)
        except BaseException as error:
            # Not dropped: a peer that is down for a minute must not empty the pool for good.
            self._put_back(Condemned(value))
            if isinstance(error, Exception):
                raise PoolError(
                    f"pool {self.name!r}: replace of the unhealthy {value!r} raised {error!r}; the value stays in the "
                    "pool, and is replaced when it is next in turn"
                ) from error
            raise

    # Waiting

    def _receive(self, waiter: Waiter, begin: float, timeout: float | None, place: Place) -> PoolItem[T] | None:
        """Turn what somebody was given into an item; None if the value was unhealthy and has left the pool."""
        if waiter.state != State.GIVEN:
            if waiter.state == State.EXPIRED:
                raise PoolTimeout(
                    f"pool {self.name!r}: no item came free within {timeout} s, all {self._capacity} are in use; "
                    "release items, wait longer, or make the pool larger"
                )
            self._turn_away()
        value = waiter.value
        if self._careful:
            waiter.state = State.DONE
            value = self._healthy(value)
            if value is _GONE:
                return None
        waited = time.perf_counter() - begin
        with self._lock:
            waiter.state = State.DONE
            self._acquires += 1
            self._waited += 1
            self._wait_counts[bisect_left(WAIT_BOUNDS, waited)] += 1
            self._wait_seconds += waited
        if self._orphans:
            self._drain()
        return self._lend(value, place)

    def _acquire_in_thread(self, timeout: float | None, place: Place) -> PoolItem[T]:
        """Sleep until there is an item."""
        begin = time.perf_counter()
        first = False
        while True:
            waiter = ThreadWaiter()
            try:
                self._enter(waiter, first)
                if waiter.state == State.WAITING:
                    left = None if timeout is None else begin + timeout - time.perf_counter()
                    if not waiter.wait(left):
                        self._expire(waiter)
                item = self._receive(waiter, begin, timeout, place)
            except BaseException:
                self._leave(waiter)
                raise
            if item is not None:
                return item
            first = True

    def _close_in_thread(self, timeout: float | None) -> list[T]:
        """Close, and sleep until all values are home."""
        waiter = ThreadWaiter()
        if not self._begin_closing(waiter) and not waiter.wait(timeout):
            self._refuse_to_end(timeout)
        return self._values_home()


def check_timeout(timeout: float) -> None:
    """Refuse what is no time to wait.

    Raises
    ------
    ConfigError
        If `timeout` is negative or not a number of seconds.
    """
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigError(f"timeout: {timeout!r} is no time to wait; give seconds from 0 up, or None to wait for ever")
