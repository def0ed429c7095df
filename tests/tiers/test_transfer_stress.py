"""Random graphs of transfers, random failures and cancellations, against a plain account of what must hold."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gates import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalab.tiers import Transfer, TransferEngine

PATHS = ("a", "b", "c")


@dataclass
class Account:
    """What movers and callbacks saw, in one order of events."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    events: list[tuple[str, int, int, int]] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 0))
    most: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 0))

    def note(self, what: str, transfer: Transfer, lo: int = 0, hi: int = 0) -> None:
        with self.lock:
            assert isinstance(transfer.payload, int)
            self.events.append((what, transfer.payload, lo, hi))
            if what in ("begin", "end"):
                self.running[transfer.path] += 1 if what == "begin" else -1
                self.most[transfer.path] = max(self.most[transfer.path], self.running[transfer.path])


plans = st.lists(
    st.tuples(
        st.sampled_from(PATHS),
        st.integers(0, 9),  # blocks
        st.integers(-1, 1),  # priority
        st.lists(st.integers(1, 4), max_size=3),  # comes after those so many places before
        st.sampled_from(["ok", "ok", "ok", "raise", "deny", "cancel"]),
        st.booleans(),  # submitted together with the next
    ),
    max_size=25,
)


@pytest.fixture(autouse=True, scope="module")
def _often_another_thread() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@settings(max_examples=120)
@given(plans, st.integers(1, 3), st.integers(1, 5), st.sampled_from([None, 3, 12]), st.booleans())
def test_every_block_has_one_outcome(
    plan: list[tuple[Any, ...]], concurrency: int, batch: int, bound: int | None, drain: bool
) -> None:
    account = Account()
    fates = [fate for *_, fate, _ in plan]

    def mover(transfer: Transfer, lo: int, hi: int) -> np.ndarray:
        account.note("begin", transfer, lo, hi)
        try:
            fate = fates[int(transfer.payload)]  # type: ignore[call-overload]
            if fate == "raise" and lo % 2 == 0:
                raise OSError(5, "as planned")
            return np.arange(lo, hi) % 3 != 0 if fate == "deny" else np.ones(hi - lo, bool)
        finally:
            account.note("end", transfer, lo, hi)

    engine = TransferEngine(
        dict.fromkeys(PATHS, mover),
        concurrency=concurrency,
        batch=batch,
        max_pending_blocks=bound,
        on_done=lambda transfer: account.note("done", transfer),
        block_bytes=7,
    )
    transfers: list[Transfer] = []
    links: list[list[int]] = []
    cancelled: dict[int, int] = {}
    together: list[Transfer] = []
    with engine:
        for i, (path, n, priority, back, _, with_next) in enumerate(plan):
            links.append(sorted({i - step for step in back if step <= i}))
            slots = np.arange(n)
            transfers.append(
                Transfer(path, slots, slots, priority=priority, after=[transfers[j] for j in links[i]], payload=i)
            )
            together.append(transfers[-1])
            if with_next and i + 1 < len(plan):
                continue
            assert engine.submit(together, timeout=PATIENCE)
            for transfer in together:
                if fates[int(transfer.payload)] == "cancel":  # type: ignore[call-overload]
                    cancelled[int(transfer.payload)] = transfer.cancel()  # type: ignore[call-overload]
            together = []
        if drain:
            assert engine.drain(PATIENCE)
    check(plan, transfers, links, cancelled, account, engine, concurrency, batch)


def check(
    plan: list[tuple[Any, ...]],
    transfers: list[Transfer],
    links: list[list[int]],
    cancelled: dict[int, int],
    account: Account,
    engine: TransferEngine,
    concurrency: int,
    batch: int,
) -> None:
    """Compare what happened with what had to."""
    done_at = {i: k for k, (what, i, _, _) in enumerate(account.events) if what == "done"}
    assert sorted(i for what, i, _, _ in account.events if what == "done") == list(range(len(plan))), "each once"
    for k, (what, i, _, _) in enumerate(account.events):
        if what == "begin":
            assert all(done_at[j] < k for j in links[i]), "a batch began before what it comes after had ended"
            assert k < done_at[i]
    moved = 0
    for i, (path, n, _, _, fate, _) in enumerate(plan):
        transfer = transfers[i]
        assert transfer.done()
        ranges = [(lo, hi) for what, j, lo, hi in account.events if (what, j) == ("begin", i)]
        seen = [block for lo, hi in sorted(ranges) for block in range(lo, hi)]
        assert seen == list(range(n - cancelled.get(i, 0))), "every block is moved once, unless it is cancelled"
        assert all(hi - lo <= batch for lo, hi in ranges)
        ok = [
            block < len(seen)
            and not (fate == "deny" and block % 3 == 0)
            and not (fate == "raise" and next(lo for lo, hi in ranges if lo <= block < hi) % 2 == 0)
            for block in range(n)
        ]
        assert transfer.ok.tolist() == ok
        assert bool(transfer.errors) == (not all(ok)), (path, transfer.errors)
        moved += sum(ok)
    stats = engine.stats()
    assert sum(s.blocks_done for s in stats.values()) == moved
    assert sum(s.bytes_done for s in stats.values()) == 7 * moved
    assert sum(s.blocks_cancelled for s in stats.values()) == sum(cancelled.values())
    assert sum(s.blocks_done + s.blocks_failed + s.blocks_cancelled for s in stats.values()) == sum(
        n for _, n, *_ in plan
    )
    for path in PATHS:
        assert account.most[path] <= concurrency
        assert stats[path].most_in_flight <= concurrency
        assert (stats[path].pending_blocks, stats[path].in_flight) == (0, 0)
        assert stats[path].batches == sum(what == "end" and plan[i][0] == path for what, i, _, _ in account.events)
        assert stats[path].busy_s >= 0
    names = [thread.name for thread in threading.enumerate()]
    # Helpers of large copies stay for the next one.
    assert not [name for name in names if name.startswith("dynalab-") and not name.startswith("dynalab-copy")]
