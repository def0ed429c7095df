"""The device tier: the conformance suite on a GPU or on its labelled stand-in, and memory that cannot be had."""

from __future__ import annotations

import numpy as np
import pytest

from dynalab.errors import ConfigError, DeviceMemoryError
from dynalab.kernels import gpu_available, why_no_gpu
from dynalab.kv import KVLayout
from dynalab.testing import TierTests
from dynalab.tiers import DeviceTier

LAYOUT = KVLayout(num_layers=4, outer=2, page_tokens=16, inner=64)
on_gpu = pytest.mark.skipif(not gpu_available(), reason=why_no_gpu() or "there is a GPU")


class TestEmulatedDeviceTier(TierTests):
    def make_tier(self, layout: KVLayout, capacity: int) -> DeviceTier:
        return DeviceTier(layout, capacity=capacity, device="host-emulated")


@pytest.mark.gpu
@on_gpu
class TestCudaDeviceTier(TierTests):
    def make_tier(self, layout: KVLayout, capacity: int) -> DeviceTier:
        tier = DeviceTier(layout, capacity=capacity, device=0)
        assert tier.capabilities.device_label == "cuda:0"
        assert not tier.capabilities.cpu_access
        return tier


def test_the_stand_in_says_what_it_is() -> None:
    with DeviceTier(LAYOUT, "1MiB", device="host-emulated") as tier:
        assert tier.capabilities.device_label == tier.stats()["device_label"] == "host-emulated"
        assert tier.capabilities.cpu_access
        assert not tier.capabilities.pinned
        assert tier.capacity == 64
        tier.view(63)[...] = 1
        assert isinstance(tier.view(63), np.ndarray)


def test_by_default_a_gpu_or_the_stand_in() -> None:
    with DeviceTier(LAYOUT, capacity=2) as tier:
        assert tier.capabilities.device_label == ("cuda:0" if gpu_available() else "host-emulated")


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:", -1, 1.5, True, "", "host"])
def test_what_is_no_device(device: object) -> None:
    with pytest.raises(ConfigError, match='is no GPU; write its number, "cuda:0" or "host-emulated"'):
        DeviceTier(LAYOUT, capacity=2, device=device)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there() -> None:
    if gpu_available():
        with pytest.raises(ConfigError, match="device: 4096 does not exist; this machine has GPUs 0 to"):
            DeviceTier(LAYOUT, capacity=2, device=4096)
        return
    for device in (0, "cuda:1"):
        with pytest.raises(ConfigError, match=f"device {device!r} needs an NVIDIA GPU: "):
            DeviceTier(LAYOUT, capacity=2, device=device)


def test_sizes_are_checked_under_the_tiers_name() -> None:
    with pytest.raises(ConfigError, match="device: a size of 1 KiB has no room for one block of 16 KiB"):
        DeviceTier(LAYOUT, "1KiB")


@pytest.mark.gpu
@on_gpu
def test_device_memory_that_cannot_be_had() -> None:
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    with pytest.raises(DeviceMemoryError, match=r"cuda:0: .* of device memory asked, .* free; make the device tier"):
        DeviceTier(LAYOUT, 2 * free)
    with DeviceTier(LAYOUT, free // 2) as tier:
        assert tier.view_all()[-1].sum() == 0
        with pytest.raises(DeviceMemoryError):
            DeviceTier(LAYOUT, free * 3 // 4)
    with DeviceTier(LAYOUT, free * 3 // 4) as tier:
        assert tier.capacity == free * 3 // 4 // LAYOUT.block_bytes
