"""`dynalab bench net` and `bench pools` as a user meets them: a table and a file, or one line and nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dynalab import cli
from dynalab.lab import bench_net, bench_pools
from dynalab.net.bench_plan import NetBenchPlan
from dynalab.pools.bench_plan import PoolBenchPlan

ROOT = Path(cli.__file__).resolve().parents[1]
NET = {"--payload": "64", "--concurrency": "1,2", "--pool-size": "1", "--loop": "asyncio", "--time": "0.3s"}
POOLS = {"--kind": "threads,asyncio", "--items": "2", "--threads": "1,2", "--tasks": "1,4", "--time": "0.2s"}


def options(what: str, **changes: str) -> list[str]:
    given = (NET if what == "net" else POOLS) | {
        f"--{name.replace('_', '-')}": value for name, value in changes.items()
    }
    return ["bench", what, *(word for pair in given.items() for word in pair)]


def cells(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("what", "head", "rows"),
    [
        ("net", ["loop", "payload", "callers", "requests/s"], ["asyncio", "64 B"]),
        ("pools", ["pool", "items", "1", "2", "4", "hand-over p50", "p99"], ["2"]),
    ],
)
def test_it_prints_a_table_and_saves_what_made_it(
    what: str,
    head: list[str],
    rows: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(options(what, seed="7")) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0].startswith("measuring for about ")
    table = cells(printed.out)
    begin = next(n for n, row in enumerate(table) if row[: len(head)] == head)
    assert [set(rows) <= set(row) for row in table[begin + 1 : begin + 3]] == [True, True]
    assert table[begin + 3] == [""]
    (file,) = (tmp_path / "bench").iterdir()
    assert re.fullmatch(what + r"-\d{4}-\d\d-\d\d-\d{6}\.nc", file.name)
    assert printed.out.rstrip().endswith(f"saved as {file}")
    found = xr.load_dataset(file)
    assert {"machine_cpu", "machine_cores", "python_version", "dynalab_version", "rounds"} <= set(found.attrs)
    assert time.strptime(found.attrs["measured_at"], "%Y-%m-%dT%H:%M:%S%z")
    assert json.loads(found.attrs["parameters"])["seed"] == 7


@pytest.mark.parametrize(
    ("what", "module", "plan"), [("net", bench_net, NetBenchPlan), ("pools", bench_pools, PoolBenchPlan)]
)
def test_quick_is_a_plan_and_options_win_over_it(
    what: str, module: Any, plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measure(given: Any, out: str, **_: Any) -> tuple[Path, None]:
        asked.append(plan(**given))
        return Path(out), None

    monkeypatch.setattr(module, f"measure_{what}", measure)
    monkeypatch.setattr(module, "table", lambda found: "a table")
    assert cli.main(["bench", what, "--quick", "--seed", "3", "--out", "x.nc"]) == 0
    assert cli.main(["bench", what, "--out", "y.nc"]) == 0
    quick, usual = asked
    assert (quick.seed, usual) == (3, plan())
    assert quick.seconds == module.QUICK["seconds"] < min(10, usual.seconds)
    assert "saved as x.nc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "changes", "words"),
    [
        ("net", {"payload": "much"}, ["payload_bytes: 'much' is not a size"]),
        ("net", {"concurrency": "1,none"}, ["concurrency.1: 'none'"]),
        ("net", {"pool_size": "0"}, ["pool_size.0: '0'"]),
        ("net", {"handler_time": "1h"}, ["handler_seconds.0: '1h'"]),
        ("net", {"handler_time": "5s"}, ["give the benchmark more time"]),
        ("net", {"loop": "trio"}, ["loops.0: 'trio'"]),
        ("net", {"time": "soon"}, ["seconds: 'soon' is not a duration"]),
        ("pools", {"kind": "fibers"}, ["kinds.0: 'fibers'"]),
        ("pools", {"items": "-3"}, ["items.0: '-3'"]),
        ("pools", {"threads": "5000"}, ["threads.0: '5000'"]),
        ("pools", {"time": "0"}, ["seconds: '0'"]),
        *((what, {"out": "."}, ["out: '.' is a directory"]) for what in ("net", "pools")),
        *((what, {"out": "/proc/no/x.nc"}, ["out: no file can be written to '/proc/no'"]) for what in ("net", "pools")),
        *((what, {"colour": "red"}, ["--colour", "--help"]) for what in ("net", "pools")),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    what: str,
    changes: dict[str, str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    try:
        code = cli.main(options(what, **changes))
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith((f"dynalab bench {what}: ", "dynalab: "))
    assert [word for word in words if word not in error] == [], error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["net", "pools", "tiers"])
def test_results_take_the_place_of_no_device(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli.main(["bench", what, "--quick", "--out", str(pipe)]) == 2
    assert f"out: {str(pipe)!r} is no file but a device or the like" in capsys.readouterr().err
    assert pipe.is_fifo()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_whatever_ends_it_leaves_neither_files_nor_processes(tmp_path: Path, kind: signal.Signals, code: int) -> None:
    script = (
        # A test runner may have been started with SIGINT ignored, which children inherit.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dynalab import cli\nfrom dynalab.net.bench import _Side\nmeasure = _Side.measure\n"
        "def told(self, *args):\n    print(self._server._process.pid, flush=True)\n"
        "    return measure(self, *args[:-1], 3600)\n"
        "_Side.measure = told\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *options("net")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    server = int(process.stdout.readline())
    assert running(server)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    if kind == signal.SIGINT:
        assert errors.splitlines()[-1] == "dynalab bench net: interrupted, nothing was left behind"
    for _ in range(600):
        if not running(server):
            break
        time.sleep(0.05)
    assert not running(server), "the process of the servers outlives the one that measures"
    assert list(tmp_path.iterdir()) == []


def net(**sizes: list[Any]) -> xr.Dataset:
    """A benchmark whose rates are told apart: 1000 for each place in its dimension."""
    coords: dict[str, list[Any]] = {
        "loop": ["asyncio"],
        "payload_bytes": [64],
        "concurrency": [16],
        "pool_size": [1, 8],
        "channel_buffer": [64],
        "server_concurrency": [64],
        "handler_seconds": [0.0],
        "percentile": [50.0, 99.0],
    } | sizes
    over = list(coords)[:7]
    shape = [len(coords[name]) for name in over]
    ds = xr.Dataset(coords=coords)
    ds["request_rate"] = over, 1000.0 * (np.arange(np.prod(shape)).reshape(shape) + 1)
    ds["request_rate_p10"], ds["request_rate_p90"] = ds.request_rate * 0.9, ds.request_rate * 1.1
    ds["limit"] = ds.request_rate * 2
    ds["latency"] = ds.request_rate * ds.percentile * 1e-9
    ds["client_cpu"] = ds["server_cpu"] = ds.request_rate * 1e-9
    ds["share_of_limit"] = ds.request_rate / ds.limit
    ds["connect_time"] = ("loop", "percentile"), np.full((len(coords["loop"]), len(coords["percentile"])), 1e-3)
    return ds.assign_attrs(machine_cpu="A CPU", machine_cores=8, rounds=5)


def test_the_table_shows_the_best_pool_and_what_was_varied() -> None:
    *_, head, row = cells(bench_net.table(net()))
    assert head[:4] == ["loop", "payload", "callers", "requests/s"]
    assert row[:5] == ["asyncio", "64 B", "16", "2,000", "1,800-2,200"]
    assert row[5:8] == ["100 us", "198 us", "8 x 64"]
    assert row[-1] == "50%"
    lines = cells(bench_net.table(net(server_concurrency=[8, 64], handler_seconds=[0.0, 0.005])))
    head = next(line for line in lines if line[0] == "loop")
    assert head[2:6] == ["callers", "server", "handler", "requests/s"]
    assert [line[3:5] for line in lines[-4:]] == [["8", "0 s"], ["8", "5 ms"], ["64", "0 s"], ["64", "5 ms"]]
    assert "handler" in bench_net.table(net(handler_seconds=[0.005])).splitlines()[-2], "handlers that all take time"


def test_of_pools_that_are_as_fast_the_smallest_is_shown() -> None:
    ds = net(channel_buffer=[8, 64])
    ds["request_rate"] = (*ds.request_rate.dims,), np.array([70.0, 90, 99, 100]).reshape(ds.request_rate.shape)
    for spread, shown in ((1.0, (8, 64)), (1.02, (8, 8)), (1.2, (1, 64)), (1.5, (1, 8))):
        ds["request_rate_p90"] = ds.request_rate * spread
        part = bench_net.best(ds.squeeze())
        assert (int(part.pool_size), int(part.channel_buffer)) == shown


def test_what_was_not_measured_is_a_dash_in_the_table_of_pools(tmp_path: Path) -> None:
    _, found = bench_pools.measure_pools(
        {"kinds": "threads,asyncio", "items": 1, "threads": 3, "tasks": 5, "seconds": 0.1}, str(tmp_path / "x.nc")
    )
    rows = {line[0]: line[1:] for line in cells(bench_pools.table(found))}
    assert rows["pool"][:3] == ["items", "3", "5"]
    assert rows["SyncPool, threads"][2] == rows["Pool, asyncio"][1] == "-"
    assert re.fullmatch(r"[\d.]+ (ns|us|ms)", rows["SyncPool, threads"][1])
