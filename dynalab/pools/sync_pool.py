"""A pool of objects for threads."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Generic, Self, TypeVar

from dynalab.pools._base import BasePool, check_timeout
from dynalab.pools.item import PoolItem, here

T = TypeVar("T")


class SyncPool(BasePool[T], Generic[T]):
    """A fixed set of objects that threads borrow, in the order of asking.

    The pool never makes a value: its capacity is the number of those it is given. A value that comes back goes to
    whoever waits longest, else behind the free ones; nobody overtakes who waits. A wait that times out, or is
    interrupted (``KeyboardInterrupt``), takes nothing with it. All methods may be called from any thread.

    Parameters
    ----------
    values : iterable
        What to lend.
    name : str
        For messages and metrics.
    on_return : callable, optional
        Takes a value that comes back, before anyone else gets it: to reset it. If it raises, `release` raises the same,
        and the value counts as unhealthy.
    check : callable, optional
        Takes a value that is to be lent, and tells whether it is healthy; if it raises, the value is not.
    replace : callable, optional
        Takes an unhealthy value and returns one that takes its place, unchecked. If it raises, `acquire` raises a
        `PoolError`, and the value stays to be replaced later. Without it an unhealthy value leaves the pool.
    trace : bool
        Keep the whole stack of who takes an item, for the warning about a leak: slow. Without it the warning names file
        and line; with ``tracemalloc`` running it carries the stack in any case.

    Raises
    ------
    ConfigError
        If there are no values, or a hook is no plain function.

    Examples
    --------
    >>> pool = SyncPool(["a", "b"], name="letters")
    >>> with pool.acquire() as item:
    ...     item.value, pool.available
    ('a', 1)
    >>> pool.acquire().value
    'b'
    """

    def acquire(self, timeout: float | None = None) -> PoolItem[T]:
        """Return an item, waiting for one behind those who asked before.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; by default for ever.

        Raises
        ------
        PoolTimeout
            If no item came free in time.
        PoolClosed
            If the pool is closed, or is closed meanwhile.
        PoolExhausted
            If no healthy value is left in it.
        PoolError
            If an unhealthy value could not be replaced.
        ConfigError
            If `timeout` is no time to wait.
        """
        if timeout is not None and not (type(timeout) is float and timeout >= 0.0):
            check_timeout(timeout)
        frame = sys._getframe(1)
        place = here(frame) if self._trace else (frame.f_code, frame.f_lasti, None)
        return self._try(place) or self._acquire_in_thread(timeout, place)

    #: The same under the name that it has in pools of tasks.
    acquire_blocking = acquire

    def close_and_wait(self, timeout: float | None = None) -> list[T]:
        """Close the pool, wait until all items are back, and return their values.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; by default for ever.

        Raises
        ------
        PoolTimeout
            If items are still out then; the pool is closed all the same.
        """
        if timeout is not None:
            check_timeout(timeout)
        return self._close_in_thread(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
