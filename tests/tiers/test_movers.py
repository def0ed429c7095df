"""The movers: every path between tiers of every pair of layouts, and what they say of blocks that do not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import PATIENCE
from memory_storage import MemoryStorage

import dynalab.kernels
from dynalab.errors import (
    ConfigError,
    CorruptBlock,
    DeviceMemoryError,
    LayoutError,
    TierClosed,
    TierError,
    TransferError,
)
from dynalab.kernels import gpu_available, why_no_gpu
from dynalab.kv import KVLayout
from dynalab.pools import BufferPool
from dynalab.testing import TierTests
from dynalab.testing.tiers import LAYOUTS
from dynalab.tiers import BlockKeys, Capabilities, DeviceTier, HostTier, MemoryTier, Transfer, TransferEngine
from dynalab.tiers.copying import SizeRule
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.movers import movers, needs_bounce

BASE = LAYOUTS["block_first"]
FAMILY = {name: layout for name, layout in LAYOUTS.items() if layout.compatible(BASE)}
_EACH = pytest.mark.parametrize("source", list(FAMILY.values()), ids=list(FAMILY))
_TO_EACH = pytest.mark.parametrize("target", list(FAMILY.values()), ids=list(FAMILY))
GPU = pytest.param(
    0, marks=[pytest.mark.gpu, pytest.mark.skipif(not gpu_available(), reason=why_no_gpu() or "there is a GPU")]
)
DEVICES = pytest.mark.parametrize("where", ["host-emulated", GPU])


class TestMemoryStorage(TierTests):
    def make_tier(self, layout: KVLayout, capacity: int) -> MemoryStorage:
        return MemoryStorage(layout, capacity)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def randomized(tier: MemoryTier, seed: int) -> list[bytes]:
    """Fill a tier with random bytes, and return the content of each slot."""
    rng = np.random.default_rng(seed)
    for slot in range(tier.capacity):
        view = tier.view_heads(slot)
        tier.put(slot, np.frombuffer(rng.bytes(tier.block_bytes), view.dtype).reshape(view.shape))
    return contents(tier)


def contents(tier: MemoryTier) -> list[bytes]:
    return [tier.get(slot).tobytes() for slot in range(tier.capacity)]


def keys_of(slots: np.ndarray) -> BlockKeys:
    return BlockKeys.of(slots.astype(np.uint64) + 1000, parent=slots.astype(np.uint64) + 999, position=slots)


def test_the_family_holds_all_orders() -> None:
    assert {(layout.order, layout.head_order, layout.alignment > 1) for layout in FAMILY.values()} >= {
        ("block_first", "NHD", False),
        ("block_first", "NHD", True),
        ("block_first", "HND", False),
        ("block_first", "universal", False),
        ("layer_first", "NHD", False),
        ("layer_first", "NHD", True),
        ("layer_first", "HND", False),
    }


@DEVICES
@_EACH
@_TO_EACH
def test_between_device_and_host(stack: ExitStack, source: KVLayout, target: KVLayout, where: Any) -> None:
    device = stack.enter_context(DeviceTier(source, capacity=6, device=where))
    host = stack.enter_context(HostTier(target, capacity=9))
    paths = movers(device, host)
    assert set(paths) == {"device_to_host", "host_to_device"}
    sent, expected = randomized(device, 1), randomized(host, 2)
    transfer = Transfer("device_to_host", [5, 0, 3, 0], [1, 8, 2, 4])
    assert paths["device_to_host"](transfer, 0, 1).tolist() == [True]
    expected[1] = sent[5]
    assert contents(host) == expected
    assert paths["device_to_host"](transfer, 1, 4).tolist() == [True] * 3
    expected[8], expected[2], expected[4] = sent[0], sent[3], sent[0]
    assert contents(host) == expected
    assert paths["host_to_device"](Transfer("host_to_device", [0, 8], [4, 1]), 0, 2).all()
    sent[4], sent[1] = expected[0], expected[8]
    assert contents(device) == sent


@DEVICES
@_EACH
@_TO_EACH
@pytest.mark.parametrize("room", [1, 3, 16])
def test_through_the_disk(stack: ExitStack, source: KVLayout, target: KVLayout, where: Any, room: int) -> None:
    device = stack.enter_context(DeviceTier(source, capacity=8, device=where))
    host = stack.enter_context(HostTier(source.with_(alignment=64), capacity=8))
    disk = stack.enter_context(MemoryStorage(target, 20))
    bounce = stack.enter_context(BufferPool(2, room * disk.block_bytes))
    paths = movers(device, host, disk, bounce=bounce)
    for tier, seed in ((device, 1), (host, 2)):
        before = randomized(tier, seed)
        disk.largest = 0
        src, dst = np.array([7, 1, 4, 0, 6]), np.array([3, 19, 0, 7, 11])
        down = Transfer(f"{tier.name}_to_disk", src, dst, payload=keys_of(dst))
        assert np.concatenate([paths[down.path](down, 0, 4), paths[down.path](down, 4, 5)]).all()
        assert contents(tier) == before
        assert disk.largest == (min(room, 4) if needs_bounce(tier, disk) else 4)
        up = Transfer(f"disk_to_{tier.name}", dst[::-1], [5, 3, 2, 1, 0], payload=keys_of(dst[::-1]))
        assert np.concatenate([paths[up.path](up, 0, 3), paths[up.path](up, 3, 5)]).all()
        for to, slot in zip([5, 3, 2, 1, 0], src[::-1].tolist(), strict=True):
            assert tier.get(to).tobytes() == before[slot]
        assert contents(tier)[6:] == before[6:]
    assert bounce.available == 2


def test_which_blocks_bounce(stack: ExitStack) -> None:
    disks = {name: MemoryStorage(layout, 1) for name, layout in FAMILY.items()}
    for name, layout in FAMILY.items():
        tier = stack.enter_context(HostTier(layout, capacity=1))
        straight = {other for other, disk in disks.items() if not needs_bounce(tier, disk)}
        same_heads = {other for other, disk in disks.items() if disk.layout.head_order == layout.head_order}
        assert straight == (same_heads if layout.order == "block_first" else set()), name


def test_blocks_of_a_gpu_bounce_unless_the_disk_reaches_it(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    device = stack.enter_context(DeviceTier(BASE, capacity=1, device="host-emulated"))
    disk = MemoryStorage(BASE, 1)
    assert not needs_bounce(device, disk)
    device._label = "cuda:0"
    assert needs_bounce(device, disk)
    monkeypatch.setattr(MemoryStorage, "capabilities", Capabilities(gpu_direct=True))
    assert not needs_bounce(device, disk)


@DEVICES
@pytest.mark.parametrize("order", ["block_first", "layer_first"])
def test_bad_blocks_are_told_one_by_one(stack: ExitStack, where: Any, order: str) -> None:
    device = stack.enter_context(DeviceTier(BASE.with_(order=order), capacity=6, device=where))
    disk = stack.enter_context(MemoryStorage(BASE, 6))
    bounce = stack.enter_context(BufferPool(1, 2 * BASE.block_bytes))
    paths = movers(device, None, disk, bounce=bounce)
    slots = np.arange(6)
    disk.broken = {4}
    down = Transfer("device_to_disk", slots, slots, payload=keys_of(slots))
    assert paths[down.path](down, 0, 6).tolist() == [True, True, True, True, False, True]
    assert ["slot 4 failed" in str(error) for error in down.errors] == [True]
    before = randomized(device, 1)
    disk.corrupt = {1, 2, 3}
    keys = keys_of(slots)
    keys.hash[5] = 1
    up = Transfer("disk_to_device", slots, slots, payload=keys)
    assert paths[up.path](up, 0, 6).tolist() == [True] + [False] * 5
    assert [type(error) for error in up.errors] == [CorruptBlock] * 3 + [TransferError] * 2
    assert "slot 1 does not match block 1001" in str(up.errors[0])
    if order == "layer_first":
        assert contents(device)[1:] == before[1:], "what did not arrive was not copied out of the buffer"
    assert bounce.available == 1


def test_a_real_disk_under_a_real_engine(stack: ExitStack, tmp_path: Path) -> None:
    """Blocks go down to the file and up again; a flipped bit is a miss, and its neighbours arrive."""
    device = stack.enter_context(DeviceTier(BASE.with_(order="layer_first"), capacity=40))
    host = stack.enter_context(HostTier(BASE, capacity=40))
    disk = stack.enter_context(DiskTier(BASE, capacity=100, path=tmp_path))
    bounce = stack.enter_context(BufferPool(2, 8 * BASE.block_bytes))
    engine = stack.enter_context(TransferEngine(movers(device, host, disk, bounce=bounce), batch=7))
    held = randomized(device, 3)
    slots, below = np.arange(40), np.random.default_rng(5).permutation(100)[:40]
    keys = keys_of(below)
    chain = [Transfer("device_to_host", slots, slots[::-1])]
    chain.append(Transfer("host_to_disk", slots[::-1], below, after=chain[-1:], payload=keys))
    engine.submit(chain)
    assert chain[-1].result(PATIENCE).all(), chain[-1].errors
    device.fill(slots, 0xFF)
    up = Transfer("disk_to_device", below, slots, payload=keys)
    engine.submit([up])
    assert up.result(PATIENCE).all(), up.errors
    assert contents(device) == held
    disk.flush()
    file = next(path for path in tmp_path.iterdir() if path.stat().st_size >= 100 * 4096)
    with file.open("r+b") as data:
        data.seek(int(below[13]) * 4096 + 77)
        byte = data.read(1)[0]
        data.seek(int(below[13]) * 4096 + 77)
        data.write(bytes([byte ^ 4]))
        data.flush()
    again = Transfer("disk_to_host", below, slots, payload=keys)
    engine.submit([again])
    assert np.flatnonzero(~again.result(PATIENCE)).tolist() == [13]
    (error,) = again.errors
    assert isinstance(error, CorruptBlock)
    assert f"slot {below[13]}" in str(error)
    assert all(host.get(slot).tobytes() == held[slot] for slot in slots.tolist() if slot != 13)


def test_payloads_that_name_no_blocks(stack: ExitStack) -> None:
    host = stack.enter_context(HostTier(BASE, capacity=3))
    paths = movers(None, host, stack.enter_context(MemoryStorage(BASE, 3)))
    assert set(paths) == {"host_to_disk", "disk_to_host"}
    for payload in (None, {"keys": 1}, keys_of(np.arange(1)), [1, 2]):
        for path in paths:
            with pytest.raises(TransferError, match=f"{path}: 2 blocks come with .*; give as payload one key for each"):
                paths[path](Transfer(path, [0, 1], [0, 1], payload=payload), 0, 2)

    class Ticket:
        keys = keys_of(np.arange(2))

    for path in ("host_to_disk", "disk_to_host"):
        assert paths[path](Transfer(path, [0, 1], [0, 1], payload=Ticket()), 0, 2).all()


def test_slots_that_do_not_exist_and_tiers_that_are_closed(stack: ExitStack) -> None:
    device = DeviceTier(BASE, capacity=3, device="host-emulated")
    host = stack.enter_context(HostTier(BASE, capacity=3))
    paths = movers(device, host)
    before = randomized(host, 1)
    with pytest.raises(TierError, match="host: slot 3 does not exist"):
        paths["device_to_host"](Transfer("device_to_host", [0, 1], [0, 3]), 0, 2)
    with pytest.raises(TierError, match="device: slot -1 does not exist"):
        paths["device_to_host"](Transfer("device_to_host", [0, -1], [0, 1]), 0, 2)
    device.close()
    with pytest.raises(TierClosed):
        paths["device_to_host"](Transfer("device_to_host", [0], [0]), 0, 1)
    assert contents(host) == before


def test_tiers_that_do_not_fit(stack: ExitStack) -> None:
    host = stack.enter_context(HostTier(BASE.with_(order="layer_first"), capacity=3))
    for other in (BASE.with_(page_tokens=8), BASE.with_(dtype="bfloat16"), BASE.with_(head_order="HND", heads=4)):
        device = stack.enter_context(DeviceTier(other, capacity=3, device="host-emulated"))
        with pytest.raises(LayoutError, match="give all tiers layouts of one shape and dtype"):
            movers(device, host)
        with pytest.raises(LayoutError, match="give all tiers layouts of one shape and dtype"):
            movers(None, host, MemoryStorage(other, 3))
    disk = MemoryStorage(BASE, 3)
    with pytest.raises(ConfigError, match="bounce: the host tier's blocks reach the disk through bounce buffers; give"):
        movers(None, host, disk)
    small = stack.enter_context(BufferPool(1, BASE.block_bytes - 1))
    with pytest.raises(ConfigError, match=f"of {BASE.block_bytes - 1} bytes each; give buffers of {BASE.block_bytes}"):
        movers(None, host, disk, bounce=small)
    assert movers() == {}
    assert movers(None, host) == {}


def test_beside_a_gpu_the_copier_of_this_machine(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for once for all paths; where it cannot measure, a rule takes its place, and a warning says so."""
    made: list[object] = []

    class Copier:
        @classmethod
        def for_gpu(cls) -> object:
            made.append(cls())
            if len(made) > 1:
                raise DeviceMemoryError("no room")
            return made[0]

    monkeypatch.setitem(vars(dynalab.kernels), "PairCopier", Copier)
    device = stack.enter_context(DeviceTier(BASE, capacity=2, device="host-emulated"))
    host = stack.enter_context(HostTier(BASE, capacity=2))
    movers(device, host)
    assert not made
    device._label = "cuda:0"
    paths = movers(device, host)
    assert [mover._copy._selector for mover in paths.values()] == made * 2  # type: ignore[attr-defined]
    assert not caplog.records
    paths = movers(device, host)
    assert {type(mover._copy._selector) for mover in paths.values()} == {SizeRule}  # type: ignore[attr-defined]
    assert "are not measured (no room)" in caplog.text
