"""Calibration of copy paths: checked, in changing order, within its time, and kept until something changes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from copy_cases import make_case
from hypothesis import given
from hypothesis import strategies as st
from path_cases import gpu_model, table_of

import dynalab.kernels.calibrate as calibrate_module
from dynalab.errors import ConfigError, TransferError
from dynalab.kernels.calibrate import COUNTS, PIECE_BYTES, Rig, calibrate, calibrated, permuted_offsets
from dynalab.kernels.copier import PairCopier
from dynalab.kernels.paths import choose_path, regret
from dynalab.kernels.paths_host import DIRECTION, HOST_PATHS, HostRig


class ModelRig(Rig):
    """A rig that copies nothing: it answers from a model, and writes down what it was asked."""

    largest = 64 << 20

    def __init__(self, device: str = "Model 1", driver: str = "13000", wrong: str = "") -> None:
        self.device, self.driver, self.wrong = device, driver, wrong
        self.asked: list[tuple] = []
        self.clock = 0.0

    @property
    def facts(self):
        return {"device": self.device, "driver": self.driver}

    @property
    def paths(self):
        return {"h2d": ("kernel", "batch", "async"), "d2h": ("kernel", "async")}

    def check(self, direction, path, nbytes, count) -> None:
        self.asked.append(("check", direction, path, nbytes, count))
        if path == self.wrong:
            raise TransferError(f"path {path!r} copied wrongly")

    def measure(self, direction, path, nbytes, count) -> float:
        self.asked.append(("measure", direction, path, nbytes, count))
        self.clock += 1e-3
        return gpu_model()[path](nbytes, count)


def measures(rig: ModelRig) -> list[tuple]:
    return [asked[1:] for asked in rig.asked if asked[0] == "measure"]


def test_calibration_checks_each_path_and_measures_every_point_in_changing_order() -> None:
    rig = ModelRig()
    table = calibrate(rig)
    points = [(b, n) for b in PIECE_BYTES for n in COUNTS if b * n <= rig.largest]
    assert len(points) < len(PIECE_BYTES) * len(COUNTS)
    for direction, paths in rig.paths.items():
        for path in paths:
            checked = {asked[3:] for asked in rig.asked if asked[:3] == ("check", direction, path)}
            assert {(1024, 4096), (PIECE_BYTES[-1], 16)} <= checked
            for b, n in points:
                i, j = PIECE_BYTES.index(b), COUNTS.index(n)
                assert table.seconds[direction][path][i, j] == gpu_model()[path](b, n)
    assert np.isnan(table.seconds["h2d"]["kernel"]).sum() == len(PIECE_BYTES) * len(COUNTS) - len(points)
    assert [asked[0] for asked in rig.asked].index("measure") == sum(asked[0] == "check" for asked in rig.asked)
    rounds, rest = divmod(len(measures(rig)), 5 * len(points))
    assert (rounds, rest) == (15, 0)
    first, second = measures(rig)[: 5 * len(points)], measures(rig)[5 * len(points) : 10 * len(points)]
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 1), (1.0, 3), (1.3, 4), (60.0, 15)])
def test_no_round_begins_that_would_end_too_late(monkeypatch, budget, rounds) -> None:
    """At 1 ms a measurement, a round of 5 paths takes 0.32 s."""
    rig = ModelRig()
    monkeypatch.setattr(calibrate_module.time, "perf_counter", lambda: rig.clock)
    calibrate(rig, budget=budget)
    assert len(measures(rig)) == rounds * 320


def test_the_median_of_the_rounds_counts() -> None:
    class Jumpy(ModelRig):
        def measure(self, *point) -> float:
            super().measure(*point)
            return [1e-6, 1.0, 3e-6][(measures(self).count(point) - 1) % 3]

    table = calibrate(Jumpy(), piece_bytes=(1024,), counts=(1,))
    assert table.seconds["h2d"]["kernel"][0, 0] == 3e-6


def test_a_path_that_copies_wrongly_is_not_timed(tmp_path) -> None:
    rig = ModelRig(wrong="batch")
    with pytest.raises(TransferError, match="'batch' copied wrongly"):
        calibrated(rig, folder=tmp_path)
    assert not measures(rig)
    assert not list(tmp_path.iterdir())


def test_a_grid_that_is_all_too_large() -> None:
    with pytest.raises(ConfigError, match="no point of the grid"):
        calibrate(ModelRig(), piece_bytes=(1 << 30,))


# -- the file -----------------------------------------------------------------------------------------------------


def asks(rig: ModelRig, folder, **options) -> bool:
    """Whether the table had to be measured."""
    before = len(rig.asked)
    table = calibrated(rig, folder=folder, budget=0, **options)
    assert choose_path(table, "h2d", 4096, 1000) == "kernel"
    return len(rig.asked) > before


def test_a_table_is_measured_once_and_kept(tmp_path) -> None:
    assert asks(ModelRig(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["copy-paths-model-1.json"]
    assert not asks(ModelRig(), tmp_path)
    assert asks(ModelRig(), tmp_path, refresh=True)
    assert asks(ModelRig(device="Model 2"), tmp_path)
    assert not asks(ModelRig(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", ["driver", "dynalab", "kernels"])
def test_another_driver_version_or_kernel_is_measured_again(tmp_path, monkeypatch, change) -> None:
    assert asks(ModelRig(), tmp_path)
    if change == "dynalab":
        monkeypatch.setattr(calibrate_module, "__version__", "99")
    elif change == "kernels":
        monkeypatch.setattr(calibrate_module, "sources_digest", lambda: "another")
    driver = "13010" if change == "driver" else "13000"
    assert asks(ModelRig(driver=driver), tmp_path)
    assert not asks(ModelRig(driver=driver), tmp_path)


def broken_files(told: dict) -> dict[str, bytes]:
    """What may stand in a file that should hold a table."""
    text = json.dumps(told)
    cases = {
        "empty": b"",
        "cut": text[: len(text) // 2].encode(),
        "not text": b"\xff\xfe\x00garbage",
        "a list": b"[]",
        "null": b"null",
        "deep": b"[" * 100_000,
        "an older format": json.dumps(told | {"format": 0}).encode(),
        "no facts": json.dumps({k: v for k, v in told.items() if k != "facts"}).encode(),
        "a missing row": json.dumps(told | {"piece_bytes": told["piece_bytes"][1:]}).encode(),
        "words for numbers": json.dumps(told | {"counts": ["many"]}).encode(),
        "seconds of a string": json.dumps(told | {"seconds": {"h2d": {"kernel": "fast"}}}).encode(),
        "ragged": json.dumps(told | {"seconds": {"h2d": {"kernel": [[1], [1, 2]]}}}).encode(),
        "below zero": text.replace("e-", "e-0").replace("[[2", "[[-2", 1).encode(),
        "huge": json.dumps(told | {"counts": [10**400]}).encode(),
    }
    assert all(value != text.encode() for value in cases.values())
    return cases


@pytest.mark.parametrize("case", list(broken_files(table_of(gpu_model()).to_json())))
def test_a_broken_file_is_measured_again_and_replaced(tmp_path, case) -> None:
    assert asks(ModelRig(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(broken_files(json.loads(file.read_text()))[case])
    assert asks(ModelRig(), tmp_path)
    assert not asks(ModelRig(), tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == [file.name], "no part of a file stays behind"


def test_where_nothing_can_be_written_the_table_still_serves(tmp_path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert asks(ModelRig(), in_the_way / "folder")
    (tmp_path / "copy-paths-model-1.json").mkdir()
    assert asks(ModelRig(), tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["copy-paths-model-1.json", "file"]


def test_the_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert asks(ModelRig(), None)
    assert (tmp_path / "dynalab" / "copy-paths-model-1.json").is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert calibrate_module.cache_folder() == tmp_path / "home" / ".cache" / "dynalab"


# -- the host's paths, for real -----------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 5000), st.integers(1, 40))
def test_pieces_of_a_rig_lie_apart_and_inside(seed, nbytes, count) -> None:
    arena = 300_000
    offsets = np.sort(permuted_offsets(np.random.default_rng(seed), arena, nbytes, count))
    assert offsets[0] >= 0
    assert offsets[-1] + nbytes <= arena
    assert (np.diff(offsets) > nbytes).all()


def test_pieces_touch_only_where_there_is_no_room() -> None:
    offsets = permuted_offsets(np.random.default_rng(0), 4096, 512, 8)
    assert sorted(offsets.tolist()) == list(range(0, 4096, 512))


def test_the_host_is_calibrated_with_checked_copies(tmp_path) -> None:
    rig = HostRig(4 << 20)
    table = calibrated(rig, folder=tmp_path, piece_bytes=(1024, 16384), counts=(1, 32), budget=0)
    assert table.facts["device"] == "host-emulated"
    assert (tmp_path / "copy-paths-host-emulated.json").is_file()
    assert set(table.paths(DIRECTION)) == {"kernel", "kernel-threads", "async"}
    assert all(np.isfinite(times).all() for times in table.seconds[DIRECTION].values())
    assert not regret(table, table, DIRECTION).wrong
    rig.close()


@pytest.mark.parametrize("path", ["kernel", "async"])
def test_a_host_path_that_loses_a_byte_is_found(monkeypatch, path) -> None:
    def short(src, dst, nbytes) -> None:
        HOST_PATHS["kernel-threads"](src, dst, nbytes - 1)

    monkeypatch.setitem(HOST_PATHS, path, short)
    with pytest.raises(TransferError, match=path):
        calibrate(HostRig(4 << 20), piece_bytes=(1024,), counts=(4,), budget=0)


def test_the_copier_takes_the_path_that_the_table_says() -> None:
    taken = []

    def way(name):
        def copy(src, dst, nbytes, direction, stream) -> None:
            taken.append((name, src.size, nbytes.tolist(), direction, stream))

        return copy

    table = table_of({"kernel": lambda b, n: 20e-6, "async": lambda b, n: 4e-6 * n})
    copier = PairCopier(table, {"kernel": way("kernel"), "async": way("async")})
    addresses = np.arange(100) * 4096 + 4096
    assert copier.copy(addresses, addresses + 1_000_000, 4096, direction="h2d", stream=5) == "async"
    assert copier.copy(addresses * 2, addresses, 4096, direction="h2d") == "kernel"
    assert copier.copy([], [], 4096, direction="h2d") == ""
    assert taken[0] == ("async", 1, [409600], "h2d", 5)
    assert taken[1][:2] == ("kernel", 100)
    with pytest.raises(ConfigError, match="direction"):
        copier.copy([], [], 1, direction="sideways")
    with pytest.raises(ConfigError, match="path: 'async'"):
        PairCopier(table, {"kernel": way("kernel")})


def test_the_copier_of_the_host_copies(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(calibrate_module, "PIECE_BYTES", (1024,))
    monkeypatch.setattr("dynalab.kernels.copier.calibrated", lambda rig, folder: calibrated(
        rig, folder=folder, piece_bytes=(1024, 8192), counts=(1, 8), budget=0))  # fmt: skip
    copier = PairCopier.for_host(folder=tmp_path)
    for sizes in ([64] * 5, [0, 7, 4096, 100_000], [3 << 20]):
        case = make_case(sizes, [(i % 3, i % 5) for i in range(len(sizes))])
        expected = case.expected()
        assert copier.copy(*case.addresses, case.sizes, direction=DIRECTION) in copier.table.paths(DIRECTION)
        np.testing.assert_array_equal(case.target, expected)
    assert os.listdir(tmp_path) == ["copy-paths-host-emulated.json"]
