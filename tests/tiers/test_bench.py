"""The benchmark of tiers: wrong bytes stop it, figures are what was timed, and nothing is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from disk_blocks import refuse_direct
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError, DynalabError, TierFull, TransferError
from dynalab.kernels import gpu_available, why_no_gpu
from dynalab.tiers import bench, bench_plan
from dynalab.tiers.bench import BenchPlan, bench_tiers
from dynalab.tiers.bench_cases import DIRECTIONS, Case, Deck, layout_of
from dynalab.tiers.bench_limits import PIECE, PlainCopy, PlainFile
from dynalab.tiers.bench_results import bench_dataset
from dynalab.tiers.bench_rig import TierRig

SMALL: dict[str, Any] = {
    "device": "2MiB",
    "host": "1MiB",
    "disk": "2MiB",
    "block_bytes": ("64KiB", "16KiB"),
    "batches": (1, 4),
    "gpu": "host-emulated",
    "seconds": 0.01,
}


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Let no case be too slow for the short time that tests give them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_TOO_SLOW", 1e4)
        yield


def small(path: Path, **changes: Any) -> BenchPlan:
    return BenchPlan(path=path, **(SMALL | changes))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bench_tiers(small(tmp_path_factory.mktemp("disk")), progress=False)


def test_every_direction_size_batch_and_layout_is_measured(measured: Any) -> None:
    assert measured.direction.values.tolist() == list(DIRECTIONS)
    assert measured.bandwidth.dims == ("direction", "block_bytes", "batch", "layout")
    assert measured.bandwidth.shape == (7, 2, 2, 2)
    assert measured.block_bytes.values.tolist() == [65_536, 16_384]
    for name in ("bandwidth", "bandwidth_p10", "bandwidth_p90", "limit", "limit_p10", "limit_p90"):
        assert bool((measured[name] > 0).all()), name
        assert measured[name].attrs["units"] == "B/s"
    assert bool((measured.bandwidth_p10 <= measured.bandwidth).all())
    assert bool((measured.bandwidth <= measured.bandwidth_p90).all())
    assert measured.sizes["round"] == measured.attrs["rounds"] >= 3
    assert measured.attrs["device"] == measured.attrs["device_label"] == "host-emulated"
    assert measured.attrs["cases_left_out"] == 0
    assert (measured.attrs["disk_engine"], measured.attrs["disk_direct_io"]) == ("posix", True)


def test_figures_are_bytes_over_seconds_and_count_twice_inside_the_device(measured: Any) -> None:
    payload = measured.blocks * measured.block_bytes
    rate = (payload / measured.seconds).median("round")
    for direction in DIRECTIONS:
        factor = 2 if direction == "device_to_device" else 1
        ours = measured.bandwidth.sel(direction=direction)
        np.testing.assert_allclose(ours, factor * rate.sel(direction=direction))
        share = measured.share_of_limit.sel(direction=direction)
        np.testing.assert_allclose(share, ours / float(measured.limit.sel(direction=direction)))


def test_a_dataset_by_hand() -> None:
    plan = BenchPlan(disk=0, block_bytes=[4096, 8192], batches=[2], layouts="block_first")
    case = Case("device_to_device", 8192, 2, "block_first")
    ds = bench_dataset(plan, {case: 4}, {case: [2.0, 1.0, 4.0]}, {"device_to_device": [8e4, 2e4, 4e4]}, {"device": "x"})
    found = ds.sel(direction="device_to_device", batch=2, layout="block_first")
    assert np.isnan(found.bandwidth.sel(block_bytes=4096))
    assert float(found.bandwidth.sel(block_bytes=8192)) == 2 * 4 * 8192 / 2
    assert float(found.limit) == 4e4
    assert float(found.share_of_limit.sel(block_bytes=8192)) == 32_768 / 4e4
    assert float(found.limit_p10) == pytest.approx(2.4e4)
    assert ds.attrs["device"] == "x"


def test_nothing_has_a_name_on_the_disk_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []
    moved = TierRig.move

    def move(rig: TierRig, case: Case, n: int) -> float:
        seen.append(list(tmp_path.iterdir()))
        return moved(rig, case, n)

    monkeypatch.setattr(TierRig, "move", move)
    bench_tiers(small(tmp_path), progress=False)
    assert seen
    assert not any(seen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["check", "move"])
def test_an_interrupt_leaves_neither_files_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before = set(threading.enumerate())
    calls: list[Case] = []
    original = getattr(TierRig, when)

    def interrupted(rig: TierRig, case: Case, n: int) -> float:
        calls.append(case)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(rig, case, n)

    monkeypatch.setattr(TierRig, when, interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_tiers(small(tmp_path), progress=False)
    assert list(tmp_path.iterdir()) == []
    left = [t.name for t in set(threading.enumerate()) - before if not t.name.startswith("dynalab-copy")]
    assert left == [], "the pool of copying threads is everybody's"


Fault = Callable[[TierRig, Any, int, int, Callable[..., Any]], Any]


def swaps_two(rig: TierRig, transfer: Any, lo: int, hi: int, mover: Callable[..., Any]) -> Any:
    order = np.arange(len(transfer))
    order[:2] = order[1::-1]
    moved = SimpleNamespace(
        path=transfer.path, src=transfer.src[order], dst=transfer.dst, payload=transfer.payload, errors=[]
    )
    moved.__class__.__len__ = lambda self: len(transfer)  # type: ignore[attr-defined]
    return mover(moved, lo, hi)


def forgets_one(rig: TierRig, transfer: Any, lo: int, hi: int, mover: Callable[..., Any]) -> Any:
    mover(transfer, lo + (lo == 0), hi)
    return np.ones(hi - lo, bool)


def flips_a_bit(rig: TierRig, transfer: Any, lo: int, hi: int, mover: Callable[..., Any]) -> Any:
    ok = mover(transfer, lo, hi)
    if lo == 0 and not transfer.path.endswith("disk"):
        window = rig._windows[transfer.path.partition("_to_")[2], 16_384, "layer_first"]
        window.view(int(transfer.dst[0]))[31, 1, 15, -1] ^= 1
    return ok


FAULTS = [(fault, direction) for fault in (swaps_two, forgets_one, flips_a_bit) for direction in DIRECTIONS]


# Nothing on the disk has an address behind which a bit could be flipped.
@pytest.mark.parametrize(("fault", "direction"), [f for f in FAULTS if f[0] != flips_a_bit or f[1][-4:] != "disk"])
def test_wrong_bytes_are_an_error(tmp_path: Path, fault: Fault, direction: str) -> None:
    case = Case(direction, 16_384, 4, "layer_first")
    with TierRig(small(tmp_path)) as rig:
        assert rig.check(case, 8) > 0
        found = rig._movers[16_384, "layer_first"]
        mover = found[direction]
        found[direction] = lambda transfer, lo, hi: fault(rig, transfer, lo, hi, mover)
        with pytest.raises(TransferError):
            rig.check(case, 8)


def test_nothing_is_timed_after_a_wrong_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> float:
        raise TransferError("a block holds other bytes")

    monkeypatch.setattr(TierRig, "check", wrong)
    monkeypatch.setattr(TierRig, "move", lambda *_: pytest.fail("timed"))
    with pytest.raises(TransferError, match="other bytes"):
        bench_tiers(small(tmp_path), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_mover_is_an_error(tmp_path: Path) -> None:
    case = Case("device_to_host", 16_384, 4, "block_first")
    with TierRig(small(tmp_path)) as rig:
        rig._movers[16_384, "block_first"]["device_to_host"] = lambda transfer, lo, hi: np.arange(lo, hi) != 3
        with pytest.raises(TransferError, match=r"device_to_host: blocks \[3\] of 8 did not arrive"):
            rig.move(case, 8)


def test_no_layout_reaches_beyond_the_memory(tmp_path: Path) -> None:
    plan = BenchPlan(
        path=tmp_path, device=77_824, host=69_632, disk=0, block_bytes=[4096, 8192, 12_288], gpu="host-emulated"
    )
    with TierRig(plan) as rig:
        for (name, size, _), window in rig._windows.items():
            memory = rig.pages(name)
            addresses, nbytes = window.chunks(np.arange(window.capacity))
            assert window.capacity == getattr(plan, name) // size
            assert len(np.unique(addresses)) == len(addresses)
            assert int(addresses.min()) >= memory.bases[0]
            assert int(addresses.max()) + nbytes <= memory.bases[0] + memory.capacity * memory.block_bytes


@pytest.mark.parametrize(
    ("changes", "directions"),
    [
        ({"device": 0}, {"host_to_disk", "disk_to_host"}),
        ({"disk": 0}, {"device_to_host", "host_to_device", "device_to_device"}),
    ],
)
def test_a_machine_without_device_or_disk(tmp_path: Path, changes: dict[str, Any], directions: set[str]) -> None:
    found = bench_tiers(small(tmp_path / "absent" if "disk" in changes else tmp_path, **changes), progress=False)
    assert set(found.direction.values) == directions
    assert bool((found.bandwidth > 0).all())
    assert ("device" in found.attrs) == ("disk" in changes)


def test_batches_without_room_are_left_out(tmp_path: Path) -> None:
    found = bench_tiers(small(tmp_path, batches=(4, 17), block_bytes=["64KiB"]), progress=False)
    fits = found.bandwidth.sel(batch=17).notnull().all("layout").isel(block_bytes=0)
    # The host has 16 slots, device and disk 32; inside the device each block needs two.
    assert {str(d) for d in DIRECTIONS if fits.sel(direction=d)} == {"device_to_disk", "disk_to_device"}
    assert found.attrs["cases_left_out"] == 5 * 2
    assert bool(((found.blocks == 0) == found.bandwidth.isnull()).all())


def test_batches_that_would_take_the_time_of_all_others_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_TOO_SLOW", 1e-3)
    monkeypatch.setattr(bench._Limits, "measure", lambda *_: 1e6)
    found = bench_tiers(small(tmp_path, seconds=20, block_bytes=["16KiB"], batches=[1, 4], disk=0), progress=False)
    assert bool(found.bandwidth.sel(batch=1).drop_sel(direction="device_to_device").notnull().all())
    assert bool(found.bandwidth.sel(batch=4).isnull().all())


def test_a_disk_without_direct_access_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch, "open")
    found = bench_tiers(small(tmp_path, block_bytes=["16KiB"], batches=[4]), progress=False)
    assert found.attrs["disk_direct_io"] is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "lots"}, ["device: 'lots' is not a size"]),
        ({"host": 0}, ["host: 0", "greater than 0"]),
        ({"device": 0, "disk": 0}, ["both are 0"]),
        ({"block_bytes": ["1000"]}, ["block_bytes: 1000 is not a multiple of 4096", "64KiB"]),
        ({"block_bytes": []}, ["block_bytes"]),
        ({"block_bytes": "16KiB,,8 potatoes"}, ["block_bytes: '8 potatoes' is not a size"]),
        ({"batches": "0,4"}, ["batches.0: '0'", "greater than or equal to 1"]),
        ({"batches": "four"}, ["batches.0: 'four'", "integer"]),
        ({"layouts": "layer-first"}, ["layouts.0: 'layer-first'", "'block_first' or 'layer_first'"]),
        ({"concurrency": 0}, ["concurrency: 0"]),
        ({"seconds": 0}, ["seconds: 0", "greater than 0"]),
        ({"seconds": "soon"}, ["seconds: 'soon' is not a duration"]),
        ({"seed": -1}, ["seed: -1"]),
        ({"host": "60KiB"}, ["host: 60 KiB are too few for blocks of 64 KiB", "give 64 KiB or more"]),
        ({"device": "64KiB"}, ["device: 64 KiB are too few", "give 128 KiB or more"]),
        ({"disk": "64KiB"}, ["disk: 64 KiB are too few", "give 256 KiB or more"]),
        ({"colour": "red"}, ["colour is no field of it"]),
        ({"path": __file__}, ["test_bench.py' is not a directory that can be written to"]),
        ({"path": "/nowhere"}, ["path: '/nowhere' is not a directory"]),
        ({"gpu": "cuda:x"}, ["device: 'cuda:x' is no GPU"]),
        ({"engine": "steam"}, ["engine: 'steam' does not exist", "posix"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DynalabError) as caught:
        bench_tiers(small(**({"path": tmp_path} | changes)), progress=False)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_out_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=1 << 30, used=0, free=5 << 20)
    monkeypatch.setattr(bench_plan.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TierFull, match=r"path: 10 MiB are needed on the file system of .*, 5 MiB are free"):
        bench_tiers(small(tmp_path), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_memory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DynalabError, match="of host memory asked"):
        bench_tiers(small(tmp_path, host="1EiB"), progress=False)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 9))
def test_no_slot_comes_again_before_all_others_had_their_turn(n: int, deals: list[int], seed: int) -> None:
    deck, since = Deck(np.random.default_rng(seed), n), set[int]()
    for k in deals:
        k = min(k, n)
        dealt = deck.deal(k).tolist()
        assert len(set(dealt)) == k
        assert set(dealt) <= set(range(n))
        if since & set(dealt):
            assert len(since) > n - k, "only when too few were left"
            since = set()
        since |= set(dealt)


@given(
    st.sampled_from(DIRECTIONS),
    st.integers(1, 1024).map(lambda k: 4096 * k),
    st.integers(1, 100),
    st.integers(0, 5000),
    st.floats(1e6, 1e13),
)
def test_measurements_are_whole_batches_that_have_room(
    direction: str, size: int, batch: int, room: int, rate: float
) -> None:
    n = bench._blocks(Case(direction, size, batch, "block_first"), room, rate, most_seconds=1.0)
    if batch > room or batch * size > rate:
        assert n == 0
        return
    assert n >= batch
    assert n % batch == 0
    if "disk" in direction:
        assert n <= room
    assert n * size / rate <= max(0.05, 2 * batch * size / rate) + 1e-9, "no longer than asked, or two batches"


def test_rounds_that_take_too_long_move_less() -> None:
    cases = [Case("host_to_disk", 65_536, batch, "block_first") for batch in (1, 16)]
    blocks, expected = {cases[0]: 100, cases[1]: 160}, dict.fromkeys(cases, 2.0)
    assert bench._within(blocks, expected, 4.0) == blocks
    assert bench._within(blocks, expected, 1.0) == {cases[0]: 25, cases[1]: 32}
    assert bench._within(blocks, expected, -1.0) == {cases[0]: 1, cases[1]: 16}


def test_a_plain_file_is_read_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PlainFile(tmp_path, 3 * PIECE, direct=False) as file:
        assert list(tmp_path.iterdir()) == []
        asked: list[int] = []
        preadv = bench.os.preadv
        monkeypatch.setattr("os.preadv", lambda fd, buffers, at: asked.append(at) or preadv(fd, buffers, at))
        assert [file.run(2 * PIECE, write=False)[1] for _ in range(2)] == [2 * PIECE] * 2
        assert sorted(asked) == [0, 0, PIECE, PIECE], "a stretch that would reach beyond the end begins anew"
        monkeypatch.setattr("os.preadv", lambda fd, buffers, at: 4096)
        with pytest.raises(TransferError, match="4096 of 4194304 bytes of the plain file were moved"):
            file.run(PIECE, write=False)

        def refuse(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.pwritev", refuse)
        with pytest.raises(TransferError, match=r"cannot be written: .*Input/output error"):
            file.run(PIECE, write=True)


def test_a_large_copy_of_a_gpu_is_timed_by_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = np.arange(512, dtype=np.uint64), np.zeros(512, np.uint64)
    calls: list[str] = []

    def copy(dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        assert (kind, stream) == (4, 77)
        calls.append("copy")
        ctypes.memmove(dst, src, nbytes)

    stream = SimpleNamespace(ptr=77, synchronize=lambda: calls.append("wait"))
    runtime = SimpleNamespace(memcpyAsync=copy, memcpyDefault=4)
    cuda = SimpleNamespace(Device=contextlib.nullcontext, Stream=lambda non_blocking: stream, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    plain = PlainCopy(1, device=0)
    assert plain.seconds(target.ctypes.data, source.ctypes.data, 4096) == 2.0 / 8
    plain.close()
    assert calls == ["copy"] * 8 + ["wait"]
    assert np.array_equal(target, source)


def test_layouts_have_the_bytes_asked_for() -> None:
    for size in (4096, 65_536, 12 << 20):
        for order in ("block_first", "layer_first"):
            layout = layout_of(size, order)
            assert layout.block_bytes == size
            assert layout.fragments_per_block == (1 if order == "block_first" else 64)
    with pytest.raises(ConfigError):
        layout_of(6000)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_available(), reason=why_no_gpu() or "there is a GPU")
def test_a_gpu_is_measured_and_named(tmp_path: Path) -> None:
    found = bench_tiers(small(tmp_path, gpu=None), progress=False)
    assert found.attrs["device_label"] == "cuda:0"
    assert "device" not in found.attrs
    assert found.attrs["host_pages"] == "pinned"
    assert bool((found.bandwidth > 0).all())
