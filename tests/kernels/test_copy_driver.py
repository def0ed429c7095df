"""Copies by the CUDA driver, with C functions of this process in the driver's place."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
from copy_cases import make_case
from fake_cuda import table
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError, TransferError
from dynalab.kernels.memcpy import DriverCopies, merge_runs

POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
EACH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, SIZE, ctypes.c_uint64)
BATCH = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER, POINTER, SIZE, POINTER, POINTER, SIZE, POINTER)
BATCH_OF_12_8 = ctypes.CFUNCTYPE(
    ctypes.c_int, POINTER, POINTER, POINTER, SIZE, POINTER, POINTER, SIZE, POINTER, POINTER
)
STREAM = 0x7F00_1234_5678


class Driver:
    """Copies like the driver, writes down what it was given, and fails when told to."""

    def __init__(self, fail_at: int = -1, error: int = 700) -> None:
        self.each_calls: list[tuple[int, int]] = []
        self.batch_calls: list[dict] = []
        self.fail_at, self.error = fail_at, error
        self.each = EACH(self._each)
        self.batch = BATCH(lambda *args: self._batch(*args[:7], None, args[7]))
        self.batch_12_8 = BATCH_OF_12_8(self._batch)

    def _each(self, dst, src, nbytes, stream) -> int:
        if len(self.each_calls) == self.fail_at:
            return self.error
        self.each_calls.append((nbytes, stream))
        ctypes.memmove(dst, src, nbytes)
        return 0

    def _batch(self, dsts, srcs, sizes, count, attributes, indices, n, failed, stream) -> int:
        if self.fail_at >= 0:
            return self.error
        call = {"count": count, "n": n, "failed": failed, "stream": stream, "index": table(indices, 1).tolist()}
        call["attributes"] = np.ctypeslib.as_array((ctypes.c_uint32 * 6).from_address(attributes)).tolist()
        self.batch_calls.append(call)
        for dst, src, nbytes in zip(*(table(t, count).tolist() for t in (dsts, srcs, sizes)), strict=True):
            assert nbytes > 0, "the driver refuses copies of nothing"
            ctypes.memmove(dst, src, nbytes)
        return 0

    def copies(self, *, batch: bool = True, old: bool = False, enter=None) -> DriverCopies:
        function = (self.batch_12_8 if old else self.batch) if batch else None
        address = ctypes.cast(function, POINTER).value if function else 0
        each = ctypes.cast(self.each, POINTER).value
        return DriverCopies(each, address, batch_tells_failed=old, enter=enter)  # type: ignore[arg-type]


pieces = st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans()), max_size=12)


@given(pieces)
def test_merged_runs_are_the_same_bytes_in_as_few_pieces_as_can_be(pieces) -> None:
    """Pieces follow on each other on a side or leave a gap there; a plain loop merges, too."""
    at, table_of, runs = [4096, 8192], [], []
    for size, gap_src, gap_dst in pieces:
        at = [at[0] + 8 * gap_src, at[1] + 8 * gap_dst]
        table_of.append((*at, size))
        if size and runs and [runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]] == at:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + size)
        elif size:
            runs.append((*at, size))
        at = [at[0] + size, at[1] + size]
    src, dst, sizes = (list(column) for column in zip(*table_of, strict=True)) if table_of else ([], [], [])
    assert list(zip(*(part.tolist() for part in merge_runs(src, dst, sizes)), strict=True)) == runs


def test_runs_are_merged_with_one_size_for_all_and_in_the_order_given() -> None:
    src, dst, sizes = merge_runs([300, 200, 100, 400, 500], [30, 20, 10, 40, 140], 100)
    assert (src.tolist(), dst.tolist(), sizes.tolist()) == (
        [300, 200, 100, 400],
        [30, 20, 10, 40],
        [100, 100, 100, 200],
    )
    assert [part.size for part in merge_runs([], [], 5)] == [0, 0, 0]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("way", ["each", "batch"])
def test_the_right_bytes_arrive(way, old) -> None:
    case = make_case([64, 0, 100, 4096, 1], [(0, 0), (0, 0), (3, 5), (0, 0), (1, 2)])
    expected, driver = case.expected(), Driver()
    assert getattr(driver.copies(old=old), way)(*case.addresses, case.sizes, stream=STREAM) == 4
    np.testing.assert_array_equal(case.target, expected)
    if way == "each":
        assert [nbytes for nbytes, _ in driver.each_calls] == [64, 100, 4096, 1]
        assert {stream for _, stream in driver.each_calls} == {STREAM}
    else:
        (call,) = driver.batch_calls
        assert (call["failed"] is not None) == old
        assert (call["count"], call["n"], call["index"], call["stream"]) == (4, 1, [0], STREAM)


def test_adjacent_pieces_become_one_copy_if_they_may() -> None:
    memory = np.arange(256, dtype=np.uint8)
    target = np.zeros(256, np.uint8)
    src = memory.ctypes.data + np.arange(4) * 64
    for merge, copies in ((True, 1), (False, 4)):
        for way in ("each", "batch"):
            target[:] = 0
            dst = src - memory.ctypes.data + target.ctypes.data
            assert getattr(Driver().copies(), way)(src, dst, 64, stream=STREAM, merge=merge) == copies
            np.testing.assert_array_equal(target, memory)


@pytest.mark.parametrize(
    ("order", "overlap", "attributes"),
    [
        ("stream", True, [1, 0, 0, 0, 0, 1]),
        ("during_call", False, [2, 0, 0, 0, 0, 0]),
        ("any", True, [3, 0, 0, 0, 0, 1]),
    ],
)
def test_a_batch_says_when_its_sources_may_be_read(order, overlap, attributes) -> None:
    case, driver = make_case([64], [(0, 0)]), Driver()
    driver.copies().batch(*case.addresses, 64, stream=STREAM, source_order=order, overlap=overlap)
    assert driver.batch_calls[0]["attributes"] == attributes


def test_the_attributes_are_laid_out_as_the_drivers() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    attributes = driver.CUmemcpyAttributes()
    attributes.srcAccessOrder = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_ANY
    attributes.flags = 1
    laid_out = np.ctypeslib.as_array((ctypes.c_uint32 * 6).from_address(attributes.getPtr())).tolist()
    assert laid_out == [3, 0, 0, 0, 0, 1]
    assert int(driver.CUmemcpyFlags.CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE) == 1


def test_a_refused_copy_is_told_with_its_place_and_stops_the_rest() -> None:
    case, driver = make_case([64, 32, 16], [(0, 0)] * 3), Driver(fail_at=1)
    with pytest.raises(TransferError, match=r"cuMemcpyAsync: .*700.* for copy 1 of 3: 32 bytes"):
        driver.copies().each(*case.addresses, case.sizes, stream=STREAM)
    assert len(driver.each_calls) == 1


def test_a_refused_batch() -> None:
    case = make_case([64, 32], [(0, 0)] * 2)
    with pytest.raises(TransferError, match=r"cuMemcpyBatchAsync: .*1.* for 2 copies of 96 bytes"):
        Driver(fail_at=0, error=1).copies().batch(*case.addresses, case.sizes, stream=STREAM)


def test_batches_that_cannot_be() -> None:
    copies = Driver().copies()
    with pytest.raises(ConfigError, match="legacy default stream"):
        copies.batch([4096], [8192], 4, stream=0)
    with pytest.raises(ConfigError, match=r"source_order: 'sometime' does not exist"):
        copies.batch([4096], [8192], 4, stream=STREAM, source_order="sometime")
    with pytest.raises(ConfigError, match=r"CUDA 12\.8"):
        Driver().copies(batch=False).batch([4096], [8192], 4, stream=STREAM)
    assert copies.has_batch
    assert not Driver().copies(batch=False).has_batch


def test_nothing_to_copy_asks_the_driver_for_nothing() -> None:
    driver = Driver(fail_at=0)
    for way in ("each", "batch"):
        assert getattr(driver.copies(), way)([], [], 64, stream=STREAM) == 0
        assert getattr(driver.copies(), way)([4096], [8192], 0, stream=STREAM) == 0


@pytest.mark.parametrize("way", ["each", "batch"])
def test_bad_tables_are_refused_before_the_driver_is_asked(way) -> None:
    driver = Driver()
    with pytest.raises(ConfigError, match="null"):
        getattr(driver.copies(), way)([4096, 0], [8192, 8192], 4, stream=STREAM)
    assert not driver.each_calls
    assert not driver.batch_calls


def test_every_thread_makes_its_context_ready_once() -> None:
    entered: list[int] = []
    copies = Driver().copies(enter=lambda: entered.append(threading.get_ident()))
    case = make_case([64], [(0, 0)])

    def work() -> None:
        for _ in range(3):
            copies.each(*case.addresses, 64, stream=STREAM)
            copies.batch(*case.addresses, 64, stream=STREAM)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()
    assert len(entered) == 3
