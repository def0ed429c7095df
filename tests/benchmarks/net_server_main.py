"""The servers of the network's benchmark in a process of their own: ours, aiohttp's and a bare echo, in one loop.

Tells their addresses in a line of JSON, and serves until its standard input ends, with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from net_peers import MOST_BYTES, PLACES

from dynalab.net.bench_echo import EchoServer
from dynalab.net.endpoint import SharedTcpEndpoint

HOST = "127.0.0.1"


async def _echo(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=await request.read())


def _low_level() -> Callable[[], asyncio.Protocol]:
    """aiohttp's lower-level server: no routes, no middlewares."""
    loop = asyncio.get_running_loop()

    def request(message: RawRequestMessage, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=2 * MOST_BYTES)

    return web.Server(_echo, request_factory=request, access_log=None)


async def _application() -> Callable[[], asyncio.Protocol]:
    """aiohttp as most people set it up, which is the faster one now and then."""
    application = web.Application(client_max_size=2 * MOST_BYTES)
    application.router.add_post("/", _echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    assert runner.server is not None
    return runner.server


async def serve() -> None:
    loop = asyncio.get_running_loop()
    ports = {}
    factories = {"low_level": _low_level(), "application": await _application(), "bare": EchoServer}
    for name, factory in factories.items():
        server = await loop.create_server(factory, HOST, 0, backlog=2 * PLACES)
        ports[name] = f"{HOST}:{server.sockets[0].getsockname()[1]}"

    async def coroutine(request: Any) -> bytes:
        return request.payload

    async with SharedTcpEndpoint(max_concurrency=PLACES, queue=PLACES) as ours:
        ours.register("coroutine", coroutine)
        ours.register("function", lambda request: request.payload)
        ports["ours"] = ours.address
        print(json.dumps(ports), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(serve())
    else:
        asyncio.run(serve())


if __name__ == "__main__":
    main()
