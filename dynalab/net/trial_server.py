"""A server to try things on, in a process of its own: it can be paused, killed and started again on its port.

``python -m dynalab.net.trial_server`` reads one line of JSON (the endpoint's settings, and the file of its log) and
tells its address. What a handler does is appended to that file before anything is answered, so that it survives the
process: after a kill one still knows which requests were handled, how often, and when. The process ends when its
standard input does, with the one that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

from dynalab.errors import NetError
from dynalab.net.decoder import RequestFrame
from dynalab.net.endpoint import SharedTcpEndpoint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Paths of the handler that answers when it is done, and of the same one that only acknowledges.
REPLY, ACKNOWLEDGE = "reply", "acknowledge"
#: How a payload begins: number of the request, and seconds that it shall be handled for.
_WORK: Final = struct.Struct("<Qd")
#: One line of the log: number, process, whether the handler ended, and when [s, the machine's monotonic clock].
_LINE: Final = struct.Struct("<QIId")
_LINES: Final = (("number", "<u8"), ("process", "<u4"), ("ended", "<u4"), ("at", "<f8"))
#: A handling, as a dtype: number, process, and when it began and ended [s]; the end is NaN where it was cut short.
HANDLING: Final = (("number", "<u8"), ("process", "<u4"), ("began", "<f8"), ("ended", "<f8"))
#: Seconds that a process is given to end by itself.
_PATIENCE: Final = 5.0


def work(number: int, seconds: float, nbytes: int = _WORK.size) -> bytes:
    """Return the payload of a request that is to be handled for so long.

    Parameters
    ----------
    number : int
        Which request it is; the log tells it.
    seconds : float
    nbytes : int
        Length of the payload, 16 at least; the reply has the same.

    Examples
    --------
    >>> len(work(7, 0.02, 64))
    64
    """
    return _WORK.pack(number, seconds).ljust(nbytes, b"\0")


class TrialServer:
    """A process with an endpoint whose handler works for as long as a request asks.

    Parameters
    ----------
    **settings
        Fields of :class:`~dynalab.net.config.TcpServerConfig`, but host and port.

    Attributes
    ----------
    address : str
        The same after every start.

    Examples
    --------
    >>> import asyncio
    >>> from dynalab.net import TcpConnectionPool
    >>> async def ask(address):
    ...     async with TcpConnectionPool() as client:
    ...         return await client.request(address, REPLY, work(7, 0.001, 64))
    >>> with TrialServer(max_concurrency=4) as server:
    ...     reply = asyncio.run(ask(server.address))
    ...     print(len(reply), server.handlings()["number"])
    64 [7]
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="dynalab-trial-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        self._log.touch()
        self._process: subprocess.Popen[str] | None = None
        self._spare: subprocess.Popen[str] | None = None
        self.address = "127.0.0.1:0"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stand_by(self) -> None:
        """Start another process that waits to become the server, so that the next `start` takes no time."""
        if self._spare is None:
            self._spare = subprocess.Popen(
                [sys.executable, "-m", "dynalab.net.trial_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def start(self) -> float:
        """Start the process, on the port that it had before; return when it listened [s, ``time.monotonic()``].

        Raises
        ------
        NetError
            If it runs already or does not come up.
        """
        if self._process is not None:
            raise NetError("the trial's server runs already; kill it first")
        self.stand_by()
        self._process, self._spare = self._spare, None
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        settings = {**self._settings, "port": int(self.address.rpartition(":")[2])}
        try:
            print(json.dumps({"settings": settings, "log": str(self._log)}), file=self._process.stdin, flush=True)
            told = self._process.stdout.readline()
        except BrokenPipeError:
            told = ""
        if not told:
            why = self._process.stderr.read().strip().rpartition("\n")[2]
            raise NetError(f"the trial's server did not start: {why or 'it was killed'}")
        listening = time.monotonic()
        self.address = json.loads(told)
        return listening

    def pause(self) -> float:
        """Stop the process where it is (SIGSTOP): its connections stay open, and silent; return when [s]."""
        return self._signal(signal.SIGSTOP)

    def resume(self) -> float:
        """Let a paused process go on (SIGCONT); return when [s]."""
        return self._signal(signal.SIGCONT)

    def kill(self) -> float:
        """Kill the process (SIGKILL), so that nothing of it is left but its log; return when [s]."""
        at = self._signal(signal.SIGKILL)
        process, self._process = self._process, None
        assert process is not None
        _end(process)
        return at

    def handlings(self) -> npt.NDArray[np.void]:
        """Return what handlers did, of all processes so far, by when they began: an array of :data:`HANDLING`."""
        import numpy as np

        lines = np.frombuffer(self._log.read_bytes(), list(_LINES))
        began, ended = lines[lines["ended"] == 0], lines[lines["ended"] == 1]
        # A request that is handled twice by one process ends as often as it began: k-th with k-th.
        ends: dict[tuple[int, int], list[float]] = {}
        for number, process, _, at in reversed(ended.tolist()):
            ends.setdefault((number, process), []).append(at)
        found = np.empty(len(began), list(HANDLING))
        for row, (number, process, _, at) in enumerate(began.tolist()):
            rest = ends.get((number, process))
            found[row] = number, process, at, rest.pop() if rest else np.nan
        return found

    def close(self) -> None:
        """End the process, and forget its log."""
        processes = [one for one in (self._process, self._spare) if one is not None]
        self._process = self._spare = None
        for process in processes:
            process.send_signal(signal.SIGCONT)
            _close(process.stdin)
        for process in processes:
            _end(process)
        self._folder.cleanup()

    def _signal(self, what: signal.Signals) -> float:
        if self._process is None:
            raise NetError("the trial's server does not run; start it first")
        at = time.monotonic()
        self._process.send_signal(what)
        return at


def _end(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended, with patience; then see to it."""
    try:
        process.wait(_PATIENCE)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            _close(pipe)


def _close(pipe: IO[str] | None) -> None:
    # What a dead process has not read is still in the pipe's buffer.
    with suppress(BrokenPipeError):
        if pipe is not None:
            pipe.close()


async def serve(read: Callable[[], str]) -> None:
    """Serve until there is nothing more to read."""
    loop = asyncio.get_running_loop()
    asked = json.loads(await loop.run_in_executor(None, read))
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND)
    own = os.getpid()

    async def handle(request: RequestFrame) -> Any:
        number, seconds = _WORK.unpack_from(request.payload)
        os.write(log, _LINE.pack(number, own, 0, time.monotonic()))
        await asyncio.sleep(seconds)
        os.write(log, _LINE.pack(number, own, 1, time.monotonic()))
        return request.payload

    async with SharedTcpEndpoint(**{"drain_timeout": 0, **asked["settings"]}) as endpoint:
        endpoint.register(REPLY, handle)
        endpoint.register(ACKNOWLEDGE, handle, reply=False)
        print(json.dumps(endpoint.address), flush=True)
        while await loop.run_in_executor(None, read):
            pass
    os.close(log)


def main() -> None:
    """Serve what the line on standard input asks for."""
    # Ctrl-C goes to every process of a terminal; this one ends with the one that started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(sys.stdin.readline))


if __name__ == "__main__":
    main()
