"""The same requests over a GPU as over its stand-in, by way of copies in CPU memory: every byte, in every mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stack_cases import LAYOUT, MODES, PATIENCE, content, prompt

from dynalab.kernels import gpu_available, why_no_gpu
from dynalab.tiers import Blocks, DeviceTier, DiskTier, HostTier, TierStack

DEVICES = [
    "host-emulated",
    pytest.param(
        "cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(not gpu_available(), reason=why_no_gpu() or "a GPU")]
    ),
]


def bits(stack: TierStack, blocks: Blocks) -> list[np.ndarray]:
    return [stack.device.get(slot).view(np.uint16).reshape(content(1).shape) for slot in blocks.slots.tolist()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ["block_first", "layer_first"])
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
def test_requests(tmp_path: Path, device: str, mode: str, order: str, disk_path: str) -> None:
    tiers = (
        DeviceTier(LAYOUT.with_(order=order), capacity=8, device=device),
        HostTier(LAYOUT, capacity=8),
        DiskTier(LAYOUT, capacity=64, path=tmp_path, threads=2),
    )
    with TierStack(*tiers, mode=mode, disk_path=disk_path, admit_after=1) as stack:
        reused = 0
        for seed in (0, 1, 2, 3, 4, 5) * 3:
            names = prompt(6, seed, shared=2)
            blocks = stack.onboard(stack.match(names)).result(PATIENCE)
            n = len(blocks)
            for found, name in zip(bits(stack, blocks), names[:n], strict=True):
                assert (found == content(name)).all()
            reused += n
            new = stack.allocate(6 - n)
            for slot, name in zip(new.slots.tolist(), names[n:], strict=True):
                stack.device.put(slot, content(name).view(np.float16))
            stack.register(new, names[n:], parent=int(names[n - 1]) if n else 0)
            stack.release(blocks + new)
        assert stack.drain(PATIENCE)
        assert reused > 50
        facts = stack.stats()
        assert facts.attrs["device"] == device
        assert facts["failed_blocks"].sum() == 0
        assert facts["in_use"].sum() == 0
