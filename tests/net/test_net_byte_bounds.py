"""Bytes that an endpoint may hold: whoever waits for some gets them, in its order, and holds nobody else up."""

from __future__ import annotations

import asyncio

import pytest
from raw_peers import Peer, request, run, settle

from dynalab.net import SharedTcpEndpoint

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")

KIB = 1024


def echo(request):
    return request.payload


async def slow_echo(request):
    await asyncio.sleep(0)
    return request.payload


@pytest.mark.parametrize("bound", ["connection_bytes", "total_bytes"])
@pytest.mark.parametrize("handler", [echo, slow_echo, None], ids=["plain", "async", "unknown"])
def test_requests_that_wait_for_bytes_keep_their_order_and_all_are_answered(bound, handler):
    sizes = [700, 0, 900, 300, 1024, 5, 1500, 0, 80_000, 1, 3000, 70_000, 66_000, 0, 12]

    async def main():
        async with SharedTcpEndpoint(max_concurrency=2, queue=1000, **{bound: KIB}) as server:
            if handler is not None:
                server.register("echo", handler)
            peer = await Peer.of(server.address)
            payloads = [bytes([n]) * size for n in range(4) for size in sizes]
            peer.send(b"".join(request(payload=payload) for payload in payloads))
            answers = await peer.get(len(payloads))
            if handler is not None:
                assert answers == [b"\0" + payload for payload in payloads]
            else:
                assert {answer[0] for answer in answers} == {2}
            await peer.close()
            await settle(lambda: server.connections == 0)
            assert server.budget.used == server.budget.small == server.budget.large == 0

    run(main())
