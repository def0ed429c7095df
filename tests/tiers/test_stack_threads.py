"""Many threads serve requests over one stack: the right bytes, nothing stuck, and everything back at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from stack_account import forest
from stack_bytes import (
    BY_LAYER,
    DEVICE,
    DISK,
    HOST,
    LAYOUT,
    check_all_bytes,
    content,
    free_slots,
    peek,
    poke,
    resident,
    words,
)
from stack_rig import PATIENCE, Traffic, worker_threads

from dynalab.errors import NotEnoughBlocks, TierClosed, TierError, TransferError
from dynalab.tiers import DeviceTier, DiskTier, HostTier, KvEvent, StackConfig, TierStack, Transfer
from dynalab.tiers import stack_base as stack_base_module
from dynalab.tiers.movers import movers

PATHS = forest(60, 6)
PARENT = {path[-1]: path[-2] if len(path) > 1 else 0 for path in PATHS}


@pytest.fixture(autouse=True)
def _often_another_thread() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Events:
    """Listens to a stack: who is held according to what it was told, and whether that was told in order."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.wrong: list[KvEvent] = []
        self._busy = threading.Lock()
        self.at_once = 0

    def __call__(self, events: list[KvEvent]) -> None:
        if not self._busy.acquire(blocking=False):
            self.at_once += 1
            return
        for event in events:
            in_turn = (event.kind == "store") == (event.hash not in self.alive)
            if not in_turn or event.parent not in (0, PARENT[event.hash]):
                self.wrong.append(event)
            (self.alive.add if event.kind == "store" else self.alive.discard)(event.hash)
        time.sleep(0)
        self._busy.release()


def in_threads(*acts: Callable[[], Any]) -> None:
    """Run functions side by side; raise what one raises, and fail if one does not end."""
    errors: list[BaseException] = []

    def run(act: Callable[[], Any]) -> None:
        try:
            act()
        except BaseException as error:  # handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    stuck = [thread.name for thread in threads if thread.is_alive()]
    assert not stuck, f"stuck: {stuck}"


def check_everything_is_back(stack: TierStack, events: Events) -> None:
    assert stack.drain(PATIENCE)
    assert [stack._directory.in_use(k) for k in (DEVICE, HOST, DISK)] == [0, 0, 0]
    assert len(stack._leases) == 0
    check_all_bytes(stack)
    held: set[int] = set()
    for k, tier in enumerate((stack.device, stack.host, stack.disk)):
        if tier is not None:
            hashes, slots = resident(stack, k)
            assert sorted([*slots.tolist(), *free_slots(stack, k)]) == list(range(tier.capacity))
            held |= set(hashes.tolist())
    assert events.alive == held
    assert not events.wrong
    assert events.at_once == 0
    stack.release(stack.allocate(stack.device.capacity, timeout=PATIENCE))


class Client:
    """Serves requests, and looks at every block again and again while it uses it."""

    def __init__(self, stack: TierStack, seed: int) -> None:
        self.stack, self.rng = stack, np.random.default_rng(seed)
        self.met: Counter[str] = Counter()

    def look(self, slots: npt.NDArray[np.int32], hashes: npt.NDArray[np.uint64]) -> None:
        wrong = (peek(self.stack.device, slots) != content(hashes)).any(axis=1)
        assert not wrong.any(), f"slots {slots[wrong].tolist()} do not hold what they should"

    def serve(self) -> None:
        """One request: what the tiers have is onboarded, the rest computed; a full device is waited for."""
        stack, rng = self.stack, self.rng
        path = PATHS[int(rng.integers(len(PATHS)))]
        hashes = words(path)
        match = stack.match(hashes)
        try:
            blocks = stack.onboard(match).result(PATIENCE)
        except NotEnoughBlocks:
            self.met["no room to onboard"] += 1
            return
        n = len(blocks)
        self.met["onboarded"] += n
        self.look(blocks.slots, hashes[:n])
        try:
            new = stack.allocate(len(hashes) - n, timeout=PATIENCE)
        except NotEnoughBlocks:
            self.met["no room to allocate"] += 1
            self.look(blocks.slots, hashes[:n])
            stack.release(blocks)
            return
        poke(stack.device, new.slots, content(hashes[n:]))
        time.sleep(0)
        self.look(new.slots, hashes[n:])
        try:
            stack.register(new, hashes[n:], parent=path[n - 1] if n else 0, priority=int(rng.integers(3)))
        except TransferError:
            self.met["computed what did not come up"] += 1
            stack.release(blocks + new)
            return
        self.met["computed"] += len(new)
        every = blocks + new
        self.look(every.slots, hashes)
        time.sleep(0)
        self.look(every.slots, hashes)
        if rng.random() < 0.5:
            stack.release(every)
        else:
            for block in every:
                block.release()

    def meddle(self) -> None:
        """Anything else that may be asked of a stack meanwhile."""
        stack, rng = self.stack, self.rng
        hashes = words(PATHS[int(rng.integers(len(PATHS)))])
        what = int(rng.integers(8))
        if what == 0:
            stack.prefetch(hashes).wait(("best_effort", "timeout", "wait_complete")[int(rng.integers(3))], base=0.0)
        elif what == 1:
            stack.touch(hashes)
        elif what == 2:
            stack.release(stack.pin(hashes))
        elif what == 3:
            assert set(stack.find(hashes).tolist()) <= {0, 1, 2, 3}
        elif what == 4:
            assert int(stack.stats()["resident"][DEVICE]) <= stack.device.capacity
        elif what == 5:
            assert "kvbm_matched_tokens" in stack.metrics()
        elif what == 6:
            assert stack.drain(PATIENCE)
        else:
            try:
                stack.reset()
                self.met["reset"] += 1
            except TierError as error:
                if "are in use" not in str(error):
                    raise


def build(path: Path, events: Events, mode: str, **options: Any) -> TierStack:
    return TierStack(
        DeviceTier(options.pop("layout", LAYOUT), capacity=24, device="host-emulated"),
        HostTier(LAYOUT, capacity=20),
        DiskTier(LAYOUT, capacity=36, path=path),
        mode=mode,
        on_events=events,
        **options,
    )


CASES = {
    "write_through": ("write_through", {"policy": "lru"}),
    "write_back": ("write_back", {"policy": {"device": "lineage", "host": "s3fifo", "disk": "lru"}}),
    "selective": ("selective", {"policy": "wtinylfu", "admit_after": 1, "disk_path": "direct", "touch": "all"}),
    "small batches": ("write_through", {"config": StackConfig(max_transfer_batch_size=1), "layout": BY_LAYER}),
    "few numbers": ("write_back", {"id_capacity": 100, "disk_path": "direct", "policy": "arc"}),
    "backpressure": ("write_through", {"max_pending_blocks": 4, "disk_path": "direct", "policy": "priority"}),
}


@pytest.mark.parametrize("case", CASES)
def test_requests_side_by_side(case: str, tmp_path: Path) -> None:
    mode, options = CASES[case]
    events = Events()
    with build(tmp_path, events, mode, **options) as stack:
        clients = [Client(stack, seed) for seed in range(6)]

        def work(client: Client) -> Callable[[], None]:
            def run() -> None:
                for i in range(60):
                    client.serve()
                    if i % 3 == 0 and client is clients[0]:
                        client.meddle()

            return run

        in_threads(*(work(client) for client in clients))
        met = sum((client.met for client in clients), Counter())
        assert met["onboarded"] > 50
        assert met["computed"] > 50
        assert not stack.failures
        check_everything_is_back(stack, events)
    assert not worker_threads()


@pytest.mark.parametrize("mode", ["write_through", "write_back"])
def test_requests_side_by_side_while_copies_fail(mode: str, tmp_path: Path) -> None:
    """One copy in eight raises or loses blocks, over garbage: requests find less, and never anything wrong."""
    rng, lock = np.random.default_rng(1), threading.Lock()

    def unreliable(*tiers: Any, **options: Any) -> dict[str, Any]:
        by_name = {tier.name: tier for tier in tiers if tier is not None}

        def wrap(path: str, mover: Any) -> Any:
            def move(transfer: Transfer, lo: int, hi: int) -> npt.NDArray[np.bool_]:
                with lock:
                    chance, keep = rng.random(), rng.random(hi - lo) < 0.5
                if chance < 0.06:
                    raise OSError(5, "as planned")
                arrived: npt.NDArray[np.bool_] = mover(transfer, lo, hi)
                if chance < 0.12:
                    arrived &= keep
                    target = by_name[path.partition("_to_")[2]]
                    if target is not stack_disk:
                        lost = transfer.dst[lo:hi][~keep]
                        poke(target, lost, np.full((len(lost), target.block_bytes), 0xEE, np.uint8))
                return arrived

            return move

        stack_disk = tiers[2]
        return {path: wrap(path, mover) for path, mover in movers(*tiers, **options).items()}

    events = Events()
    with patch.object(stack_base_module, "movers", unreliable):
        stack = build(tmp_path, events, mode, policy="s3fifo")
    with stack:
        clients = [Client(stack, seed) for seed in range(5)]
        in_threads(*(lambda c=client: [c.serve() for _ in range(60)] for client in clients))
        assert len(stack.failures) > 10
        assert sum((client.met for client in clients), Counter())["onboarded"] > 30
        check_everything_is_back(stack, events)
    assert not worker_threads()


def test_one_prompt_for_all(tmp_path: Path) -> None:
    """All threads compute, match and onboard the same few blocks at once: every block is registered many times over."""
    events = Events()
    with build(tmp_path, events, "write_back") as stack:
        path = max(PATHS, key=len)[:5]
        hashes = words(path)
        start = threading.Barrier(4)

        def run() -> None:
            client = Client(stack, 0)
            for _ in range(40):
                start.wait(PATIENCE)
                new = stack.allocate(len(hashes), timeout=PATIENCE)
                poke(stack.device, new.slots, content(hashes))
                stack.register(new, hashes)
                blocks = stack.onboard(stack.match(hashes)).result(PATIENCE)
                assert blocks.slots.tolist() == new.slots.tolist(), "all use one block"
                client.look(blocks.slots, hashes)
                stack.release(new)
                client.look(blocks.slots, hashes)
                stack.release(blocks)

        in_threads(run, run, run, run)
        assert stack.stats()["insertions"][DEVICE] < 4 * 40 * len(hashes)
        check_everything_is_back(stack, events)


def test_an_onboarding_cannot_be_cancelled_halfway(tmp_path: Path) -> None:
    """Its blocks are in use and somebody must release them: the future refuses, and comes."""
    rig = Traffic()
    stack = rig.build(
        DeviceTier(LAYOUT, capacity=4, device="host-emulated"),
        HostTier(LAYOUT, capacity=8),
        DiskTier(LAYOUT, capacity=8, path=tmp_path),
    )
    with rig.waits_let_through():
        hashes = words([1, 2, 3])
        new = stack.allocate(3)
        poke(stack.device, new.slots, content(hashes))
        stack.register(new, hashes)
        stack.release(new)
        stack.release(stack.allocate(4))
        stack.drain()
        onboarding = stack.onboard(stack.match(hashes))
        assert not onboarding.done()
        assert not onboarding.cancel()
        assert onboarding.running()
        with pytest.raises(TimeoutError):
            onboarding.result(timeout=0.01)
        rig.run_until(onboarding.done)
        assert len(onboarding.result(0)) == 3
        stack.release(onboarding.result(0))
    rig.open()
    stack.close()


@pytest.mark.parametrize("cancel", [False, True])
def test_closing_while_blocks_come_up(cancel: bool, tmp_path: Path) -> None:
    """Whoever waits is told: all blocks, or with `cancel` those that had begun to move."""
    rig = Traffic()
    stack = rig.build(
        DeviceTier(LAYOUT, capacity=8, device="host-emulated"),
        HostTier(LAYOUT, capacity=8),
        config=StackConfig(max_concurrent_transfers=1, max_transfer_batch_size=2),
    )
    hashes = words(range(1, 7))
    with rig.waits_let_through():
        new = stack.allocate(6)
        poke(stack.device, new.slots, content(hashes))
        stack.register(new, hashes)
        stack.release(new)
        stack.release(stack.allocate(8))
        stack.drain()
    onboarding = stack.onboard(stack.match(hashes))
    rig.settle()
    closing = threading.Thread(target=stack.close, kwargs={"cancel": cancel}, daemon=True)
    closing.start()
    while not stack._closed or (cancel and not rig.engine.stats()["host_to_device"].blocks_cancelled):
        assert closing.is_alive()
    with pytest.raises(TierClosed):
        stack.match(hashes)
    assert not onboarding.done()
    rig.open()
    assert len(onboarding.result(PATIENCE)) == (2 if cancel else 6)
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert not worker_threads()


def test_a_listener_that_fails_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(events: list[KvEvent]) -> None:
        raise RuntimeError("as planned")

    with TierStack(DeviceTier(LAYOUT, capacity=4, device="host-emulated"), on_events=fail) as stack:
        hashes = words([1, 2])
        new = stack.allocate(2)
        poke(stack.device, new.slots, content(hashes))
        stack.register(new, hashes)
        stack.release(new)
        assert stack.find(hashes).tolist() == [0, 0]
        check_all_bytes(stack)
    assert "on_events failed" in caplog.text
