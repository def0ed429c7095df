"""`TcpConnectionPool`: requests over shared connections, each with exactly one outcome."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from dynalab.errors import (
    CannotConnect,
    ConfigError,
    ConnectionLost,
    NetClosed,
    NetError,
    ServerOverloaded,
    unknown,
)
from dynalab.net.address import Address, parse_address
from dynalab.net.call import Call, body_of, flat, outcome_of
from dynalab.net.config import TcpClientConfig
from dynalab.net.frames import encode_request_head
from dynalab.net.host import Host
from dynalab.net.metrics import ClientCounters, client_dataset, prometheus_text, total
from dynalab.net.tls import TlsClient
from dynalab.net.writer import Payload

if TYPE_CHECKING:
    import xarray as xr

Retry = Literal["safe", "always", "never"]
_RETRIES = ("safe", "always", "never")
#: Timeouts are looked after this often at most, and at least: not every event loop can sleep for ever [s].
_TICK, _LONGEST_SLEEP = 0.005, 3600.0
#: Texts of addresses that are kept, with what they mean.
_MOST_TEXTS = 4096


class TcpConnectionPool:
    """A client whose requests to any number of addresses share a bounded number of connections.

    A connection carries up to `channel_buffer` requests at a time, answered in order. One more connection is opened
    only when all to its address are full, up to `size`; beyond that, requests wait in order.

    Parameters
    ----------
    config : TcpClientConfig, optional
        All settings; by default those of ``TcpClientConfig(**settings)``.
    tls : TlsClient, optional
        How to encrypt and whom to trust; without it, connections are plain.
    seed : int, optional
        Seed of the jitter of retries.
    **settings
        Fields of :class:`~dynalab.net.config.TcpClientConfig`.

    Notes
    -----
    A client belongs to the event loop that it is first used in; `request_from_thread` serves other threads.

    Examples
    --------
    >>> import asyncio
    >>> from dynalab.net import SharedTcpEndpoint, TcpConnectionPool
    >>> async def shout():
    ...     async with SharedTcpEndpoint() as server, TcpConnectionPool(size=2) as client:
    ...         server.register("shout", lambda request: request.payload.upper())
    ...         return await client.request(server.address, "shout", b"hello", timeout=5)
    >>> asyncio.run(shout())
    b'HELLO'
    """

    def __init__(
        self,
        *,
        config: TcpClientConfig | None = None,
        tls: TlsClient | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise ConfigError(f"config: both config and {', '.join(settings)} given; give one")
        self.config = TcpClientConfig(**settings) if config is None else config
        self.closed = False
        self._tls = tls
        self._ssl = None if tls is None else tls.context()
        self._random = random.Random(seed)
        self._hosts: dict[Address, Host] = {}
        self._by_text: dict[str, tuple[Host, str | None]] = {}
        self._calls: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone = ClientCounters()

    @classmethod
    def from_env(cls, **settings: Any) -> Self:
        """Return a client set up by ``DYN_TCP_*`` and ``DYN_TCP_TLS_*``; `settings` win over variables."""
        return cls(config=TcpClientConfig.from_env(**settings), tls=TlsClient.from_env())

    async def __aenter__(self) -> Self:
        self._bind()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def request(
        self,
        address: str,
        path: str | None = None,
        payload: Payload = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        retry: Retry = "safe",
    ) -> bytes | bytearray:
        """Send a request and return what its handler replied.

        Parameters
        ----------
        address : str
            ``host:port`` or ``tcp://host:port``; ``/path`` may follow, and is then the default of `path`.
        path : str, optional
            Name under which the server registered the handler; else that in the address, else that in the header
            ``x-endpoint-path``.
        payload : bytes-like
            Leave it unchanged until the request has ended.
        headers : mapping of str to str, optional
        timeout : float, optional
            Seconds for all of it, waiting, connecting and retries included; by default that of the configuration.
        retry : {"safe", "always", "never"}
            ``safe``: try again, with jittered backoff, only where the handler certainly did not run (no connection, a
            full queue). ``always``: after a lost connection as well; the handler may then run more than once.

        Returns
        -------
        bytes or bytearray
            The reply; empty for an acknowledgement. Large ones are ``bytearray``, received in place.

        Raises
        ------
        RequestTimeout
            The response did not come in time; the connection lives on.
        CannotConnect, ConnectionLost
            The latter tells by ``maybe_handled`` whether the handler may have run.
        ServerOverloaded, ServerUnavailable
            The server turned the request away.
        HandlerFailed
        MessageTooLarge, FrameError, AddressError
            Found before anything is sent.
        """
        known = self._by_text.get(address)
        if known is None or self.closed or asyncio.get_running_loop() is not self._loop:
            known = self._known(address)
        host, default = known
        if retry not in _RETRIES:
            raise unknown("retry", retry, _RETRIES)
        if not isinstance(payload, bytes):
            payload = flat(payload)
        name = default if path is None else path
        head = encode_request_head(name, headers, len(payload), self.config.max_message)
        seconds = self.config.request_timeout if timeout is None else timeout
        if not seconds > 0:
            raise ConfigError(f"timeout: {timeout!r} is no time to wait; give seconds above 0")
        loop, calls = self.loop, self._calls
        host.last_used = now = loop.time()
        host.counters.requests += 1
        deadline, attempt = now + seconds, 0
        while True:
            call = Call(head, payload, name or "", deadline, loop.create_future())
            calls.add(call)
            if deadline < self._wakes_at:
                self._set_timer(deadline)
            try:
                host.submit(call)
                return body_of(await call.future, call, host)
            except BaseException as failure:
                error = outcome_of(failure, call, host, seconds)
                try:
                    pause = self._pause_before_retry(error, retry, attempt, deadline)
                    if pause is None:
                        raise error from error.__cause__
                finally:
                    # Its traceback holds this frame: in turn, they would keep the payload until the next collection.
                    del error
            finally:
                calls.discard(call)
                del call
            await asyncio.sleep(pause)
            if self.closed:
                raise _closed()
            attempt += 1
            host = self._host(host.address)
            host.counters.retries += 1

    def _pause_before_retry(self, error: BaseException, retry: Retry, attempt: int, deadline: float) -> float | None:
        """Return how long to wait before the next attempt [s]; None if there shall be none."""
        config = self.config
        if retry == "never" or not isinstance(error, CannotConnect | ConnectionLost | ServerOverloaded):
            return None
        if attempt >= config.retries or (retry == "safe" and getattr(error, "maybe_handled", False)):
            return None
        pause = min(config.backoff * 2**attempt, config.backoff_max) * self._random.uniform(0.5, 1.0)
        return pause if self.loop.time() + pause < deadline else None

    def request_from_thread(
        self, address: str, path: str | None = None, payload: Payload = b"", **options: Any
    ) -> concurrent.futures.Future[bytes | bytearray]:
        """Send a request from a thread other than the loop's; the arguments are those of `request`.

        Returns
        -------
        concurrent.futures.Future
            ``.result()`` waits. Cancelling it gives the request up.
        """
        return asyncio.run_coroutine_threadsafe(self.request(address, path, payload, **options), self.loop)

    async def warm_up(self, address: str, connections: int = 1) -> int:
        """Open connections before they are needed.

        Parameters
        ----------
        address : str
        connections : int
            How many there shall be, at most the pool's size.

        Returns
        -------
        int
            How many are open.

        Raises
        ------
        CannotConnect
        """
        host, _ = self._known(address)
        wanted = min(connections, self.config.size)
        # As often as it can take, not for ever: a peer may close each connection as soon as it is open.
        for _ in range(wanted):
            if len(host.connections) < wanted:
                host.last_used = self.loop.time()
                await host.open_one()
        return len(host.connections)

    async def aclose(self) -> None:
        """Close every connection; whoever waits gets :class:`~dynalab.errors.NetClosed`."""
        if self.closed:
            return
        self.closed = True
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        ends = [end for host in self._hosts.values() for end in host.close(_closed())]
        for call in list(self._calls):
            call.fail(_closed())
        if ends:
            await asyncio.wait(ends, timeout=1)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the client belongs to."""
        if self._loop is None:
            raise NetClosed("the client is in no event loop yet; use it in `async with`, or await a request first")
        return self._loop

    def _bind(self) -> None:
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
            self.connect_slots = asyncio.Semaphore(self.config.connect_limit)
            self._sweep()
        elif self._loop is not running:
            raise NetError("the client belongs to another event loop; use request_from_thread, or a client of its own")
        if self.closed:
            raise _closed()

    def _known(self, text: str) -> tuple[Host, str | None]:
        """Return the host and the default path that an address names."""
        self._bind()
        address = parse_address(text)
        host = self._host(address)
        found = host, address.path
        if len(self._by_text) >= _MOST_TEXTS:
            self._by_text.clear()
        self._by_text[text] = found
        return found

    def _host(self, address: Address) -> Host:
        key = Address(address.host, address.port)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = Host(self, key, ClientCounters())
        return host

    def tls_options(self, address: Address) -> dict[str, Any]:
        """Return what ``create_connection`` is to be told about encryption."""
        if self._ssl is None or self._tls is None:
            return {}
        return {"ssl": self._ssl, "server_hostname": self._tls.server_name or address.host}

    # Timeouts, and what grows old.

    def _set_timer(self, deadline: float) -> None:
        now = self.loop.time()
        when = min(max(deadline, now + _TICK), now + _LONGEST_SLEEP)
        if self._timer is not None:
            # Those who come with less than a tick to live must not put it off again and again.
            if self._wakes_at <= when:
                return
            self._timer.cancel()
        self._timer, self._wakes_at = self.loop.call_at(when, self._expire), when

    def _expire(self) -> None:
        """End all requests whose time is up, and wake again when the next one's is."""
        self._timer, self._wakes_at = None, math.inf
        now = self.loop.time()
        nearest = math.inf
        for call in self._calls:
            if call.deadline <= now:
                if not call.future.done():
                    call.future.set_exception(TimeoutError())
            elif call.deadline < nearest:
                nearest = call.deadline
        if nearest < math.inf:
            self._set_timer(nearest)

    def _sweep(self) -> None:
        """Close hosts that are not used, and connections that are stuck."""
        now, ttl = self.loop.time(), self.config.idle_ttl
        for address, host in list(self._hosts.items()):
            host.sweep(now)
            if now - host.last_used > ttl and host.idle:
                host.close(_closed())
                del self._hosts[address]
                self._by_text = {text: known for text, known in self._by_text.items() if known[0] is not host}
                self._gone = total([self._gone, host.counters])
        every = max(min(ttl / 2, self.config.request_timeout / 4), 0.01)
        self._sweeper = self.loop.call_later(every, self._sweep)

    # What it tells.

    @property
    def metrics(self) -> ClientCounters:
        """What was counted, over all addresses."""
        return total([self._gone, *(host.counters for host in self._hosts.values())])

    def _gauges(self) -> dict[str, tuple[str, float]]:
        open_ = [c for host in self._hosts.values() for c in (*host.connections, *host.retired)]
        return {
            "hosts": ("addresses with connections", len(self._hosts)),
            "connections_active": ("connections with requests in flight", sum(c.in_flight > 0 for c in open_)),
            "connections_idle": ("connections without", sum(c.in_flight == 0 for c in open_)),
            "in_flight": ("requests handed to connections", sum(c.in_flight for c in open_)),
            "waiting": ("requests that wait for room", sum(len(h.waiting) for h in self._hosts.values())),
        }

    def stats(self) -> xr.Dataset:
        """Return what was counted, by address (dimension ``address``), and the connections that are open."""
        hosts = list(self._hosts.values())
        found = client_dataset({str(host.address): host.counters for host in hosts})
        attrs = {"units": "1", "long_name": "connections that are open"}
        found["connections"] = ("address", [len(host.connections) for host in hosts], attrs)
        settings = self.config.model_dump().items()
        return found.assign_attrs({f"config_{name}": value for name, value in settings if value is not None})

    def prometheus(self) -> str:
        """Return counters and gauges in Prometheus' text format, names ``dynalab_tcp_client_...``."""
        return prometheus_text("dynalab_tcp_client", self.metrics, self._gauges())

    def __repr__(self) -> str:
        gauges = {name: int(value) for name, (_, value) in self._gauges().items()}
        told = ", ".join(f"{name}={value}" for name, value in gauges.items())
        return f"TcpConnectionPool(size={self.config.size}, {told}{', closed' if self.closed else ''})"


def _closed() -> NetClosed:
    return NetClosed("the client is closed; make a new one")
