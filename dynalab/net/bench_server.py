"""The servers of a benchmark of the network, in a process of their own: ``python -m dynalab.net.bench_server LOOP``.

It reads one line of JSON: set-ups ``[[server concurrency, seconds of a handler], ...]``, and the room of their queues.
It tells the addresses of the bare echo and of an endpoint for each set-up; then it answers every line with the CPU
seconds that it has used. It ends when its standard input does, with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dynalab.errors import NetError
from dynalab.net.bench_echo import EchoServer
from dynalab.net.endpoint import SharedTcpEndpoint
from dynalab.net.loops import loop_factory

HOST: Final = "127.0.0.1"
#: Path of the handler that returns what it gets.
PATH: Final = "echo"
#: Seconds that the process is given to end by itself.
_PATIENCE: Final = 5.0

#: Server concurrency, and seconds of a handler.
SetUp = tuple[int, float]


class BenchServer:
    """The process of the servers, seen from the one that measures.

    Parameters
    ----------
    loop : str
        "asyncio" or "uvloop".
    set_ups : sequence of (int, float)
        Of the endpoints: how many handlers run at a time, and how long each waits [s].
    queue : int
        Requests that an endpoint may keep waiting.

    Attributes
    ----------
    echo : str
        Address of the bare echo.
    addresses : dict
        Of an endpoint by its set-up.
    """

    def __init__(self, loop: str, set_ups: Sequence[SetUp], queue: int) -> None:
        # A file, for a pipe that nobody reads would stop a process with much to complain about.
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # The same dynalab in either process, wherever this one has found it.
        places = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dynalab.net.bench_server", loop],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        try:
            self.echo, *addresses = self._ask({"set_ups": set_ups, "queue": queue})
        except BaseException:
            self.close()
            raise
        self.addresses: dict[SetUp, str] = dict(zip(set_ups, addresses, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the process has used."""
        return float(self._ask("cpu"))

    def close(self) -> None:
        """End the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout, self._complaints):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a question that was not asked in full
                    pipe.close()
        try:
            process.wait(_PATIENCE)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def _ask(self, question: object) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._complaints.seek(0)
            told = self._complaints.read().strip().rpartition("\n")[2]
            raise NetError(f"the process of the benchmark's servers has ended: {told or 'it was killed'}")
        return json.loads(answer)


async def serve(read: Callable[[], str]) -> None:
    """Serve until there is nothing more to read."""
    loop = asyncio.get_running_loop()
    asked = json.loads(await loop.run_in_executor(None, read))
    echo = await loop.create_server(EchoServer, HOST, 0, backlog=4096)
    addresses = [f"{HOST}:{echo.sockets[0].getsockname()[1]}"]
    async with AsyncExitStack() as endpoints:
        for concurrency, seconds in asked["set_ups"]:
            endpoint = await endpoints.enter_async_context(
                SharedTcpEndpoint(
                    host=HOST, max_concurrency=concurrency, queue=asked["queue"], total_bytes="4GiB", drain_timeout=0
                )
            )
            endpoint.register(PATH, _handler(seconds))
            addresses.append(endpoint.address)
        print(json.dumps(addresses), flush=True)
        # A thread waits for the next line: a pipe in the loop would be one more thing that uvloop does its own way.
        while await loop.run_in_executor(None, read):
            print(json.dumps(time.process_time()), flush=True)
        echo.close()


def _handler(seconds: float) -> Callable[[Any], Any]:
    async def at_once(request: Any) -> bytes:
        return request.payload

    async def later(request: Any) -> bytes:
        await asyncio.sleep(seconds)
        return request.payload

    return later if seconds else at_once


def main() -> None:
    """Run the servers in the kind of loop that the command line names."""
    # Ctrl-C goes to every process of a terminal; this one ends with the one that measures.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve(sys.stdin.readline))


if __name__ == "__main__":
    main()
