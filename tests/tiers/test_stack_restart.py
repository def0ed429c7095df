"""A stack whose process ends, one way or another, and the next one on the same disk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stack_cases import LAYOUT, MODES, assert_sound, held, open_stack, prompt, serve, sink

from dynalab.errors import CorruptBlock
from dynalab.kv import sequence_hashes
from dynalab.tiers import KvEvent

ROUNDS = 30


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
def test_blocks_are_found_again_and_bit_exact(tmp_path: Path, mode: str, disk_path: str) -> None:
    """Also by a process whose tiers above lay their blocks out otherwise, or are not there."""
    options = {"mode": mode, "disk_path": disk_path, "admit_after": 1}
    prompts = [prompt(6, seed, shared=3) for seed in range(4)]
    with open_stack(tmp_path, **options) as stack:
        for names in prompts:
            serve(stack, names)
        for names in prompts:
            sink(stack, names)
    layer_first = LAYOUT.with_(order="layer_first")
    for layouts in (
        {},
        {"layout": layer_first, "host_layout": layer_first},
        {"layout": layer_first},
        {"host": 0},
    ):
        with open_stack(tmp_path, **options, **layouts) as stack:
            for names in prompts:
                assert held(stack, names) == [2] * 6
            # What is brought up by one request may be found higher by the next one.
            for names in prompts:
                found = serve(stack, names)
                assert found["disk"] >= 3
                assert found["computed"] == 0
            for names in prompts:
                sink(stack, names)
            assert_sound(stack)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_they_come_back_in_the_order_of_their_eviction(tmp_path: Path, policy: str) -> None:
    """The blocks that were written first are the first to go, before the process ended and after."""
    prompts = [prompt(4, seed) for seed in range(4)]
    with open_stack(tmp_path, device=4, host=4, disk=16, policy=policy) as stack:
        for names in prompts:
            serve(stack, names)
    with open_stack(tmp_path, device=4, host=4, disk=16, policy=policy) as stack:
        for i in range(4):
            assert [held(stack, names)[0] for names in prompts] == [3] * i + [2] * (4 - i)
            for block in range(4):
                # One at a time: each takes the place of exactly one, from the front of the oldest sequence on.
                serve(stack, prompt(1, 100 + 4 * i + block))
                stack.drain()
                assert held(stack, prompts[i]) == [3] * (block + 1) + [2] * (3 - block)
        assert_sound(stack)


def test_a_smaller_share_of_the_disk_keeps_what_was_written_last(tmp_path: Path) -> None:
    """Write-back keeps one slot free: a disk that is full in another mode gives up its oldest block."""
    prompts = [prompt(4, seed) for seed in range(4)]
    with open_stack(tmp_path, device=4, host=4, disk=16) as stack:
        for names in prompts:
            serve(stack, names)
    with open_stack(tmp_path, device=4, host=4, disk=16, mode="write_back") as stack:
        assert [held(stack, names) for names in prompts] == [[3, 2, 2, 2], [2] * 4, [2] * 4, [2] * 4]
        for names in reversed(prompts):
            serve(stack, names)
        assert_sound(stack)
    with open_stack(tmp_path, device=4, host=4, disk=32) as stack:  # grown
        assert_sound(stack)


def test_priorities_survive(tmp_path: Path) -> None:
    precious, others = prompt(4, 1), [prompt(4, seed) for seed in (2, 3)]
    policy = {"disk": "priority"}
    with open_stack(tmp_path, device=4, host=4, disk=12, policy=policy) as stack:
        serve(stack, precious, priority=90)
        for names in others:
            serve(stack, names)
    with open_stack(tmp_path, device=4, host=4, disk=12, policy=policy) as stack:
        for seed in range(10, 16):
            serve(stack, prompt(4, seed))
        stack.drain()
        assert held(stack, precious) == [2] * 4
        assert held(stack, others[0]) == [3] * 4


def test_what_is_found_is_told_first(tmp_path: Path) -> None:
    """A router that has lost a worker's blocks from sight learns of them again, parents and all."""
    tokens = np.arange(6 * 4)
    names = sequence_hashes(tokens, 4)
    with open_stack(tmp_path) as stack:
        serve(stack, names)
    events: list[KvEvent] = []
    with open_stack(tmp_path, on_events=events.extend) as stack:
        expected = [KvEvent("store", int(h), int(p)) for h, p in zip(names, [0, *names[:-1]], strict=True)]
        assert events == expected
        serve(stack, names)
        stack.drain()
        assert events == expected  # known already: no second store, wherever they are now
        stack.reset()
        assert sorted(event.hash for event in events[6:]) == sorted(names.tolist())
        assert {event.kind for event in events[6:]} == {"remove"}
    events.clear()
    with open_stack(tmp_path, on_events=events.extend) as stack:
        assert events == []  # a reset empties the disk for good
        assert_sound(stack)


def test_damage_between_two_processes_is_a_miss(tmp_path: Path) -> None:
    names = prompt(6, 1)
    with open_stack(tmp_path) as stack:
        serve(stack, names)
        sink(stack, names)
        slot = int(stack._directory.slot_of(2, names[2:3])[0])
    data = bytearray((tmp_path / "blocks.data").read_bytes())
    data[slot * 4096 + 5] ^= 1
    (tmp_path / "blocks.data").write_bytes(data)
    with open_stack(tmp_path) as stack:
        match = stack.match(names)
        assert len(match) == 6
        onboarding = stack.onboard(match)
        stack.release(onboarding.result(30))
        assert [type(error) for error in onboarding.failures if f"slot {slot} in" in str(error)] == [CorruptBlock]
        stack.drain()
        assert held(stack, names)[2] == 3
        # The three behind it are held, but of no use without it.
        assert serve(stack, names)["computed"] == 4
        assert_sound(stack)
    with open_stack(tmp_path) as stack:
        assert serve(stack, names) == {"device": 0, "host": 0, "disk": 6, "computed": 0}


@pytest.mark.slow
def test_sudden_deaths_under_load(tmp_path: Path) -> None:
    """``kill -9`` at random moments: nothing wrong is served, and what was flushed is found unless it was evicted."""
    seed = 1 if os.environ.get("CI") else random.randrange(2**31)
    script = Path(__file__).with_name("stack_killer.py")
    words = [sys.executable, str(script), str(tmp_path), str(ROUNDS), str(seed)]
    places = os.pathsep.join(sys.path)
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    totals = json.loads(done.stdout)
    assert totals["rounds"] == ROUNDS
    # The deaths came in the midst of work, and there was something to be found.
    assert totals["begun"] > 5 * ROUNDS, totals
    assert totals["flushes"] > ROUNDS, totals
    assert totals["sure"] > 2 * ROUNDS, totals
    assert totals["checked"] > 20 * ROUNDS, totals
    assert totals["overwritten"] > ROUNDS, totals
    assert totals["served"] > ROUNDS, totals
