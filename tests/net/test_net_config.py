"""Settings of clients and endpoints: by keyword and by Dynamo's variables, a refusal for every value that is none."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.net.config import TcpClientConfig, TcpServerConfig
from dynalab.net.tls import TlsClient, TlsServer

CLIENT = {
    "DYN_TCP_POOL_SIZE": ("size", "7", 7),
    "DYN_TCP_CHANNEL_BUFFER": ("channel_buffer", "50", 50),
    "DYN_TCP_REQUEST_TIMEOUT": ("request_timeout", "2.5", 2.5),
    "DYN_TCP_CONNECT_TIMEOUT": ("connect_timeout", "500ms", 0.5),
    "DYN_TCP_MAX_MESSAGE_SIZE": ("max_message", "33554433", 33_554_433),
    "DYN_TCP_GLOBAL_CONNECT_LIMIT": ("connect_limit", "3", 3),
    "DYN_TCP_HOST_IDLE_TTL_SECS": ("idle_ttl", "60", 60.0),
}
SERVER = {
    "DYN_TCP_RPC_HOST": ("host", "0.0.0.0", "0.0.0.0"),
    "DYN_TCP_RPC_PORT": ("port", "9000", 9000),
    "DYN_TCP_WORKER_POOL_SIZE": ("max_concurrency", "1500", 1500),
    "DYN_TCP_WORK_QUEUE_SIZE": ("queue", "0", 0),
    "DYN_TCP_MAX_MESSAGE_SIZE": ("max_message", "64MiB", 64 * 2**20),
    "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS": ("drain_timeout", "0", 0.0),
}
BOTH = [(TcpClientConfig, name, *rest) for name, rest in CLIENT.items()] + [
    (TcpServerConfig, name, *rest) for name, rest in SERVER.items()
]


def test_defaults_are_those_of_the_field() -> None:
    assert TcpClientConfig().model_dump() == {
        "size": 100,
        "channel_buffer": 1024,
        "request_timeout": 5.0,
        "connect_timeout": 5.0,
        "max_message": 33_554_432,
        "connect_limit": 64,
        "idle_ttl": 300.0,
        "retries": 2,
        "backoff": 0.05,
        "backoff_max": 1.0,
    }
    assert TcpServerConfig().model_dump() == {
        "host": "127.0.0.1",
        "port": 0,
        "max_concurrency": 10_000,
        "queue": 40_000,
        "max_message": 33_554_432,
        "connection_bytes": 67_108_864,
        "total_bytes": 1_073_741_824,
        "read_timeout": 30.0,
        "write_timeout": 30.0,
        "drain_timeout": 900.0,
    }


@pytest.mark.parametrize(("kind", "variable", "field", "text", "value"), BOTH)
def test_each_variable_sets_its_field_and_no_other(kind, variable: str, field: str, text: str, value: Any) -> None:
    config = kind.from_env({variable: f" {text}\n"})
    assert config == kind(**{field: value})
    assert getattr(config, field) == value != getattr(kind(), field)
    assert type(getattr(config, field)) is type(value)
    for unset in ({}, {variable: ""}, {variable: "  "}):
        assert kind.from_env(unset) == kind()
    other = 1 if field == "queue" else getattr(kind(), field)
    assert getattr(kind.from_env({variable: text}, **{field: other}), field) == other, "keywords win"


def test_the_table_of_variables_is_the_one_that_is_read() -> None:
    for kind, table in ((TcpClientConfig, CLIENT), (TcpServerConfig, SERVER)):
        text = kind.from_env.__doc__ or ""
        rows = [line.split()[:2] for line in text.splitlines() if line.strip().startswith("DYN_")]
        assert rows == [[variable, field] for variable, (field, *_) in table.items()]


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DYN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DYN_TCP_POOL_SIZE", "9")
    monkeypatch.setenv("DYN_TCP_WORK_QUEUE_SIZE", "11")
    assert TcpClientConfig.from_env() == TcpClientConfig(size=9)
    assert TcpServerConfig.from_env() == TcpServerConfig(queue=11)


WHOLE = ["0", "-1", "1.5", "1e3", "ten", "0x10", "1_000", "１", "9" * 30, "5 s", "true", "+5"]
SECONDS = ["0", "-1", "soon", "nan", "inf", "5 bytes", "1e999", "0ms", "5,5"]
SIZES = ["0", "1023", "4294967296", "-1", "32 MB/s", "many", "1.5", "9EiB", "99EiB"]
PORTS = ["-1", "65536", "http", "9000/tcp", "8 0", "99999999999999999999"]
BAD = (
    [(TcpClientConfig, f"DYN_TCP_{name}", WHOLE) for name in ("POOL_SIZE", "CHANNEL_BUFFER", "GLOBAL_CONNECT_LIMIT")]
    + [
        (TcpClientConfig, f"DYN_TCP_{name}", SECONDS)
        for name in ("REQUEST_TIMEOUT", "CONNECT_TIMEOUT", "HOST_IDLE_TTL_SECS")
    ]
    + [(kind, "DYN_TCP_MAX_MESSAGE_SIZE", SIZES) for kind in (TcpClientConfig, TcpServerConfig)]
    + [
        (TcpServerConfig, "DYN_TCP_WORKER_POOL_SIZE", WHOLE),
        (TcpServerConfig, "DYN_TCP_WORK_QUEUE_SIZE", WHOLE[1:]),
        (TcpServerConfig, "DYN_TCP_RPC_PORT", PORTS),
        (TcpServerConfig, "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", [text for text in SECONDS if "0" not in text]),
    ]
)


@pytest.mark.parametrize(
    ("kind", "variable", "text"), [(kind, variable, text) for kind, variable, texts in BAD for text in texts]
)
def test_a_bad_value_is_refused_by_name(kind, variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind.from_env({variable: text})
    message = str(refusal.value)
    assert message.startswith(f"{variable}: {text!r} ")
    assert "write" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((TcpClientConfig, name, value) for name in ("size", "channel_buffer") for value in (0, -1, 1.5, "7", True)),
        *((TcpClientConfig, "connect_limit", value) for value in (0, None)),
        *((TcpClientConfig, "retries", value) for value in (-1, 0.5, "2")),
        *((TcpClientConfig, name, -1) for name in ("backoff", "backoff_max")),
        *((TcpClientConfig, name, 0) for name in ("request_timeout", "connect_timeout", "idle_ttl")),
        *((TcpServerConfig, name, value) for name in ("read_timeout", "write_timeout") for value in (0, "0s", -5)),
        *((TcpServerConfig, "drain_timeout", value) for value in (-1, "-1s", float("nan"), float("inf"), "for ever")),
        *((TcpServerConfig, "port", value) for value in (-1, 65_536, "http", 80.5, True)),
        *((TcpServerConfig, "host", value) for value in ("", None, 127)),
        *((TcpServerConfig, "max_message", value) for value in (0, 1023, 2**32, "4GiB", "1 s", None)),
        *((TcpServerConfig, name, value) for name in ("connection_bytes", "total_bytes") for value in (0, "1kB", "-1")),
        (TcpServerConfig, "max_concurrency", 0),
        (TcpServerConfig, "queue", -1),
    ],
)
def test_a_bad_keyword_is_refused_by_name(kind, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\b{field}: .*{str(value)[:5]}") as refusal:
        kind(**{field: value})
    assert len(str(refusal.value).splitlines()) == 1


def test_unknown_settings_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="pool_size is no field of it; write one of size, channel_buffer"):
        TcpClientConfig(pool_size=5)
    with pytest.raises(ConfigError, match="TCP endpoint: queu "):
        TcpServerConfig(queu=5)


@pytest.mark.parametrize("config", [TcpClientConfig(), TcpServerConfig()])
def test_settings_do_not_change(config) -> None:
    field = next(iter(config.model_dump()))
    with pytest.raises(Exception, match="frozen"):
        setattr(config, field, 1)
    assert config == type(config)(**config.model_dump())
    assert all(info.description for info in type(config).model_fields.values())


def test_slips_are_logged_and_strangers_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "DYN_TCP_POOLSIZE": "5",
        "DYN_TCP_REQUEST_TIMEOUT_": "5",
        "DYN_TCP_LATENCY_TRACE": "1",
        "DYN_TCP_TLS_CERT_PATH": "/x",
        "DYN_TCP_SOMETHING_ELSE_ENTIRELY": "1",
        "DYN_KVBM_POOL_SIZE": "5",
        "TCP_POOL_SIZE": "5",
    }
    with caplog.at_level(logging.WARNING):
        assert TcpClientConfig.from_env(environ) == TcpClientConfig()
    assert caplog.messages == [
        "DYN_TCP_POOLSIZE is not read; did you mean DYN_TCP_POOL_SIZE?",
        "DYN_TCP_REQUEST_TIMEOUT_ is not read; did you mean DYN_TCP_REQUEST_TIMEOUT?",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        everything = dict.fromkeys((*CLIENT, *SERVER), "")
        for kind in (TcpClientConfig, TcpServerConfig, TlsClient, TlsServer):
            kind.from_env(everything)
    assert caplog.messages == []


@given(st.sampled_from(BOTH), st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_text_is_a_value_or_refused(case: tuple, text: str) -> None:
    kind, variable, *_ = case
    try:
        config = kind.from_env({variable: text})
    except ConfigError as error:
        refusal = str(error)
    else:
        assert kind(**config.model_dump()) == config
        return
    assert refusal.startswith(f"{variable}: ")
    assert len(refusal.splitlines()) == 1
