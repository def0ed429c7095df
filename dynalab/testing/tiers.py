"""The laws that every memory tier obeys, wherever it keeps its blocks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from dynalab.errors import TierClosed, TierError
from dynalab.kv import KVLayout
from dynalab.testing.tier_content import Content, content_of
from dynalab.tiers import BlockKeys, MemoryTier, StorageTier, Tier
from dynalab.tiers.tier import READ_OK, READ_STALE

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("dynalab.testing needs hypothesis: install dynalab with its extra 'test'") from error

# All tiers inherit the same test functions, and the verdict on a tier must not change from run to run.
_laws = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
_BASE: Final = KVLayout(num_layers=3, outer=2, page_tokens=4, inner=12, heads=3)
#: Every order that a layout may have, odd sizes, and paddings small and large.
LAYOUTS: Final = {
    "block_first": _BASE,
    "HND": _BASE.with_(head_order="HND"),
    "universal": _BASE.with_(head_order="universal"),
    "layer_first": _BASE.with_(order="layer_first"),
    "layer_first by block": _BASE.with_(order="layer_first", outer_contiguous=False),
    "layer_first HND": _BASE.with_(order="layer_first", head_order="HND"),
    "odd bytes": KVLayout(num_layers=1, outer=1, page_tokens=3, inner=7, dtype="fp8_e4m3"),
    "MLA": KVLayout(num_layers=5, outer=1, page_tokens=2, inner=9, dtype="bfloat16"),
    "aligned": _BASE.with_(alignment=256),
    "layers aligned to pages": _BASE.with_(order="layer_first", alignment=8192),
    "more than a page": KVLayout(num_layers=2, outer=2, page_tokens=16, inner=128, dtype="float32", heads=2),
}
_each_layout = pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))


class TierTests:
    """Conformance suite of :mod:`dynalab.tiers`; subclass it and say how to open the candidate.

    Attributes
    ----------
    durable : bool
        Set it for tiers whose blocks survive: then the suite closes them and opens them again, and demands the blocks.

    Examples
    --------
    >>> class TestHost(TierTests):
    ...     def make_tier(self, layout, capacity):
    ...         from dynalab.tiers import HostTier
    ...
    ...         return HostTier(layout, capacity=capacity)
    """

    durable: bool = False

    def make_tier(self, layout: KVLayout, capacity: int) -> Tier:
        """Return a new, empty tier."""
        raise NotImplementedError("say how to open the tier")

    def reopen_tier(self, layout: KVLayout, capacity: int) -> Tier:
        """Open the tier again that `make_tier` opened last and that was closed; for durable tiers."""
        raise NotImplementedError("say how to open the tier again")

    @_each_layout
    def test_every_slot_keeps_its_bytes(self, layout: KVLayout) -> None:
        """Blocks written in any order come back bit by bit, and rewriting one changes no other."""
        with self.make_tier(layout, 7) as tier:
            content, rng = content_of(tier), np.random.default_rng(7)
            for slot in [*rng.permutation(7).tolist(), 3, 0, 6, 3]:
                content.write(slot, content.random(rng))
                content.audit()

    @_each_layout
    def test_facts_are_true(self, layout: KVLayout) -> None:
        """Names, sizes and capabilities say what the tier is."""
        with self.make_tier(layout, 3) as tier:
            facts = tier.capabilities
            assert tier.name in ("device", "host", "disk")
            assert (tier.layout, tier.capacity, tier.block_bytes) == (layout, 3, layout.block_bytes)
            assert facts.addressable == isinstance(tier, MemoryTier) != isinstance(tier, StorageTier)
            assert facts.durable == self.durable
            assert bool(facts.device_label) == (tier.name == "device")
            assert facts.cpu_access <= facts.addressable
            assert facts.pinned <= facts.locked
            stats = tier.stats()
            assert (stats["name"], stats["capacity"], stats["block_bytes"]) == (tier.name, 3, layout.block_bytes)
            assert stats["device_label"] == facts.device_label
            if isinstance(tier, MemoryTier) and facts.locked and not facts.pinned:
                assert "lo" in _page_flags(tier.bases[0])

    @_each_layout
    def test_slots_that_do_not_exist(self, layout: KVLayout) -> None:
        """They are refused before anything is touched, and the refusal names the culprit."""
        with self.make_tier(layout, 3) as tier:
            content = content_of(tier)
            for slot in range(3):
                content.write(slot, content.random(np.random.default_rng(slot)))
            for bad in (-1, 3, 2**31, -(2**40), 2**64 - 1):
                for act in _uses(tier):
                    with pytest.raises(TierError, match=f"{tier.name}: slot {bad} does not exist; slots are 0 to 2"):
                        act(np.array([0, bad], np.uint64 if bad > 2**62 else np.int64))
            for odd in ([0.0], [True], [[0]], ["0"]):
                for act in _uses(tier):
                    with pytest.raises(TierError, match="slots are one row of integers"):
                        act(odd)
            content.audit()
            for act in _uses(tier):
                act([])
            content.audit()

    def test_closing(self) -> None:
        """A closed tier says so to whoever uses it, and may be closed again."""
        tier = self.make_tier(_BASE, 3)
        assert not tier.closed
        uses = _uses(tier)
        with tier as same:
            assert same is tier
        assert tier.closed
        tier.close()
        for act in uses:
            for slots in ([0], [], [99]):
                with pytest.raises(TierClosed):
                    act(slots)
        assert "closed" in repr(tier)
        assert tier.stats()["capacity"] == 3

    @_each_layout
    def test_distinct_slots_from_many_threads(self, layout: KVLayout) -> None:
        """Threads that each keep to their own slots do not see each other."""
        with self.make_tier(layout, 24) as tier, ThreadPoolExecutor(6) as pool:
            parts = [content_of(tier) for _ in range(6)]

            def work(mine: int) -> None:
                rng = np.random.default_rng(mine)
                for _ in range(12):
                    parts[mine].write(6 * int(rng.integers(4)) + mine, parts[mine].random(rng))
                    parts[mine].audit()

            for done in [pool.submit(work, i) for i in range(6)]:
                done.result()
            for part in parts:
                part.audit()

    @_each_layout
    def test_tables_show_what_views_show(self, layout: KVLayout) -> None:
        """Memory: the pieces of all blocks lie apart, within the memory, and hold the bytes of the views."""
        with self.make_tier(layout, 5) as tier:
            if not isinstance(tier, MemoryTier):
                pytest.skip("only memory has addresses")
            content = content_of(tier)
            slots = np.array([3, 0, 4, 2, 1])
            for slot in slots.tolist():
                content.write(slot, content.random(np.random.default_rng(slot)))
            starts, nbytes = tier.chunks(slots)
            assert starts.dtype == np.uint64
            assert len(starts) * nbytes == 5 * layout.block_bytes
            assert np.all(np.diff(np.sort(starts)) >= nbytes)
            assert all(base % layout.alignment == 0 for base in tier.bases)
            if tier.capabilities.cpu_access:
                for slot, pieces in zip(slots.tolist(), starts.reshape(5, -1).tolist(), strict=True):
                    held = b"".join(ctypes.string_at(start, nbytes) for start in pieces)
                    assert held == _in_order(layout, tier.get(slot))
            tier.fill([1, 4], 0xA5)
            assert np.ascontiguousarray(tier.get(4)).tobytes() == b"\xa5" * layout.block_bytes
            content.expect(1, b"\xa5" * layout.block_bytes)
            content.expect(4, b"\xa5" * layout.block_bytes)
            content.audit()

    def test_what_is_no_block_is_refused(self) -> None:
        """Memory: values of another shape or type are not cast, and nothing is written."""
        with self.make_tier(_BASE, 2) as tier:
            if not isinstance(tier, MemoryTier):
                pytest.skip("only memory is written by value")
            before = tier.get(0)
            for wrong in (before.astype(np.float32), before[:2], before.reshape(-1), np.float16(1)):
                with pytest.raises(TierError, match="is no block; give float16 of shape"):
                    tier.put(0, np.asarray(wrong))
            tier.put(0, (before + 1).reshape(3, 2, 4, 12))
            assert (tier.get(0) == before + 1).all()
            for several in ([0], [0, 1], np.array([1])):
                with pytest.raises(TierError, match="is not one slot"):
                    tier.view(several)  # type: ignore[arg-type]

    @_laws
    @given(
        st.sampled_from(sorted(LAYOUTS)),
        st.lists(st.tuples(st.sampled_from(["write", "write", "audit", "forget"]), st.integers(0, 4)), max_size=30),
        st.integers(0, 2**32),
    )
    def test_any_sequence_of_operations(self, layout: str, steps: list[tuple[str, int]], seed: int) -> None:
        """Writing, reading and forgetting blocks agrees with a dictionary."""
        with self.make_tier(LAYOUTS[layout], 5) as tier:
            content, rng = content_of(tier), np.random.default_rng(seed)
            for what, slot in steps:
                if what == "write":
                    content.write(slot, content.random(rng))
                elif what == "forget":
                    content.forget(slot)
                else:
                    content.audit()
            content.audit()

    def test_a_block_is_served_to_its_name_only(self) -> None:
        """Storage: what was never written, forgotten, or belongs to another block is stale."""
        with self.make_tier(_BASE, 4) as tier:
            if not isinstance(tier, StorageTier):
                pytest.skip("memory does not know whose blocks it holds")
            blocks = np.arange(4 * tier.block_bytes, dtype=np.uint8).reshape(4, -1)
            places = np.array([row.ctypes.data for row in blocks], np.uint64)
            target = np.zeros_like(blocks)
            targets = np.array([row.ctypes.data for row in target], np.uint64)
            assert tier.read([0, 1], targets[:2], np.array([5, 6], np.uint64)).tolist() == [READ_STALE] * 2
            keys = BlockKeys.of([5, 6, 7], parent=[0, 5, 6], position=[0, 1, 2])
            assert tier.write([2, 0, 3], places[:3], keys).tolist() == [True] * 3
            status = tier.read([0, 2, 3, 1], targets, np.array([6, 5, 5, 5], np.uint64))
            assert status.tolist() == [READ_OK, READ_OK, READ_STALE, READ_STALE]
            assert (target[:2] == blocks[[1, 0]]).all()
            tier.forget([2])
            assert tier.read([2, 0], targets[:2], np.array([5, 6], np.uint64)).tolist() == [READ_STALE, READ_OK]

    def test_blocks_survive(self) -> None:
        """Durable tiers: after closing and opening again, the blocks are there, oldest first, and nothing else."""
        if not self.durable:
            pytest.skip("the tier does not claim to be durable")
        with self.make_tier(_BASE, 6) as tier:
            assert isinstance(tier, StorageTier)
            content = content_of(tier)
            for slot in (4, 1, 0, 5, 4):
                content.write(slot, content.random(np.random.default_rng(slot)))
            content.forget(0)
            tier.flush()
        with self.reopen_tier(_BASE, 6) as again:
            assert isinstance(again, StorageTier)
            slots, keys = again.recovered()
            assert slots.tolist() == [1, 5, 4]
            assert keys.hash.tolist() == [content.hashes[slot] for slot in (1, 5, 4)]
            content.tier = again
            content.audit()


def _uses(tier: Tier) -> list[Callable[[Any], object]]:
    """Every way to name slots to a tier."""
    if isinstance(tier, MemoryTier):
        regions = [] if tier.layout.head_order == "universal" else [tier.regions]
        return [tier.chunks, tier.origins, tier.fill, *regions]
    assert isinstance(tier, StorageTier)
    room = np.zeros(2 * tier.block_bytes, np.uint8)

    def places(slots: Any) -> npt.NDArray[np.uint64]:
        return (room.ctypes.data + np.arange(len(slots)) * tier.block_bytes).astype(np.uint64)

    def write(slots: Any) -> None:
        tier.write(slots, places(slots), BlockKeys.of(np.arange(len(slots), dtype=np.uint64)))

    def read(slots: Any) -> None:
        tier.read(slots, places(slots), np.zeros(len(slots), np.uint64))

    return [write, read, tier.forget]


def _in_order(layout: KVLayout, block: npt.NDArray[Any]) -> bytes:
    """Return the bytes of a block (layers, outer, tokens, heads, head_dim) in the order of its layout's pieces."""
    axes = {"NHD": (0, 1, 2, 3, 4), "HND": (0, 1, 3, 2, 4), "universal": (3, 0, 1, 2, 4)}[layout.head_order]
    return np.ascontiguousarray(block.transpose(axes)).tobytes()


def _page_flags(address: int) -> list[str]:
    """Return the flags that the kernel keeps for the mapping that holds an address."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            first, *rest = line.split()
            if not first.endswith(":"):
                begin, end = (int(part, 16) for part in first.split("-"))
                inside = begin <= address < end
            elif inside and first == "VmFlags:":
                return rest
    raise AssertionError(f"no mapping holds {address:#x}")


__all__ = ["LAYOUTS", "Content", "TierTests"]
