"""The request plane in a report: what is read of a measurement, what is assumed, and where both are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from net_bench_data import kept, net_dataset

from dynalab.errors import ConfigError
from dynalab.lab.measured_net import assumed_costs, read_measured_net
from dynalab.lab.network import network_advice, network_figure
from dynalab.lab.parameters import ReportParameters
from dynalab.workload import read_trace, synthesize


def test_costs_are_those_of_quick_handlers(tmp_path: Path) -> None:
    costs = read_measured_net(kept(tmp_path / "net.nc")).costs()
    assert {name: value for name, (value, _) in costs.items()} == pytest.approx(
        {"rtt_s": 1 / 5e3, "per_request_s": 1 / 2e4, "bandwidth": 500 * 2**20}
    )
    assert set(costs) == set(assumed_costs())
    assert costs["rtt_s"][1].startswith(
        "measured here: median of 64 B requests alone, A CPU, 8 cores, over 127.0.0.1 (no"
    )
    assert "requests of 1 MiB" in costs["bandwidth"][1]
    assert all(source.startswith("assumed: ") for _, source in assumed_costs().values())


def test_what_is_measured_reaches_the_settings(tmp_path: Path) -> None:
    trace = synthesize("conversation", duration=300, seed=0)
    ttft = np.full(trace.n_requests, 0.5)
    found = net_dataset()
    found["latency"] = (found.latency * 1e4).assign_attrs(units="s")
    far = read_measured_net(kept(tmp_path / "far.nc", found))
    near, distant = network_advice(trace, ttft, 20.0), network_advice(trace, ttft, 20.0, far)
    assert near.advice.evidence["rtt_s"] == 200e-6
    assert distant.advice.evidence["rtt_s"] == pytest.approx(2.0)
    assert distant.advice.evidence["in_flight"] > near.advice.evidence["in_flight"]
    assert "measured here" in distant.to_dict()["assumptions"]["round trip"]
    assert near.to_dict()["assumptions"]["time a permit is held"].startswith("mean ")


def test_a_permit_is_held_to_the_last_token() -> None:
    trace = synthesize("conversation", duration=300, seed=0)
    ttft = np.linspace(0.1, 2.0, trace.n_requests)
    found = network_advice(trace, ttft, 10.0)
    assert found.services == pytest.approx(ttft + 0.01 * (trace.output_tokens - 1))
    slower = network_advice(trace, ttft, 40.0).advice
    permits = "DYN_TCP_WORKER_POOL_SIZE"
    assert int(slower.settings[permits]) > int(found.advice.settings[permits])
    assert found.advice.evidence["wait_target_s"] == pytest.approx(0.1 * ttft.mean())
    figure = network_figure(found)
    assert figure.axes[0].get_xlabel() == "time (min)"


def test_without_a_rate_there_is_nothing_to_size(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n')
    found = network_advice(read_trace(path), np.array([0.5]), 20.0)
    assert found.advice.settings == {}
    assert "no rate" in found.advice.warnings[0]
    assert network_figure(found).axes


@pytest.mark.parametrize(
    ("value", "milliseconds"), [("20ms", 20.0), ("0.015s", 15.0), ("12", 12.0), (7, 7.0), (" 1500 us ", 1.5), (0, 0.0)]
)
def test_milliseconds_with_and_without_a_unit(value: object, milliseconds: float) -> None:
    assert ReportParameters(itl_ms=value).itl_ms == milliseconds


@pytest.mark.parametrize("value", ["20 parsecs", "fast", -1, "nan"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="itl_ms"):
        ReportParameters(itl_ms=value)


def changed(path: Path, **values: Any) -> Path:
    return kept(path, net_dataset().assign(values))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "cannot be read (No such file"),
        (lambda path: path.write_bytes(b"no\nnetCDF") and path, "is not a netCDF file"),
        (lambda path: kept(path, xr.Dataset({"bandwidth": ("x", [1.0])})), "holds no requests over a network"),
        (lambda path: kept(path, net_dataset().drop_vars("latency")), "holds no requests over a network"),
        (lambda path: kept(path, net_dataset().drop_vars("concurrency")), "holds no requests over a network"),
        (lambda path: kept(path, net_dataset().map(lambda v: -v, keep_attrs=True)), "request_rate is none"),
        (lambda path: kept(path, net_dataset().map(lambda v: v * 2, keep_attrs=False)), "request_rate is none"),
        (lambda path: kept(path, net_dataset().sel(percentile=[99.0])), "no median latencies"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, make: Any, words: str) -> None:
    path = make(tmp_path / "bad.nc")
    with pytest.raises(ConfigError) as caught:
        ReportParameters(measured_net=str(path))
    message = str(caught.value)
    assert message.startswith(f"measured_net: '{path}'")
    assert message.endswith("give a file that `dynalab bench net` has written")
    assert words in message
    assert "\n" not in message


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    rows = [{"timestamp": 500 * i, "input_length": 600, "output_length": 5, "hash_ids": [0, i + 1]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_report_is_named_by_what_is_in_the_file(
    tmp_path: Path, trace_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(**values: Any) -> str:
        return ReportParameters(trace=str(trace_file), **values).resolve()[0].digest()

    file = kept(tmp_path / "net.nc")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(file, tmp_path / "elsewhere" / "other.nc")
    assert digest(measured_net=str(file)) == digest(measured_net=str(copy)) != digest()
    assert digest(itl_ms=10) != digest()
    monkeypatch.chdir(tmp_path)
    assert ReportParameters(measured_net="net.nc").measured_net == str(file), "the kernel runs elsewhere"
