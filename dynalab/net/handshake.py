"""Listening with TLS, so that every handshake that fails is counted."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from dynalab.net.metrics import ServerCounters
from dynalab.net.tls import explain_tls

_log = logging.getLogger(__name__)
#: Handshakes at a time; further peers wait to be accepted.
_MOST: Final = 512
#: Seconds until the next attempt to accept where there are no descriptors left.
_PAUSE: Final = 0.1


class TlsListener:
    """Accepts connections, and gives those to a protocol whose handshake succeeds.

    An event loop that is asked to listen with TLS drops connections whose handshake fails, and tells nobody.

    Parameters
    ----------
    context : ssl.SSLContext
    timeout : float
        Seconds that a handshake may take.
    counters : ServerCounters
        Their ``handshake_failures`` grow.
    accept : callable
        Makes the protocol.

    Attributes
    ----------
    sockets : list of socket.socket
        Those that are listened on.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        timeout: float,
        counters: ServerCounters,
        accept: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self._context = context
        self._timeout = timeout
        self._counters = counters
        self._new_protocol = accept
        self._slots = asyncio.Semaphore(_MOST)
        self._accepting: set[asyncio.Task[None]] = set()
        self._shaking: set[asyncio.Task[None]] = set()
        self.sockets: list[socket.socket] = []

    async def start(self, host: str, port: int, backlog: int) -> None:
        """Listen; raises OSError as the loop's ``create_server``, which looks the host up."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
        self.sockets = [bound.dup() for bound in server.sockets]
        server.close()
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._keep(self._accepting, loop.create_task(self._accept(loop, listening), name="dynalab TLS accept"))

    async def _accept(self, loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
        while True:
            await self._slots.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                self._slots.release()
                _log.warning("TLS: cannot accept: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            except asyncio.CancelledError:
                self._slots.release()
                raise
            task = loop.create_task(self._shake(loop, accepted), name="dynalab TLS handshake")
            task.add_done_callback(partial(_close_if_cancelled, accepted))
            self._keep(self._shaking, task)

    async def _shake(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(
                self._new_protocol, accepted, ssl=self._context, ssl_handshake_timeout=self._timeout
            )
        except OSError as error:
            why = explain_tls(error) if isinstance(error, ssl.SSLError) else str(error) or type(error).__name__
            _log.debug("TLS: a handshake failed: %s", why)
            self._counters.handshake_failures += 1
        finally:
            self._slots.release()

    def _keep(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def close(self) -> None:
        """Accept no more; handshakes under way go on."""
        for task in self._accepting:
            task.cancel()
        for listening in self.sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self.sockets = []

    async def aclose(self) -> None:
        """Give up the handshakes under way, too."""
        self.close()
        for task in self._shaking:
            task.cancel()
        ending = [*self._accepting, *self._shaking]
        if ending:
            await asyncio.wait(ending)


def _close_if_cancelled(accepted: socket.socket, task: asyncio.Task[None]) -> None:
    # A task that is cancelled before its first step leaves the connection to nobody.
    if task.cancelled():
        accepted.close()
