"""The code around the GPU's kernels, run against a CUDA of ordinary memory: calls, shapes, tables, reports."""

from __future__ import annotations

import gc
import json
import threading

import fake_cuda
import numpy as np
import pytest
from copy_cases import aligned, as_nhd, layer_bases, layout_strides, mixed_case

from dynalab.errors import ConfigError, DeviceMemoryError, TransferError
from dynalab.kernels import gpu, gpu_bench, gpu_report
from dynalab.kernels.buffers import DeviceBuffer, PinnedBuffer
from dynalab.kernels.calibrate import calibrate
from dynalab.kernels.copier import PairCopier
from dynalab.kernels.copy_device import ROUND, copy_pairs_device, launch_shape
from dynalab.kernels.copy_tables import TableRing, default_ring
from dynalab.kernels.gpu_bench import Record
from dynalab.kernels.paths_gpu import GPU_PATHS, GpuRig
from dynalab.kernels.permute_device import permute_blocks_device


@pytest.fixture
def cuda(monkeypatch):
    runtime = fake_cuda.install(monkeypatch)
    yield runtime
    default_ring.__globals__["_ring_of"].cache_clear()


@pytest.mark.parametrize("most", [1, 12, None])
@pytest.mark.parametrize("pairs", [1, 7, 1000, 100_000])
@pytest.mark.parametrize("largest", [1, 15, 2048, 2049, 4096, 65536, 100_001, 5 << 20])
def test_a_launch_covers_everything_within_its_bounds(largest, pairs, most) -> None:
    shape = launch_shape(pairs, largest, most)
    assert shape.part_bytes << shape.log_parts >= largest
    assert shape.part_bytes % ROUND == 0
    assert 1 <= shape.blocks <= (most or 2**31 - 1)
    assert shape.threads in (256, 1024)
    warps = shape.blocks * shape.threads // 32
    assert warps - shape.threads // 32 < pairs << shape.log_parts, "no thread block is without work"
    # Less than half of the parts are empty, or there is but one.
    assert shape.log_parts == 0 or shape.part_bytes << (shape.log_parts - 1) < largest
    if most is None:
        assert warps >= pairs << shape.log_parts


def test_many_small_pages_keep_all_warps_of_a_link_busy_and_a_large_block_too() -> None:
    for pairs, largest in ((10_000, 4096), (1, 64 << 20), (500, 65536)):
        shape = launch_shape(pairs, largest, 12)
        assert shape.blocks == 12
        assert pairs << shape.log_parts >= 12 * 32


def test_blocks_below_one() -> None:
    with pytest.raises(ConfigError, match="max_blocks"):
        launch_shape(1, 1, 0)


def test_copies_and_permutations_through_default_tables(cuda) -> None:
    case = mixed_case(2)
    expected = case.expected()
    copy_pairs_device(*case.addresses, case.sizes, stream=0)
    np.testing.assert_array_equal(case.target, expected)
    assert default_ring() is default_ring()
    shape = (3, 2, 2, 4, 16, 96)
    total = int(np.prod(shape))
    memory = [aligned(total) for _ in range(2)]
    memory[0][:] = np.random.default_rng(0).integers(0, 256, total, dtype=np.uint8)
    bases = [layer_bases(part, name, *shape) for part, name in zip(memory, ("HND", "universal"), strict=True)]
    strides = [layout_strides(name, 2, 4, 16, 96, 2) for name in ("HND", "universal")]
    permute_blocks_device(*bases, *strides, (2, 4, 16), 96, stream=0)
    np.testing.assert_array_equal(as_nhd(memory[1], "universal", shape), as_nhd(memory[0], "HND", shape))
    with pytest.raises(ConfigError, match="max_blocks"):
        permute_blocks_device(*bases, *strides, (2, 4, 16), 96, stream=0, max_blocks=-1)


def test_concurrent_copies_wait_for_slots(cuda) -> None:
    ring = TableRing(2)
    cases = [mixed_case(i) for i in range(6)]
    expected = [case.expected() for case in cases]

    def work(case) -> None:
        for _ in range(20):
            copy_pairs_device(*case.addresses, case.sizes, stream=0, tables=ring)

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for case, after in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(case.target, after)
    with pytest.raises(ConfigError, match="slots"):
        TableRing(0)


def test_memory_is_given_back_and_its_lack_is_named(cuda) -> None:
    room = cuda.room
    device, pinned = DeviceBuffer(1000), PinnedBuffer(1000)
    pinned.array[:] = 7
    assert cuda.room == room - 2000
    device.close()
    device.close()
    del pinned
    gc.collect()
    assert cuda.room == room
    with pytest.raises(DeviceMemoryError, match="device memory: 4 GiB cannot be had"):
        DeviceBuffer(4 << 30)
    with pytest.raises(DeviceMemoryError, match="pinned host memory"):
        PinnedBuffer(4 << 30)


def test_a_ring_that_cannot_grow_keeps_its_slots(monkeypatch) -> None:
    runtime = fake_cuda.install(monkeypatch, memory=40_000)
    ring = TableRing(1)
    many = np.arange(1, 5001) * 4096
    for _ in range(3):
        with pytest.raises(DeviceMemoryError), ring.upload(many, many, 16, 0):
            pass
    with ring.upload(many[:10], many[:10], 16, 0) as table:
        assert table.pairs == 10
    assert runtime.room >= 0


def test_all_gpu_paths_are_calibrated_and_taken(cuda, tmp_path) -> None:
    rig = GpuRig(4 << 20)
    table = calibrate(rig, piece_bytes=(1024, 65536), counts=(1, 16), budget=0)
    assert table.directions == ("h2d", "d2h", "d2d")
    assert table.facts["device"] == "NVIDIA Fake"
    assert all(table.paths(direction) == ("kernel", "batch", "async") for direction in table.directions)
    assert {call[0] for call in cuda.calls} >= {"batch", "each", "memcpy"}
    copier = PairCopier(table, GPU_PATHS)
    case = mixed_case(4)
    expected = case.expected()
    assert copier.copy(*case.addresses, case.sizes, direction="h2d", stream=rig.stream) in GPU_PATHS
    np.testing.assert_array_equal(case.target, expected)
    room = cuda.room
    rig.close()
    assert cuda.room - room == 4 * (4 << 20)
    assert cuda.streams == {0}


def test_directions_are_what_their_names_say(cuda) -> None:
    rig = GpuRig(1 << 20)
    for direction in rig.paths:
        sides = ["h" if address in cuda.pinned else "d" for address in rig.arena(direction)]
        assert "2".join(sides) == direction
    assert len({address for direction in rig.paths for address in rig.arena(direction)}) == 4


@pytest.mark.parametrize("direction", ["h2d", "d2h", "d2d"])
def test_a_path_that_writes_a_byte_too_many_is_found(cuda, monkeypatch, direction) -> None:
    def careless(src, dst, nbytes, direction, stream) -> None:
        GPU_PATHS["async"](src, dst, nbytes + 1, direction, stream)

    monkeypatch.setitem(GPU_PATHS, "kernel", careless)
    rig = GpuRig(1 << 20)
    rig.check(direction, "async", 1024, 8)
    with pytest.raises(TransferError, match=f"path 'kernel', {direction}: .* of 8 pieces of 1024 bytes are wrong"):
        rig.check(direction, "kernel", 1024, 8)


def test_the_copier_for_a_gpu_keeps_its_table(cuda, tmp_path, monkeypatch) -> None:
    from dynalab.kernels import copier, paths_gpu

    seen = []

    def quick(rig, folder):
        seen.append(rig)
        return calibrate(rig, piece_bytes=(1024,), counts=(4,), budget=0)

    monkeypatch.setattr(copier, "calibrated", quick)
    monkeypatch.setattr(paths_gpu, "GpuRig", lambda: GpuRig(1 << 20))
    assert PairCopier.for_gpu(folder=tmp_path).table.directions == ("h2d", "d2h", "d2d")
    assert isinstance(seen[0], GpuRig)


def test_the_whole_benchmark_runs_checks_and_reports(cuda, monkeypatch) -> None:
    monkeypatch.setattr(gpu_bench, "calibrate", lambda rig, **options: calibrate(
        rig, piece_bytes=(1024, 8192), counts=(1, 4), budget=0, seed=options["seed"]))  # fmt: skip
    monkeypatch.setattr(gpu_bench, "GpuRig", lambda nbytes=1 << 20, seed=0: GpuRig(nbytes, seed))
    told = gpu_report.bench_gpu(rounds=2, nbytes=16 << 20)
    assert json.loads(json.dumps(told)) == told
    records = told["records"]
    large = [record for record in records if record["case"] == "large copy"]
    assert [record["direction"] for record in large] == ["d2d", "h2d", "d2h"]
    assert all(record["of_large_copy"] == 1 for record in large)
    device = {(r["case"], r["path"]) for r in records if r["direction"] == "d2d"}
    assert {
        (case, path) for case in ("gather", "scatter", "permute") for path in ("kernel", "kernel, resident table")
    } <= device
    link = {(r["direction"], r["path"], r["piece_bytes"]) for r in records if r["case"] == "pieces"}
    assert link == {(d, p, b) for d in ("h2d", "d2h") for p in GPU_PATHS for b in gpu_bench.PIECES}
    for r in records:
        moved = r["piece_bytes"] * r["count"] * (2 if r["direction"] == "d2d" else 1)
        assert r["bytes_per_second"] == pytest.approx(moved / r["seconds"])
        assert r["seconds_low"] <= r["seconds"] <= r["seconds_high"]
    assert set(told["choice"]) == {"h2d", "d2h", "d2d"}
    assert set(told["bars"]) == {
        "d2d_64KiB", "link_64KiB_and_up_best", "link_64KiB_and_up_kernel", "h2d_4KiB_kernel_over_batch", "regret"
    }  # fmt: skip


def test_a_benchmark_of_wrong_copies_reports_nothing(cuda, monkeypatch) -> None:
    monkeypatch.setattr(fake_cuda.COPY, "launch", lambda *args: None)
    with pytest.raises(TransferError, match="gather by kernel, d2d"):
        gpu_bench.bench_device_copies(1 << 20, rounds=1)


def test_bars_take_the_worst() -> None:
    def record(case, direction, path, piece, share, rate=1.0) -> Record:
        return Record(case, direction, path, piece, 1, 1.0, 1.0, 1.0, rate, share)

    records = [
        record("gather", "d2d", "kernel", 65536, 0.95),
        record("scatter", "d2d", "kernel", 65536, 0.91),
        record("scatter", "d2d", "kernel, 12 blocks", 65536, 0.2),
        record("pieces", "h2d", "kernel", 4096, 0.7, rate=40e9),
        record("pieces", "h2d", "batch", 4096, 0.1, rate=5e9),
        record("pieces", "h2d", "kernel", 65536, 0.85),
        record("pieces", "h2d", "batch", 65536, 0.97),
        record("pieces", "d2h", "kernel", 1 << 20, 0.92),
    ]
    good = {"mean": 0.01, "worst": 0.09}
    found = gpu_report.bars(records, {"h2d": good})
    assert {name: (bar["value"], bar["met"]) for name, bar in found.items()} == {
        "d2d_64KiB": (0.91, True),
        "link_64KiB_and_up_best": (0.92, True),
        "link_64KiB_and_up_kernel": (0.85, False),
        "h2d_4KiB_kernel_over_batch": (8.0, True),
        "regret": ({"h2d": [0.01, 0.09]}, True),
    }
    assert not gpu_report.bars(records, {"h2d": good, "d2h": {"mean": 0.03, "worst": 0.05}})["regret"]["met"]
    assert not any(bar["met"] for bar in gpu_report.bars([], {}).values())


def test_without_a_gpu_everything_says_so(monkeypatch) -> None:
    if gpu.gpu_available():
        pytest.skip("this machine has a GPU")
    for needs in (gpu_bench.bench_device_copies, gpu_report.bench_gpu, PairCopier.for_gpu, default_ring, GpuRig):
        with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
            needs()
    monkeypatch.setattr(gpu, "_why_no_device", lambda: "")
    assert "pip install 'dynalab[cuda]'" in gpu.why_no_gpu() or gpu._absent(*gpu._RUNNING) == []


def test_streams_of_all_kinds() -> None:
    class Ours:
        def __cuda_stream__(self):
            return 0, 42

    class Cupy:
        ptr = 43

    class Torch:
        cuda_stream = 44

    class Numba:
        class handle:
            value = 45

    assert [gpu.stream_handle(s) for s in (Ours(), Cupy(), Torch(), Numba(), 46)] == [42, 43, 44, 45, 46]
    with pytest.raises(ConfigError, match="is no CUDA stream"):
        gpu.stream_handle("fast")
