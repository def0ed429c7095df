"""The connections to one address: which request goes on which, and when one more is opened."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

from dynalab.errors import CannotConnect, NetClosed
from dynalab.net.address import Address
from dynalab.net.call import Call
from dynalab.net.connection import ClientConnection
from dynalab.net.metrics import ClientCounters
from dynalab.net.tls import explain_tls

if TYPE_CHECKING:
    from dynalab.net.client import TcpConnectionPool


class Host:
    """All that a client keeps for one address.

    `assign` alone decides; it is called whenever a request comes or a connection changes:

    1. a healthy connection with room takes the request, the next in turn first;
    2. if none has room, and fewer than the pool's size are open, one more is opened, one at a time;
    3. else requests wait, in order, until a response makes room.
    """

    def __init__(self, pool: TcpConnectionPool, address: Address, counters: ClientCounters) -> None:
        self._pool = pool
        self._room = pool.config.channel_buffer
        self._next = 0
        self._connecting: asyncio.Task[CannotConnect | None] | None = None
        self.address = address
        self.counters = counters
        self.waiting: deque[Call] = deque()
        self.connections: list[ClientConnection] = []
        #: Connections that are given no more requests, and are closed once nobody waits for them.
        self.retired: list[ClientConnection] = []
        self.last_used = pool.loop.time()

    def submit(self, call: Call) -> None:
        """Take a request in."""
        if not self.waiting:
            connection = self._pick()
            if connection is not None:
                connection.send(call)
                return
        self.counters.waited += 1
        self.waiting.append(call)
        self.assign()

    def assign(self) -> None:
        """Hand waiting requests to connections with room; open one more if there is none."""
        waiting = self.waiting
        while waiting:
            if waiting[0].future.done():
                waiting.popleft()
                continue
            connection = self._pick()
            if connection is None:
                self._grow()
                return
            connection.send(waiting.popleft())

    def _pick(self) -> ClientConnection | None:
        """Return the next healthy connection in turn that has room."""
        connections, room = self.connections, self._room
        n = len(connections)
        if n == 1:
            only = connections[0]
            free = only.healthy and len(only.unanswered) + len(only.writer.queue) < room
            return only if free else None
        for k in range(self._next, self._next + n):
            connection = connections[k % n]
            if connection.healthy and len(connection.unanswered) + len(connection.writer.queue) < room:
                self._next = (k + 1) % n
                return connection
        return None

    def _grow(self) -> asyncio.Task[CannotConnect | None] | None:
        """Open one connection more, if there may be one more and none is being opened already."""
        if self._connecting is None and len(self.connections) < self._pool.config.size and not self._pool.closed:
            self._connecting = self._pool.loop.create_task(self._connect(), name=f"dynalab connect {self.address}")
        return self._connecting

    async def open_one(self) -> None:
        """Open one connection more, or wait for the one that is being opened.

        Raises
        ------
        CannotConnect
        NetClosed
            If the client was closed meanwhile.
        """
        task = self._grow()
        if task is not None:
            await asyncio.wait([task])
            if task.cancelled():
                raise NetClosed("the client is closed; make a new one")
            error = task.result()
            if error is not None:
                raise error

    async def _connect(self) -> CannotConnect | None:
        """Open one connection; if that fails and there is no other, whoever waits is told."""
        error: CannotConnect | None = None
        try:
            await self._open()
        except CannotConnect as failed:
            error = failed
        finally:
            self._connecting = None
        if error is not None and not self.connections:
            calls = list(self.waiting)
            self.waiting.clear()
            for call in calls:
                call.fail(error)
        elif error is None:
            self.assign()
        return error

    async def _open(self) -> None:
        pool, address = self._pool, self.address
        timeout = pool.config.connect_timeout
        connection = ClientConnection(self, pool.loop, pool.config.max_message)
        self.counters.connects += 1
        try:
            async with pool.connect_slots, asyncio.timeout(timeout):
                await pool.loop.create_connection(
                    lambda: connection, address.host, address.port, **pool.tls_options(address)
                )
        except TimeoutError:
            self.counters.connect_failures += 1
            raise CannotConnect(f"cannot connect to {address} within {timeout:g} s (connect_timeout)") from None
        except (OSError, ValueError) as error:
            # The latter of names that cannot be one of a server's certificate.
            self.counters.connect_failures += 1
            what = explain_tls(error) if isinstance(error, ssl.SSLError) else str(error) or type(error).__name__
            raise CannotConnect(f"cannot connect to {address}: {what}") from error
        if not connection.healthy:
            self.counters.connect_failures += 1
            raise CannotConnect(f"cannot connect to {address}: closed at once")
        self.connections.append(connection)

    def lost(self, connection: ClientConnection, unsent: list[Call]) -> None:
        """Forget a connection, and send elsewhere what it had not begun to send."""
        for group in (self.connections, self.retired):
            if connection in group:
                group.remove(connection)
        self._wait_again(unsent)
        if not self._pool.closed:
            self.assign()

    def _wait_again(self, unsent: list[Call]) -> None:
        for call in reversed(unsent):
            if not call.future.done():
                call.connection = None
                self.waiting.appendleft(call)

    def sweep(self, now: float) -> None:
        """Retire connections that owe a response nobody waits for and fell silent; forget requests that timed out."""
        patience = self._pool.config.request_timeout
        for connection in list(self.connections):
            since = connection.stuck_since
            if since is not None and now - since > patience:
                self.connections.remove(connection)
                self.retired.append(connection)
                self._wait_again(connection.give_up())
                self.counters.stuck += 1
        for connection in list(self.retired):
            if not connection.live:
                connection.abort(CannotConnect(f"{self.address}: given up, silent for {patience:g} s"))
        self.waiting = deque(call for call in self.waiting if not call.future.done())
        self.assign()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._connecting is None and not self.in_flight

    @property
    def in_flight(self) -> int:
        """Requests that are not answered, those given up included."""
        return len(self.waiting) + sum(c.in_flight for c in (*self.connections, *self.retired))

    def close(self, error: Exception) -> list[asyncio.Future[Any]]:
        """Abort everything; return what is to be waited for."""
        ends: list[asyncio.Future[Any]] = []
        if self._connecting is not None:
            self._connecting.cancel()
            ends.append(self._connecting)
        for call in self.waiting:
            call.fail(error)
        self.waiting.clear()
        connections = [*self.connections, *self.retired]
        for connection in connections:
            connection.abort(error)
            ends.append(connection.closed)
        return ends
