"""`dynalab bench` as a user meets it: a table and a file, or one line and nothing, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from bench_data import dataset

from dynalab import cli
from dynalab.errors import ConfigError, TransferError
from dynalab.kernels import gpu_available
from dynalab.lab import bench_files, bench_gpu, probes
from dynalab.lab.bench import QUICK, best_batch, table
from dynalab.lab.bench_files import roomiest_place

ROOT = Path(cli.__file__).resolve().parents[1]
SMALL = {
    "--device": "1MiB",
    "--host": "1MiB",
    "--disk": "1MiB",
    "--block-bytes": "64KiB",
    "--batch": "1,4",
    "--gpu": "host-emulated",
    "--time": "1s",
}


def options(**changes: str) -> list[str]:
    given = SMALL | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["bench", "tiers", *(word for pair in given.items() for word in pair)]


def test_it_prints_a_table_and_saves_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    assert cli.main(options(path=str(disk), seed="7")) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("device host-emulated, no GPU; host memory ")
    rows = [re.split(r"\s{2,}", line) for line in printed.out.splitlines()]
    head = ["from tier to tier", "layout", "64 KiB", "batch", "best, p10-p90", "limit", "best/limit"]
    assert head in rows
    assert sum(row[1:2] == ["layer-first"] for row in rows) == sum(row[1:2] == ["block-first"] for row in rows) == 7
    (file,) = (tmp_path / "bench").iterdir()
    assert re.fullmatch(r"tiers-\d{4}-\d\d-\d\d-\d{6}\.nc", file.name)
    assert f"saved as {file}" in printed.out
    assert printed.out.rstrip().endswith(f"dynalab report --measured {file}")
    assert list(disk.iterdir()) == []
    found = xr.load_dataset(file)
    attrs = found.attrs
    assert attrs["device"] == attrs["device_label"] == "host-emulated"
    assert (attrs["disk_path"], attrs["rounds"] >= 3) == (str(disk), True)
    assert {"machine_cpu", "machine_cores", "numpy_version", "dynalab_version", "disk_file_system"} <= set(attrs)
    assert json.loads(attrs["parameters"])["seed"] == 7
    assert time.strptime(attrs["measured_at"], "%Y-%m-%dT%H:%M:%S%z")
    assert bool((found.bandwidth > 0).all())
    assert cli.main(["report", "--measured", str(file), "--trace", "absent.jsonl"]) == 2
    assert "absent.jsonl" in capsys.readouterr().err, "the file of measurements was taken"


def test_quick_is_a_plan_and_options_win_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynalab.lab import bench
    from dynalab.tiers.bench import BenchPlan

    asked: list[Any] = []

    def measure(given: Any, out: Any, **_: Any) -> tuple[Path, xr.Dataset]:
        asked.append(BenchPlan(**given))
        return Path(out), dataset()

    monkeypatch.setattr(bench, "measure_tiers", measure)
    assert cli.main(["bench", "tiers", "--quick", "--host", "96MiB", "--out", "x.nc"]) == 0
    (plan,) = asked
    assert (plan.host, plan.device) == (96 << 20, 128 << 20)
    assert plan.seconds == QUICK["seconds"] < BenchPlan().seconds
    assert "saved as x.nc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "much"}, ["device: 'much' is not a size"]),
        ({"device": "0", "disk": "0"}, ["both are 0"]),
        ({"block_bytes": "64KiB,100"}, ["block_bytes: 100 is not a multiple of 4096"]),
        ({"batch": "0"}, ["batches.0: '0'"]),
        ({"layout": "blocky"}, ["layouts.0: 'blocky'"]),
        ({"time": "soon"}, ["seconds: 'soon' is not a duration"]),
        ({"concurrency": "many"}, ["concurrency: 'many'"]),
        ({"engine": "steam"}, ["engine: 'steam' does not exist"]),
        ({"gpu": "7000"}, ["device"]),
        ({"path": "/nowhere/at/all"}, ["'/nowhere/at/all' is not a directory"]),
        ({"disk": "8EiB"}, ["disk: '8EiB' is more than 8 EiB"]),
        ({"disk": "4EiB"}, ["4 EiB are needed on the file system of", "are free"]),
        ({"host": "4EiB"}, ["4 EiB of host memory asked"]),
        ({"out": "."}, ["out: '.' is a directory"]),
        ({"out": "/proc/nowhere/x.nc"}, ["out: no file can be written to '/proc/nowhere'"]),
        ({"colour": "red"}, ["--colour", "--help"]),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    changes: dict[str, str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    try:
        code = cli.main(options(**({"path": str(tmp_path)} | changes)))
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert len(progress) <= 1, "at most what is about to be done"
    assert error.startswith(("dynalab bench tiers: ", "dynalab: "))
    for word in words:
        assert word in error
    assert list(tmp_path.iterdir()) == []


def test_a_group_without_a_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench"])
    error = capsys.readouterr().err
    assert (error.count("\n"), "WHAT" in error, "dynalab bench --help" in error) == (1, True, True)


@pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_whatever_ends_it_leaves_nothing(tmp_path: Path, kind: signal.Signals, code: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        # A test runner may have been started with SIGINT ignored, which children inherit.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dynalab import cli\nfrom dynalab.tiers.bench_rig import TierRig\nmove = TierRig.move\n"
        "def told(*args):\n    print('moving', flush=True)\n    return move(*args)\n"
        "TierRig.move = told\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *options(path=str(disk), time="1h", disk="64MiB")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "moving\n"
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    if kind == signal.SIGINT:
        assert errors.splitlines()[-1] == "dynalab bench tiers: interrupted, nothing was left behind"
    assert [entry.name for entry in tmp_path.rglob("*")] == ["disk"]


def test_the_table_takes_the_best_batch_and_shows_gaps() -> None:
    ds = dataset(cases_left_out=3, disk_direct_io=0)
    ds.bandwidth.loc[{"direction": "disk_to_host", "block_bytes": 1 << 16, "layout": "block_first"}] = np.nan
    ds.bandwidth.loc[{"direction": "host_to_disk", "layout": "layer_first"}] = np.nan
    ds.bandwidth.loc[{"direction": "device_to_host", "layout": "block_first", "batch": 4}] = 9e9
    lines = table(ds).splitlines()
    rows = {tuple(re.split(r"\s{2,}", line)[:2]): re.split(r"\s{2,}", line)[2:] for line in lines}
    assert rows["device to host", "block-first"][:3] == ["9", "9", "4"]
    assert rows["host to disk", "block-first"] == ["3.01", "3.11", "16", "2.8-3.42", "6", "52%"]
    assert rows["disk to host", "block-first"][:3] == ["-", "4.11", "16"]
    assert ("host to disk", "layer-first") not in rows
    assert any(line.startswith("3 cases left out") for line in lines)
    assert "NO FIGURES OF A DISK, BUT OF THE PAGE CACHE" in lines[0]
    assert "NVIDIA H200 (cuda:0)" in table(dataset(device="NVIDIA H200", device_label="cuda:0"))


def test_the_best_batch_is_best_over_all_sizes() -> None:
    rates = xr.DataArray(
        [[8.0, 9.0, np.nan], [8.0, 2.0, 4.0]],
        dims=("block_bytes", "batch"),
        coords={"block_bytes": [1, 2], "batch": [1, 4, 16]},
    )
    assert best_batch(rates) == 1, "by the one size that all were measured with"
    assert best_batch(rates.fillna(9.0)) == 1
    assert best_batch(rates.isel(block_bytes=[0])) == 4
    assert best_batch(rates.isel(block_bytes=[0]).T) == 4


def test_the_disk_is_the_roomiest_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"small": "ext4", "large": "xfs", "memory": "tmpfs", "net": "nfs4", "gone": "ext4", "bucket": "fuse.s3"}
    free = {"small": 1, "large": 5, "memory": 100, "net": 100, "gone": 100, "bucket": 100}
    for name in kinds:
        if name != "gone":
            (tmp_path / name).mkdir()
    (tmp_path / "large" / "tmp").mkdir()
    monkeypatch.setattr(probes, "mounts", lambda: [(str(tmp_path / name), kind) for name, kind in kinds.items()])
    monkeypatch.setattr(probes, "file_system", lambda directory: "tmpfs")
    looked: list[str] = []

    def usage(place: Path) -> SimpleNamespace:
        looked.append(place.name)
        return SimpleNamespace(free=free[place.relative_to(tmp_path).parts[0]])

    monkeypatch.setattr(bench_files.shutil, "disk_usage", usage)
    devices = {str(tmp_path / name): number for number, name in enumerate(kinds)}
    plain = Path.stat

    def stat(path: Path, **more: Any) -> Any:
        found = plain(path, **more)
        device = next((number for place, number in devices.items() if str(path).startswith(place)), 99)
        return SimpleNamespace(st_dev=device, st_mode=found.st_mode)

    monkeypatch.setattr(Path, "stat", stat)
    assert roomiest_place() == tmp_path / "large"
    assert not set(looked) & {"net", "memory", "bucket"}, "a dead server is not even looked at"
    monkeypatch.setattr(probes, "mounts", list)
    with pytest.raises(ConfigError, match="no local disk can be written to; give one with --path, or --disk 0"):
        roomiest_place()


# The GPU's command.

BLOCKED = ("pydantic", "pandas", "xarray", "papermill", "nbformat", "nbconvert", "dask", "h5netcdf", "matplotlib")
BARE = (
    "import importlib.abc, sys\n"
    "class Absent(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    f"        if name.split('.')[0] in {BLOCKED}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
    "sys.meta_path.insert(0, Absent())\n"
)
RESULTS = {
    "copies": {
        "facts": {"device": "NVIDIA H200"},
        "records": [
            {"case": "pieces", "direction": "h2d", "path": "kernel", "piece_bytes": 4096, "bytes_per_second": 5e10}
            | {"of_large_copy": 0.93},
            {"case": "gather", "direction": "d2d", "path": "kernel", "piece_bytes": 65536, "bytes_per_second": 4e12}
            | {"of_large_copy": 0.95},
        ],
        "choice": {"h2d": {"mean": float("nan"), "worst": 0.1}},
        "bars": {
            "d2d_64KiB": {"value": 0.95, "bar": 0.9, "met": True},
            "regret": {"value": {"h2d": [0.01, 0.2]}, "bar": [0.02, 0.1], "met": False},
        },
    },
    "victims": {
        "seconds": {"ties": {"kernels": 4e-5, "torch.topk": 2e-4}},
        "bars": {"victims_lead": {"value": float("nan"), "bar": 3.0, "met": False}},
    },
    "checksums": {"65536": np.float64(3e12)},
}


def bare(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE + script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
    )


@pytest.mark.skipif(gpu_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_even_where_hardly_anything_is_installed(tmp_path: Path) -> None:
    done = bare("from dynalab import cli\nsys.exit(cli.main(['bench', 'gpu']))\n", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("dynalab bench gpu: the benchmark of kernels needs an NVIDIA GPU: ")
    assert list(tmp_path.iterdir()) == []


def test_all_of_it_runs_where_hardly_anything_is_installed(tmp_path: Path) -> None:
    # The modules of the benchmarks are imported for real; what they would do needs a GPU.
    (tmp_path / "found.json").write_text(json.dumps(RESULTS))
    script = (
        "import json, dynalab.kernels\nfrom dynalab import cli\n"
        "from dynalab.kernels import gpu_report, victims_bench\n"
        "found = json.load(open('found.json'))\ndynalab.kernels.require_gpu = lambda what: None\n"
        "gpu_report.bench_gpu = lambda: found['copies']\nvictims_bench.bench_victims = lambda: found['victims']\n"
        "victims_bench.bench_checksums = lambda: found['checksums']\n"
        "sys.exit(cli.main(['bench', 'gpu', '--out', 'gpu.json']))\n"
    )
    done = bare(script, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["copies"]["bars"]["d2d_64KiB"]["met"] is True
    assert found["versions"]["numpy"] == np.__version__
    assert {entry.name for entry in tmp_path.iterdir()} == {"found.json", "gpu.json"}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU whose benchmarks have known results."""
    import dynalab.kernels
    from dynalab.kernels import gpu_report, victims_bench

    monkeypatch.setattr(dynalab.kernels, "require_gpu", lambda what: None)
    monkeypatch.setattr(gpu_report, "bench_gpu", lambda: RESULTS["copies"])
    monkeypatch.setattr(victims_bench, "bench_victims", lambda: RESULTS["victims"])
    monkeypatch.setattr(victims_bench, "bench_checksums", lambda: RESULTS["checksums"])


def test_the_gpus_file_is_dated_and_plain(
    played: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_gpu, "gpu_state", lambda: {"driver": "580.1", "clock_sm": "1980 MHz"})
    assert cli.main(["bench", "gpu"]) == 0
    printed = capsys.readouterr().out
    (file,) = (tmp_path / "bench").iterdir()
    assert re.fullmatch(r"gpu-\d{4}-\d\d-\d\d-\d{6}\.json", file.name)
    assert printed.rstrip().endswith(f"saved as {file}")
    found = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["bars"]["victims_lead"] == {"value": None, "bar": 3.0, "met": False}
    assert found["copies"]["choice"]["h2d"]["mean"] is None
    assert found["checksums"]["65536"] == 3e12
    assert found["gpu_after"]["clock_sm"] == "1980 MHz"
    assert {"measured_at", "machine", "versions", "dynalab_version"} <= set(found)
    lines = [re.split(r"\s{2,}", line) for line in printed.splitlines()]
    assert lines[0] == ["NVIDIA H200, driver 580.1, clocks 1980 MHz and ? right after"]
    assert ["d2d_64KiB", "0.9", "0.95", "met"] in lines
    assert ["regret", "0.02/0.1", "h2d 0.01/0.2", "MISSED"] in lines
    assert ["h2d", "kernel", "4 KiB", "50", "93%"] in lines
    assert ["d2d gather", "kernel", "64 KiB", "4000", "95%"] in lines
    assert ["ties", "torch.topk", "200 us"] in lines


def test_wrong_bytes_on_the_gpu_leave_no_file(
    played: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynalab.kernels import victims_bench

    def wrong() -> None:
        raise TransferError("victims (ties): the GPU selects others than the CPU")

    monkeypatch.setattr(victims_bench, "bench_victims", wrong)
    assert cli.main(["bench", "gpu", "--out", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("dynalab bench gpu: victims (ties): the GPU selects")
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_the_gpu_is_what_its_tool_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench_gpu.gpu_state() == {}
    cells = "NVIDIA H200, 580.1, P0, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 5, 16, 700.00 W, Enabled"
    for text, found in ((cells, 11), ("No devices were found", 0)):
        tool.write_text(f"#!/bin/sh\necho '{text}'\n")
        tool.chmod(0o755)
        assert len(bench_gpu.gpu_state()) == found
        tool.unlink()
