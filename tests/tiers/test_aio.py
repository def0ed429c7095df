"""The coroutines of a stack: the same blocks, a loop that never stands still, and cancelling leaves nothing behind.

Where a test says "later", it lets copies go on from the very loop that waits for them: if waiting blocked the loop,
that moment would never come, and the gate would report that it stayed shut.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from stack_cases import (
    MODES,
    PATIENCE,
    Hashes,
    Trouble,
    assert_right,
    assert_sound,
    held,
    open_stack,
    prompt,
    refused,
    serve,
    sink,
    trouble,
    write,
)

from dynalab.errors import BlockStateError, ConfigError, NotEnoughBlocks, TierClosed, TransferError
from dynalab.tiers import AsyncTierStack, StackConfig, TierStack

__all__ = ["trouble"]


def on_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def serve_async(stack: AsyncTierStack, names: Hashes) -> int:
    """Run a whole request, checking every byte that is served; return how many blocks were reused."""
    reused = await stack.onboard(await stack.match(names))
    n = len(reused)
    try:
        new = await stack.allocate(len(names) - n)
    except BaseException:
        await stack.release(reused)
        raise
    try:
        assert_right(reused, names[:n])
        write(new, names[n:])
        await stack.register(new, names[n:], parent=int(names[n - 1]) if n else 0)
        assert_right(reused + new, names)
    finally:
        await stack.release(reused + new)
    return n


async def later(gate: threading.Event, waiting: Awaitable[Any], turns: int = 20) -> Any:
    """Let the copies go on after some turns of the loop, in all of which `waiting` did wait."""
    task = asyncio.ensure_future(waiting)
    for _ in range(turns):
        await asyncio.sleep(0)
        assert not task.done()
    gate.set()
    return await task


def offloaded(device: int, host: int, n: int = 3) -> tuple[TierStack, Hashes]:
    """A stack, and a prompt of which its device has nothing left."""
    stack = open_stack(None, device=device, host=host)
    names = prompt(n, 1)
    serve(stack, names)
    serve(stack, prompt(device, 2))
    stack.drain()
    assert held(stack, names) == [1] * n
    return stack, names


@pytest.mark.parametrize("mode", MODES)
def test_many_requests_at_once(tmp_path: Path, mode: str) -> None:
    stack = open_stack(tmp_path, device=20, host=20, disk=200, mode=mode, admit_after=1)
    rng = random.Random(5)

    async def client(front: AsyncTierStack) -> int:
        reused = 0
        for _ in range(12):
            names = prompt(6, rng.randrange(20), shared=3, topic=rng.randrange(4))
            while True:
                try:
                    if rng.random() < 0.3:
                        await front.prefetch(names, rng.choice(["wait_complete", "best_effort", "timeout"]))
                    reused += await serve_async(front, names)
                    break
                except NotEnoughBlocks:  # the others use too many: a turn later there are some
                    await asyncio.sleep(0.001)
        return reused

    async def main() -> int:
        front = AsyncTierStack(stack)
        total = sum(await asyncio.gather(*(client(front) for _ in range(6))))
        assert await front.drain(PATIENCE)
        return total

    assert on_a_loop(main()) > 50
    assert_sound(stack)
    stack.close()


def test_onboarding_waits_on_the_loop(trouble: Trouble) -> None:
    stack, names = offloaded(8, 16)
    gate = trouble.stop("host_to_device")

    async def main() -> None:
        async with AsyncTierStack(stack) as front:
            blocks = await later(gate, front.onboard(await front.match(names)))
            assert_right(blocks, names)
            await front.release(blocks)
            assert_sound(stack)

    on_a_loop(main())
    assert stack.device.closed


def test_allocation_waits_on_the_loop(trouble: Trouble) -> None:
    with open_stack(None, device=4, host=16) as stack:
        front = AsyncTierStack(stack)
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(4, 1))  # on its way to the host: its blocks cannot be overwritten yet

        async def main() -> None:
            with pytest.raises(TimeoutError, match=r"copies out of 2 blocks have not ended after 0.001 s; nothing"):
                await front.allocate(2, timeout=0.001)
            blocks = await later(gate, front.allocate(4))
            assert len(blocks) == 4
            await front.release(blocks)

        on_a_loop(main())
        assert_sound(stack)


def test_registration_waits_for_room_on_the_loop(trouble: Trouble) -> None:
    with open_stack(None, device=8, host=16, max_pending_blocks=3) as stack:
        front, names = AsyncTierStack(stack), prompt(2, 2)
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(4, 1))
        blocks = stack.allocate(2)
        write(blocks, names)

        async def main() -> None:
            hasty = asyncio.ensure_future(front.register(blocks, names))
            await asyncio.sleep(0.001)
            hasty.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hasty
            assert held(stack, names) == [3, 3]
            await later(gate, front.register(blocks, names))
            assert held(stack, names) == [0, 0]
            await front.release(blocks)

        on_a_loop(main())
        assert_sound(stack)


@pytest.mark.parametrize("arrives", [True, False])
def test_registration_waits_for_a_duplicate_on_the_loop(trouble: Trouble, arrives: bool) -> None:
    stack, names = offloaded(8, 16, n=2)
    front = AsyncTierStack(stack)
    mine = stack.allocate(2)
    write(mine, names)
    gate = trouble.stop("host_to_device")
    coming = stack.onboard(stack.match(names))
    if not arrives:

        def fault(*_: object) -> Any:
            raise OSError("broken")

        trouble.fault = fault

    async def main() -> None:
        if arrives:
            await later(gate, front.register(mine, names))
            assert_right(mine, names)
        else:
            with pytest.raises(TransferError, match="compute it again"):
                await later(gate, front.register(mine, names))
        await front.release(mine)
        await front.release(coming.result(PATIENCE))

    on_a_loop(main())
    trouble.fault = None
    assert_sound(stack)
    stack.close()


def test_a_cancelled_onboarding_gives_its_blocks_back(trouble: Trouble) -> None:
    stack, names = offloaded(8, 16)
    front = AsyncTierStack(stack)
    gate = trouble.stop("host_to_device")

    async def main() -> None:
        task = asyncio.ensure_future(front.onboard(await front.match(names)))
        await asyncio.sleep(0)
        assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(front.onboard(await front.match(names)), 0.001)
        gate.set()
        await front.drain()

    on_a_loop(main())
    assert stack.stats()["in_use"].values.tolist() == [0, 0, 0]
    assert serve(stack, names)["device"] == 3  # what has arrived is of use all the same
    assert_sound(stack)
    stack.close()


def test_what_ends_when_its_loop_has_gone(trouble: Trouble, caplog: pytest.LogCaptureFixture) -> None:
    stack, names = offloaded(8, 32)
    gate = trouble.stop()
    serve(stack, prompt(6, 3))  # on its way to the host: its blocks cannot be overwritten yet

    async def main() -> None:
        front = AsyncTierStack(stack)
        allocation = asyncio.ensure_future(front.allocate(4))
        onboarding = asyncio.ensure_future(front.onboard(await front.match(names)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not allocation.done()
        assert not onboarding.done()
        # asyncio.run cancels both.

    on_a_loop(main())
    gate.set()
    assert stack.drain(PATIENCE)
    assert_sound(stack)
    stack.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_cancelled_allocation_gives_its_blocks_back(trouble: Trouble) -> None:
    with open_stack(None, device=4, host=16) as stack:
        front = AsyncTierStack(stack)
        gate = trouble.stop("device_to_host")
        serve(stack, prompt(4, 1))

        async def main() -> None:
            task = asyncio.ensure_future(front.allocate(3))
            await asyncio.sleep(0)
            assert stack.stats()["in_use"].values.tolist() == [3, 0, 0]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Before the copies have ended: others may have them at once.
            assert stack.stats()["in_use"].values.tolist() == [0, 0, 0]

        on_a_loop(main())
        gate.set()
        assert_sound(stack)


@pytest.mark.parametrize("mode", MODES)
def test_cancelling_at_any_moment_leaks_nothing(tmp_path: Path, mode: str) -> None:
    """Hundreds of requests, cancelled after a random number of turns of the loop or of copies that ended."""
    stack = open_stack(tmp_path, device=16, host=16, disk=100, mode=mode, admit_after=1, max_pending_blocks=24)
    rng = random.Random(11)
    outcomes = {"done": 0, "cancelled": 0, "refused": 0}

    async def one(front: AsyncTierStack) -> None:
        names = prompt(5, rng.randrange(12), shared=2, topic=rng.randrange(3))
        task = asyncio.ensure_future(serve_async(front, names))
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(rng.choice([0, 0, 0.0005]))
        task.cancel()
        try:
            await task
            outcomes["done"] += 1
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
        except NotEnoughBlocks:
            outcomes["refused"] += 1

    async def main() -> None:
        front = AsyncTierStack(stack)
        for _ in range(100):
            await asyncio.gather(*(one(front) for _ in range(3)))
        assert await front.drain(PATIENCE)

    on_a_loop(main())
    assert outcomes["done"] > 20, outcomes
    assert outcomes["cancelled"] > 20, outcomes
    assert len(stack._leases) == 0
    assert_sound(stack)
    stack.close()


def test_prefetching(trouble: Trouble, tmp_path: Path) -> None:
    config = StackConfig(max_concurrent_transfers=1, max_transfer_batch_size=1)
    with open_stack(tmp_path, config=config) as stack:
        front, names = AsyncTierStack(stack), prompt(5, 1)
        serve(stack, names)
        sink(stack, names)
        gate = trouble.stop("disk_to_host")

        async def main() -> None:
            # Cancelled, it goes on.
            task = asyncio.ensure_future(front.prefetch(names))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
            await front.drain()
            assert held(stack, names) == [1] * 5
            assert await front.prefetch(names) == 5
            sink(stack, names)
            gate.clear()
            assert await later(gate, front.prefetch(names, "wait_complete")) == 5
            sink(stack, names)
            gate.clear()
            # What has begun is waited for, if anything has; the rest is given up.
            task = asyncio.ensure_future(front.prefetch(names, "best_effort"))
            while not stack.stats()["cancelled_blocks"].any():
                await asyncio.sleep(0)
            gate.set()
            assert (begun := await task) in (0, 1)
            assert held(stack, names) == [1] * begun + [2] * (5 - begun)
            assert await front.prefetch(names, "timeout", base=PATIENCE) == 5
            with pytest.raises(ConfigError, match="policy: 'best'"):
                await front.prefetch(names, "best")

        on_a_loop(main())
        assert_sound(stack)


def test_flushing_and_closing(tmp_path: Path) -> None:
    names = prompt(5, 1)
    stack = open_stack(tmp_path)

    async def main() -> None:
        async with AsyncTierStack(stack) as front:
            await serve_async(front, names)
            await front.flush()
            assert sorted((tmp_path / "blocks.data").read_bytes()) != [0] * (tmp_path / "blocks.data").stat().st_size
            match = await front.match(names)
            await front.release(match)
            with pytest.raises(BlockStateError, match="match again"):
                await front.onboard(match)
        for call in (front.match(names), front.allocate(1), front.prefetch(names), front.flush()):
            with pytest.raises(TierClosed):
                await call
        await front.close()

    on_a_loop(main())
    with open_stack(tmp_path) as again:
        assert held(again, names) == [2] * 5


def test_an_error_inside_cancels_what_is_under_way(trouble: Trouble, tmp_path: Path) -> None:
    stack = open_stack(tmp_path)
    gate = trouble.stop("host_to_disk")

    async def main() -> None:
        async with AsyncTierStack(stack) as front:
            await serve_async(front, prompt(5, 1))
            gate.set()
            raise KeyError("the engine broke")

    with pytest.raises(KeyError, match="the engine broke"):
        on_a_loop(main())
    refused(TierClosed, "closed", "a new one", lambda: stack.match(prompt(5, 1)))
    assert stack.device.closed
