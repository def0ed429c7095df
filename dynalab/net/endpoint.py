"""`SharedTcpEndpoint`: one port for any number of handlers, which bounds what it takes on."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from dynalab.errors import ConfigError, NetClosed, NetError
from dynalab.net.budget import ByteBudget
from dynalab.net.config import TcpServerConfig
from dynalab.net.frames import MAX_PATH
from dynalab.net.handshake import TlsListener
from dynalab.net.metrics import ServerCounters, WaitHistogram, prometheus_text
from dynalab.net.session import Session
from dynalab.net.tls import TlsServer
from dynalab.net.workers import Handler, Route, Workers


class SharedTcpEndpoint:
    """A server that calls handlers by path, so many at a time, and turns away what its queue has no room for.

    Parameters
    ----------
    config : TcpServerConfig, optional
        All settings; by default those of ``TcpServerConfig(**settings)``.
    tls : TlsServer, optional
        Certificate and key, and whom to trust; without it, connections are plain.
    **settings
        Fields of :class:`~dynalab.net.config.TcpServerConfig`.

    Notes
    -----
    A request finds a free permit, or room in the queue, or is answered "overloaded" at once, its connection kept.
    Reading stops while a connection, or all of them together, hold the bytes that they may; a peer that does not read
    or does not finish its frame is disconnected in time. Responses go in the order of the requests of a connection:
    behind a slow handler the others of that connection wait, though they are done.

    Examples
    --------
    >>> import asyncio
    >>> from dynalab.net import SharedTcpEndpoint, TcpConnectionPool
    >>> async def main():
    ...     async with SharedTcpEndpoint(max_concurrency=64, queue=256) as server, TcpConnectionPool() as client:
    ...         @server.handler("length")
    ...         async def length(request):
    ...             return str(len(request.payload)).encode()
    ...         return await client.request(server.address, "length", b"12345")
    >>> asyncio.run(main())
    b'5'
    """

    def __init__(self, *, config: TcpServerConfig | None = None, tls: TlsServer | None = None, **settings: Any) -> None:
        if config is not None and settings:
            raise ConfigError(f"config: both config and {', '.join(settings)} given; give one")
        self.config = TcpServerConfig(**settings) if config is None else config
        self.counters = ServerCounters()
        self.budget = ByteBudget(self.config.total_bytes)
        self.routes: dict[str, Route] = {}
        self.draining = False
        self._ssl = None if tls is None else tls.context()
        self._sessions: set[Session] = set()
        self._server: asyncio.Server | TlsListener | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._closed = self._sealed = False
        self._workers: Workers | None = None

    @classmethod
    def from_env(cls, **settings: Any) -> Self:
        """Return an endpoint set up by ``DYN_TCP_*`` and ``DYN_TCP_TLS_*``; `settings` win over variables."""
        return cls(config=TcpServerConfig.from_env(**settings), tls=TlsServer.from_env())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen.

        Raises
        ------
        NetError
            If the address cannot be listened on.
        """
        if self._closed or self._server is not None:
            raise NetClosed("an endpoint is started once; make a new one")
        config = self.config
        self.loop = asyncio.get_running_loop()
        self._workers = Workers(self.loop, config.max_concurrency, config.queue, self.counters)
        where: dict[str, Any] = {"host": config.host, "port": config.port, "backlog": 1024}
        try:
            if self._ssl is None:
                self._server = await self.loop.create_server(self._new_session, **where)
            else:
                listener = TlsListener(self._ssl, config.read_timeout, self.counters, self._new_session)
                await listener.start(**where)
                self._server = listener
        except OSError as error:
            raise NetError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; choose another host or port "
                "(port 0: any that is free)"
            ) from error
        self._sweep()

    @property
    def workers(self) -> Workers:
        """Permits and queue."""
        if self._workers is None:
            raise NetClosed("the endpoint is not started; use it in `async with`")
        return self._workers

    @property
    def address(self) -> str:
        """``host:port`` that it listens on."""
        if self._server is None or not self._server.sockets:
            raise NetClosed("the endpoint does not listen; use it in `async with`")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def register(self, path: str, handler: Handler, *, reply: bool = True) -> None:
        """Let `handler` have the requests for `path`.

        Parameters
        ----------
        path : str
            At most 1,024 bytes as UTF-8.
        handler : callable
            Called with a request that has ``path``, ``headers`` and ``payload``. An ``async def`` returns bytes or
            None when it ends; a plain function, too, but it must be quick, for nothing else runs meanwhile. What it
            returns must not be changed afterwards.
        reply : bool
            True: answer with what the handler returns, when it does. False: acknowledge as soon as the request is
            accepted; the result goes nowhere.

        Raises
        ------
        ConfigError
            If the path is taken or cannot be one.
        """
        if not 0 < len(path.encode()) <= MAX_PATH:
            raise ConfigError(f"path: {path!r} cannot be one; give 1 to {MAX_PATH} bytes")
        if path in self.routes:
            raise ConfigError(f"path: {path!r} has a handler; unregister it first")
        if not callable(handler):
            raise ConfigError(f"handler: {handler!r} cannot be called; give a function of one request")
        self.routes[path] = Route(path, handler, reply)

    def handler(self, path: str, *, reply: bool = True) -> Any:
        """Return a decorator that registers a function."""

        def decorate(function: Handler) -> Handler:
            self.register(path, function, reply=reply)
            return function

        return decorate

    async def unregister(self, path: str, timeout: float | None = None) -> int:
        """Take a handler away and wait for its requests to end; new ones are answered "unavailable" at once.

        Parameters
        ----------
        path : str
            Unknown ones are fine: there is nothing to wait for.
        timeout : float, optional
            Seconds to wait at most; by default ``drain_timeout`` of the configuration.

        Returns
        -------
        int
            Requests still under way when the time was up; they go on.
        """
        route = self.routes.pop(path, None)
        if route is None or not route.under_way:
            return 0
        route.drained = asyncio.Event()
        await _within(route.drained.wait(), self.config.drain_timeout if timeout is None else timeout)
        return route.under_way

    async def aclose(self, timeout: float | None = None) -> int:
        """Stop listening, turn new requests away, let those under way end, answer them, and close.

        Parameters
        ----------
        timeout : float, optional
            Seconds that handlers are given; by default ``drain_timeout`` of the configuration. Then they are
            cancelled, and their requests answered as failed.

        Returns
        -------
        int
            Requests that were cut short.
        """
        if self._closed or self._server is None:
            self._closed = True
            return 0
        self._closed = self.draining = True
        self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await _within(self.workers.idled(), self.config.drain_timeout if timeout is None else timeout)
        cut = self.workers.cancel()
        # Tasks without work end in the next turn of the loop.
        await asyncio.sleep(0)
        await _within(self.workers.idled(), 1.0)
        await self.workers.aclose()
        self._sealed = True
        if isinstance(self._server, TlsListener):
            await self._server.aclose()
        if self._sessions:
            self._empty = asyncio.Event()
            for session in list(self._sessions):
                session.finish()
            if self._sessions:
                await _within(self._empty.wait(), min(1.0, self.config.write_timeout))
            for session in list(self._sessions):
                session.abort()
            if self._sessions:
                await _within(self._empty.wait(), 1.0)
        return cut

    def _new_session(self) -> Session:
        return Session(self)

    # Called by sessions.

    def joined(self, session: Session) -> None:
        """Count a connection in."""
        self.counters.connections += 1
        self._sessions.add(session)
        if self._sealed:
            session.abort()

    def left(self, session: Session) -> None:
        """Count a connection out."""
        self._sessions.discard(session)
        if self._empty is not None and not self._sessions:
            self._empty.set()

    def _sweep(self) -> None:
        """Disconnect peers that take too long over a frame, and peers that do not read."""
        config, now = self.config, self.loop.time()
        for session in list(self._sessions):
            if session.frame_since is not None and now - session.frame_since > config.read_timeout:
                self.counters.read_timeouts += 1
                session.abort()
            elif session.blocked_since is not None and now - session.blocked_since > config.write_timeout:
                self.counters.write_timeouts += 1
                session.abort()
        every = max(min(config.read_timeout, config.write_timeout) / 4, 0.01)
        self._sweeper = self.loop.call_later(every, self._sweep)

    # What it tells.

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._sessions)

    @property
    def metrics(self) -> ServerCounters:
        """What was counted."""
        return self.counters

    @property
    def permit_waits(self) -> WaitHistogram:
        """How long queued requests waited for a permit."""
        return self.workers.waits

    def prometheus(self) -> str:
        """Return counters, gauges and the waits for a permit in Prometheus' text format.

        The names are those of Dynamo's work handler where it has one: ``dynamo_work_handler_queue_depth``,
        ``..._queue_capacity``, ``..._enqueue_rejected_total``, ``..._permit_wait_seconds``, ``..._pool_active_tasks``,
        ``..._pool_capacity``.
        """
        workers = self.workers
        gauges = {
            "queue_depth": ("requests that wait for a permit", workers.depth),
            "queue_capacity": ("requests that may wait", workers.capacity),
            "pool_active_tasks": ("handlers that run", workers.active),
            "pool_capacity": ("handlers that may run", workers.permits),
            "open_connections": ("connections that are open", len(self._sessions)),
            "held_bytes": ("bytes of requests and responses in memory", self.budget.used),
        }
        return prometheus_text("dynamo_work_handler", self.counters, gauges, workers.waits)

    def __repr__(self) -> str:
        if self._workers is None:
            return "SharedTcpEndpoint(not started)"
        workers = self._workers
        return (
            f"SharedTcpEndpoint({'closed' if self._closed else self.address}, routes={len(self.routes)}, "
            f"connections={len(self._sessions)}, active={workers.active}/{workers.permits}, "
            f"queued={workers.depth}/{workers.capacity})"
        )


async def _within(what: Any, seconds: float) -> None:
    """Wait for `what`, but no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        pass
