"""The host tier: the conformance suite, sizes, kinds of pages, and what a machine without room answers."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import numpy as np
import pytest

from dynalab.errors import ConfigError, DeviceMemoryError, LayoutError, TierError
from dynalab.kernels import gpu_available
from dynalab.kv import KVLayout
from dynalab.pools import available_memory
from dynalab.testing import TierTests
from dynalab.tiers import BlockKeys, HostTier
from dynalab.tiers.tier import slot_count

LAYOUT = KVLayout(num_layers=4, outer=2, page_tokens=16, inner=64)  # 16 KiB blocks


class TestHostTier(TierTests):
    def make_tier(self, layout: KVLayout, capacity: int) -> HostTier:
        return HostTier(layout, capacity=capacity)


class TestPageableHostTier(TierTests):
    def make_tier(self, layout: KVLayout, capacity: int) -> HostTier:
        tier = HostTier(layout, capacity=capacity, pinned=False, lock=False)
        assert not tier.capabilities.locked
        return tier


@pytest.mark.parametrize(
    ("size", "slots"),
    [("16KiB", 1), ("32767", 1), (32_768, 2), ("1MiB", 64), ("1MB", 61), ("0.0001 GiB", 6)],
)
def test_a_size_is_so_many_blocks(size: str | int, slots: int) -> None:
    with HostTier(LAYOUT, size, pinned=False) as tier:
        assert tier.capacity == slots
        assert tier.stats()["bytes"] == slots * 16_384


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "host: neither of size and capacity given"),
        ({"size": "1MiB", "capacity": 3}, "host: both of size and capacity given"),
        ({"size": "16383"}, r"room for one block of 16 KiB \(16384 bytes\); make it larger"),
        ({"size": 0}, "host: a size of 0 B has no room for one block"),
        ({"size": "lots"}, "host size: 'lots' is not a size"),
        ({"size": -1}, "host size: -1 is negative"),
        ({"capacity": 0}, "host: capacity 0 is not a number of blocks"),
        ({"capacity": -5}, "capacity -5 is not"),
        ({"capacity": 2.0}, r"capacity 2\.0 is not"),
        ({"capacity": True}, "capacity True is not"),
        ({"capacity": 2**60}, "8 EiB"),
        ({"capacity": 2, "numa_node": 1000}, "numa_node: 1000 cannot be used"),
    ],
)
def test_sizes_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HostTier(LAYOUT, **arguments)  # type: ignore[arg-type]


def test_capacity_of_other_kinds_of_numbers() -> None:
    assert slot_count(None, np.int32(3), 10, "x") == 3


def test_more_than_the_machine_has() -> None:
    with pytest.raises(DeviceMemoryError, match=r"of host memory asked, .* available to this process; make the tier"):
        HostTier(LAYOUT, 2 * available_memory())


def test_pinned_where_there_is_no_gpu() -> None:
    if gpu_available():
        with HostTier(LAYOUT, capacity=2, pinned=True) as tier:
            assert tier.capabilities.pinned
        return
    with pytest.raises(DeviceMemoryError, match="pinned host memory cannot be had"):
        HostTier(LAYOUT, capacity=2, pinned=True)
    with HostTier(LAYOUT, capacity=2) as tier:
        assert not tier.capabilities.pinned


def test_where_pages_may_not_be_locked_the_tier_says_so() -> None:
    """In a process of its own, since the limit cannot be raised again; a capability beyond limits would not obey it."""
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "from dynalab.kv import KVLayout\n"
        "from dynalab.tiers import HostTier\n"
        "tier = HostTier(KVLayout(4, 2, 16, 64), capacity=2, pinned=False)\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "locked = int(next(line for line in lines if line.startswith('VmLck')).split()[1])\n"
        "print(tier.capabilities.locked, locked > 0, tier.stats()['pages'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said, is_locked, pages = done.stdout.split()
    assert said == is_locked
    assert pages == ("locked" if said == "True" else "pageable")
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != 0


def test_tokens_of_nhd_blocks_lie_side_by_side_and_others_do_not() -> None:
    layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=12, heads=3)
    with HostTier(layout, capacity=2, pinned=False) as tier:
        tier.view(1)[:] = np.arange(2 * 2 * 4 * 12).reshape(2, 2, 4, 12)
        assert tier.view_heads(1)[1, 0, 2, 1, 3] == tier.view(1)[1, 0, 2, 1 * 4 + 3]
        assert tier.view_all().shape == (2, 2, 2, 4, 12)
        (start, *_), nbytes = tier.chunks([1])
        raw = np.frombuffer(ctypes.string_at(int(start), nbytes), np.float16)
        assert raw.tolist() == list(range(192))
    for order in ("HND", "universal"):
        with HostTier(layout.with_(head_order=order), capacity=2, pinned=False) as tier:
            with pytest.raises(LayoutError, match=f"the heads of a token lie apart in '{order}' blocks"):
                tier.view(0)
            assert tier.view_heads(0).shape == (2, 2, 4, 3, 4)
    with HostTier(layout.with_(head_order="HND", heads=1), capacity=2, pinned=False) as tier:
        assert tier.view(0).shape == (2, 2, 4, 12), "one head is beside itself"


def test_layers_with_storages_of_their_own_are_one_view() -> None:
    layout = KVLayout(num_layers=3, outer=2, page_tokens=4, inner=6, dtype="float32", order="layer_first", alignment=64)
    with HostTier(layout, capacity=5, pinned=False) as tier:
        assert len(tier.bases) == 3
        assert len(set(np.diff(tier.bases))) == 1
        assert np.diff(tier.bases)[0] >= layout.storage_bytes(5)[0]
        tier.view_all()[...] = np.arange(5 * 3 * 2 * 4 * 6, dtype=np.float32).reshape(5, 3, 2, 4, 6)
        starts, nbytes = tier.regions([4])
        for i, start in enumerate(starts.tolist()):
            region = np.frombuffer(ctypes.string_at(start, nbytes), np.float32).reshape(4, 6)
            assert (region == tier.view(4)[i // 2, i % 2]).all()


@pytest.mark.parametrize("alignment", [1, 4, 512, 1 << 20])
def test_storages_begin_where_layout_and_gpu_want_them(alignment: int) -> None:
    layout = KVLayout(num_layers=3, outer=1, page_tokens=3, inner=7, order="layer_first", alignment=alignment)
    for each in (layout, layout.with_(order="block_first")):
        with HostTier(each, capacity=1, pinned=False) as tier:
            assert [base % max(alignment, 256) for base in tier.bases] == [0] * len(tier.bases)
            tier.view(0)[...] = 5
            assert (tier.view_all() == 5).all()


def test_a_large_alignment_has_room_for_the_whole_block() -> None:
    layout = KVLayout(num_layers=1, outer=1, page_tokens=1, inner=500_000, alignment=1 << 20)
    tiers = [HostTier(layout, capacity=1, pinned=False) for _ in range(3)]
    for tier in tiers:
        tier.fill([0], 9)
    for tier in tiers:
        assert tier.bases[0] % (1 << 20) == 0
        assert (tier.get(0).view(np.uint8) == 9).all()
        tier.close()


def test_a_closed_tier_holds_no_view_of_its_memory() -> None:
    tier = HostTier(LAYOUT, capacity=2, pinned=False)
    tier.fill([0])
    assert tier.view(0).shape == (4, 2, 16, 64)
    tier.close()
    assert not [name for name, value in vars(tier).items() if isinstance(value, np.ndarray)]


def test_keys_belong_together() -> None:
    with pytest.raises(TierError, match=r"lengths \[2, 1, 2, 2\]; give one of each"):
        BlockKeys(np.zeros(2, np.uint64), np.zeros(1, np.uint64), np.zeros(2, np.int32), np.zeros(2, np.int32))
    keys = BlockKeys.of(np.arange(4, dtype=np.uint64), priority=[4, 3, 2, 1])
    some = keys[np.array([True, False, False, True])]
    assert (some.hash.tolist(), some.priority.tolist(), some.parent.tolist()) == ([0, 3], [4, 1], [0, 0])
    assert (some.hash.dtype, some.priority.dtype) == (np.uint64, np.int32)
