"""Kills a process that serves requests over a stack, again and again, and checks each time what the next one serves.

A process of its own, so that forking is safe: no thread lives in it while it forks. Prints one JSON object.

Three stacks take turns: one whose disk never evicts, so that every prompt served before a flush must be found; one
whose disk evicts all the time; and one whose blocks move up and down. For all of them holds: a block that lay on the
disk when a flush began is found, unless another was sent to its slot since.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from stack_cases import assert_sound, open_stack, prompt, serve

from dynalab.kv.tiering.book import MOVE_EDGE, MOVE_TARGET
from dynalab.kv.tiering.rules import D2K, DISK, H2K
from dynalab.tiers import TierStack

BLOCKS = 6


class Kind(NamedTuple):
    """A stack: the slots of its disk, and its mode."""

    name: str
    disk: int
    mode: str


KINDS = (Kind("large", 12_000, "write_through"), Kind("small", 40, "write_through"), Kind("moving", 60, "write_back"))


def start(path: Path, kind: Kind) -> TierStack:
    return open_stack(path / kind.name, device=24, host=24, disk=kind.disk, mode=kind.mode)


def serve_until_killed(path: Path, kind: Kind, pipe: int, seed: int, first: int) -> None:
    """Two threads serve new and old prompts, and flush; they tell what goes to the disk, and what a flush made sure."""
    stack = start(path, kind)
    lock, numbers, done, sent = threading.Lock(), iter(range(first, first + 10**9)), list[int](), 0

    def tell(words: list[object]) -> None:
        # One write below the size of a pipe's atomic ones: what has been told has been told whole.
        text = (" ".join(map(str, words)) + "\n").encode()
        assert len(text) < 4096
        os.write(pipe, text)

    carry_out = stack._flow.carry_out

    def tell_and_carry_out(outcome: Any, *options: Any) -> Any:
        """Called with the stack locked: what is told is in order, and told before it happens."""
        nonlocal sent
        for (edge, _, _, target), name in zip(outcome.moves.tolist(), outcome.keys.hash.tolist(), strict=True):
            if edge in (H2K, D2K):
                tell(["to", target, name])
                sent += 1
        return carry_out(outcome, *options)

    assert (MOVE_EDGE, MOVE_TARGET) == (0, 3)
    stack._flow.carry_out = tell_and_carry_out  # type: ignore[method-assign]

    def run(which: int) -> None:
        rng = random.Random(2 * seed + which)
        mine: list[int] = []
        while True:
            number = rng.choice(mine) if mine and rng.random() < 0.4 else next(numbers)
            tell(["begin", number])
            serve(stack, prompt(BLOCKS, number))
            mine.append(number)
            with lock:
                done.append(number)
            if rng.random() < 0.2:
                with stack._lock, lock:
                    before, sure = sent, sorted(done)
                    done.clear()
                stack.flush()
                for i in range(0, len(sure), 100):
                    tell(["sure", *sure[i : i + 100]])
                tell(["flushed", before])

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join()


def listen(pipe: int, child: int, requests: int, seconds: float) -> list[list[str]]:
    """Kill a process some time after it has begun so many requests; return all that it has told, word by word."""
    data = b""
    while data.count(b"begin") < requests:
        part = os.read(pipe, 1 << 16)
        assert part, "the process failed by itself"
        data += part
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the process failed by itself"
    while part := os.read(pipe, 1 << 16):
        data += part
    os.close(pipe)
    return [line.split() for line in data.decode().splitlines()]


def main(path: Path, rounds: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    on_disk: dict[Kind, dict[int, int]] = {}
    for kind in KINDS:  # everything is compiled before the first fork
        with start(path, kind) as stack:
            assert_sound(stack)
            on_disk[kind] = slots_of(stack)
    totals = dict.fromkeys(("rounds", "begun", "flushes", "sure", "checked", "overwritten", "served"), 0)
    must: set[int] = set()
    for round_ in range(rounds):
        kind = KINDS[round_ % len(KINDS)]
        reader, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                serve_until_killed(path, kind, pipe, rng.randrange(2**30), round_ << 20)
            finally:
                os._exit(1)
        os.close(pipe)
        # Every tenth dies while it opens its stack, or soon after.
        told = listen(reader, child, rng.randrange(8, 60) if round_ % 10 else 0, rng.random() * 0.005)
        begun = [int(number) for word, *numbers in told if word == "begin" for number in numbers]
        sure = {int(number) for word, *numbers in told if word == "sure" for number in numbers}
        writes = [(int(slot), int(name)) for word, *rest in told if word == "to" for slot, name in [rest]]
        flushes = [int(before) for word, *rest in told if word == "flushed" for before in rest]
        durable = max(flushes, default=0)
        kept = on_disk[kind] | dict(writes[:durable])
        open_slots = {slot for slot, _ in writes[durable:]}
        with start(path, kind) as stack:
            assert stack.disk is not None
            found = set(stack.disk.recovered()[1].hash.tolist())
            expected = {name for slot, name in kept.items() if slot not in open_slots}
            assert expected <= found, f"{len(expected - found)} of {len(expected)} blocks are gone"
            if kind.name == "large":
                must |= sure
                for number in sorted(must):
                    assert (stack.find(prompt(BLOCKS, number)) == DISK).all(), f"{number} was flushed, and is not found"
            # Every byte that is served is compared.
            for number in {*begun[-12:], *rng.sample(sorted(must), min(len(must), 8))}:
                totals["served"] += serve(stack, prompt(BLOCKS, number))["disk"]
            stack.drain()
            attrs = stack.stats().attrs
            counted = {key: attrs[f"disk_{key}"] for key in ("corrupt_blocks", "damaged_entries", "read_failures")}
            # No power was lost: what is named is whole.
            assert not any(counted.values()), counted
            assert stack.stats()["in_use"].values.tolist() == [0, 0, 0]
            on_disk[kind] = slots_of(stack)
        totals["rounds"] += 1
        totals["begun"] += len(begun)
        totals["flushes"] += len(flushes)
        totals["sure"] += len(sure)
        totals["checked"] += len(expected)
        totals["overwritten"] += len(kept) - len(expected)
    return totals


def slots_of(stack: TierStack) -> dict[int, int]:
    """Return which block lies in which slot of the disk, all copies having ended."""
    assert stack.drain(30)
    names = stack._directory.held(DISK)
    return dict(zip(stack._directory.slot_of(DISK, names).tolist(), names.tolist(), strict=True))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
