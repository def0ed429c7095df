"""The CPU's copy by table: every byte and no other, for any sizes, alignments, threads and errors."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from copy_cases import Case, aligned, make_case, mixed_case
from hypothesis import given
from hypothesis import strategies as st

import dynalab.kernels.copy as copy_module
from dynalab.errors import ConfigError
from dynalab.kernels.copy import copy_pairs


def run(case: Case, **options) -> None:
    expected, source = case.expected(), case.source.copy()
    copy_pairs(*case.addresses, case.sizes, **options)
    np.testing.assert_array_equal(case.target, expected)
    np.testing.assert_array_equal(case.source, source)


@pytest.fixture
def always_streaming(monkeypatch):
    """Write past the caches however little there is to copy, and wake helpers for it."""
    monkeypatch.setattr(copy_module, "STREAM_FROM", 0)
    monkeypatch.setattr(copy_module, "_PER_THREAD", 1)


def test_mixed_alignments() -> None:
    run(mixed_case())


@pytest.mark.usefixtures("always_streaming")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_mixed_alignments_past_the_caches_and_in_shares(threads) -> None:
    run(mixed_case(1), threads=threads)


pieces = st.lists(
    st.tuples(st.one_of(st.integers(0, 80), st.integers(2000, 5000)), st.integers(0, 63), st.integers(0, 63)),
    max_size=12,
)


@given(pieces, st.integers(1, 4), st.booleans())
def test_any_pieces(pieces, threads, stream) -> None:
    case = make_case([size for size, _, _ in pieces], [(src, dst) for _, src, dst in pieces])
    with pytest.MonkeyPatch.context() as patch:
        if stream:
            patch.setattr(copy_module, "STREAM_FROM", 0)
            patch.setattr(copy_module, "_PER_THREAD", 1)
        run(case, threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_pieces_are_shared_within(threads) -> None:
    """Two pieces for three threads: cuts fall inside pieces, and the call is large enough to stream by itself."""
    case = make_case([20 << 20, 5], [(3, 17), (0, 0)])
    assert case.sizes.sum() > copy_module.STREAM_FROM
    run(case, threads=threads)


def test_one_size_for_all() -> None:
    case = make_case([96] * 50, [(0, 0)] * 50)
    expected = case.expected()
    copy_pairs(*case.addresses, 96, threads=2)
    np.testing.assert_array_equal(case.target, expected)


def test_nothing_to_copy() -> None:
    copy_pairs([], [], 4096)
    copy_pairs([], [], [])
    copy_pairs([0, 0], [0, 0], 0)
    copy_pairs([0], [0], [0], threads=3)


def test_tables_of_any_form() -> None:
    """Lists, strided and read-only arrays, and signed integers."""
    case = make_case([32, 48, 5], [(0, 0), (1, 2), (3, 3)])
    expected = case.expected()
    src, dst = case.addresses
    strided = np.repeat(src, 2)[::2]
    fixed = dst.astype(np.int64)
    fixed.flags.writeable = False
    copy_pairs(strided, fixed, case.sizes.tolist())
    np.testing.assert_array_equal(case.target, expected)


@pytest.mark.parametrize(
    ("src", "dst", "nbytes", "says"),
    [
        ([1, 2], [1], 4, "shapes"),
        ([1, 2], [1, 2], [4, 4, 4], "nbytes"),
        ([[1]], [[1]], 4, "shapes"),
        ([4096, 0], [4096, 4096], 8, "null address in pair 1"),
        ([4096, 4096], [0, 4096], [8, 8], "null address in pair 0"),
        ([4096, 4096], [4096, 4096], [8, -8], "-8 is negative in pair 1"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_copied(src, dst, nbytes, says) -> None:
    with pytest.raises(ConfigError, match=says):
        copy_pairs(src, dst, nbytes)


def test_a_bad_pair_leaves_the_good_ones_alone() -> None:
    case = make_case([64, 64], [(0, 0), (0, 0)])
    before = case.target.copy()
    src, dst = case.addresses
    src[1] = 0
    with pytest.raises(ConfigError, match="null"):
        copy_pairs(src, dst, case.sizes)
    np.testing.assert_array_equal(case.target, before)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one(threads) -> None:
    with pytest.raises(ConfigError, match="threads"):
        copy_pairs([], [], 1, threads=threads)


def test_the_gil_is_free_while_copying() -> None:
    """Another thread counts on while one long copy runs."""
    source, target = aligned(256 << 20), aligned(256 << 20)
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    for _ in range(4):
        before = counted[0]
        copy_pairs([source.ctypes.data], [target.ctypes.data], source.size)
        if counted[0] - before > 20:
            break
    done.set()
    counter.join()
    assert counted[0] - before > 20


def test_concurrent_callers_share_the_helpers() -> None:
    cases = [make_case([9 << 20], [(i, 2 * i)], seed=i) for i in range(4)]
    expected = [case.expected() for case in cases]
    threads = [
        threading.Thread(target=copy_pairs, args=(*case.addresses, case.sizes), kwargs={"threads": 3}) for case in cases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for case, after in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(case.target, after)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    case = make_case([20 << 20], [(0, 0)])
    run(case, threads=2)
    case.target[:] = 0

    def child() -> None:
        run(case, threads=2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    hangs = process.is_alive()
    process.kill()
    assert not hangs
    assert process.exitcode == 0


def test_what_is_copied_is_visible_to_memmove() -> None:
    """Stores past the caches are ordered before what follows: read back by the C library at once."""
    source, target, back = aligned(16 << 20), aligned(16 << 20), aligned(16 << 20)
    source[:] = np.random.default_rng(0).integers(0, 256, source.size, dtype=np.uint8)
    copy_pairs([source.ctypes.data], [target.ctypes.data], source.size, threads=2)
    ctypes.memmove(back.ctypes.data, target.ctypes.data, target.size)
    np.testing.assert_array_equal(back, source)


def test_importing_the_package_loads_neither_numba_nor_cuda() -> None:
    script = (
        "import sys, dynalab.kernels as k\nassert 'copy_pairs' in dir(k)\n"
        "print(sorted({'numba', 'numpy', 'cupy', 'cuda.bindings', 'llvmlite'} & set(sys.modules)))\n"
        "from dynalab.kernels import copy_pairs\n"
        "print([m for m in ('cupy', 'numba.cuda', 'cuda.core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_unknown_names_of_the_package() -> None:
    import dynalab.kernels

    with pytest.raises(AttributeError, match="copy_all"):
        _ = dynalab.kernels.copy_all


def test_every_name_of_the_package_is_there() -> None:
    import dynalab.kernels

    assert {name: callable(getattr(dynalab.kernels, name)) for name in dynalab.kernels.__all__} == dict.fromkeys(
        dynalab.kernels.__all__, True
    )
