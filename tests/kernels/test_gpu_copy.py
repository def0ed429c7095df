"""The copy and permuting kernels and the driver's copies on a real GPU: every byte, in every direction, on streams."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from copy_cases import as_nhd, layer_bases, layout_strides, mixed_case

from dynalab.kernels.gpu import gpu_available, why_no_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_available(), reason=f"no GPU to run kernels on: {why_no_gpu()}"),
]

DIRECTIONS = ("h2d", "d2h", "d2d")


class Arena:
    """Memory on one side, filled and read through pinned host memory."""

    def __init__(self, side: str, content: np.ndarray) -> None:
        from dynalab.kernels import gpu
        from dynalab.kernels.buffers import DeviceBuffer, PinnedBuffer

        self.runtime = gpu.cuda_runtime()
        self.side = side
        self.host = PinnedBuffer(content.size)
        self.host.array[:] = content.reshape(-1).view(np.uint8)
        self.buffer = self.host if side == "h" else DeviceBuffer(content.size)
        self.ptr = self.buffer.ptr
        if side == "d":
            self.runtime.memcpyAsync(self.ptr, self.host.ptr, content.size, 4, 0)
            self.runtime.deviceSynchronize()

    def read(self) -> np.ndarray:
        self.runtime.deviceSynchronize()
        if self.side == "d":
            self.runtime.memcpyAsync(self.host.ptr, self.ptr, self.host.nbytes, 4, 0)
            self.runtime.deviceSynchronize()
        return self.host.array.copy()


@pytest.fixture
def stream():
    from dynalab.kernels import gpu

    runtime = gpu.cuda_runtime()
    made = runtime.streamCreateWithFlags(1)
    yield made
    runtime.streamSynchronize(made)
    runtime.streamDestroy(made)


def ways() -> dict:
    from dynalab.kernels.copy_device import copy_pairs_device
    from dynalab.kernels.memcpy import driver_copies

    def kernel(blocks):
        return lambda *tables, stream: copy_pairs_device(*tables, stream=stream, max_blocks=blocks)

    found = {f"kernel, {blocks} blocks": kernel(blocks) for blocks in (1, 12, None)}
    found["each"] = driver_copies().each
    if driver_copies().has_batch:
        for order in ("stream", "any"):
            found[f"batch, {order}"] = lambda *t, stream, order=order: driver_copies().batch(
                *t, stream=stream, source_order=order
            )
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mixed_alignments_by_every_path(direction, stream) -> None:
    case = mixed_case(7)
    expected = case.expected()
    for name, way in ways().items():
        source, target = Arena(direction[0], case.source), Arena(direction[2], case.target)
        way(source.ptr + case.src, target.ptr + case.dst, case.sizes, stream=stream)
        np.testing.assert_array_equal(target.read(), expected, f"{name}, {direction}")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("nbytes", "count"), [(4096, 3000), (65536, 200), ((8 << 20) + 24, 2), (100, 10_000)])
def test_pages_blocks_and_large_pieces(direction, nbytes, count, stream) -> None:
    rng = np.random.default_rng(0)
    room = nbytes + 16
    content = rng.integers(0, 256, room * count, dtype=np.uint8)
    src, dst = rng.permutation(count) * room, rng.permutation(count) * room
    expected = np.zeros_like(content)
    for a, b in zip(src.tolist(), dst.tolist(), strict=True):
        expected[b : b + nbytes] = content[a : a + nbytes]
    for name, way in ways().items():
        source, target = Arena(direction[0], content), Arena(direction[2], np.zeros_like(content))
        way(source.ptr + src, target.ptr + dst, nbytes, stream=stream)
        np.testing.assert_array_equal(target.read(), expected, name)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("run", [256, 160, 24, 6])
def test_all_layouts_into_all_others(direction, run, stream) -> None:
    from dynalab.kernels.permute_device import permute_blocks_device

    shape = (5, 3, 2, 8, 16, run)
    content = np.random.default_rng(run).integers(0, 256, int(np.prod(shape)), dtype=np.uint8)

    def bases(arena: Arena, name: str) -> np.ndarray:
        here = np.empty(1, np.uint8)
        return layer_bases(here, name, *shape) - here.ctypes.data + arena.ptr

    for source_name, target_name in itertools.product(("NHD", "HND", "universal"), repeat=2):
        source, target = Arena(direction[0], content), Arena(direction[2], np.zeros_like(content))
        src, dst = bases(source, source_name), bases(target, target_name)
        strides = [layout_strides(name, 2, 8, 16, run, 3) for name in (source_name, target_name)]
        permute_blocks_device(src, dst, *strides, (2, 8, 16), run, stream=stream)
        np.testing.assert_array_equal(
            as_nhd(target.read(), target_name, shape),
            as_nhd(content, source_name, shape),
            f"{source_name} {target_name}",
        )


def test_copies_on_a_stream_keep_its_order(stream) -> None:
    """A chain host -> device -> device -> host, without a wait in between, many times over."""
    from dynalab.kernels.copy_device import copy_pairs_device

    content = np.random.default_rng(1).integers(0, 256, 4 << 20, dtype=np.uint8)
    host, first, second = Arena("h", content), Arena("d", content * 0), Arena("d", content * 0)
    back = Arena("h", content * 0)
    offsets = np.random.default_rng(2).permutation(1024) * 4096
    straight = np.arange(1024) * 4096
    for _ in range(20):
        copy_pairs_device(host.ptr + straight, first.ptr + offsets, 4096, stream=stream)
        copy_pairs_device(first.ptr + offsets, second.ptr + straight, 4096, stream=stream, max_blocks=None)
        copy_pairs_device(second.ptr + straight, back.ptr + straight, 4096, stream=stream)
    np.testing.assert_array_equal(back.read(), content)


def test_threads_with_streams_of_their_own() -> None:
    """Each begins with no CUDA context, and all share one ring of tables."""
    from dynalab.kernels import gpu
    from dynalab.kernels.copy_tables import TableRing

    ring, failures = TableRing(3), []
    content = np.random.default_rng(3).integers(0, 256, 1 << 20, dtype=np.uint8)

    def work(seed: int) -> None:
        from dynalab.kernels.copy_device import copy_pairs_device
        from dynalab.kernels.memcpy import driver_copies

        runtime = gpu.cuda_runtime()
        stream = runtime.streamCreateWithFlags(1)
        source, there, back = Arena("h", content), Arena("d", content * 0), Arena("h", content * 0)
        order = np.random.default_rng(seed).permutation(256) * 4096
        for _ in range(50):
            copy_pairs_device(source.ptr + order, there.ptr + order, 4096, stream=stream, tables=ring)
            driver_copies().each(there.ptr + order, back.ptr + order, 4096, stream=stream)
            runtime.streamSynchronize(stream)
        if not np.array_equal(back.read(), content):
            failures.append(seed)
        runtime.streamDestroy(stream)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_resident_table_and_cupys_streams() -> None:
    import cupy

    from dynalab.kernels.copy_device import copy_pairs_device, copy_table
    from dynalab.kernels.copy_tables import default_ring

    source = cupy.arange(1 << 20, dtype=cupy.uint8)
    target = cupy.zeros_like(source)
    offsets = np.arange(256) * 4096
    with cupy.cuda.Stream(non_blocking=True) as stream:
        table = default_ring().resident(
            source.data.ptr + offsets, target.data.ptr + offsets[::-1].copy(), 4096, stream.ptr
        )
        copy_table(table, stream=stream)
        stream.synchronize()
        expected = source.reshape(256, 4096)[::-1]
        assert bool((target.reshape(256, 4096) == expected).all())
        target[:] = 0
        copy_pairs_device(source.data.ptr + offsets, target.data.ptr + offsets, 4096)
        stream.synchronize()
        assert bool((target == source).all())


def test_calibration_and_choice(tmp_path) -> None:
    from dynalab.kernels.copier import PairCopier

    copier = PairCopier.for_gpu(folder=tmp_path)
    assert copier.table.directions == DIRECTIONS
    assert copier.table.facts["device"] != "host-emulated"
    again = PairCopier.for_gpu(folder=tmp_path)
    assert again.table.to_json() == copier.table.to_json()


def test_device_memory_that_cannot_be_had() -> None:
    from dynalab.errors import DeviceMemoryError
    from dynalab.kernels.buffers import DeviceBuffer

    with pytest.raises(DeviceMemoryError, match="device memory"):
        DeviceBuffer(1 << 50)
