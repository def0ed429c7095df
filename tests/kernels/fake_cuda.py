"""A CUDA device of ordinary memory: the calls that the GPU's code makes, done at once by the CPU.

It shows that host code around the kernels runs and moves the right bytes, with no word about speed. Kernels are stood
in for by their twins, which read the very tables that were sent to "the device".
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import pytest

from dynalab.kernels import copier, gpu, launch, memcpy, paths_gpu
from dynalab.kernels.copy import copy_pairs
from dynalab.kernels.copy_device import COPY
from dynalab.kernels.copy_tables import _ring_of
from dynalab.kernels.permute import _permute_span
from dynalab.kernels.permute_device import PERMUTE


class FakeRuntime:
    """What ``cupy.cuda.runtime`` has, of it what dynalab calls."""

    def __init__(self, memory: int = 1 << 31) -> None:
        self.room = memory
        self.memory: dict[int, np.ndarray] = {}
        self.times: dict[int, float] = {}
        self.streams = {0}
        self.pinned: set[int] = set()
        self.calls: list[tuple] = []

    def malloc(self, nbytes: int) -> int:
        if nbytes > self.room:
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory")
        self.room -= nbytes
        block = np.zeros(nbytes + 4096, np.uint8)
        address = -(-block.ctypes.data // 4096) * 4096
        self.memory[address] = block
        return address

    def free(self, address: int) -> None:
        self.room += self.memory.pop(address).size - 4096

    def hostAlloc(self, nbytes: int, flags: int) -> int:
        self.pinned.add(address := self.malloc(nbytes))
        return address

    freeHost = free

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        self.on(stream)
        self.calls.append(("memcpy", nbytes))
        ctypes.memmove(dst, src, nbytes)

    def memsetAsync(self, dst: int, value: int, nbytes: int, stream: int) -> None:
        self.on(stream)
        ctypes.memset(dst, value, nbytes)

    def on(self, stream: int) -> None:
        assert stream in self.streams, f"no stream {stream}"

    def streamCreateWithFlags(self, flags: int) -> int:
        self.streams.add(100 + len(self.streams))
        return max(self.streams)

    def streamDestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def streamSynchronize(self, stream: int) -> None:
        self.on(stream)

    def eventCreateWithFlags(self, flags: int) -> int:
        self.times[len(self.times) + 1] = 0.0
        return len(self.times)

    def eventRecord(self, event: int, stream: int) -> None:
        self.on(stream)
        self.times[event] = time.perf_counter()

    def eventSynchronize(self, event: int) -> None:
        assert event in self.times

    def eventElapsedTime(self, begin: int, end: int) -> float:
        return (self.times[end] - self.times[begin]) * 1e3

    def eventDestroy(self, event: int) -> None:
        assert event in self.times

    def getDevice(self) -> int:
        return 0


def table(address: int, n: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_int64 * n).from_address(address)).copy()


def copy_kernel(blocks: int, threads: int, stream: int, *args: int) -> None:
    sources, targets, sizes, nbytes, pairs, log_parts, part_bytes = args
    assert 1 <= threads <= 1024
    assert blocks >= 1
    bytes_of = table(sizes, pairs) if sizes else np.full(pairs, nbytes)
    assert bytes_of.max() <= part_bytes << log_parts, "parts do not cover the largest pair"
    copy_pairs(table(sources, pairs), table(targets, pairs), bytes_of)


def permute_kernel(blocks: int, threads: int, stream: int, *args: int) -> None:
    sources, targets, pairs, log_groups, group_runs, log_team, *box = args
    shape, src, dst, run = box[:3], box[3:6], box[6:9], box[9]
    assert group_runs << log_groups >= np.prod(shape), "groups do not cover all runs"
    assert 0 <= log_team <= 5
    bases = [table(address, pairs).astype(np.uint64) for address in (sources, targets)]
    _permute_span(*bases, tuple(shape), tuple(src), tuple(dst), run, 0, pairs, False)


def driver(runtime: FakeRuntime, **options: Any) -> memcpy.DriverCopies:
    """The driver's copies by C functions of this process; keeps them alive in the object."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, size, ctypes.c_uint64)
    def each(dst, src, nbytes, stream):
        runtime.calls.append(("each", nbytes))
        ctypes.memmove(dst, src, nbytes)
        return 0

    @ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer, size, pointer, pointer, size, pointer)
    def batch(dsts, srcs, sizes, count, attributes, indices, n, stream):
        runtime.calls.append(("batch", count))
        for dst, src, nbytes in zip(*(table(t, count).tolist() for t in (dsts, srcs, sizes)), strict=True):
            ctypes.memmove(dst, src, nbytes)
        return 0

    addresses = (ctypes.cast(function, pointer).value for function in (each, batch))
    copies = memcpy.DriverCopies(*addresses, **options)  # type: ignore[arg-type]
    copies.functions = each, batch  # type: ignore[attr-defined]
    return copies


def install(patch: pytest.MonkeyPatch, memory: int = 1 << 31) -> FakeRuntime:
    """Put the fake in the place of CUDA, for one test."""
    runtime = FakeRuntime(memory)
    copies = driver(runtime)
    facts = {"device": "NVIDIA Fake", "driver_cuda": 13000, "runtime_cuda": 13000}
    for module in (gpu, launch, memcpy, copier.gpu):
        patch.setattr(module, "require_gpu", lambda what="": None)
    patch.setattr(gpu, "cuda_runtime", lambda: runtime)
    patch.setattr(gpu, "device_facts", lambda index=0: facts)
    patch.setattr(memcpy, "driver_copies", lambda: copies)
    patch.setattr(COPY, "launch", copy_kernel)
    patch.setattr(PERMUTE, "launch", permute_kernel)
    assert paths_gpu.gpu is gpu
    _ring_of.cache_clear()
    return runtime
