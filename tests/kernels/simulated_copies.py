"""Run by test_copy_simulated.py in a process with NUMBA_ENABLE_CUDASIM=1: the kernels' logic, thread by thread."""

from __future__ import annotations

import ctypes
import itertools
import mmap

import numpy as np
import pytest
from copy_cases import Case, aligned, as_nhd, layer_bases, layout_strides, make_case, mixed_case
from simulator import Checks

from dynalab.kernels.copy import copy_pairs
from dynalab.kernels.copy_device import COPY, copy_pairs_device, copy_table
from dynalab.kernels.copy_tables import TableRing
from dynalab.kernels.launch import Kernel
from dynalab.kernels.permute import permute_blocks
from dynalab.kernels.permute_device import PERMUTE, permute_blocks_device

check = Checks()


class Memory(np.ndarray):
    """Host memory with its address as ``ptr``, as CuPy's has."""

    @property
    def ptr(self) -> int:
        return self.ctypes.data


class Runtime:
    """The calls of a CUDA runtime that a table ring makes, done at once."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def eventCreateWithFlags(self, flags: int) -> int:
        return 1

    def eventDestroy(self, event: int) -> None:
        self.calls.append("destroy")

    def eventSynchronize(self, event: int) -> None:
        self.calls.append("wait")

    def eventRecord(self, event: int, stream: int) -> None:
        self.calls.append("record")

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        self.calls.append(f"copy {nbytes}")
        ctypes.memmove(dst, src, nbytes)

    def streamSynchronize(self, stream: int) -> None:
        pass


def ring(slots: int = 2) -> TableRing:
    def allocate(nbytes: int) -> Memory:
        return np.zeros(nbytes, np.uint8).view(Memory)

    return TableRing(slots, allocate=allocate, allocate_pinned=allocate, runtime=Runtime())


def equal(case: Case, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(case.target, expected)


def launch(case: Case, blocks: int, threads: int, log_parts: int = 0, part_bytes: int = 1 << 20) -> None:
    """Launch with chosen numbers of blocks and threads, and compare."""
    expected = case.expected()
    src, dst = case.addresses
    tables = [table.ctypes.data for table in (src, dst, case.sizes)]
    COPY.launch(blocks, threads, 0, *tables, 0, src.size, log_parts, part_bytes)
    equal(case, expected)


@check
def mixed_alignments_equal_reference_and_twin() -> None:
    case, twin = mixed_case(), mixed_case()
    expected = case.expected()
    copy_pairs_device(*case.addresses, case.sizes, stream=0, max_blocks=1, tables=ring())
    copy_pairs(*twin.addresses, twin.sizes)
    equal(case, expected)
    equal(twin, expected)


@check
def more_pairs_than_warps() -> None:
    """One warp takes all pairs in turn, each with its own width: aligned first, then not, then again."""
    launch(make_case([64, 50, 64, 33, 16, 70], [(0, 0), (1, 3), (0, 0), (4, 4), (16, 0), (8, 0)]), 1, 32)


@check
def fewer_pairs_than_warps() -> None:
    launch(make_case([100], [(3, 3)]), 3, 64)


@check
def parts_of_large_pairs() -> None:
    """Pairs of several parts beside one that is shorter than a part, with heads and tails."""
    case = make_case([9001, 4096, 77, 0, 8191], [(5, 5), (0, 0), (9, 9), (0, 0), (2, 7)])
    launch(case, 2, 64, log_parts=3, part_bytes=2048)


@check
def one_size_without_a_table_of_sizes() -> None:
    case = make_case([48] * 9, [(0, 0)] * 8 + [(8, 4)])
    expected = case.expected()
    with ring().upload(*case.addresses, 48, 0) as table:
        assert table.sizes == 0
        copy_table(table, stream=0, max_blocks=1)
    equal(case, expected)


@check
def tables_are_not_read_past_their_end() -> None:
    """The tables end where a page that may not be read begins; most warps have no pair."""
    case = make_case([64, 32, 20], [(0, 0), (1, 0), (0, 4)])
    src, dst = case.addresses
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pages, ends = [], []
    for table in (src, dst, case.sizes):
        page = mmap.mmap(-1, 8192)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(page))
        ctypes.memmove(begin + 4096 - 24, table.ctypes.data, 24)
        assert libc.mprotect(begin + 4096, 4096, 0) == 0
        pages.append(page)
        ends.append(begin + 4096 - 24)
    expected = case.expected()
    COPY.launch(2, 128, 0, *ends, 0, 3, 1, 2048)
    equal(case, expected)


@check
def nothing_to_copy() -> None:
    tables = ring()
    copy_pairs_device([], [], 16, stream=0, tables=tables)
    copy_pairs_device([0, 0], [0, 0], 0, stream=0, tables=tables)


@check
def a_ring_outlives_its_slots_and_grows() -> None:
    tables = ring(slots=2)
    for n in (1, 300, 2, 700):
        case = make_case([16] * n, [(0, 0)] * n, seed=n)
        expected = case.expected()
        copy_pairs_device(*case.addresses, 16, stream=0, max_blocks=1, tables=tables)
        equal(case, expected)
    calls = tables.runtime.calls
    assert calls.count("record") == calls.count("wait") == 4, calls
    assert [call for call in calls if call.startswith("copy")] == [f"copy {16 * n}" for n in (1, 300, 2, 700)]


@check
def a_failed_launch_gives_its_slot_back() -> None:
    tables = ring(slots=1)
    for _ in range(3):
        try:
            with tables.upload([4096], [8192], 16, 0):
                raise RuntimeError("launch failed")
        except RuntimeError:
            pass
    assert tables.runtime.calls.count("record") == 3


@check
def a_resident_table_is_used_again() -> None:
    case = make_case([40] * 5, [(0, 0)] * 5)
    expected = case.expected()
    table = ring().resident(*case.addresses, 40, 0)
    copy_table(table, stream=0, max_blocks=1)
    equal(case, expected)
    case.target[:] = 0
    copy_table(table, stream=0, max_blocks=1)
    np.testing.assert_array_equal(case.target[case.dst[0] : case.dst[0] + 40], expected[case.dst[0] :][:40])


def convert(source: str, target: str, run: int, shift: int) -> None:
    shape = (2, 2, 2, 3, 2, run)
    _, layers, outer, heads, tokens, _ = shape
    total = int(np.prod(shape))
    memory = [aligned(total + 64)[shift : shift + total] for _ in range(3)]
    memory[0][:] = np.random.default_rng(run).integers(0, 256, total, dtype=np.uint8)
    strides = [layout_strides(name, outer, heads, tokens, run, layers) for name in (source, target)]
    src = layer_bases(memory[0], source, *shape)
    device, twin = (layer_bases(part, target, *shape) for part in memory[1:])
    permute_blocks_device(src, device, *strides, (outer, heads, tokens), run, stream=0, max_blocks=1, tables=ring())
    permute_blocks(src, twin, *strides, (outer, heads, tokens), run)
    np.testing.assert_array_equal(memory[1], memory[2])
    np.testing.assert_array_equal(as_nhd(memory[1], target, shape), as_nhd(memory[0], source, shape))


@check
def all_layouts_into_all_others() -> None:
    for source, target in itertools.product(("NHD", "HND", "universal"), repeat=2):
        convert(source, target, 48, 0)


@check
def permutations_of_every_width() -> None:
    for run, shift in ((16, 0), (24, 0), (12, 0), (6, 0), (16, 8), (16, 4), (16, 1), (5, 3)):
        convert("NHD", "HND", run, shift)


@check
def permutations_of_more_groups_than_warps() -> None:
    """4 heads and 5 tokens in groups of 4 runs, teams of 2 lanes, 3 pairs: one warp for 24 groups."""
    source, target = aligned(3 * 640), aligned(3 * 640)
    source[:] = np.random.default_rng(0).integers(0, 256, source.size, dtype=np.uint8)
    tables = [(memory.ctypes.data + np.arange(3) * 640).astype(np.uint64) for memory in (source, target)]
    addresses = [table.ctypes.data for table in tables]
    PERMUTE.launch(1, 32, 0, *addresses, 3, 3, 4, 1, 1, 4, 5, 0, 32, 128, 0, 160, 32, 32)
    np.testing.assert_array_equal(target.reshape(3, 4, 5, 32), source.reshape(3, 5, 4, 32).transpose(0, 2, 1, 3))


@check
def permuted_memory_between_runs_is_left_alone() -> None:
    source, target = aligned(4096), aligned(4096)
    source[:], target[:] = 1, 7
    permute_blocks_device(
        [source.ctypes.data], [target.ctypes.data], (512, 64, 16), (1024, 96, 32), (2, 2, 3), 16,
        stream=0, max_blocks=1, tables=ring(),
    )  # fmt: skip
    expected = np.full(4096, 7, np.uint8)
    for o, h, t in itertools.product(range(2), range(2), range(3)):
        expected[o * 1024 + h * 96 + t * 32 :][:16] = 1
    np.testing.assert_array_equal(target, expected)


@check
def misaligned_words_would_be_noticed() -> None:
    """The simulator's words refuse what a GPU would stop at, so that all the above means something."""
    case = make_case([32], [(0, 8)])

    def wrong(src, dst):
        from dynalab.kernels.words import load16, store16

        store16(dst, load16(src))

    with pytest.raises(ValueError, match="misaligned 16-byte store"):
        Kernel(wrong, "void(int64, int64)").launch(1, 1, 0, *(int(side[0]) for side in case.addresses))


if __name__ == "__main__":
    check.run()
