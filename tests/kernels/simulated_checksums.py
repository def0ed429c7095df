"""Run by test_checksum_simulated.py in the CUDA simulator: block checksums, thread by thread, against the CPU twin."""

from __future__ import annotations

import ctypes
from unittest.mock import patch

import numpy as np
import pytest
from checksum_reference import checksum
from simulator import Checks

from dynalab.errors import ConfigError
from dynalab.kernels import checksum_device
from dynalab.kernels.checksum import checksum_regions
from dynalab.kernels.checksum_device import ChecksumPlan, checksum_blocks_device, checksum_regions_device
from dynalab.kernels.copy_tables import TableRing

check = Checks()
RNG = np.random.default_rng(4)
MEMORY = RNG.integers(0, 256, 1 << 16, dtype=np.uint8)
BASE = MEMORY.ctypes.data + -MEMORY.ctypes.data % 16


class Memory(np.ndarray):
    """Host memory with its address as ``ptr``, as CuPy's has."""

    @property
    def ptr(self) -> int:
        return self.ctypes.data


class Runtime:
    """The calls of a CUDA runtime that a table ring makes, done at once."""

    def eventCreateWithFlags(self, flags: int) -> int:
        return 1

    def eventDestroy(self, event: int) -> None: ...

    def eventSynchronize(self, event: int) -> None: ...

    def eventRecord(self, event: int, stream: int) -> None: ...

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        ctypes.memmove(dst, src, nbytes)


def _allocate(nbytes: int) -> Memory:
    return np.zeros(nbytes, np.uint8).view(Memory)


RING = TableRing(1, allocate=_allocate, allocate_pinned=_allocate, runtime=Runtime())


def equals_twin(starts: list[int], nbytes: int, regions: int = 1, plan: ChecksumPlan | None = None, threads: int = 8):
    """Sum in warps of 4 threads, and compare with the twin and with the definition in plain Python."""
    addresses = BASE + np.array(starts, np.int64)
    with patch.multiple(checksum_device, _THREADS=threads, WARP=4):
        found = checksum_regions_device(addresses, nbytes, regions, seed=9, stream=0, plan=plan, tables=RING)
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, checksum_regions(addresses, nbytes, regions, seed=9))
    first = b"".join(bytes((ctypes.c_uint8 * nbytes).from_address(int(a))) for a in addresses[:regions])
    assert int(found[0]) == checksum(first, 9)


@check
def lengths_around_words_rows_and_rounds() -> None:
    for nbytes in (1, 8, 9, 24, 511, 520, 2060):
        equals_twin([0], nbytes, plan=ChecksumPlan(1, 0, 4096))


@check
def every_alignment() -> None:
    equals_twin([0, 8, 4, 2, 1, 15], 600)


@check
def blocks_of_mixed_alignment() -> None:
    """Each region goes its own way, and each block."""
    equals_twin([0, 8, 3, 16, 24, 40], 136, regions=2)


@check
def regions_in_any_order() -> None:
    equals_twin([512, 0, 1024, 64, 2048, 4096], 64, regions=3)
    equals_twin([512, 8, 1024], 40, regions=3)


@check
def regions_that_words_straddle() -> None:
    equals_twin([0, 512, 1024, 64], 13, regions=2)
    equals_twin([3, 1, 7], 6, regions=3)


@check
def one_odd_region_among_even_ones() -> None:
    equals_twin([0, 512, 1025, 64, 128, 256], 72, regions=3)


@check
def parts_and_shares() -> None:
    """Regions of several parts, some of them empty, over several thread blocks."""
    for plan in (
        ChecksumPlan(1, 2, 2048),
        ChecksumPlan(3, 2, 2048),
        ChecksumPlan(5, 3, 2048),
        ChecksumPlan(2, 0, 8192),
    ):
        equals_twin([0, 16, 8192], 5000, plan=plan)
    equals_twin([0, 4096, 8192, 16], 3000, regions=2, plan=ChecksumPlan(4, 1, 2048))
    equals_twin([1, 77], 1000, plan=ChecksumPlan(3, 0, 2048))


@check
def what_the_planner_chooses() -> None:
    equals_twin([0, 16384], 9000)
    equals_twin([64 * i for i in range(12)], 64, regions=12)


@check
def nothing_to_sum() -> None:
    assert checksum_blocks_device([], 64, stream=0).shape == (0,)
    assert checksum_regions_device([], 64, 3, stream=0, tables=RING).shape == (0,)
    with patch.multiple(checksum_device, _THREADS=2):
        found = checksum_regions_device([0, 0, 0], 0, 1, seed=3, stream=0, tables=RING)
    assert found.tolist() == [checksum(b"", 3)] * 3


@check
def results_go_where_they_should() -> None:
    out = np.zeros(2, np.uint64)
    with patch.multiple(checksum_device, _THREADS=8, WARP=4):
        found = checksum_regions_device([BASE, BASE + 64], 64, 1, stream=0, out=out, tables=RING)
    assert found is out
    assert out[0] == checksum_regions([BASE], 64, 1)[0] != out[1]
    with pytest.raises(ConfigError, match=r"out: uint64\[2\] does not fit; pass uint64\[3\]"):
        checksum_regions_device([BASE] * 3, 64, 1, stream=0, out=out, tables=RING)
    with pytest.raises(ConfigError, match="addresses: entry 1 is null"):
        checksum_regions_device([BASE, 0], 64, 1, stream=0, tables=RING)


if __name__ == "__main__":
    check.run()
