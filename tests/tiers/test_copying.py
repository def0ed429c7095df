"""How copies from and to a GPU are asked for, with stand-ins for the GPU that copy at once."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

import dynalab.kernels
from dynalab.errors import ConfigError, DeviceMemoryError, TransferError
from dynalab.kernels import copy_pairs, memcpy, permute_blocks
from dynalab.kv import KVLayout
from dynalab.testing.tiers import LAYOUTS
from dynalab.tiers import HostTier, copying
from dynalab.tiers.copying import SMALL_PIECE, BlockCopy, Place, SizeRule
from dynalab.tiers.device import CudaMemory

BASE = LAYOUTS["block_first"]


class Gpu:
    """Streams, events, kernels and driver of a GPU whose memory is the CPU's; notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.has_batch = True
        self.broken = False
        self.ptr = 77

    def stream_and_event(self, device: int) -> tuple[Any, Any]:
        self.calls.append(("device", device))
        return self, self

    def record(self, stream: Gpu) -> None:
        assert stream is self
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def ask(self, how: str, twin: Any, *args: Any, stream: int) -> None:
        assert stream == self.ptr
        self.calls.append(how)
        if self.broken:
            raise TransferError("the GPU has fallen off the bus")
        twin(*args)

    def permute(self, *args: Any, stream: int) -> None:
        self.ask("permute", permute_blocks, *args, stream=stream)

    def each(self, *args: Any, stream: int) -> None:
        self.ask("each", copy_pairs, *args, stream=stream)

    def way(self, name: str) -> Any:
        def go(src: Any, dst: Any, nbytes: Any, direction: str, stream: int) -> None:
            self.ask(f"{direction} by {name}", copy_pairs, src, dst, nbytes, stream=stream)

        return go


class Chosen:
    """A selector that notes what it is asked for."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def copy(self, src: Any, dst: Any, nbytes: int, *, direction: str, stream: int) -> None:
        self.gpu.ask(f"{direction}: {len(src)} x {nbytes}", copy_pairs, src, dst, nbytes, stream=stream)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(copying, "_mine", gpu)
    monkeypatch.setitem(vars(dynalab.kernels), "permute_blocks_device", gpu.permute)
    monkeypatch.setattr(memcpy, "driver_copies", lambda: gpu)
    paths = types.ModuleType("paths_gpu")
    paths.GPU_PATHS = {name: gpu.way(name) for name in ("kernel", "batch", "async")}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dynalab.kernels.paths_gpu", paths)
    return gpu


def place(tier: HostTier, *, device: int = -1, pinned: bool = False) -> Place:
    return Place(tier.layout, tier.bases, tier.capacity, device, pinned)


def check_copy(source: HostTier, target: HostTier, copy: BlockCopy) -> None:
    """Copy blocks 3 and 0 to 1 and 2, and look at the bytes."""
    rng = np.random.default_rng(1)
    for tier in (source, target):
        for slot in range(4):
            view = tier.view_heads(slot)
            tier.put(slot, np.frombuffer(rng.bytes(tier.block_bytes), view.dtype).reshape(view.shape))
    untouched = [target.get(0).tobytes(), target.get(3).tobytes()]
    copy(np.array([3, 0]), np.array([1, 2]))
    assert target.get(1).tobytes() == source.get(3).tobytes()
    assert target.get(2).tobytes() == source.get(0).tobytes()
    assert [target.get(0).tobytes(), target.get(3).tobytes()] == untouched


@pytest.mark.parametrize("direction", ["d2h", "h2d"])
def test_the_selector_copies_and_is_told_the_truth(gpu: Gpu, direction: str) -> None:
    with HostTier(BASE.with_(order="layer_first"), capacity=4) as a, HostTier(BASE, capacity=4) as b:
        on_gpu, pinned = {"device": 1}, {"pinned": True}
        first, second = (on_gpu, pinned) if direction == "d2h" else (pinned, on_gpu)
        check_copy(a, b, BlockCopy(place(a, **first), place(b, **second), selector=Chosen(gpu)))  # type: ignore[arg-type]
    pieces = 2 * BASE.regions_per_block
    assert gpu.calls == [("device", 1), f"{direction}: {pieces} x {BASE.region_bytes}", "record", "synchronize"]


@pytest.mark.parametrize(
    ("to_gpu", "has_batch", "way"),
    [(True, True, "h2d by kernel"), (False, True, "d2h by batch"), (False, False, "d2h by async")],
)
def test_where_nothing_was_measured_a_rule_decides(gpu: Gpu, to_gpu: bool, has_batch: bool, way: str) -> None:
    gpu.has_batch = has_batch
    with HostTier(BASE, capacity=4) as a, HostTier(BASE, capacity=4) as b:
        ends = (place(a, pinned=True), place(b, device=0)) if to_gpu else (place(a, device=0), place(b, pinned=True))
        check_copy(a, b, BlockCopy(*ends))
    assert gpu.calls == [("device", 0), way, "record", "synchronize"]


def test_pages_that_are_not_pinned_go_by_the_driver(gpu: Gpu) -> None:
    with HostTier(BASE, capacity=4) as a, HostTier(BASE, capacity=4) as b:
        check_copy(a, b, BlockCopy(place(a, device=0), place(b), selector=Chosen(gpu)))
    assert gpu.calls == [("device", 0), "each", "record", "synchronize"]


@pytest.mark.parametrize("order", ["HND", "universal"])
def test_heads_change_places_on_the_gpu(gpu: Gpu, order: Any) -> None:
    with HostTier(BASE.with_(head_order=order), capacity=4) as a, HostTier(BASE, capacity=4) as b:
        check_copy(a, b, BlockCopy(place(a, pinned=True), place(b, device=0)))
        assert gpu.calls == [("device", 0), "permute", "record", "synchronize"]
        with pytest.raises(ConfigError, match="needs pinned memory beside a GPU; build the host tier with pinned=True"):
            BlockCopy(place(a), place(b, device=0))


def test_a_copy_that_fails_waits_for_what_is_under_way(gpu: Gpu) -> None:
    """Else the caller gives away a target that is still being written."""
    gpu.broken = True
    with HostTier(BASE, capacity=4) as a:
        copy = BlockCopy(place(a, device=0), place(a, pinned=True))
        with pytest.raises(TransferError, match="fallen off the bus"):
            copy(np.array([0]), np.array([1]))
    assert gpu.calls == [("device", 0), "d2h by batch", "synchronize"]


def test_the_rule_goes_by_the_size_of_a_piece() -> None:
    rule = SizeRule()
    assert rule.path("h2d", SMALL_PIECE - 1, 2) == "kernel"
    assert rule.path("h2d", SMALL_PIECE, 2) == "batch"
    assert rule.path("h2d", 16, 1) == "batch"
    assert rule.path("d2h", 16, 1000) == "batch"


def test_where_a_tier_is() -> None:
    with HostTier(KVLayout(1, 1, 2, 4), capacity=2, pinned=False) as tier:
        assert Place.of(tier) == Place(tier.layout, tier.bases, 2, -1, False)


class Error(Exception):
    pass


class Cuda:
    """As much of CuPy as an allocation needs."""

    def __init__(self, free: int, *, broken: bool = False) -> None:
        self.cuda = self.runtime = self
        self.CUDARuntimeError = Error
        self.free, self.broken = free, broken
        self.kept: list[int] = []

    def Device(self, number: int) -> Cuda:
        self.number = number
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def memGetInfo(self) -> tuple[int, int]:
        return self.free, 2 * self.free

    def Memory(self, nbytes: int) -> int:
        if self.broken:
            raise Error("out of memory")
        self.kept.append(nbytes)
        return nbytes

    def MemoryPointer(self, memory: int, offset: int) -> Cuda:
        self.ptr = 4096 + offset
        return self

    def memset(self, byte: int, nbytes: int) -> None:
        assert (byte, nbytes) == (0, self.kept[-1])

    def get_current_stream(self) -> Cuda:
        return self

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize(("free", "broken"), [(1 << 20, False), (1 << 30, True)])
def test_device_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch, free: int, broken: bool) -> None:
    cuda = Cuda(free, broken=broken)
    monkeypatch.setitem(sys.modules, "cupy", cuda)  # type: ignore[arg-type]
    told = "1 MiB" if not broken else "1 GiB"
    with pytest.raises(DeviceMemoryError, match=f"cuda:3: 2 MiB of device memory asked, {told} free; make the device"):
        CudaMemory(2 << 20, 3)
    assert cuda.number == 3
    assert cuda.kept == []
    if not broken:
        assert CudaMemory(1 << 20, 0).address == 4096
