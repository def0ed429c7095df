"""Addresses as people and Dynamo write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import AddressError, ConfigError, NetError
from dynalab.net.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "written"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000, None, "127.0.0.1:9000"),
        ("tcp://127.0.0.1:9000", "127.0.0.1", 9000, None, "127.0.0.1:9000"),
        ("TCP://127.0.0.1:9000", "127.0.0.1", 9000, None, "127.0.0.1:9000"),
        ("127.0.0.1:9000/generate", "127.0.0.1", 9000, "generate", "127.0.0.1:9000"),
        ("tcp://127.0.0.1:9000/ns/gen erate", "127.0.0.1", 9000, "ns/gen erate", "127.0.0.1:9000"),
        ("tcp://127.0.0.1:9000/", "127.0.0.1", 9000, None, "127.0.0.1:9000"),
        ("10.0.0.1:1/tcp://x:2", "10.0.0.1", 1, "tcp://x:2", "10.0.0.1:1"),
        ("[::1]:80", "::1", 80, None, "[::1]:80"),
        ("tcp://[2001:DB8:0::1]:80/é", "2001:db8::1", 80, "é", "[2001:db8::1]:80"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80, None, "[fe80::1%eth0]:80"),
        ("localhost:65535", "localhost", 65_535, None, "localhost:65535"),
        ("Worker-0.ns_1.svc.cluster.local.:1", "worker-0.ns_1.svc.cluster.local.", 1, None, None),
        ("x:00080", "x", 80, None, "x:80"),
        ("1e3:80", "1e3", 80, None, "1e3:80"),
    ],
)
def test_forms(text: str, host: str, port: int, path: str | None, written: str | None) -> None:
    address = parse_address(text)
    assert address == Address(host, port, path)
    assert str(address) == (written or f"{host}:{port}")
    assert parse_address(address) is address
    assert parse_address(str(address)) == Address(host, port, None)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "host", "host:", "host:port", "host:-1", "host:0", "host:65536", "host:99999", "host:080000"),
        *("host:80:", "host:8 0", "host:８０", " host:80", "host:80 ", "host:80\n", "host name:80", "host\0:80"),
        *(
            "http://host:80",
            "tcp:host:80",
            "tcp//host:80",
            "tcp://",
            "tcp:///path",
            "//host:80",
            "/path",
            "user@host:1",
        ),
        *("::1:80", "::1", "[::1]", "[::1]80", "[]:80", "[host]:80", "[127.0.0.1]:80", "[::1:80", "::1]:80", "a:b:80"),
        *("256.0.0.1:80", "1.2.3:80", "127.1:80", "2130706433:80", "1.2.3.4.5:80", "1.2.3.:80", "01.2.3.4:80", ".:80"),
        *("-a:80", "a-:80", "a..b:80", ".a:80", f"{'a' * 64}:80", f"{'a.' * 127}a:80", "bücher.example:80", "a,b:80"),
        *("x" * 3000, f"h:80/{'x' * 3000}", "a%20b:80", "$HOST:80"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(AddressError) as refusal:
        parse_address(text)
    message = str(refusal.value)
    assert "\n" not in message
    assert "write" in message
    assert repr(text)[1:20] in message, "it must show the culprit"
    assert len(message) < 3 * len(text) + 300
    assert isinstance(refusal.value, NetError)
    assert isinstance(refusal.value, ConfigError)


@pytest.mark.parametrize("text", [None, 80, b"host:80", ("host", 80), ["host:80"]])
def test_what_is_no_text(text: object) -> None:
    with pytest.raises(AddressError, match="is no text"):
        parse_address(text)  # type: ignore[arg-type]


def test_the_cure_for_a_forgotten_bracket_is_an_address() -> None:
    with pytest.raises(AddressError) as refusal:
        parse_address("2001:db8::1:80")
    cure = str(refusal.value).split('"')[1]
    assert parse_address(cure) == Address("2001:db8::1", 80, None)


@given(st.text(max_size=60) | st.from_regex(r"(tcp://)?[a-z0-9.:\[\]-]{0,20}:[0-9]{1,6}(/.*)?", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError as error:
        refusal = str(error)
    else:
        assert address.host
        assert 1 <= address.port <= 65_535
        assert address.path != ""
        assert parse_address(str(address)) == address._replace(path=None)
        return
    assert len(refusal.splitlines()) == 1
