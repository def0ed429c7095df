"""Measured bandwidths in a report: the right ones, under their own name, and never a stand-in's for a GPU's."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import yaml
from bench_data import dataset, on_gpu, saved
from net_bench_data import kept

from dynalab.errors import ConfigError
from dynalab.lab.measured import read_measured
from dynalab.lab.measured_net import read_measured_net
from dynalab.lab.parameters import ReportParameters
from dynalab.net import TcpClientConfig, TcpServerConfig
from dynalab.workload import hardware_spec, model_spec

H100 = hardware_spec("h100-sxm")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("block_bytes", "value", "size"),
    [(1, 3.01e9, "64 KiB"), (1 << 17, 3.01e9, "64 KiB"), (1 << 19, 3.11e9, "1 MiB"), (160 * MIB, 3.11e9, "1 MiB")],
)
def test_the_nearest_size_and_its_best_batch_count(tmp_path: Path, block_bytes: int, value: float, size: str) -> None:
    spec = read_measured(saved(tmp_path / "a.nc")).applied(H100, block_bytes)
    assert spec.host_to_disk == pytest.approx(value)
    assert spec.source("host_to_disk") == (
        f"measured here: {size} blocks, block-first, in batches of 16, A CPU, ext4 at /mnt/nvme taken as one disk, "
        "2026-11-22T16:00:00+0000 (a.nc)"
    )
    assert spec.disk_to_host == pytest.approx(value + 1e9)


def test_a_stand_ins_link_is_not_a_gpus(tmp_path: Path) -> None:
    found = read_measured(saved(tmp_path / "a.nc"))
    assert found.emulated
    spec = found.applied(H100, MIB)
    assert (spec.d2h, spec.h2d) == (H100.d2h, H100.h2d)
    for field in ("d2h", "h2d"):
        told = spec.source(field)
        assert told == f"{H100.source(field)}; the measurement in a.nc is of a host-emulated device: not used"


def test_unless_one_insists_and_then_it_is_called_that(tmp_path: Path) -> None:
    spec = read_measured(saved(tmp_path / "a.nc")).applied(H100, MIB, "any")
    assert (spec.d2h, spec.h2d) == (pytest.approx(1.11e9), pytest.approx(2.11e9))
    assert "measured here: 1 MiB blocks" in spec.source("h2d")
    assert "device host-emulated" in spec.source("h2d")


def test_a_gpus_link_is_taken_with_the_gpus_name(tmp_path: Path) -> None:
    found = read_measured(on_gpu(tmp_path / "a.nc"))
    assert not found.emulated
    spec = found.applied(H100, MIB)
    assert (spec.d2h, spec.h2d) == (pytest.approx(1.11e9), pytest.approx(2.11e9))
    assert "A CPU, 8 cores, device NVIDIA H200 (cuda:0)" in spec.source("d2h")
    assert found.facts["measured_device"] == "NVIDIA H200 (cuda:0)"


@pytest.mark.parametrize(
    ("attrs", "what"), [({"disk_direct_io": 0}, "the page cache"), ({"disk_file_system": "tmpfs"}, "memory")]
)
def test_what_is_no_disk_is_not_taken_for_one(tmp_path: Path, attrs: dict[str, Any], what: str) -> None:
    spec = read_measured(saved(tmp_path / "a.nc", **attrs)).applied(H100, MIB)
    assert (spec.host_to_disk, spec.disk_to_host) == (H100.host_to_disk, H100.disk_to_host)
    assert spec.source("disk_to_host").endswith(f"the measurement in a.nc is of {what}: not used")


def test_what_was_not_measured_stays_as_it_was(tmp_path: Path) -> None:
    ds = dataset(device="x", device_label="cuda:0")
    ds.bandwidth.loc[{"direction": "device_to_host"}] = float("nan")
    ds.bandwidth.loc[{"direction": "host_to_device", "block_bytes": 1 << 20}] = float("nan")
    ds = ds.drop_sel(direction="host_to_disk").sel(layout=["layer_first"])
    spec = read_measured(saved(tmp_path / "a.nc", ds)).applied(H100, MIB)
    assert (spec.d2h, spec.host_to_disk) == (H100.d2h, H100.host_to_disk)
    assert spec.source("d2h") == H100.source("d2h")
    assert spec.h2d == pytest.approx(1.51e9), "the nearest size that was measured"
    assert "64 KiB blocks, layer-first" in spec.source("h2d")
    assert spec.disk_to_host == pytest.approx(3.61e9)


def test_without_device_or_disk(tmp_path: Path) -> None:
    ds = dataset().sel(direction=["host_to_disk", "disk_to_host"])
    del ds.attrs["device"], ds.attrs["device_label"]
    found = read_measured(saved(tmp_path / "a.nc", ds))
    assert found.device == "none"
    assert found.applied(H100, MIB).source("h2d") == H100.source("h2d")


def test_hardware_takes_nothing_but_bandwidths() -> None:
    assert H100.with_measured({}, {}) is H100
    assert H100.with_measured({"h2d": 3e10}, {}).source("h2d") == "measured"
    with pytest.raises(ConfigError, match="measured: 'mfu' does not exist; choose from d2h, h2d"):
        H100.with_measured({"mfu": 0.9}, {})
    with pytest.raises(ConfigError, match="h2d: -1 is not above zero"):
        H100.with_measured({"h2d": -1}, {})


def truncated(path: Path) -> Path:
    saved(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def with_bandwidth(path: Path, **changes: Any) -> Path:
    ds = dataset()
    ds["bandwidth"] = ds.bandwidth.copy(**changes)
    return saved(path, ds)


def of_other_units(path: Path) -> Path:
    ds = dataset()
    ds.bandwidth.attrs["units"] = "GB/s"
    return saved(path, ds)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, ["cannot be read (No such file or directory)"]),
        (folder, ["cannot be read (Is a directory)"]),
        (lambda path: written(path, b""), ["is not a netCDF file"]),
        (lambda path: written(path, b"not\nnetCDF" * 100), ["is not a netCDF file"]),
        (lambda path: written(path, b"CDF\x01" + bytes(100)), ["is not a netCDF file"]),
        (truncated, ["is not a netCDF file"]),
        (lambda path: saved(path, xr.Dataset({"hit_ratio": ("capacity", [0.1])})), ["holds no bandwidths of tiers"]),
        (lambda path: saved(path, dataset().isel(batch=0)), ["holds no bandwidths of tiers"]),
        (lambda path: saved(path, dataset().drop_vars("direction")), ["holds no bandwidths of tiers"]),
        (lambda path: saved(path, dataset().map(lambda v: v * float("nan"))), ["bandwidths that are none"]),
        (lambda path: saved(path, dataset().map(lambda v: -v, keep_attrs=True)), ["bandwidths that are none"]),
        (of_other_units, ["bandwidths that are none", "B/s"]),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, make: Any, words: list[str]) -> None:
    path = make(tmp_path / "bad.nc")
    with pytest.raises(ConfigError) as caught:
        ReportParameters(measured=str(path))
    message = str(caught.value)
    assert message.startswith(f"measured: '{path}'")
    assert message.endswith("give a file that `dynalab bench tiers` has written")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    rows = [{"timestamp": i, "input_length": 600, "output_length": 5, "hash_ids": [0, i + 1]} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def digest(trace: Path, **values: Any) -> str:
    return ReportParameters(trace=str(trace), **values).resolve()[0].digest()


def test_a_report_is_named_by_what_is_in_the_file(tmp_path: Path, trace: Path) -> None:
    plain, file = digest(trace), saved(tmp_path / "a.nc")
    first = digest(trace, measured=str(file))
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(file, tmp_path / "elsewhere" / "b.nc")
    assert digest(trace, measured=str(copy)) == first != plain
    assert digest(trace, measured=str(file), measured_link="any") != first
    assert digest(trace, measured_link="any") == plain, "there is no link to take from anywhere"
    saved(file, rounds=6)
    assert digest(trace, measured=str(file)) != first


def test_the_machine_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.nc")
    monkeypatch.chdir(tmp_path)
    parameters = ReportParameters(measured="a.nc")
    assert parameters.measured == str(tmp_path / "a.nc"), "the kernel runs elsewhere"
    model = model_spec("llama-3-70b")
    machine = parameters.machine(model, 160 * MIB)
    plain = ReportParameters().machine(model, 160 * MIB)
    assert machine.gpus == plain.gpus == 4
    assert (machine.h2d, machine.host_to_disk) == (plain.h2d, pytest.approx(3.11e9))
    assert ReportParameters(measured="a.nc", measured_link="any").machine(model, MIB).h2d == pytest.approx(2.11e9)
    with pytest.raises(ConfigError, match="measured_link: 'all'"):
        ReportParameters(measured_link="all")


@pytest.mark.slow
def test_a_report_tells_of_each_bandwidth_where_it_comes_from(tmp_path: Path, trace: Path) -> None:
    from dynalab.lab.report import build_report

    parameters = ReportParameters(
        trace=str(trace),
        measured=str(saved(tmp_path / "a.nc")),
        measured_net=str(kept(tmp_path / "net.nc")),
        device="1GiB",
        itl_ms="10ms",
    )
    report = build_report(parameters, tmp_path / "out", progress=False)
    results = xr.load_dataset(report.folder / "results.nc")
    assert results.attrs["measured_sha256"] == read_measured(tmp_path / "a.nc").sha256
    assert results.attrs["measured_device"] == "host-emulated"
    assert str(tmp_path / "a.nc") not in str(results.attrs)
    hardware = json.loads(results.attrs["hardware"])
    assert hardware["host_to_disk"] == pytest.approx(3.11e9)
    assert hardware["sources"]["disk_to_host"].startswith("measured here: 1 MiB blocks")
    page = report.html.read_text()
    assert "host-emulated device: not used" in page
    assert "measured here: 1 MiB blocks" in page

    # The request plane: its settings are those of the file, each with a reason, and named where they come from.
    network = yaml.safe_load((report.folder / "recommendation.yaml").read_text())["network"]
    assert set(network["settings"]) == set(network["reasons"])
    assert TcpClientConfig.from_env(network["settings"]).size == int(network["settings"]["DYN_TCP_POOL_SIZE"])
    permits = TcpServerConfig.from_env(network["settings"]).max_concurrency
    assert permits == max(network["evidence"]["permits_by_formula"], network["evidence"]["permits_by_replay"])
    assert "10 ms (parameter itl_ms, assumed)" in network["assumptions"]["time a permit is held"]
    assert "(net.nc)" in network["assumptions"]["round trip"]
    text = html.unescape(re.sub("<[^>]+>", "", page))
    for name, value in network["settings"].items():
        assert f"export {name}={value}" in text
    assert network["reasons"]["DYN_TCP_WORKER_POOL_SIZE"] in text
    assert results.attrs["measured_net_sha256"] == read_measured_net(tmp_path / "net.nc").sha256
    assert json.loads(results.attrs["network"])["settings"] == network["settings"]
