"""The choice of a copy path: a pure function of a table."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from path_cases import gpu_model, table_of

from dynalab.errors import ConfigError
from dynalab.kernels.calibrate import COUNTS, PIECE_BYTES
from dynalab.kernels.paths import PathTable, choose_path, regret

# -- interpolation ------------------------------------------------------------------------------------------------


def test_times_on_the_grid_come_back() -> None:
    table = table_of({"kernel": lambda b, n: 1e-5 + b * n / 5e10 + 1e-7 * n})
    for b, n in itertools.product(PIECE_BYTES, COUNTS):
        assert table.predict("h2d", "kernel", b, n) == pytest.approx(1e-5 + b * n / 5e10 + 1e-7 * n, rel=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(PIECE_BYTES[0], PIECE_BYTES[-1]), st.floats(1, COUNTS[-1]))
def test_power_laws_are_met_everywhere_on_the_grid(alpha, beta, nbytes, count) -> None:
    table = table_of({"kernel": lambda b, n: 1e-9 * b**alpha * n**beta})
    exact = 1e-9 * nbytes**alpha * count**beta
    assert table.predict("h2d", "kernel", nbytes, count) == pytest.approx(exact, rel=1e-9)


@given(st.integers(0, 2**31), st.floats(1, 1e8), st.floats(1, 1e5), st.floats(1, 10))
def test_more_to_copy_never_takes_less_time_if_the_table_says_so(seed, nbytes, count, factor) -> None:
    rng = np.random.default_rng(seed)
    times = np.exp(rng.uniform(0, 1, (4, 4)).cumsum(0).cumsum(1)) * 1e-6
    table = PathTable({"device": "x"}, (1024, 4096, 65536, 1 << 20), (1, 16, 64, 1024), {"h2d": {"kernel": times}})
    here = table.predict("h2d", "kernel", nbytes, count)
    assert table.predict("h2d", "kernel", nbytes * factor, count) >= here * (1 - 1e-12)
    assert table.predict("h2d", "kernel", nbytes, count * factor) >= here * (1 - 1e-12)


def test_beyond_the_grid() -> None:
    times = np.array([[1e-5, 9e-6], [2e-5, 9e-4]])
    table = PathTable({"device": "x"}, (1024, 2048), (4, 8), {"h2d": {"kernel": times}})
    assert table.predict("h2d", "kernel", 1, 1) == pytest.approx(1e-5)
    assert table.predict("h2d", "kernel", 2048, 1) == pytest.approx(2e-5)
    assert table.predict("h2d", "kernel", 1024, 800) == pytest.approx(9e-6 * 100)
    assert table.predict("h2d", "kernel", 20480, 4) == pytest.approx(2e-5 * 10)
    assert table.predict("h2d", "kernel", 20480, 80) == pytest.approx(9e-4 * 100)


def test_what_was_too_large_to_measure_is_taken_in_proportion() -> None:
    nan = np.nan
    times = np.array([[1e-6, 2e-6, 4e-6], [2e-6, 5e-6, nan], [nan, nan, nan]])
    table = PathTable({"device": "x"}, (1024, 4096, 8192), (1, 2, 6), {"h2d": {"kernel": times}})
    assert table.predict("h2d", "kernel", 4096, 6) == pytest.approx(15e-6)
    assert table.predict("h2d", "kernel", 8192, 1) == pytest.approx(4e-6)
    assert table.predict("h2d", "kernel", 8192, 6) == pytest.approx(24e-6)


def test_a_table_of_one_point() -> None:
    table = PathTable({"device": "x"}, (4096,), (8,), {"h2d": {"kernel": np.array([[1e-5]])}})
    assert table.predict("h2d", "kernel", 8192, 8) == pytest.approx(2e-5)
    assert choose_path(table, "h2d", 100, 3) == "kernel"


# -- choices ------------------------------------------------------------------------------------------------------

# DMA time over kernel time on an A30 (PCIe 4), by bytes of a piece: published in vLLM's issue 57555.
A30_COUNTS = (16, 32, 64, 128, 256)
A30 = {
    1024: (0.49, 0.66, 0.92, 1.36, 2.02),
    8192: (0.68, 0.99, 1.48, 2.20, 3.09),
    28672: (0.57, 0.77, 0.94, 1.19, 1.29),
}


@pytest.fixture(scope="module")
def a30() -> PathTable:
    kernel = np.array([[20e-6 + b * n / 20e9 for n in A30_COUNTS] for b in A30])
    seconds = {"kernel": kernel, "batch": kernel * np.array(list(A30.values()))}
    return PathTable({"device": "A30"}, tuple(A30), A30_COUNTS, {"h2d": seconds})


@pytest.mark.parametrize(("nbytes", "last_batch"), [(1024, 64), (8192, 32), (28672, 64)])
def test_the_crossovers_of_an_a30(a30, nbytes, last_batch) -> None:
    for count in A30_COUNTS:
        assert choose_path(a30, "h2d", nbytes, count) == ("batch" if count <= last_batch else "kernel")
    assert choose_path(a30, "h2d", nbytes, 4096) == "kernel"
    assert choose_path(a30, "h2d", nbytes, 2) == "batch"


# GB/s of batches host to device on an H100, for 10,000, 50,000 and 100,000 pieces: vLLM's issue 42212.
H100_COUNTS = (10_000, 50_000, 100_000)
H100 = {
    4096: (6.8, 4.0, 3.8),
    16384: (7.1, 6.3, 6.3),
    24576: (25.8, 6.7, 6.9),
    28672: (27.5, 39.9, 44.1),
    65536: (38.8, 51.4, 51.8),
}


def test_the_cliff_of_an_h100() -> None:
    """Batches are six times quicker from 28 KiB on; a kernel at 45 GB/s wins below, and loses above 64 KiB."""
    batch = np.array([[b * n / 1e9 / rate for n, rate in zip(H100_COUNTS, H100[b], strict=True)] for b in H100])
    kernel = np.array([[b * n / 45e9 for n in H100_COUNTS] for b in H100])
    table = PathTable({"device": "H100"}, tuple(H100), H100_COUNTS, {"h2d": {"kernel": kernel, "batch": batch}})
    for b, n in itertools.product((4096, 16384, 24576, 26000), H100_COUNTS):
        assert choose_path(table, "h2d", b, n) == "kernel"
    assert [choose_path(table, "h2d", 65536, n) for n in H100_COUNTS] == ["kernel", "batch", "batch"]
    # A page of 32 KiB that lies in two places is pieces of 16 KiB; one size of page cannot stand for both.
    assert choose_path(table, "h2d", 131_072, 50_000) == "batch"
    assert choose_path(table, "h2d", 131_072, 50_000, runs=400_000) == "kernel"


def test_merged_neighbours_are_what_counts() -> None:
    table = table_of({"kernel": lambda b, n: 20e-6 + b * n / 40e9, "async": lambda b, n: 4e-6 * n + b * n / 50e9})
    assert choose_path(table, "h2d", 4096, 1000) == "kernel"
    assert choose_path(table, "h2d", 4096, 1000, runs=1) == "async"
    assert choose_path(table, "h2d", 4096, 1000, runs=1000) == "kernel"


def test_a_path_that_does_not_exist_here_is_not_chosen() -> None:
    missing = np.full((len(PIECE_BYTES), len(COUNTS)), np.nan)
    some = np.full(missing.shape, 1e-3)
    table = PathTable({"device": "x"}, PIECE_BYTES, COUNTS, {"h2d": {"batch": missing, "kernel": some}, "d2h": {}})
    assert table.paths("h2d") == ("kernel",)
    assert choose_path(table, "h2d", 4096, 10) == "kernel"
    with pytest.raises(ConfigError, match="no path"):
        choose_path(table, "d2h", 4096, 10)


def test_nothing_to_copy_and_names_that_do_not_exist(a30) -> None:
    assert choose_path(a30, "h2d", 0, 10) == choose_path(a30, "h2d", 4096, 0) == "kernel"
    with pytest.raises(ConfigError, match="direction: 'd2h' does not exist"):
        choose_path(a30, "d2h", 4096, 1)
    with pytest.raises(ConfigError, match="path: 'bach' does not exist; did you mean 'batch'"):
        a30.predict("h2d", "bach", 4096, 1)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_regret_between_the_grid_points(noise) -> None:
    """The bar for a GPU: 2% on average, 10% at worst; truth lies between what was measured, on both sides of the cliff.

    Inside the one interval that holds the cliff (24 to 28 KiB) no grid can know: see the next test.
    """
    table = table_of(gpu_model(np.random.default_rng(5), noise))
    sizes = (1500, 3000, 6000, 12000, 20000, 30000, 45000, 150_000, 700_000)
    held_out = table_of(gpu_model(), sizes, (2, 9, 40, 150, 700, 3000))
    found = regret(table, held_out, "h2d")
    assert found.cells == 54
    assert found.mean <= 0.02
    assert found.worst <= 0.10
    assert {choose_path(table, "h2d", b, n) for b in PIECE_BYTES for n in COUNTS} == {"kernel", "batch", "async"}


def test_regret_beside_the_cliff() -> None:
    """Wherever in its interval the cliff is, a wrong choice there costs a fifth on top at most."""
    inside = table_of(gpu_model(), (25000, 25900, 26100, 27000, 28000), (2, 9, 40, 150, 700, 3000))
    found = regret(table_of(gpu_model()), inside, "h2d")
    assert found.mean <= 0.05
    assert found.worst <= 0.20


def test_regret_tells_a_bad_table() -> None:
    truth = table_of(gpu_model())
    upside_down = table_of({path: lambda b, n, f=f: 1e-6 / f(b, n) for path, f in gpu_model().items()})
    assert regret(truth, truth, "h2d").wrong == 0
    bad = regret(upside_down, truth, "h2d")
    assert bad.worst > 1
    assert bad.wrong == bad.cells
    one = table_of({"kernel": lambda b, n: 1e-6})
    with pytest.raises(ConfigError, match="two paths"):
        regret(one, one, "h2d")


# -- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece_bytes", "counts", "times", "says"),
    [
        ((), (1,), [[]], "piece_bytes"),
        ((4096, 1024), (1,), [[1], [1]], "piece_bytes"),
        ((0,), (1,), [[1]], "piece_bytes"),
        ((1024,), (1, 1), [[1, 1]], "counts"),
        ((1024,), (1, 2), [[1]], "seconds"),
        ((1024,), (1,), [[0]], "seconds"),
        ((1024,), (1,), [[-1]], "seconds"),
        ((1024,), (1,), [[math.inf]], "seconds"),
    ],
)
def test_tables_that_cannot_be(piece_bytes, counts, times, says) -> None:
    with pytest.raises(ConfigError, match=says):
        PathTable({"device": "x"}, piece_bytes, counts, {"h2d": {"kernel": np.array(times, float)}})


def test_a_table_survives_json_and_dataset() -> None:
    times = np.array([[1e-6, 2e-6], [3e-6, np.nan]])
    table = PathTable({"device": "x", "driver": "13000"}, (1024, 4096), (1, 2), {"h2d": {"kernel": times}, "d2h": {}})
    again = PathTable.from_json(json.loads(json.dumps(table.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.seconds["h2d"]["kernel"], times)
    assert (again.facts, again.piece_bytes, again.directions) == (table.facts, (1024, 4096), ("h2d", "d2h"))
    dataset = table.to_dataset()
    assert dataset.seconds.dims == ("direction", "path", "piece_bytes", "count")
    assert dataset.seconds.attrs["units"] == "s"
    assert float(dataset.seconds.sel(direction="h2d", path="kernel", piece_bytes=4096, count=1)) == 3e-6
    assert dataset.attrs["device"] == "x"
