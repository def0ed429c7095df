"""What a stack can be told: policies and filters for each tier, limits of the engine, numbers for hashes."""

from __future__ import annotations

import threading
from pathlib import Path

from stack_cases import PATIENCE, Trouble, assert_sound, open_stack, prompt, serve, trouble

from dynalab.tiers import Filter, StackConfig

__all__ = ["trouble"]


def test_a_policy_for_each_tier() -> None:
    for policy, survivor in (("fifo", 2), ("lru", 1), ({"host": "lfu"}, 1), ({"device": "fifo"}, 2)):
        with open_stack(None, device=4, host=0, policy=policy) as stack:
            for seed in (1, 2, 1, 3):
                serve(stack, prompt(2, seed))
            assert [seed for seed in (1, 2) if (stack.find(prompt(2, seed)) == 0).all()] == [survivor]
    with open_stack(None, policy={"device": "fifo", "host": "s3fifo"}) as stack:
        assert stack.policies == ("fifo", "s3fifo", "lru")
        assert stack.stats().attrs["policies"] == "device: fifo, host: s3fifo, disk: lru"


def test_an_admission_filter_for_each_tier(tmp_path: Path) -> None:
    again = prompt(4, 1)
    cases: list[tuple[dict, int, list[int]]] = [
        ({}, 1, [4, 4]),
        ({"admission": "frequency"}, 1, [4, 0]),
        ({"admission": "frequency"}, 2, [4, 4]),
        ({"admission": {"host": "frequency"}}, 1, [0, 0]),
        ({"admission": {"host": Filter("priority", min_priority=50)}}, 1, [0, 0]),
        ({"admission": {"host": Filter("frequency", min_frequency=3)}}, 2, [0, 0]),
        ({"mode": "selective"}, 1, [0, 0]),
        ({"mode": "selective"}, 2, [4, 4]),
        ({"mode": "selective", "admit_after": 3}, 2, [0, 0]),
        ({"mode": "selective", "admit_after": 3}, 3, [4, 4]),
    ]
    for number, (options, times, expected) in enumerate(cases):
        with open_stack(tmp_path / str(number), touch="all", **options) as stack:
            for _ in range(times):
                serve(stack, again)
                # Registered anew each time: it is what offers a block.
                stack.drain()
                stack._directory.clear(0)
            assert stack.stats()["resident"].values.tolist()[1:] == expected, (options, times)
    with open_stack(tmp_path, admission={"host": Filter("priority", min_priority=50)}) as stack:
        serve(stack, again, priority=80)
        assert stack.stats()["resident"].sel(tier="host") == 4
        assert stack.stats().attrs["admissions"] == "device: all, host: priority, disk: all"


def test_settings_reach_the_engine(trouble: Trouble, tmp_path: Path) -> None:
    config = StackConfig.from_env(
        {"DYN_KVBM_MAX_CONCURRENT_TRANSFERS": "2", "DYN_KVBM_TRANSFER_BATCH_SIZE": "3", "DYN_KVBM_DISK_CACHE_GB": "1"}
    )
    with open_stack(tmp_path, device=20, host=40, config=config) as stack:
        assert (stack._flow.engine.concurrency, stack._flow.engine.batch) == (2, 3)
        gate = trouble.stop("device_to_host")
        sizes: list[int] = []
        lock = threading.Lock()

        def note(mover, transfer, lo, hi):  # type: ignore[no-untyped-def]
            with lock:
                sizes.append(hi - lo)
            return mover(transfer, lo, hi)

        trouble.fault = note
        serve(stack, prompt(20, 1))
        for _ in range(2):
            assert trouble.begun.acquire(timeout=PATIENCE)
        assert not trouble.begun.acquire(timeout=0.05)  # no third one beside them
        gate.set()
        stack.drain()
        assert stack._flow.engine.stats()["device_to_host"].most_in_flight == 2
        assert set(sizes) <= {1, 2, 3}
        assert 3 in sizes


def test_few_numbers_for_hashes(tmp_path: Path) -> None:
    """As many as there are slots: those of blocks that are gone are given to others, and nothing is mixed up."""
    with open_stack(tmp_path, device=6, host=6, disk=12, id_capacity=24) as stack:
        for seed in range(60):
            serve(stack, prompt(4, seed % 25, shared=2, topic=seed % 3))
        assert_sound(stack)
