"""Callers that ask as soon as they have their answer, all at once, for a while: how many answers, and how late each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynalab.errors import NetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: A request of some bytes, and its reply's.
Call = Callable[[bytes], Awaitable[bytes | bytearray | memoryview]]


@dataclass(frozen=True, slots=True)
class Load:
    """What callers saw.

    Attributes
    ----------
    seconds : float
        From the first request until the last reply.
    latencies : numpy.ndarray
        Of every request [s].
    cpu_seconds : float
        Of the thread that the callers ran in.
    """

    seconds: float
    latencies: npt.NDArray[np.float64]
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests/s."""
        return len(self.latencies) / self.seconds


async def closed_loop(calls: Sequence[Call], payloads: Sequence[bytes], seconds: float) -> Load:
    """Let one caller for each of `calls` ask again and again, for so long.

    Every reply's length and ends are compared with what was sent, the first and the last one of each caller whole.

    Parameters
    ----------
    calls : sequence of callables
        One for each caller.
    payloads : sequence of bytes
        What the callers send, in turns: different ones, so that a reply that went to another caller is seen.
    seconds : float
        After which no caller asks again.

    Raises
    ------
    NetError
        If a reply is not what was sent.
    """
    import numpy as np

    latencies: list[float] = []
    clock, told = time.perf_counter, latencies.append
    cpu, begin = time.thread_time(), clock()
    deadline = begin + seconds

    async def ask(call: Call, payload: bytes) -> None:
        nbytes, head, tail = len(payload), payload[:32], payload[-32:]
        whole = True
        while True:
            sent = clock()
            reply = await call(payload)
            came = clock()
            told(came - sent)
            if len(reply) != nbytes or reply[:32] != head or reply[-32:] != tail or (whole and reply != payload):
                raise NetError(f"a reply of {len(reply)} bytes is not the {nbytes} bytes that were sent")
            whole = False
            if came >= deadline:
                break
        if reply != payload:
            raise NetError(f"the last reply of {nbytes} bytes is not what was sent")

    await together([ask(call, payloads[n % len(payloads)]) for n, call in enumerate(calls)])
    done = clock()
    return Load(done - begin, np.array(latencies), time.thread_time() - cpu)


async def together(jobs: Sequence[Awaitable[None]]) -> None:
    """Run all; at the first failure, and when cancelled, none of them goes on."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
