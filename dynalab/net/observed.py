"""A client that remembers each attempt, for figures and trials: when it began, and over which connection it went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from dynalab.errors import (
    CannotConnect,
    ConnectionLost,
    HandlerFailed,
    NetError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
)
from dynalab.net.address import Address
from dynalab.net.call import Call
from dynalab.net.client import TcpConnectionPool
from dynalab.net.connection import ClientConnection
from dynalab.net.host import Host
from dynalab.net.metrics import ClientCounters
from dynalab.net.writer import Payload

OK: Final = "ok"
#: Outcome of a request by the error that told it, the most special first.
_OUTCOMES: Final[dict[type[BaseException], str]] = {
    RequestTimeout: "timed out",
    ConnectionLost: "lost",
    CannotConnect: "could not connect",
    ServerOverloaded: "overloaded",
    ServerUnavailable: "unavailable",
    HandlerFailed: "handler failed",
    NetError: "other error",
    asyncio.CancelledError: "cancelled",
}
OUTCOMES: Final = (OK, *_OUTCOMES.values())


def outcome(error: BaseException | None) -> str:
    """Name how a request ended, by the error that it raised.

    Raises
    ------
    BaseException
        `error` itself, if no client raises such a thing.

    Examples
    --------
    >>> outcome(None), outcome(ConnectionLost("gone"))
    ('ok', 'lost')
    """
    if error is None:
        return OK
    for kind, name in _OUTCOMES.items():
        if isinstance(error, kind):
            return name
    raise error


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a request.

    Attributes
    ----------
    payload : bytes-like
        The very object that was asked with.
    began : float
        When it was handed to the pool [s, ``time.monotonic()``].
    call : Call
    """

    payload: Payload
    began: float
    call: Call

    @property
    def connection(self) -> ClientConnection | None:
        """The connection that it was last handed to."""
        return self.call.connection


@dataclass(frozen=True, slots=True)
class Glance:
    """A client at one moment.

    Attributes
    ----------
    at : float
        [s], ``time.monotonic()``.
    in_flight : tuple of int
        Requests handed to each open connection and not answered, in the order of opening.
    waiting : int
        Requests for which no connection has room.
    """

    at: float
    in_flight: tuple[int, ...]
    waiting: int


class _ObservedHost(Host):
    """Notes every attempt before it takes it in."""

    attempts: list[Attempt]

    def submit(self, call: Call) -> None:
        self.attempts.append(Attempt(call.payload, time.monotonic(), call))
        super().submit(call)


class ObservedPool(TcpConnectionPool):
    """A :class:`~dynalab.net.client.TcpConnectionPool` that keeps what it did; parameters are the same.

    Meant for thousands of requests, not for service: it keeps them all.

    Attributes
    ----------
    attempts : list of Attempt
        In the order in which they began.

    Examples
    --------
    >>> import asyncio
    >>> from dynalab.net import SharedTcpEndpoint
    >>> async def ask():
    ...     async with SharedTcpEndpoint() as server, ObservedPool(size=2) as client:
    ...         server.register("shout", lambda request: request.payload.upper())
    ...         await client.request(server.address, "shout", b"hello")
    ...         return client.attempts
    >>> [attempt.payload for attempt in asyncio.run(ask())]
    [b'hello']
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attempts: list[Attempt] = []

    def _host(self, address: Address) -> Host:
        key = Address(address.host, address.port)
        if key not in self._hosts:
            self._hosts[key] = host = _ObservedHost(self, key, ClientCounters())
            host.attempts = self.attempts
        return super()._host(address)

    @asynccontextmanager
    async def watched(self, every: float = 0.001) -> AsyncIterator[list[Glance]]:
        """Look at connections again and again while the body runs.

        Parameters
        ----------
        every : float
            Seconds between two looks.

        Yields
        ------
        list of Glance
            It grows.
        """
        glances: list[Glance] = []

        def look() -> None:
            hosts = self._hosts.values()
            in_flight = tuple(one.in_flight for host in hosts for one in host.connections)
            glances.append(Glance(time.monotonic(), in_flight, sum(len(host.waiting) for host in hosts)))

        async def keep_looking() -> None:
            while True:
                look()
                await asyncio.sleep(every)

        task = asyncio.create_task(keep_looking())
        try:
            yield glances
        finally:
            task.cancel()
            look()
