"""Event loops: the fastest that is installed, and one in a thread of its own for programs without any."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, Literal, Self, TypeVar

from dynalab.errors import ConfigError, NetClosed

T = TypeVar("T")
LoopKind = Literal["auto", "asyncio", "uvloop"]


def loop_factory(kind: LoopKind | str = "auto") -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop, as ``asyncio.Runner(loop_factory=...)`` takes it.

    Parameters
    ----------
    kind : {"auto", "asyncio", "uvloop"}
        ``auto``: uvloop where it is installed, else asyncio's own.

    Raises
    ------
    ConfigError
        If the kind does not exist or is not installed.

    Examples
    --------
    >>> import asyncio
    >>> with asyncio.Runner(loop_factory=loop_factory()) as runner:
    ...     runner.run(asyncio.sleep(0, "done"))
    'done'
    """
    if kind not in ("auto", "asyncio", "uvloop"):
        raise ConfigError(f"loop: {kind!r} does not exist; choose from auto, asyncio, uvloop")
    if kind == "asyncio" or (kind == "auto" and find_spec("uvloop") is None):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ConfigError("loop: uvloop is not installed; pip install 'dynalab[uvloop]', or take asyncio") from None
    return uvloop.new_event_loop


class LoopThread:
    """An event loop in a thread, for programs and notebooks' threads that have none of their own.

    Parameters
    ----------
    kind : {"auto", "asyncio", "uvloop"}
        As for `loop_factory`.

    Examples
    --------
    >>> from dynalab.net import LoopThread, SharedTcpEndpoint, TcpConnectionPool
    >>> with LoopThread() as loop:
    ...     server = loop.enter(SharedTcpEndpoint())
    ...     client = loop.enter(TcpConnectionPool())
    ...     server.register("shout", lambda request: request.payload.upper())
    ...     loop.run(client.request(server.address, "shout", b"hello"))
    b'HELLO'
    """

    def __init__(self, kind: LoopKind = "auto") -> None:
        self._loop = loop_factory(kind)()
        self._entered: list[Any] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.call_soon(ready.set)
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, name="dynalab event loop", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine in the loop; the future is that of a thread pool."""
        if self._thread is None or self._thread is threading.current_thread():
            coroutine.close()
            raise NetClosed("the loop's thread does not run, or it is this one; use it in `with`, from other threads")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and return its result.

        Raises
        ------
        TimeoutError
            After `timeout` seconds; the coroutine is cancelled.
        """
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            # A timeout, or Ctrl-C while waiting; nothing happens to one that has ended.
            future.cancel()
            raise

    def enter(self, manager: Any) -> Any:
        """Enter an ``async with`` manager in the loop; it is left, in reverse order, when the thread ends."""
        entered = self.run(manager.__aenter__())
        self._entered.append(manager)
        return entered

    def close(self) -> None:
        """Leave what was entered, cancel what still runs, and end the thread."""
        if self._thread is None:
            return
        try:
            while self._entered:
                self.run(self._entered.pop().__aexit__(None, None, None))
        finally:
            self.run(_cancel_all())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
