"""An endpoint in a process of its own, made to be killed: ``python mortal_server.py PORT JOURNAL``.

Each handler writes the number of its request to the journal before it does anything else: so what was handled is known
of a process that was killed in the middle, too.
"""

from __future__ import annotations

import asyncio
import os
import sys

from dynalab.net import RequestFrame, SharedTcpEndpoint


async def main(port: int, journal: str) -> None:
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(request: RequestFrame) -> bytes:
        os.write(file, request.payload[:8])
        return bytes(request.payload)

    async def plain(request: RequestFrame) -> bytes:
        return note(request)

    async def slow(request: RequestFrame) -> bytes:
        noted = note(request)
        await asyncio.sleep(0.002)
        return noted

    async with SharedTcpEndpoint(port=port, queue=200_000) as server:
        server.register("quick", note)
        server.register("plain", plain)
        server.register("slow", slow)
        print(server.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
