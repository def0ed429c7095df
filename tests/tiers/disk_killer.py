"""Kills a process that writes to a disk tier, again and again, and checks each time what the next one finds.

A process of its own, so that forking is safe: no thread lives in it while it forks. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np
from disk_blocks import Blocks, name_of

from dynalab.kv import KVLayout
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.tier import READ_OK

#: Blocks of 5 pages and a bit: direct I/O by way of aligned buffers, several sectors to be cut between.
LAYOUT = KVLayout(num_layers=5, outer=1, page_tokens=16, inner=129)
SLOTS = 24
BEGIN, DONE = 0, 1
#: Kind of message, slot, number of the block or -1 for none.
MESSAGE = struct.Struct("<qqq")


def open_tier(path: Path) -> DiskTier:
    return DiskTier(LAYOUT, capacity=SLOTS, path=path, threads=2)


def write_until_killed(path: Path, pipe: int, seed: int, first: int) -> None:
    """Two threads write and forget at random, each in its own half of the slots, and tell before and after."""
    tier = open_tier(path)
    numbers = iter(range(first, first + 10**9))

    def tell(kind: int, slots: list[int], blocks: list[int]) -> None:
        # One write below the size of a pipe's atomic ones: what has been told has been told whole.
        os.write(pipe, b"".join(MESSAGE.pack(kind, *pair) for pair in zip(slots, blocks, strict=True)))

    def run(half: int) -> None:
        rng, blocks = random.Random(seed * 2 + half), Blocks(tier)
        while True:
            slots = rng.sample(range(half * SLOTS // 2, (half + 1) * SLOTS // 2), rng.randint(1, 6))
            forget = rng.random() < 0.15
            new = [-1 if forget else next(numbers) for _ in slots]
            tell(BEGIN, slots, new)
            if forget:
                tier.forget(slots)
            else:
                assert blocks.write(slots, new).all()
            if rng.random() < 0.05:
                tier.flush()
            tell(DONE, slots, new)

    threads = [threading.Thread(target=run, args=(half,)) for half in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join()


def told(pipe: int) -> list[tuple[int, int, int]]:
    """Return all messages of a dead writer."""
    data = b""
    while part := os.read(pipe, 1 << 16):
        data += part
    os.close(pipe)
    return list(MESSAGE.iter_unpack(data))


def main(path: Path, rounds: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    sure: dict[int, int] = dict.fromkeys(range(SLOTS), -1)
    totals = {"rounds": 0, "acknowledged": 0, "in_flight": 0, "found": 0, "killed_before_the_first_write": 0}
    open_tier(path).close()
    for round_ in range(rounds):
        reader, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                write_until_killed(path, pipe, rng.randrange(2**32), round_ << 20)
            finally:
                os._exit(1)
        os.close(pipe)
        if round_ % 10:  # every tenth is killed while it opens
            # On a busy machine, too, most have something to lose.
            first, enough = b"", MESSAGE.size * rng.randrange(1, 40)
            while len(first) < enough and (part := os.read(reader, enough - len(first))):
                first += part
            time.sleep(rng.random() * 0.01)
        else:
            first = b""
            time.sleep(rng.random() * 0.004)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the writer failed by itself"
        open_questions: dict[int, set[int]] = {}
        messages = list(MESSAGE.iter_unpack(first)) + told(reader)
        for kind, slot, number in messages:
            if kind == BEGIN:
                open_questions[slot] = {sure[slot], number, -1}
            else:
                sure[slot] = number
                del open_questions[slot]
                totals["acknowledged"] += 1
        totals["in_flight"] += len(open_questions)
        totals["killed_before_the_first_write"] += not messages
        with open_tier(path) as tier:
            slots, keys = tier.recovered()
            # Not one of them corrupt: no power was lost, so what is named must be whole. The bytes are compared, too.
            assert (Blocks(tier).check(slots, keys.hash) == READ_OK).all(), tier.last_errors
            stats = tier.stats()
            assert (stats["damaged_entries"], stats["superseded_entries"]) == (0, 0)
            found = dict(zip(slots.tolist(), keys.hash.tolist(), strict=True))
            expected_keys = {name_of(n): n for slot in range(SLOTS) for n in open_questions.get(slot, {sure[slot]})}
            for slot in range(SLOTS):
                allowed = open_questions.get(slot, {sure[slot]})
                number = expected_keys.get(found[slot]) if slot in found else -1
                assert number in allowed, f"slot {slot}: found {number}, allowed {allowed}"
                sure[slot] = number
            whole = Blocks.keys([expected_keys[h] for h in keys.hash.tolist()])
            np.testing.assert_array_equal(keys.parent, whole.parent)
            np.testing.assert_array_equal(keys.position, whole.position)
        totals["rounds"] += 1
        totals["found"] += len(found)
    return totals


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
