"""What a pool lends: an item for one holder, and an item shared by several."""

from __future__ import annotations

import warnings
from traceback import StackSummary, walk_stack
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from dynalab.errors import PoolError

if TYPE_CHECKING:
    from dynalab.pools._base import BasePool

T = TypeVar("T")
#: Where an item was taken: code and instruction, which are had for next to nothing, and the stack if that was asked.
Place = tuple[CodeType, int, StackSummary | None]


def here(frame: FrameType) -> Place:
    """Return the place where `frame` is now, with all its callers."""
    stack = StackSummary.extract(walk_stack(frame), lookup_lines=False)
    stack.reverse()
    return frame.f_code, frame.f_lasti, stack


def _line(code: CodeType, instruction: int) -> int:
    for begin, end, line in code.co_lines():
        if begin <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


class Share(Generic[T]):
    """A value out of its pool, and how many hold it; counted under the pool's lock."""

    __slots__ = ("count", "value")

    def __init__(self, value: T, count: int = 1) -> None:
        self.value, self.count = value, count


class _Handle(Generic[T]):
    """What item and shared item have in common: a pool, a life, and the place in the code where it was taken."""

    # Nothing here is set by an __init__: pools make handles by the million, and set the fields themselves.
    __slots__ = ("__weakref__", "_live", "_place", "_pool")

    _pool: BasePool[T]
    _live: bool
    _place: Place

    def __new__(cls) -> Self:
        raise PoolError(f"{cls.__name__}: only pools make these; call acquire() of a Pool or a SyncPool")

    @property
    def taken_at(self) -> str:
        """Where it was taken: file, line and function."""
        code, instruction, _ = self._place
        return f"{code.co_filename}:{_line(code, instruction)} in {code.co_name}"

    def release(self) -> None:
        """Give it back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        if not self._live:
            self._refuse()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Whoever released or shared it inside the with statement has done what is due.
        if self._live:
            self.release()

    def _refuse(self) -> NoReturn:
        raise PoolError(
            f"pool {self._pool.name!r}: the item taken at {self.taken_at} was given back or shared already; "
            "acquire another one"
        )

    def _warn(self) -> None:
        code, instruction, frames = self._place
        stack = f"\n{''.join(frames.format())}" if frames is not None else ""
        text = (
            f"pool {self._pool.name!r}: the item taken at {self.taken_at} was never released, and came back by garbage "
            f"collection; use it in a with statement, or release it{stack}"
        )
        # The warning's own place is where it was taken: what happens to run now has nothing to do with it.
        warnings.warn_explicit(text, ResourceWarning, code.co_filename, _line(code, instruction), source=self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._pool.name!r}, {'held' if self._live else 'given back'})"


class PoolItem(_Handle[T]):
    """A value on loan; give it back with `release`, or use it in a ``with`` statement, which yields the item.

    An item that is forgotten comes back when it is garbage collected, with a `ResourceWarning` that tells where it was
    taken. That is a safety net and nothing to build on: nobody knows when it happens.
    """

    __slots__ = ("_value",)

    _value: T

    @property
    def value(self) -> T:
        """The value; what is assigned to it goes back to the pool instead.

        Raises
        ------
        PoolError
            If the item was released or shared.
        """
        if not self._live:
            self._refuse()
        return self._value

    @value.setter
    def value(self, value: T) -> None:
        if not self._live:
            self._refuse()
        self._value = value

    @property
    def released(self) -> bool:
        """Whether the value is out of reach: given back, or shared."""
        return not self._live

    def release(self) -> None:
        """Give the value back: to whoever waits longest, or behind the free ones.

        Raises
        ------
        PoolError
            If the item was released or shared already.
        Exception
            What the pool's `on_return` raises. The value is back nevertheless, as an unhealthy one.
        """
        pool = self._pool
        if pool._on_return is not None:
            value = self._claim()
            try:
                pool._come_home(value)
            finally:
                if pool._orphans:
                    pool._drain()
            return
        with pool._lock:
            live = self._live
            if live:
                self._live = False
                if pool._waiters or pool._closed:
                    pool._put(self._value)
                else:
                    pool._free.append(self._value)
                self._value = None  # type: ignore[assignment]
        if pool._orphans:
            pool._drain()
        if not live:
            self._refuse()

    def share(self) -> SharedItem[T]:
        """Turn the item into one that several may hold and none may change; the value returns when the last lets go.

        Raises
        ------
        PoolError
            If the item was released or shared already.
        """
        return _shared(self, Share(self._claim()))

    def _claim(self) -> T:
        """Take the value out of the item; of two threads that try, one gets it."""
        with self._pool._lock:
            if not self._live:
                self._refuse()
            self._live = False
            value, self._value = self._value, None  # type: ignore[assignment]
        return value

    def __del__(self) -> None:
        if self._live:
            self._live = False
            self._pool._abandon(Share(self._value))
            self._warn()


class SharedItem(_Handle[T]):
    """A value that several hold, read-only by agreement; it returns to its pool when the last of them lets go.

    Each holder has a `SharedItem` of his own, made by `clone`, and releases it. All may be used from any thread.
    """

    __slots__ = ("_share",)

    _share: Share[T]

    @property
    def value(self) -> T:
        """The value; do not change it, others see it too.

        Raises
        ------
        PoolError
            If this holder has released it.
        """
        if not self._live:
            self._refuse()
        return self._share.value

    @property
    def count(self) -> int:
        """How many hold the value now."""
        return self._share.count

    def clone(self) -> SharedItem[T]:
        """Return one more holder of the same value.

        Raises
        ------
        PoolError
            If this one was released.
        """
        with self._pool._lock:
            if not self._live:
                self._refuse()
            self._share.count += 1
        return _shared(self, self._share)

    def release(self) -> None:
        """Let go; the last one gives the value back.

        Raises
        ------
        PoolError
            If it was released already.
        Exception
            What the pool's `on_return` raises. The value is back nevertheless, as an unhealthy one.
        """
        pool = self._pool
        with pool._lock:
            if not self._live:
                self._refuse()
            self._live = False
            self._share.count -= 1
            last = not self._share.count
        try:
            if last:
                pool._come_home(self._share.value)
        finally:
            if pool._orphans:
                pool._drain()

    def __del__(self) -> None:
        if self._live:
            self._live = False
            self._pool._abandon(self._share)
            self._warn()


def _shared(origin: _Handle[T], share: Share[T]) -> SharedItem[T]:
    """Return a holder of `share` that was taken where `origin` was."""
    item: Any = object.__new__(SharedItem)
    item._pool, item._place, item._share = origin._pool, origin._place, share
    item._live = True
    return item
