"""How copies from and to a GPU are asked for, with stand-ins for the GPU that copy at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dynalab.kernels
from dynalab.errors import ConfigError, DeviceMemoryError, TransferError
from dynalab.kernels import copy_pairs, memcpy, permute_blocks
from dynalab.kv import KVLayout
from dynalab.testing.tiers import LAYOUTS
from dynalab.tiers import HostTier, copying
from dynalab.tiers.copying import SMALL_PIECE, BlockCopy, Place, default_path
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

    def _copy(self, how: str, twin: Any, *args: Any, stream: int) -> None:
        assert stream == self.ptr
        self.calls.append(how)
        if self.broken:
            raise TransferError("the GPU has fallen off the bus")
        twin(*args)

    def kernel(self, *args: Any, stream: int) -> None:
        self._copy("kernel", copy_pairs, *args, stream=stream)

    def permute(self, *args: Any, stream: int) -> None:
        self._copy("permute", permute_blocks, *args, stream=stream)

    def batch(self, *args: Any, stream: int) -> None:
        assert self.has_batch
        self._copy("batch", copy_pairs, *args, stream=stream)

    def each(self, *args: Any, stream: int) -> None:
        self._copy("each", copy_pairs, *args, stream=stream)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(copying, "_mine", gpu)
    monkeypatch.setitem(vars(dynalab.kernels), "copy_pairs_device", gpu.kernel)
    monkeypatch.setitem(vars(dynalab.kernels), "permute_blocks_device", gpu.permute)
    monkeypatch.setattr(memcpy, "driver_copies", lambda: gpu)
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


@pytest.mark.parametrize("path", ["kernel", "batch", "each"])
@pytest.mark.parametrize("direction", ["d2h", "h2d"])
def test_the_selector_decides_and_is_told_the_truth(gpu: Gpu, path: Any, direction: str) -> None:
    asked: list[Any] = []

    def selector(*facts: Any) -> Any:
        asked.append(facts)
        return path

    with HostTier(BASE.with_(order="layer_first"), capacity=4) as a, HostTier(BASE, capacity=4) as b:
        ends = (
            (place(a, device=1), place(b, pinned=True))
            if direction == "d2h"
            else (place(a, pinned=True), place(b, device=1))
        )
        check_copy(a, b, BlockCopy(*ends, selector=selector))
    assert asked == [(direction, BASE.region_bytes, 2 * BASE.regions_per_block)]
    assert gpu.calls == [("device", 1), path, "record", "synchronize"]


def test_pages_that_are_not_pinned_go_by_the_driver(gpu: Gpu) -> None:
    with HostTier(BASE, capacity=4) as a, HostTier(BASE, capacity=4) as b:
        check_copy(a, b, BlockCopy(place(a, device=0), place(b), selector=lambda *_: "kernel"))
    assert gpu.calls == [("device", 0), "each", "record", "synchronize"]


def test_an_old_driver_has_no_batches(gpu: Gpu) -> None:
    gpu.has_batch = False
    with HostTier(BASE, capacity=4) as a, HostTier(BASE, capacity=4) as b:
        check_copy(a, b, BlockCopy(place(a, device=0), place(b, pinned=True)))
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
    assert gpu.calls == [("device", 0), "batch", "synchronize"]


def test_without_measurements_small_pieces_go_up_by_the_kernel() -> None:
    assert default_path("h2d", SMALL_PIECE - 1, 2) == "kernel"
    assert default_path("h2d", SMALL_PIECE, 2) == "batch"
    assert default_path("h2d", 16, 1) == "batch"
    assert default_path("d2h", 16, 1000) == "batch"


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
    import sys

    cuda = Cuda(free, broken=broken)
    monkeypatch.setitem(sys.modules, "cupy", cuda)  # type: ignore[arg-type]
    told = "1 MiB" if not broken else "1 GiB"
    with pytest.raises(DeviceMemoryError, match=f"cuda:3: 2 MiB of device memory asked, {told} free; make the device"):
        CudaMemory(2 << 20, 3)
    assert cuda.number == 3
    assert cuda.kept == []
    if not broken:
        assert CudaMemory(1 << 20, 0).address == 4096
