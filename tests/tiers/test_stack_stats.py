"""What a stack tells about itself: a Dataset, metrics in Prometheus' format, hit rates over a window, log lines."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from stack_cases import MODES, PAGE, assert_sound, open_stack, prompt, serve, sink

from dynalab.tiers import StackConfig
from dynalab.tiers.stack_stats import HitWindow

#: Names and kinds as Dynamo's block manager exposes them, and one of our own.
METRICS = {
    "kvbm_offload_blocks_d2h": "counter",
    "kvbm_offload_blocks_h2d": "counter",
    "kvbm_offload_blocks_d2d": "counter",
    "kvbm_onboard_blocks_h2d": "counter",
    "kvbm_onboard_blocks_d2d": "counter",
    "kvbm_matched_tokens": "counter",
    "kvbm_host_cache_hit_rate": "gauge",
    "kvbm_disk_cache_hit_rate": "gauge",
    "kvbm_transfer_failures": "counter",
}


def read(text: str) -> dict[str, float]:
    """Read Prometheus' text format, as strictly as its description is."""
    values, kinds, helped = {}, {}, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if found := re.fullmatch(r"# HELP ([a-z_0-9]+) (\S.*)", line):
            helped.add(found[1])
        elif found := re.fullmatch(r"# TYPE ([a-z_0-9]+) (counter|gauge)", line):
            assert found[1] in helped
            kinds[found[1]] = found[2]
        else:
            found = re.fullmatch(r"([a-z_0-9]+) (\d+(?:\.\d+)?(?:e[+-]\d+)?)", line)
            assert found, line
            assert found[1] in kinds
            assert found[1] not in values
            values[found[1]] = float(found[2])
    assert kinds == METRICS
    return values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk_path", ["staged", "direct"])
def test_metrics_count_what_has_moved(tmp_path: Path, mode: str, disk_path: str) -> None:
    with open_stack(tmp_path, mode=mode, disk_path=disk_path, admit_after=1) as stack:
        assert set(read(stack.metrics()).values()) == {0.0}
        matched = 0
        for seed in (0, 1, 2, 3, 4) * 3:
            matched += len(prompt(6, seed)) - serve(stack, prompt(6, seed))["computed"]
        stack.drain()
        values, moved = read(stack.metrics()), stack.stats()["moved_blocks"].to_series()
        assert values["kvbm_matched_tokens"] == matched * PAGE > 0
        assert values["kvbm_offload_blocks_d2h"] == moved["device_to_host"] > 0
        assert values["kvbm_offload_blocks_h2d"] == moved["host_to_disk"]
        assert values["kvbm_offload_blocks_d2d"] == moved["device_to_disk"]
        assert moved["host_to_disk"] + moved["device_to_disk"] > 0
        assert values["kvbm_onboard_blocks_h2d"] == moved["host_to_device"]
        assert values["kvbm_onboard_blocks_d2d"] == moved["disk_to_device"] + moved["disk_to_host"] > 0
        facts = stack.stats()
        assert (facts["moved_bytes"] == facts["moved_blocks"] * 1024).all()
        # Every block sent has arrived, or was given up because it was not needed any more: none here.
        assert facts["failed_blocks"].sum() == facts["cancelled_blocks"].sum() == 0


def test_metrics_keep_all_digits() -> None:
    with open_stack(None, device=500, host=0) as stack:
        names = prompt(500, 1)
        serve(stack, names)
        for _ in range(600):
            stack.release(stack.match(names))
        stack.release(stack.match(names[:3]))
        assert "kvbm_matched_tokens 1200012\n" in stack.metrics()


def test_metrics_by_prometheus_own_parser(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    with open_stack(tmp_path) as stack:
        for seed in (1, 2, 1):
            serve(stack, prompt(6, seed))
        stack.drain()
        text = stack.metrics()
    families = list(parser.text_string_to_metric_families(text))
    assert {family.name: family.type for family in families} == METRICS
    assert {family.name: family.samples[0].value for family in families} == read(text)
    assert all(family.documentation for family in families)


@pytest.mark.parametrize("tiers", [{}, {"host": 0}, {"disk": 0}, {"host": 0, "disk": 0}])
def test_the_dataset_says_what_everything_is(tmp_path: Path, tiers: dict[str, int]) -> None:
    with open_stack(tmp_path, **tiers) as stack:
        for seed in (1, 2, 3, 1):
            serve(stack, prompt(6, seed))
        stack.drain()
        facts = stack.stats()
    for name, variable in facts.data_vars.items():
        assert variable.attrs["units"] in ("blocks", "bytes", "s", "tokens", "1"), name
        assert len(variable.attrs["long_name"]) > 5, name
        assert set(variable.dims) <= {"tier", "edge"}, name
    for name in facts.coords:
        assert facts[name].attrs["long_name"], name
    assert facts["tier"].values.tolist() == ["device", "host", "disk"]
    assert facts["edge"].values.tolist()[0] == "device_to_host"
    assert facts.attrs["device"] in ("host-emulated",)
    assert facts.attrs["mode"] == "write_through"
    assert "2 layers" in facts.attrs["layout"]
    file = tmp_path / "stats.nc"
    facts.to_netcdf(file)
    with xr.open_dataset(file) as again:
        xr.testing.assert_identical(again.load(), facts)


def test_the_dataset_balances(tmp_path: Path) -> None:
    with open_stack(tmp_path, host=6, disk=20) as stack:
        for seed in range(25):
            serve(stack, prompt(5, seed % 9, shared=2))
        stack.drain()
        facts = stack.stats()
        assert (facts["insertions"] - facts["evictions"] - facts["removals"] == facts["resident"]).all()
        assert (facts["resident"] <= facts["capacity_blocks"]).all()
        assert (facts["decided_blocks"] == facts["moved_blocks"]).all()
        assert facts["pending_blocks"].sum() == 0
        assert (facts["busy_seconds"] > 0).sel(edge=["device_to_host", "host_to_disk"]).all()
        assert np.isnan(facts["hit_rate"].sel(tier="device"))
        used = stack.allocate(2)
        assert stack.stats()["in_use"].values.tolist() == [2, 0, 0]
        stack.release(used)
        assert_sound(stack)


def test_hit_rates_over_the_last_requests(tmp_path: Path) -> None:
    config = StackConfig(cache_stats_max_requests=3)
    with open_stack(tmp_path, config=config) as stack:
        names, other = prompt(4, 1), prompt(4, 2)

        def rates() -> tuple[float, float]:
            values = read(stack.metrics())
            dataset = stack.stats()["hit_rate"]
            assert dataset.sel(tier="host") == values["kvbm_host_cache_hit_rate"]
            assert dataset.sel(tier="disk") == values["kvbm_disk_cache_hit_rate"]
            return values["kvbm_host_cache_hit_rate"], values["kvbm_disk_cache_hit_rate"]

        assert rates() == (0, 0)
        serve(stack, names)
        sink(stack, names)
        for _ in range(3):
            stack.release(stack.match(other))
        assert rates() == (0, 0)
        stack.release(stack.match(names))
        assert rates() == (0, 4 / 12)
        stack.release(stack.match([]))  # asks for nothing: does not count
        assert rates() == (0, 4 / 12)
        assert stack.prefetch(names).wait() == 4
        stack.release(stack.match(names))
        assert rates() == (4 / 12, 4 / 12)
        for _ in range(2):
            stack.release(stack.match(other))
        assert rates() == (4 / 12, 0)
        stack.release(stack.match(other))
        assert rates() == (0, 0)


def test_hit_rates_against_plain_python() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 7):
        window, requests = HitWindow(length, 5.0), []
        for _ in range(60):
            total = int(rng.integers(0, 9))
            host = int(rng.integers(0, total + 1))
            disk = int(rng.integers(0, total - host + 1))
            window.record(host, disk, total)
            requests += [(host, disk, total)] * (total > 0)
            last = requests[-length:]
            asked = sum(request[2] for request in last)
            expected = tuple(sum(request[i] for request in last) / asked if asked else 0.0 for i in range(2))
            assert window.rates() == expected


def test_log_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At most one in so many seconds, and none that says what the last one said."""
    now = 0.0
    config = StackConfig(cache_stats_log_interval_s=5, cache_stats_max_requests=2)
    caplog.set_level(logging.INFO, "dynalab.tiers.stack_stats")
    with open_stack(tmp_path, config=config, clock=lambda: now) as stack:
        names = prompt(4, 1)
        serve(stack, names)
        sink(stack, names)
        caplog.clear()

        def ask(seconds: float, hashes: np.ndarray = names) -> list[str]:
            nonlocal now
            now += seconds
            caplog.clear()
            stack.release(stack.match(hashes))
            return caplog.messages

        ask(100, prompt(4, 50))
        assert ask(4.9) == []
        assert ask(0.2) == ["cache hit rates: host 0.0% (0/8), disk 100.0% (8/8)"]
        assert ask(6) == []  # nothing new
        assert ask(0, prompt(3, 50)) == ["cache hit rates: host 0.0% (0/7), disk 57.1% (4/7)"]
        assert ask(1, prompt(3, 51)) == []
        assert ask(3.9, np.array([], np.uint64)) == []
        assert ask(0.2, np.array([], np.uint64)) == ["cache hit rates: host 0.0% (0/6), disk 0.0% (0/6)"]


def test_a_stack_in_words(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, device=4, host=0, disk=9, mode="write_back")
    serve(stack, prompt(3, 1))
    assert repr(stack) == "<TierStack (write_back): device 3 of 4, disk 0 of 8 blocks>"
    stack.close()
    assert repr(stack) == "<TierStack (write_back): device 3 of 4, disk 0 of 8 blocks, closed>"
