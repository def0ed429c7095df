"""The stack's configuration: by keyword and by Dynamo's variables, with a refusal for every value that is none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.tiers.config import StackConfig


def env(**variables: str) -> StackConfig:
    return StackConfig.from_env({f"DYN_KVBM_{name}": value for name, value in variables.items()})


def test_defaults_are_those_of_the_field() -> None:
    config = StackConfig.from_env({})
    assert config == StackConfig()
    assert (config.host_bytes, config.host_blocks, config.disk_bytes, config.disk_blocks) == (None,) * 4
    assert (config.max_concurrent_transfers, config.max_transfer_batch_size) == (4, 16)
    assert (config.cache_stats_max_requests, config.cache_stats_log_interval_s) == (1000, 5.0)
    assert (config.disk_offload_filter, config.disk_direct_io, config.disk_zerofill) == (True, True, False)
    assert (config.host_min_priority, config.disk_dir) == (0, Path("/tmp"))


def test_every_variable_at_once() -> None:
    config = env(
        CPU_CACHE_GB="20",
        DISK_CACHE_GB="0.5",
        DISK_CACHE_DIR="/mnt/nvme",
        DISK_ZEROFILL_FALLBACK="",
        DISK_DISABLE_O_DIRECT="yes",
        DISABLE_DISK_OFFLOAD_FILTER="true",
        HOST_OFFLOAD_PREFIX_MIN_PRIORITY="35",
        MAX_CONCURRENT_TRANSFERS="8",
        MAX_TRANSFER_BATCH_SIZE="64",
        CACHE_STATS_MAX_REQUESTS="10",
        CACHE_STATS_LOG_INTERVAL_SECS="0.5",
    )
    assert config == StackConfig(
        host_bytes="20GB",
        disk_bytes="500MB",
        disk_dir=Path("/mnt/nvme"),
        disk_zerofill=True,
        disk_direct_io=False,
        disk_offload_filter=False,
        host_min_priority=35,
        max_concurrent_transfers=8,
        max_transfer_batch_size=64,
        cache_stats_max_requests=10,
        cache_stats_log_interval_s="500ms",
    )


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1", 10**9), ("0.5", 5 * 10**8), (" 2.25 ", 2_250_000_000), ("1e2", 10**11), ("0", None)]
)
def test_gigabytes_are_decimal_and_may_be_fractions(text: str, nbytes: int | None) -> None:
    assert env(CPU_CACHE_GB=text).host_bytes == nbytes
    assert env(DISK_CACHE_GB=text).disk_bytes == nbytes


def test_numbers_of_blocks_win_over_gigabytes_unless_they_are_zero() -> None:
    config = env(
        CPU_CACHE_GB="4",
        CPU_CACHE_OVERRIDE_NUM_BLOCKS="7",
        DISK_CACHE_GB="4",
        DISK_CACHE_OVERRIDE_NUM_BLOCKS="0",
    )
    assert (config.host_bytes, config.host_blocks) == (None, 7)
    assert (config.disk_bytes, config.disk_blocks) == (4 * 10**9, None)


def test_the_newer_name_of_the_batch_size_wins() -> None:
    assert env(TRANSFER_BATCH_SIZE="3").max_transfer_batch_size == 3
    assert env(TRANSFER_BATCH_SIZE="3", MAX_TRANSFER_BATCH_SIZE="5").max_transfer_batch_size == 5
    with pytest.raises(ConfigError, match="DYN_KVBM_TRANSFER_BATCH_SIZE: 'x'"):
        env(TRANSFER_BATCH_SIZE="x", MAX_TRANSFER_BATCH_SIZE="5")


@pytest.mark.parametrize("text", ["1", "true", "True", " TRUE "])
def test_the_filter_is_switched_off(text: str) -> None:
    assert env(DISABLE_DISK_OFFLOAD_FILTER=text).disk_offload_filter is False


@pytest.mark.parametrize("text", ["0", "false", "", "  "])
def test_the_filter_stays_on(text: str) -> None:
    assert env(DISABLE_DISK_OFFLOAD_FILTER=text).disk_offload_filter is True


def test_flags_of_the_disk_count_when_they_are_there(caplog: pytest.LogCaptureFixture) -> None:
    assert env(DISK_DISABLE_O_DIRECT="", DISK_ZEROFILL_FALLBACK="1").disk_direct_io is False
    assert not caplog.records
    assert env(DISK_DISABLE_O_DIRECT="0").disk_direct_io is False
    assert env(DISK_ZEROFILL_FALLBACK="false").disk_zerofill is True
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "DYN_KVBM_DISK_DISABLE_O_DIRECT=0 switches it on" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "cure"),
    [
        *((f"{tier}_CACHE_GB", text, "write 40 or 0.5") for tier in ("CPU", "DISK") for text in ("x", "-1", "4GiB")),
        *(("CPU_CACHE_GB", text, "10\\*\\*9 bytes") for text in ("nan", "inf", "1e30", "0x10", "1_0", "1,5", "1 2")),
        ("CPU_CACHE_OVERRIDE_NUM_BLOCKS", "1.5", "whole number from 0 up"),
        ("DISK_CACHE_OVERRIDE_NUM_BLOCKS", "-1", "whole number from 0 up"),
        ("MAX_CONCURRENT_TRANSFERS", "0", "whole number from 1 up; write one, or unset it"),
        ("MAX_TRANSFER_BATCH_SIZE", "-4", "whole number from 1 up"),
        ("TRANSFER_BATCH_SIZE", "16.0", "whole number from 1 up"),
        ("CACHE_STATS_MAX_REQUESTS", "many", "whole number from 1 up"),
        ("CACHE_STATS_LOG_INTERVAL_SECS", "-1", "is not a number of seconds; write 5"),
        ("HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "101", "whole number from 0 to 100"),
        ("DISABLE_DISK_OFFLOAD_FILTER", "yes", "write true, 1, false or 0"),
    ],
)
def test_values_that_are_none_are_refused(name: str, text: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=f"^DYN_KVBM_{name}: '{text}' .*{cure}"):
        env(**{name: text})


def test_variables_of_others_are_left_alone_and_slips_are_told(caplog: pytest.LogCaptureFixture) -> None:
    others = {"DYN_KVBM_LEADER_ZMQ_HOST": "x", "DYN_KVBM_NIXL_BACKEND_UCX": "true", "DYN_TCP_POOL_SIZE": "-"}
    assert StackConfig.from_env(others) == StackConfig()
    assert not caplog.records
    assert env(CPU_CACHE_GBS="4") == StackConfig()
    (record,) = caplog.records
    assert record.getMessage() == "DYN_KVBM_CPU_CACHE_GBS is not read; did you mean DYN_KVBM_CPU_CACHE_GB?"


def test_keywords_win_over_variables() -> None:
    environ = {
        "DYN_KVBM_CPU_CACHE_GB": "4",
        "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS": "9",
        "DYN_KVBM_MAX_TRANSFER_BATCH_SIZE": "5",
    }
    config = StackConfig.from_env(environ, host_blocks=3, max_transfer_batch_size=2)
    assert (config.host_bytes, config.host_blocks, config.disk_blocks) == (None, 3, 9)
    assert config.max_transfer_batch_size == 2


def test_by_default_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_KVBM_MAX_CONCURRENT_TRANSFERS", "11")
    assert StackConfig.from_env().max_concurrent_transfers == 11


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host_bytes": "1MiB", "host_blocks": 3}, "stack: both host_bytes=1048576 and host_blocks=3 given; give one"),
        ({"host_bytes": "lots"}, "host_bytes: 'lots' is not a size"),
        ({"disk_bytes": 0}, "disk_bytes: 0: "),
        ({"disk_blocks": 0}, "disk_blocks: 0: "),
        ({"disk_blocks": 1.5}, "disk_blocks: 1.5: "),
        ({"max_transfer_batch_size": True}, "max_transfer_batch_size: True: "),
        ({"host_min_priority": -1}, "host_min_priority: -1: "),
        ({"cache_stats_log_interval_s": "soon"}, "cache_stats_log_interval_s: 'soon' is not a duration"),
        ({"max_transfers": 3}, "max_transfers is no field of it; write one of host_bytes"),
    ],
)
def test_keywords_that_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        StackConfig(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=8))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    for name, field in (("CPU_CACHE_GB", "host_bytes"), ("MAX_CONCURRENT_TRANSFERS", "max_concurrent_transfers")):
        refusal = ""
        try:
            value = getattr(env(**{name: text}), field)
        except ConfigError as error:
            refusal = str(error)
        if refusal:
            assert refusal.startswith(f"DYN_KVBM_{name}: ")
        else:
            assert value is None or value >= 1
