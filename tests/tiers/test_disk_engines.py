"""Optional engines: NIXL where it is installed, KvikIO's calls against a stand-in, and what is said without them."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from disk_blocks import LAYOUT, Blocks, name_of

from dynalab.errors import ConfigError
from dynalab.kernels.gpu import why_no_gpu
from dynalab.kv import KVLayout
from dynalab.testing import TierTests
from dynalab.tiers import disk_engines
from dynalab.tiers.disk import DiskTier
from dynalab.tiers.disk_engines import KvikioEngine, NixlEngine
from dynalab.tiers.disk_io import DataFile, PosixEngine, find_engine
from dynalab.tiers.tier import READ_CORRUPT, READ_FAILED, READ_OK

needs_nixl = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("nixl", "nixl_cu13", "nixl_cu12")),
    reason="NIXL is not installed (pip install --no-deps nixl-cu13)",
)


@needs_nixl
class TestNixlDiskTier(TierTests):
    durable = True

    @pytest.fixture(autouse=True)
    def _directories(self, tmp_path: Path) -> None:
        self.base, self.made = tmp_path, 0

    def make_tier(self, layout: KVLayout, capacity: int) -> DiskTier:
        self.made += 1
        return self.reopen_tier(layout, capacity)

    def reopen_tier(self, layout: KVLayout, capacity: int) -> DiskTier:
        tier = DiskTier(layout, capacity=capacity, path=self.base / str(self.made), engine="nixl")
        assert tier.stats()["engine"] == "nixl"
        return tier


@needs_nixl
@pytest.mark.parametrize("direct", [True, False])
def test_nixl_writes_what_posix_reads(tmp_path: Path, direct: bool) -> None:
    with DiskTier(LAYOUT, capacity=40, path=tmp_path, engine="nixl", direct=direct) as tier:
        assert isinstance(tier._engine, NixlEngine)
        blocks = Blocks(tier)
        assert blocks.write(np.arange(40)[::-1], range(40)).all()
        assert (blocks.check(range(40), [name_of(39 - i) for i in range(40)]) == READ_OK).all()
    with DiskTier(LAYOUT, capacity=40, path=tmp_path, direct=direct) as tier:
        assert (Blocks(tier).check(range(40), [name_of(39 - i) for i in range(40)]) == READ_OK).all()


@needs_nixl
def test_nixl_finds_the_blocks_that_fail(tmp_path: Path) -> None:
    with DiskTier(LAYOUT, capacity=8, path=tmp_path, engine="nixl") as tier:
        blocks = Blocks(tier)
        blocks.write(range(8), range(8))
        os.truncate(tmp_path / "blocks.data", 5 * tier.slot_bytes + 100)
        status = blocks.check(range(8), [name_of(i) for i in range(8)])
        assert status.tolist() == [READ_OK] * 5 + [READ_FAILED] * 3
        assert "Input/output error (EIO)" in str(tier.last_errors[-1])
        assert blocks.write([7], [7]).all()
        assert blocks.check([7], [name_of(7)]).tolist() == [READ_OK]


@needs_nixl
def test_nixl_from_many_threads(tmp_path: Path) -> None:
    wrong: list[int] = []
    with DiskTier(LAYOUT, capacity=40, path=tmp_path, engine="nixl") as tier:

        def run(number: int) -> None:
            blocks, slots = Blocks(tier), np.arange(number * 10, number * 10 + 10)
            for round_ in range(10):
                numbers = slots + 100 * round_
                if not blocks.write(slots, numbers).all():
                    wrong.append(number)
                if blocks.check(slots, [name_of(n) for n in numbers]).any():
                    wrong.append(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_without_nixl_the_cure_is_named_and_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_engines, "_NIXL_MODULES", ("nixl_that_is_absent._api",))
    with pytest.raises(
        ConfigError, match=r'engine: "nixl" cannot be used: .* pip install --no-deps nixl-cu13; or choose'
    ):
        DiskTier(LAYOUT, capacity=8, path=tmp_path / "kv", engine="nixl")
    assert not (tmp_path / "kv").exists()
    (tmp_path / "halfnixl").mkdir()
    (tmp_path / "halfnixl" / "_api.py").write_text("import a_dependency_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(disk_engines, "_NIXL_MODULES", ("halfnixl._api",))
    with pytest.raises(ConfigError, match=r"halfnixl._api lacks a_dependency_that_is_absent"):
        find_engine("nixl")
    (tmp_path / "halfnixl" / "_api.py").write_text("raise ImportError('libcudart.so.13: cannot open')\n")
    sys.modules.pop("halfnixl._api", None)
    with pytest.raises(ConfigError, match=r"halfnixl._api cannot be loaded \(libcudart.so.13: cannot open\)"):
        find_engine("nixl")


def test_without_kvikio_or_gpu_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "kvikio" else found(name))
    with pytest.raises(
        ConfigError, match=r'engine: "kvikio" cannot be used: .* pip install kvikio-cu13; or choose "posix"'
    ):
        DiskTier(LAYOUT, capacity=8, path=tmp_path / "kv", engine="kvikio")
    assert not (tmp_path / "kv").exists()
    with DiskTier(LAYOUT, capacity=8, path=tmp_path / "kv", engine="auto") as tier:
        assert isinstance(tier._engine, PosixEngine)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: object() if name == "kvikio" else found(name))
    monkeypatch.setattr(disk_engines, "why_no_gpu", lambda: "no NVIDIA driver")
    with pytest.raises(ConfigError, match="cannot be used: no NVIDIA driver; or"):
        find_engine("kvikio")
    monkeypatch.setattr(disk_engines, "why_no_gpu", lambda: "")
    assert find_engine("kvikio") is KvikioEngine
    assert find_engine("auto") is KvikioEngine


class _Future:
    def __init__(self, result) -> None:
        self.result = result

    def get(self) -> int:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class _CuFile:
    """KvikIO's file, as far as it is used, on host memory: shows the calls, their order and their outcomes."""

    failures: dict[int, object]

    def __init__(self, file: Path, flags: str) -> None:
        assert flags == "r+"
        self.fd, self.closed = os.open(file, os.O_RDWR), False

    def _memory(self, block) -> np.ndarray:
        assert not hasattr(block, "__array_interface__") or not hasattr(block, "__cuda_array_interface__")
        facts = getattr(block, "__array_interface__", None) or block.__cuda_array_interface__
        self.on_gpu = hasattr(block, "__cuda_array_interface__")
        return np.asarray(SimpleNamespace(__array_interface__=facts | {"version": 3}))

    def pread(self, block, size: int, offset: int) -> _Future:
        if offset in self.failures:
            return _Future(self.failures[offset])
        return _Future(os.preadv(self.fd, [self._memory(block)[:size]], offset))

    def pwrite(self, block, size: int, offset: int) -> _Future:
        return _Future(os.pwritev(self.fd, [self._memory(block)[:size]], offset))

    def close(self) -> None:
        os.close(self.fd)
        self.closed = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """KvikIO and CuPy as modules that do host memory; `kind` is what CUDA says of every address."""
    state = SimpleNamespace(kind=0, threads=None, failures={})
    attributes = lambda address: SimpleNamespace(type=state.kind)  # noqa: E731
    runtime = SimpleNamespace(pointerGetAttributes=attributes)
    _CuFile.failures = state.failures
    modules = {
        "kvikio": {"CuFile": _CuFile},
        "kvikio.defaults": {"set": lambda name, value: setattr(state, "threads", (name, value))},
        "cupy": {"cuda": SimpleNamespace(runtime=runtime), "asnumpy": np.asarray},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(disk_engines, "why_no_kvikio", lambda: "")
    return state


def test_kvikios_calls(tmp_path: Path, stand_in: SimpleNamespace) -> None:
    with DiskTier(LAYOUT, capacity=8, path=tmp_path, engine="kvikio", threads=3) as tier:
        assert stand_in.threads == ("num_threads", 3)
        assert tier.capabilities.gpu_direct
        blocks = Blocks(tier)
        assert blocks.write(range(8), range(8)).all()
        size = tier.slot_bytes
        stand_in.failures |= {size: 100, 2 * size: OSError(errno.ENXIO, "no"), 3 * size: RuntimeError("cuFile 5030")}
        status = blocks.check(range(8), [name_of(i) for i in range(8)])
        assert status.tolist() == [READ_OK] + [READ_FAILED] * 3 + [READ_OK] * 4
        for error, reason in zip(tier.last_errors, ("ends before", "ENXIO", "EIO"), strict=True):
            assert reason in str(error)
        stand_in.failures.clear()
        (file,) = [tier._engine._file]  # type: ignore[attr-defined]
    assert file.closed
    with DiskTier(LAYOUT, capacity=8, path=tmp_path) as tier:
        assert (Blocks(tier).check(range(8), [name_of(i) for i in range(8)]) == READ_OK).all()


def test_gpu_memory_is_shown_as_such_and_summed_on_the_gpu(
    tmp_path: Path, stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynalab.kernels.checksum import checksum_blocks

    calls = []

    def on_device(addresses, nbytes, *, seed=0):
        calls.append(len(addresses))
        return checksum_blocks(addresses, nbytes, seed=seed)

    module = ModuleType("dynalab.kernels.checksum_device")
    module.__dict__["checksum_blocks_device"] = on_device
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stand_in.kind = 2
    with DiskTier(LAYOUT, capacity=8, path=tmp_path, engine="kvikio") as tier:
        blocks = Blocks(tier)
        assert blocks.write(range(4), range(4)).all()
        assert (blocks.check(range(4), [name_of(i) for i in range(4)]) == READ_OK).all()
        assert calls == [4, 4]
        assert tier._engine._file.on_gpu  # type: ignore[attr-defined]
        data = np.memmap(tmp_path / "blocks.data", np.uint8, "r+")
        data[0] ^= 1
        data.flush()
        assert blocks.check([0, 1], [name_of(0), name_of(1)]).tolist() == [READ_CORRUPT, READ_OK]


@pytest.mark.gpu
@pytest.mark.skipif(bool(why_no_gpu()), reason=why_no_gpu() or "a GPU is here")
@pytest.mark.skipif(importlib.util.find_spec("kvikio") is None, reason="KvikIO is not installed")
def test_kvikio_moves_gpu_memory(tmp_path: Path) -> None:
    import cupy

    with DiskTier(LAYOUT, capacity=8, path=tmp_path, engine="kvikio") as tier:
        rows = cupy.random.default_rng(1).integers(0, 256, (8, tier.block_bytes)).astype(cupy.uint8)
        addresses = (rows.data.ptr + np.arange(8) * tier.block_bytes).astype(np.uint64)
        before = rows.copy()
        keys = Blocks.keys(range(8))
        assert tier.write(range(8), addresses, keys).all()
        rows[:] = 0
        assert (tier.read(range(8), addresses, keys.hash) == READ_OK).all()
        assert bool((rows == before).all())


def test_an_engine_of_ones_own(tmp_path: Path) -> None:
    made: list[tuple[DataFile, int]] = []

    def mine(file: DataFile, threads: int) -> PosixEngine:
        made.append((file, threads))
        return PosixEngine(file, threads)

    with DiskTier(LAYOUT, capacity=8, path=tmp_path, engine=mine, threads=5) as tier:
        assert Blocks(tier).write([1], [1]).all()
    ((file, threads),) = made
    assert (file.path, file.nbytes, threads) == (tmp_path / "blocks.data", 8 * 4096, 5)
