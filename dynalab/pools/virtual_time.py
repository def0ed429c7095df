"""An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

Code that awaits only timers, futures, locks and queues runs in it unchanged, as fast as the processor allows: hours in
seconds, and the same to the last digit in every run. Whatever comes from it happened in **virtual time** and is to be
labelled so; how long the code itself takes is not in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from dynalab.errors import PoolError

T = TypeVar("T")


class _NoWait(selectors.BaseSelector):
    """A selector that watches nothing: asked to wait, it moves the clock on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise PoolError(
                "virtual time stands still: everything waits, and no timer is set; what waits here is never woken, or "
                "waits for a socket or a thread, which need a loop in real time"
            )
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, beginning at 0 s.

    Sockets, subprocesses, signals and threads cannot wake it. Where all its tasks wait and none of them for a timer,
    which in real time would hang, it raises :class:`~dynalab.errors.PoolError`.

    Examples
    --------
    >>> async def a_day() -> float:
    ...     await asyncio.sleep(86400)
    ...     return asyncio.get_running_loop().time()
    >>> run_virtual(a_day())
    86400.0
    """

    def __init__(self) -> None:
        self._virtual = _NoWait()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time, as :func:`asyncio.run` does in real time.

    Not from a thread whose event loop is running (a notebook's own, for instance): call it in another thread.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
