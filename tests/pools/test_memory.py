"""The CUDA memory pool: its arithmetic and its calls against a played runtime, itself on a GPU where there is one."""

from __future__ import annotations

import gc

import pytest
from fake_pool_runtime import FakeError, FakeRuntime

from dynalab.errors import BlockStateError, ConfigError, DeviceMemoryError, TierClosed
from dynalab.pools import CudaMemoryPool, _cuda, pointer_tables_bytes

MIB = 1 << 20


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(_cuda, "why_no_cuda", lambda: "")
    monkeypatch.setattr(_cuda, "runtime", lambda: fake)
    monkeypatch.setattr(_cuda, "current_stream", lambda: 77)
    return fake


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [
        ({"layers": 80, "outer": 2}, 204_800),
        ({"layers": 80, "outer": 2, "concurrency": 4, "batch": 16}, 10 * 20_480),
        ({"layers": 1, "outer": 1, "concurrency": 1, "batch": 1}, 4 * 8),
        ({"layers": 61, "outer": 1, "concurrency": 8, "batch": 32}, 18 * 32 * 61 * 8),
    ],
)
def test_reserve_of_pointer_tables(shape: dict[str, int], nbytes: int) -> None:
    assert pointer_tables_bytes(**shape) == nbytes


@pytest.mark.parametrize("field", ["layers", "outer", "concurrency", "batch"])
def test_reserve_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: 0 cannot be"):
        pointer_tables_bytes(**{"layers": 2, "outer": 2, field: 0})


def test_without_a_gpu_it_says_why_and_what_to_do() -> None:
    if not _cuda.why_no_cuda():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceMemoryError, match=r"^device memory cannot be had: .*(install|run on)"):
        CudaMemoryPool()


def test_threshold_is_set_before_the_reserve_is_brought_in(runtime: FakeRuntime) -> None:
    with CudaMemoryPool("10MiB", release_threshold="64MiB", device=1) as pool:
        names = [call[0] for call in runtime.calls]
        assert names == ["memPoolCreate", "memPoolSetAttribute", "mallocFromPoolAsync", "freeAsync"]
        assert runtime.calls[0][2:] == (1, 0, 1, 1), "pinned memory, no handles, on a device, number 1"
        assert runtime.calls[1][2:] == (4, 64 * MIB)
        assert [call[1] for call in runtime.calls[2:]] == [1, 1], "on the pool's device"
        assert runtime.device == 0, "the caller's device is his again"
        assert not runtime.streams
        assert pool.stats() == {"used": 0, "used_high": 10 * MIB, "reserved": 10 * MIB, "reserved_high": 10 * MIB}
    assert not runtime.pools


def test_the_default_threshold_is_128_mib_and_nothing_is_reserved(runtime: FakeRuntime) -> None:
    with CudaMemoryPool() as pool:
        assert runtime.model.release_threshold == 128 * MIB
        assert pool.stats()["reserved"] == 0
        assert "cuda:0, 0 B used, 0 B reserved" in repr(pool)


def test_buffers_are_freed_on_the_stream_that_used_them_last(runtime: FakeRuntime) -> None:
    with CudaMemoryPool() as pool:
        first, second = pool.allocate("1MiB"), pool.allocate(3 * MIB, stream=5)
        assert (first.stream, second.stream, second.nbytes) == (77, 5, 3 * MIB)
        assert pool.stats()["used"] == 4 * MIB
        runtime.calls.clear()
        with first:
            assert first.address in runtime.live
        second.free(stream=9)
        second.free()
        assert [call[2] for call in runtime.calls] == [77, 9]
        assert not runtime.live
        with pytest.raises(BlockStateError, match="of 3 MiB was freed"):
            second.address  # noqa: B018
        stats = pool.stats()
        assert (stats["used"], stats["used_high"], stats["reserved"]) == (0, 4 * MIB, 6 * MIB)
        pool.reset_high_water()
        assert pool.stats()["used_high"] == 0
        runtime.model.synchronize()
        pool.trim("1MiB")
        assert pool.stats()["reserved"] == 2 * MIB


def test_exhaustion_is_named_with_sizes(runtime: FakeRuntime) -> None:
    with CudaMemoryPool(device=1) as pool:
        held = pool.allocate("1000MiB")
        with pytest.raises(
            DeviceMemoryError, match=r"^cuda:1: 32 MiB asked, 24 MiB of 1 GiB free; make the device tier"
        ):
            pool.allocate("32MiB")
        assert runtime.device == 0
        held.free()
        pool.allocate("32MiB").free()


def test_other_errors_of_cuda_are_not_called_exhaustion(runtime: FakeRuntime) -> None:
    with CudaMemoryPool() as pool:
        runtime.refuse = "mallocFromPoolAsync"
        with pytest.raises(FakeError, match="cudaError 1"):
            pool.allocate(1)


@pytest.mark.parametrize("refuse", ["memPoolSetAttribute", "mallocFromPoolAsync"])
def test_a_pool_that_fails_to_be_built_leaves_nothing(runtime: FakeRuntime, refuse: str) -> None:
    runtime.refuse = refuse
    with pytest.raises(FakeError):
        CudaMemoryPool("1MiB")
    assert not runtime.pools
    assert not runtime.streams


def test_closed_and_forgotten_pools_are_destroyed_once(runtime: FakeRuntime) -> None:
    pool = CudaMemoryPool()
    pool.close()
    pool.close()
    assert not runtime.pools
    for call in (lambda: pool.allocate(1), pool.stats, pool.trim, pool.reset_high_water):
        with pytest.raises(TierClosed, match="memory pool of cuda:0 is closed"):
            call()
    assert "closed" in repr(pool)
    forgotten = CudaMemoryPool()
    assert runtime.pools
    del forgotten
    gc.collect()
    assert not runtime.pools


def test_what_cannot_be_is_refused(runtime: FakeRuntime) -> None:
    with pytest.raises(ConfigError, match="reserve: 2 MiB would not stay with a release threshold of 1 MiB"):
        CudaMemoryPool("2MiB", release_threshold="1MiB")
    with pytest.raises(DeviceMemoryError, match="GPU 2 does not exist; there are 2"):
        CudaMemoryPool(device=2)
    with pytest.raises(ConfigError, match="reserve: 'x'"):
        CudaMemoryPool("x")
    with CudaMemoryPool() as pool, pytest.raises(ConfigError, match="nbytes: 0 bytes"):
        pool.allocate(0)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if why := _cuda.why_no_cuda():
        pytest.skip(why)
    import cupy

    with CudaMemoryPool("1MiB", release_threshold="64MiB") as pool:
        assert pool.stats()["reserved"] >= MIB
        assert pool.stats()["used"] == 0
        stream = cupy.cuda.Stream(non_blocking=True)
        with pool.allocate("8MiB", stream) as buffer, stream:
            array = buffer.array((2, MIB), "float32")
            array[:] = 3
            assert float(array.sum()) == 6 * MIB
            assert pool.stats()["used"] >= 8 * MIB
        stream.synchronize()
        assert pool.stats()["used"] == 0
        pool.trim()
        assert pool.stats()["reserved"] == 0
        with pytest.raises(DeviceMemoryError, match="cuda:0: 1 PiB asked"):
            pool.allocate("1PiB")
