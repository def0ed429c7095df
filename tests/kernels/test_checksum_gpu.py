"""Block checksums on a real GPU: the numbers of the CPU's twin."""

from __future__ import annotations

import numpy as np
import pytest

from dynalab.kernels import gpu
from dynalab.kernels.checksum import checksum_regions

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if why := gpu.why_no_gpu():
        pytest.skip(why)


@pytest.mark.parametrize("regions", [1, 3, 64])
@pytest.mark.parametrize("nbytes", [0, 7, 8, 208, 2080, 14_560, 65_536, 1 << 20])
@pytest.mark.parametrize("shift", [0, 8, 3])
def test_equals_the_twin(regions: int, nbytes: int, shift: int) -> None:
    import cupy

    from dynalab.kernels.checksum_device import checksum_regions_device

    rng = np.random.default_rng(nbytes + regions)
    n = max(1, min(40, (32 << 20) // max(1, nbytes * regions)))
    memory = rng.integers(0, 256, n * regions * (nbytes + 16) + 64, dtype=np.uint8)
    device = cupy.asarray(memory)
    starts = shift + rng.permutation(n * regions) * (nbytes + 16 & -16)
    expected = checksum_regions(memory.ctypes.data + starts, nbytes, regions, seed=7)
    found = checksum_regions_device(device.data.ptr + starts, nbytes, regions, seed=7)
    assert np.array_equal(cupy.asnumpy(found), expected)
