"""A stack of tiers for an engine that runs on an event loop: what would make a thread wait is awaited.

Who awaits may be cancelled at any time, and nothing leaks: blocks that arrive for nobody are given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from dynalab.tiers.stack_options import as_hashes

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt

    from dynalab.tiers.handles import Match
    from dynalab.tiers.leases import Blocks
    from dynalab.tiers.stack import TierStack
    from dynalab.tiers.transfer import Transfer


class AsyncTierStack:
    """The operations of a stack as coroutines.

    Parameters
    ----------
    stack : TierStack
        Anybody may go on using it directly, from any thread: what never waits (``find``, ``touch``, ``pin``, ``stats``
        and ``metrics``) is to be found there only.

    Attributes
    ----------
    stack : TierStack

    Notes
    -----
    Errors are those of :class:`~dynalab.tiers.TierStack`. Any number of tasks, also on several loops, may share one.

    Examples
    --------
    >>> import asyncio
    >>> from dynalab.kv import KVLayout, sequence_hashes
    >>> from dynalab.tiers import AsyncTierStack, DeviceTier, HostTier, TierStack
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> async def request(stack, hashes):
    ...     blocks = await stack.onboard(await stack.match(hashes))
    ...     new = await stack.allocate(len(hashes) - len(blocks))
    ...     await stack.register(new, hashes[len(blocks) :])
    ...     await stack.release(blocks + new)
    ...     return len(blocks)
    >>> async def main():
    ...     tiers = DeviceTier(layout, capacity=8), HostTier(layout, capacity=32)
    ...     async with AsyncTierStack(TierStack(*tiers)) as stack:
    ...         hashes = sequence_hashes(range(16), layout.page_tokens)
    ...         return [await request(stack, hashes) for _ in range(2)]
    >>> asyncio.run(main())
    [0, 4]
    """

    def __init__(self, stack: TierStack) -> None:
        self.stack = stack

    async def match(self, hashes: npt.ArrayLike) -> Match:
        """Find and pin the longest prefix that the tiers hold; see :meth:`TierStack.match`."""
        return self.stack.match(hashes)

    async def onboard(self, match: Match) -> Blocks:
        """Bring what was matched to the device, and return the blocks that have arrived; see :meth:`TierStack.onboard`.

        Cancelled, it gives the blocks back as soon as they have arrived.
        """
        onboarding = self.stack.onboard(match)
        try:
            return await asyncio.wrap_future(onboarding)
        except asyncio.CancelledError:
            onboarding.add_done_callback(self._give_back)
            raise

    def _give_back(self, onboarding: Future[Blocks]) -> None:
        self.stack.release(onboarding.result())

    async def allocate(self, n: int, *, timeout: float | None = None) -> Blocks:
        """Return `n` blocks of the device to write, all or none; see :meth:`TierStack.allocate`.

        Cancelled, it has allocated nothing.
        """
        slots, users = self.stack._reserve(n)
        try:
            if not await _ended(users, timeout):
                raise TimeoutError(
                    f"device: copies out of {n} blocks have not ended after {timeout} s; nothing allocated"
                )
        except BaseException:
            self.stack._give_back(slots)
            raise
        return self.stack._hand_out(slots)

    async def register(self, blocks: Blocks, hashes: npt.ArrayLike, *, parent: int = 0, priority: int = 0) -> None:
        """Enter written blocks under their hashes, as soon as few enough copies wait; see :meth:`TierStack.register`.

        Cancelled, it has registered all of them or none: they are released in the same way.
        """
        names = as_hashes(hashes)
        while waiting := self.stack._in_the_way():
            await _ended(waiting[:1])
        late = self.stack._enter(blocks, names, parent, priority)
        await _ended(late)
        if late:
            self.stack._require_arrived(blocks)

    async def release(self, what: Blocks | Match) -> None:
        """Give blocks, or a match that was not onboarded, back; see :meth:`TierStack.release`."""
        self.stack.release(what)

    async def prefetch(
        self, hashes: npt.ArrayLike, policy: str = "wait_complete", *, base: float = 1.0, per_ki_token: float = 0.25
    ) -> int:
        """Copy blocks of a sequence from disk to host memory, and wait for them as :meth:`Prefetch.wait` does.

        Cancelled, it lets the copies go on: they are of use to the next request.

        Returns
        -------
        int
            Blocks at the front of the sequence that need not wait for a disk.
        """
        prefetch = self.stack.prefetch(hashes)
        if not await _ended(prefetch._transfers, prefetch._patience(policy, base, per_ki_token)):
            await _ended(self.stack._give_up(prefetch._transfers))
        return self.stack._prefix_above_disk(prefetch._hashes)

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until no copy is in flight, at most `timeout` seconds; return whether that is so."""
        return await asyncio.to_thread(self.stack.drain, timeout)

    async def flush(self) -> None:
        """Return once everything offered to the disk so far survives a loss of power."""
        await asyncio.to_thread(self.stack.flush)

    async def close(self, *, cancel: bool = False) -> None:
        """Finish (or cancel) the copies in flight, and close the tiers; once. Goes on by itself if it is cancelled."""
        await asyncio.to_thread(self.stack.close, cancel=cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(cancel=kind is not None)


async def _ended(transfers: Iterable[Transfer], timeout: float | None = None) -> bool:
    """Wait until the outcome of some transfers is final, at most `timeout` seconds; return whether it is."""
    loop = asyncio.get_running_loop()
    waiting = [_future_of(transfer, loop) for transfer in transfers if not transfer.done()]
    if not waiting:
        return True
    return not (await asyncio.wait(waiting, timeout=timeout))[1]


def _future_of(transfer: Transfer, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    future = loop.create_future()

    def on_the_loop() -> None:
        if not future.done():
            future.set_result(None)

    def on_a_worker(_: Transfer) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(on_the_loop)

    transfer.add_done_callback(on_a_worker)
    return future
