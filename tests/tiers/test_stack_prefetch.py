"""Blocks brought from disk to host memory ahead of their use, for as long as it takes or as long as it is worth."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stack_cases import PATIENCE, Trouble, assert_sound, held, open_stack, prompt, refused, serve, sink, trouble

from dynalab.errors import ConfigError
from dynalab.tiers import StackConfig, TierStack

__all__ = ["trouble"]


@pytest.fixture(params=["write_through", "write_back"])
def sunken(request: pytest.FixtureRequest, trouble: Trouble, tmp_path: Path) -> Iterator[TierStack]:
    """A stack that moves one block at a time, with a prompt of 5 blocks on its disk."""
    config = StackConfig(max_concurrent_transfers=1, max_transfer_batch_size=1)
    with open_stack(tmp_path, config=config, mode=request.param) as stack:
        serve(stack, prompt(5, 1))
        sink(stack, prompt(5, 1))
        yield stack


def test_prefetch_to_the_end(sunken: TierStack) -> None:
    names = prompt(5, 1)
    prefetch = sunken.prefetch(names)
    assert prefetch.n_blocks == 5
    assert prefetch.wait() == 5
    assert prefetch.done()
    assert held(sunken, names) == [1] * 5
    assert sunken.prefetch(names).n_blocks == 0
    assert serve(sunken, names)["host"] == 5
    # What is held nowhere ends it.
    assert sunken.prefetch(np.concatenate([names, prompt(2, 9)])).wait() == 5
    assert_sound(sunken)


@pytest.mark.parametrize(("policy", "seconds"), [("best_effort", {}), ("timeout", {"base": 0.01, "per_ki_token": 0.1})])
def test_prefetch_that_comes_too_late(sunken: TierStack, trouble: Trouble, policy: str, seconds: dict) -> None:
    """What has begun is waited for; the rest stays on the disk, not a block is lost."""
    names = prompt(5, 1)
    gate = trouble.stop("disk_to_host")
    prefetch = sunken.prefetch(names)
    assert trouble.begun.acquire(timeout=PATIENCE)
    assert not prefetch.done()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(prefetch.wait(policy, **seconds)))
    thread.start()
    while not sunken.stats()["cancelled_blocks"].any():
        assert thread.is_alive()
    assert not found
    gate.set()
    thread.join(PATIENCE)
    assert found == [1]
    assert held(sunken, names) == [1, 2, 2, 2, 2]
    assert sunken.stats()["cancelled_blocks"].sel(edge="disk_to_host") == 4
    assert sunken.stats()["failed_blocks"].sum() == 0
    assert not sunken.failures
    assert "kvbm_transfer_failures 0\n" in sunken.metrics()
    assert serve(sunken, names) == {"device": 0, "host": 1, "disk": 4, "computed": 0}
    assert_sound(sunken)


def test_prefetch_in_time(sunken: TierStack) -> None:
    assert sunken.prefetch(prompt(5, 1)).wait("timeout", base=PATIENCE) == 5
    refused(ConfigError, "policy: 'whenever'", "choose from", lambda: sunken.prefetch(prompt(5, 1)).wait("whenever"))


@pytest.mark.parametrize("mode", ["write_through", "write_back"])
def test_prefetch_takes_no_more_than_fits(tmp_path: Path, mode: str) -> None:
    """A sequence longer than host memory: its front, not its end; and nothing that it displaces is lost."""
    with open_stack(tmp_path, device=12, host=6, disk=100, mode=mode) as stack:
        long, other = prompt(10, 1), prompt(3, 2)
        fits = stack.stats()["capacity_blocks"].sel(tier="host").item()
        serve(stack, long)
        sink(stack, long)
        serve(stack, other)
        for seed in range(30, 33):
            serve(stack, prompt(4, seed))
        assert stack.prefetch(other).wait() == 3
        everything = [other, long, *(prompt(4, seed) for seed in range(30, 33))]
        assert stack.prefetch(long).wait() == fits
        assert held(stack, long) == [1] * fits + [2] * (10 - fits)
        for names in everything:
            assert (stack.find(names) < 3).all()
        # A block that someone uses in host memory is not displaced at all.
        pin = stack.pin(long[:fits])
        sink_first = held(stack, other)
        assert stack.prefetch(other).n_blocks == 0
        assert held(stack, other) == sink_first
        stack.release(pin)
        for names in everything:
            assert serve(stack, names)["computed"] == 0
        assert_sound(stack)
