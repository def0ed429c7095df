"""Stacks under test: small ones over all tiers, requests that check every byte, copies that fail or wait on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dynalab.errors import DynalabError, NotEnoughBlocks
from dynalab.kv import KVLayout, sequence_hashes
from dynalab.tiers import Blocks, DeviceTier, DiskTier, HostTier, TierStack, stack_base

PAGE = 4
#: Blocks of 1 KiB.
LAYOUT = KVLayout(num_layers=2, outer=2, page_tokens=PAGE, inner=32)
MODES = ("write_through", "write_back", "selective")
PATHS = ("device_to_host", "host_to_device", "host_to_disk", "disk_to_host", "device_to_disk", "disk_to_device")
PATIENCE = 30.0

Hashes = npt.NDArray[np.uint64]


def prompt(n_blocks: int, seed: int, *, shared: int = 0, topic: int = 0) -> Hashes:
    """Hashes of a prompt; the first `shared` blocks are those of every prompt on that topic."""
    head = np.random.default_rng([topic, 77]).integers(0, 50_000, shared * PAGE)
    tail = np.random.default_rng([seed, 78]).integers(0, 50_000, (n_blocks - shared) * PAGE)
    return sequence_hashes(np.concatenate([head, tail]), PAGE)


def content(name: int, layout: KVLayout = LAYOUT) -> npt.NDArray[np.uint16]:
    """The bits of a block, which follow from its hash: wrong ones cannot pass."""
    words = np.random.PCG64(int(name)).random_raw(layout.block_bytes // 8)
    return words.view(np.uint16).reshape(layout.num_layers, layout.outer, layout.page_tokens, layout.inner)


def write(blocks: Blocks, names: Hashes) -> None:
    for view, name in zip(blocks.view(), names, strict=True):
        view.view(np.uint16)[...] = content(name)


def assert_right(blocks: Blocks, names: Hashes) -> None:
    for i, (view, name) in enumerate(zip(blocks.view(), names, strict=True)):
        assert (view.view(np.uint16) == content(name)).all(), f"block {i} of {len(blocks)} holds wrong bytes"


def serve(stack: TierStack, names: Hashes, **options: int) -> dict[str, int]:
    """Run a whole request, checking every byte that is served; return where its blocks came from."""
    match = stack.match(names)
    found = match.tiers
    reused = stack.onboard(match).result(PATIENCE)
    assert_right(reused, names[: len(reused)])
    n = len(reused)
    try:
        new = stack.allocate(len(names) - n, timeout=PATIENCE)
    except NotEnoughBlocks:
        stack.release(reused)
        raise
    write(new, names[n:])
    stack.register(new, names[n:], parent=int(names[n - 1]) if n else 0, **options)
    assert_right(reused + new, names)
    stack.release(reused + new)
    return {**found, "computed": len(new)}


def held(stack: TierStack, names: Hashes) -> list[int]:
    """Highest tier of each block: 0 device, 1 host, 2 disk, 3 none."""
    return stack.find(names).tolist()


def open_stack(path: Path | None, device: int = 8, host: int = 8, disk: int = 64, **options: Any) -> TierStack:
    """A stack over the tiers that have slots; options for the disk tier begin with ``disk_tier_``."""
    tier_options = {key.removeprefix("disk_tier_"): options.pop(key) for key in list(options) if "disk_tier_" in key}
    layout = options.pop("layout", LAYOUT)
    return TierStack(
        DeviceTier(layout, capacity=device, device="host-emulated"),
        HostTier(options.pop("host_layout", LAYOUT), capacity=host, pinned=False, lock=False) if host else None,
        DiskTier(LAYOUT, capacity=disk, path=path, threads=2, **tier_options) if disk and path is not None else None,
        **options,
    )


def sink(stack: TierStack, names: Hashes, seed: int = 1000) -> None:
    """Serve other requests until a prompt lies on the disk only, and every copy has ended."""
    size = stack.device.capacity
    for i in range(50):
        if (stack.find(names) == 2).all():
            break
        serve(stack, prompt(size, seed + i))
    stack.drain()
    assert (stack.find(names) == 2).all()


def assert_sound(stack: TierStack) -> None:
    """Nothing is in use or on its way, no tier holds more than it can, and a whole request goes through."""
    assert stack.drain(PATIENCE)
    facts = stack.stats()
    assert facts["in_use"].values.tolist() == [0, 0, 0]
    assert (facts["resident"] <= facts["capacity_blocks"]).all()
    assert facts["pending_blocks"].sum() == 0
    assert not stack._flow.oldest()
    full = prompt(stack.device.capacity, seed=int(np.random.default_rng().integers(1 << 30)))
    assert serve(stack, full)["computed"] == len(full)
    assert serve(stack, full) == {"device": len(full), "host": 0, "disk": 0, "computed": 0}
    assert stack.drain(PATIENCE)


def refused(error: type[DynalabError], culprit: str, cure: str, call: Callable[[], object]) -> None:
    """The call raises exactly this error, in one line: who is to blame, then what to do."""
    with pytest.raises(DynalabError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert "\n" not in message
    assert culprit in message
    assert cure in message
    assert message.index(culprit) < message.index(cure)


def run(script: str, *words: object) -> str:
    """Run Python in another process beside these tests, and return what it says."""
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Trouble:
    """Stands between a stack and its movers.

    Attributes
    ----------
    gates : dict of str to Event
        Paths whose copies wait until the event is set.
    fault : callable, optional
        Called as ``fault(mover, transfer, lo, hi)`` in place of the mover.
    moved, failed : dict of str to int
        Batches per path.
    """

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.fault: Callable[..., npt.NDArray[np.bool_]] | None = None
        self.begun = threading.Semaphore(0)

    def stop(self, *paths: str) -> threading.Event:
        """Let the copies of some paths wait; returns what lets them go on."""
        gate = threading.Event()
        self.gates |= dict.fromkeys(paths or PATHS, gate)
        return gate

    def _wrap(self, mover: Any, path: str) -> Any:
        def move(transfer: Any, lo: int, hi: int) -> npt.NDArray[np.bool_]:
            if path in self.gates:
                self.begun.release()
                assert self.gates[path].wait(PATIENCE), "the gate stayed shut"
            if self.fault is not None:
                return self.fault(mover, transfer, lo, hi)
            return mover(transfer, lo, hi)

        return move

    def movers(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *tiers, **options: {
            path: self._wrap(mover, path) for path, mover in original(*tiers, **options).items()
        }


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """Stacks made from here on get movers that the test can stop and break."""
    given = Trouble()
    monkeypatch.setattr(stack_base, "movers", given.movers(stack_base.movers))
    return given
