"""TLS: files that are wrong are told when the context is made, peers that are wrong in the handshake."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dynalab.errors import ConfigError
from dynalab.net.tls import TlsClient, TlsServer, explain_tls

LONG_AGO = datetime.now(UTC) - timedelta(days=3)


@dataclass
class Files:
    """Certificates of one authority, as files."""

    ca: Path
    cert: Path
    key: Path


def write(folder: Path, *names: str, expires: datetime | None = None) -> Files:
    """Make an authority and a certificate for `names` by it."""
    folder.mkdir()
    authority = trustme.CA()
    leaf = authority.issue_cert(*names, not_after=expires)
    files = Files(folder / "ca.pem", folder / "tls.crt", folder / "tls.key")
    authority.cert_pem.write_to_path(files.ca)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(files.cert, append=True)
    leaf.private_key_pem.write_to_path(files.key)
    return files


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write(tmp_path_factory.mktemp("tls") / "ours", "worker.example", "127.0.0.1")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write(tmp_path_factory.mktemp("tls") / "theirs", "worker.example")


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write(tmp_path_factory.mktemp("tls") / "expired", "worker.example", expires=LONG_AGO)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "worker.example") -> dict | None:
    """Shake hands in memory, exchange one message each way; return the client's certificate as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    todo = [end.do_handshake for end in ends]
    for _ in range(20):
        for step in list(todo):
            try:
                step()
            except ssl.SSLWantReadError:
                continue
            todo.remove(step)
    assert not todo
    ends[0].write(b"request")
    assert ends[1].read() == b"request"
    ends[1].write(b"response")
    assert ends[0].read() == b"response"
    return ends[1].getpeercert()


def fail(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "worker.example") -> str:
    with pytest.raises(ssl.SSLError) as failure:
        shake_hands(client, server, name)
    told = explain_tls(failure.value)
    assert len(told.splitlines()) == 1
    assert "compare the TLS settings" not in told, "it must know the cure"
    return told


@pytest.mark.parametrize("name", ["worker.example", "127.0.0.1"])
def test_a_server_that_the_client_trusts(ours: Files, name: str) -> None:
    assert not shake_hands(
        TlsClient(ca_cert=ours.ca).context(), TlsServer(cert=ours.cert, key=ours.key).context(), name
    )


def test_mutual_tls(ours: Files, theirs: Files) -> None:
    server = TlsServer(cert=ours.cert, key=ours.key, client_ca_cert=theirs.ca).context()
    client = TlsClient(ca_cert=ours.ca, client_cert=theirs.cert, client_key=theirs.key).context()
    shown = shake_hands(client, server)
    assert shown is not None
    assert ("DNS", "worker.example") in shown["subjectAltName"]


def test_insecure_takes_any_server_and_says_so(expired: Files, caplog: pytest.LogCaptureFixture) -> None:
    server = TlsServer(cert=expired.cert, key=expired.key).context()
    shake_hands(TlsClient(insecure=True).context(), server, "another.example")
    assert "insecure" in caplog.text


def test_old_versions_are_not_spoken(ours: Files) -> None:
    old = TlsClient(ca_cert=ours.ca).context()
    new = TlsServer(cert=ours.cert, key=ours.key).context()
    assert old.minimum_version == new.minimum_version == ssl.TLSVersion.TLSv1_2


def test_wrong_peers_are_explained(ours: Files, theirs: Files, expired: Files) -> None:
    server = TlsServer(cert=ours.cert, key=ours.key).context()
    client = TlsClient(ca_cert=ours.ca).context()
    assert "ca_cert" in fail(TlsClient(ca_cert=theirs.ca).context(), server)
    assert "server_name" in fail(client, server, "another.example")
    assert "server_name" in fail(client, server, "10.0.0.1")
    told = fail(TlsClient(ca_cert=expired.ca).context(), TlsServer(cert=expired.cert, key=expired.key).context())
    assert "expired" in told
    assert "renew" in told


def test_wrong_clients_are_explained(ours: Files, theirs: Files, expired: Files) -> None:
    server = TlsServer(cert=ours.cert, key=ours.key, client_ca_cert=ours.ca).context()
    assert "client_cert" in fail(TlsClient(ca_cert=ours.ca).context(), server)
    other = TlsClient(ca_cert=ours.ca, client_cert=theirs.cert, client_key=theirs.key).context()
    assert "sign" in fail(other, server)
    server = TlsServer(cert=ours.cert, key=ours.key, client_ca_cert=expired.ca).context()
    late = TlsClient(ca_cert=ours.ca, client_cert=expired.cert, client_key=expired.key).context()
    assert "renew" in fail(late, server)


def test_a_peer_that_does_not_speak_tls_is_explained(ours: Files) -> None:
    for context, garbage in (
        (TlsClient(ca_cert=ours.ca).context(), b"\0\0\0\x02ok"),
        (TlsServer(cert=ours.cert, key=ours.key).context(), b"GET / HTTP/1.1\r\n\r\n"),
        (TlsServer(cert=ours.cert, key=ours.key).context(), b"\0\x08generate\0\x02{}\0\0\0\0"),
    ):
        incoming = ssl.MemoryBIO()
        incoming.write(garbage)
        is_server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        end = context.wrap_bio(
            incoming, ssl.MemoryBIO(), server_side=is_server, server_hostname=None if is_server else "x"
        )
        with pytest.raises(ssl.SSLError) as failure:
            end.do_handshake()
        assert "both sides alike" in explain_tls(failure.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version (_ssl.c:1)", "TLS 1.2 or later"),
        ("[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol (_ssl.c:1006)", "TLS 1.2 or later"),
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] unexpected eof while reading (_ssl.c:1006)", "see its log"),
        ("certificate verify failed: self signed certificate in certificate chain", "ca_cert"),
        ("certificate verify failed: self-signed certificate", "ca_cert"),
        ("[SSL: NO_SHARED_CIPHER] no shared cipher (_ssl.c:1006)", "compare the TLS settings of both sides"),
    ],
)
def test_reasons_in_the_words_of_any_openssl(text: str, told: str) -> None:
    message = explain_tls(ssl.SSLError(1, text))
    assert message.startswith("TLS: ")
    assert told in message
    assert "_ssl.c" not in message


@pytest.mark.parametrize("field", ["ca_cert", "client_cert", "client_key", "cert", "key", "client_ca_cert"])
@pytest.mark.parametrize("fault", ["absent", "a folder", "empty", "text", "binary", "the other kind", "cut"])
def test_bad_files_are_named(ours: Files, tmp_path: Path, field: str, fault: str) -> None:
    bad = tmp_path / "bad.pem"
    if fault == "a folder":
        bad.mkdir()
    elif fault == "the other kind":
        bad.write_bytes((ours.cert if "key" in field else ours.key).read_bytes())
    elif fault == "cut":
        bad.write_bytes((ours.key if "key" in field else ours.cert).read_bytes()[:200])
    elif fault != "absent":
        bad.write_bytes({"empty": b"", "text": b"hello\n" * 10, "binary": bytes(range(256))}[fault])
    server = field in TlsServer.model_fields
    files = (
        {"cert": ours.cert, "key": ours.key, "client_ca_cert": ours.ca}
        if server
        else {"ca_cert": ours.ca, "client_cert": ours.cert, "client_key": ours.key}
    )
    config = (TlsServer if server else TlsClient)(**(files | {field: bad}))
    with pytest.raises(ConfigError) as refusal:
        config.context()
    message = str(refusal.value)
    assert message.startswith((f"{field}: ", "cert, key: ", "client_cert, client_key: "))
    assert str(bad) in message
    assert "; " in message, "it must tell the cure"
    assert len(message.splitlines()) == 1


def test_a_key_of_another_certificate_is_named(ours: Files, theirs: Files) -> None:
    with pytest.raises(ConfigError, match=r"key: '.*tls.key' is not the key of cert '.*tls.crt'"):
        TlsServer(cert=ours.cert, key=theirs.key).context()
    with pytest.raises(ConfigError, match=r"client_key: .* is not the key of client_cert"):
        TlsClient(insecure=True, client_cert=ours.cert, client_key=theirs.key).context()


def test_a_key_with_a_passphrase_is_refused_instead_of_asked_for(ours: Files, tmp_path: Path) -> None:
    key = load_pem_private_key(ours.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match=r"key: '.*locked.key' has a passphrase; write the key without one"):
        TlsServer(cert=ours.cert, key=locked).context()


def test_an_expired_authority_is_named_before_anybody_connects(ours: Files, tmp_path: Path, monkeypatch) -> None:
    now = ssl.cert_time_to_seconds("Jan  1 00:00:00 2000 GMT")
    monkeypatch.setattr("dynalab.net.tls.time.time", lambda: now)
    TlsClient(ca_cert=ours.ca).context()
    until = ssl.cert_time_to_seconds("Jan  1 00:00:00 2999 GMT")
    monkeypatch.setattr("dynalab.net.tls.time.time", lambda: until + 86_400 * 3650)
    with pytest.raises(ConfigError, match=r"^ca_cert: '.*ca.pem' expired on [0-9]{4}-[0-9]{2}-[0-9]{2}; renew it$"):
        TlsClient(ca_cert=ours.ca).context()
    with pytest.raises(ConfigError, match=r"client_ca_cert: .* expired on"):
        TlsServer(cert=ours.cert, key=ours.key, client_ca_cert=ours.ca).context()


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (TlsClient, {}, "DYN_TCP_TLS_CA_CERT_PATH"),
        (TlsClient, {"server_name": "x"}, "DYN_TCP_TLS_CA_CERT_PATH"),
        (TlsClient, {"client_cert": "c", "client_key": "k"}, "DYN_TCP_TLS_CA_CERT_PATH"),
        (TlsClient, {"ca_cert": "a", "client_cert": "c"}, "client_key (DYN_TCP_TLS_CLIENT_KEY_PATH)"),
        (TlsClient, {"insecure": True, "client_key": "k"}, "client_cert (DYN_TCP_TLS_CLIENT_CERT_PATH)"),
        (TlsClient, {"ca_cert": "a", "server_name": ""}, "server_name"),
        (TlsServer, {}, "DYN_TCP_TLS_CERT_PATH"),
        (TlsServer, {"cert": "c"}, "key (DYN_TCP_TLS_KEY_PATH)"),
        (TlsServer, {"key": "k"}, "cert (DYN_TCP_TLS_CERT_PATH)"),
        (TlsServer, {"client_ca_cert": "a"}, "DYN_TCP_TLS_CERT_PATH"),
        (TlsServer, {"client_ca_cert": "a", "key": "k"}, "cert (DYN_TCP_TLS_CERT_PATH)"),
        (TlsServer, {"certificate": "c"}, "certificate is no field of it"),
    ],
)
def test_what_belongs_together(kind, fields: dict, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind(**fields)
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


CLIENT = {
    "DYN_TCP_TLS_CA_CERT_PATH": ("ca_cert", Path("/tls/ca.pem")),
    "DYN_TCP_TLS_INSECURE": ("insecure", True),
    "DYN_TCP_TLS_CLIENT_CERT_PATH": ("client_cert", Path("/tls/tls.crt")),
    "DYN_TCP_TLS_CLIENT_KEY_PATH": ("client_key", Path("/tls/tls.key")),
    "DYN_TCP_TLS_SERVER_NAME": ("server_name", "worker.example"),
}
SERVER = {
    "DYN_TCP_TLS_CERT_PATH": ("cert", Path("/tls/tls.crt")),
    "DYN_TCP_TLS_KEY_PATH": ("key", Path("/tls/tls.key")),
    "DYN_TCP_TLS_CLIENT_CA_CERT_PATH": ("client_ca_cert", Path("/tls/ca.pem")),
}


@pytest.mark.parametrize(("kind", "table"), [(TlsClient, CLIENT), (TlsServer, SERVER)])
def test_variables(kind, table: dict) -> None:
    every = {variable: str(value) for variable, (_, value) in table.items()}
    config = kind.from_env(every)
    assert config == kind(**dict(table.values()))
    for variable, (field, value) in table.items():
        assert getattr(config, field) == value
        for blank in ("", "  "):
            without = {f: v for f, v in dict(table.values()).items() if f != field}
            try:
                expected = kind(**without)
            except ConfigError:
                with pytest.raises(ConfigError, match=variable):
                    kind.from_env(every | {variable: blank})
            else:
                assert kind.from_env(every | {variable: blank}) == expected
    assert kind.from_env({}) is None
    assert kind.from_env(dict.fromkeys(table, " ")) is None
    rows = [line.split()[:2] for line in (kind.from_env.__doc__ or "").splitlines() if line.strip().startswith("DYN_")]
    assert rows == [[variable, field] for variable, (field, _) in table.items()]


def test_without_what_asks_for_tls_connections_are_plain() -> None:
    assert TlsClient.from_env({"DYN_TCP_TLS_INSECURE": "false"}) is None
    assert TlsClient.from_env({"DYN_TCP_TLS_CERT_PATH": "/tls/tls.crt", "DYN_TCP_TLS_KEY_PATH": "/tls/tls.key"}) is None
    assert TlsServer.from_env({"DYN_TCP_TLS_CA_CERT_PATH": "/tls/ca.pem"}) is None
    assert TlsClient.from_env({}, insecure=True) == TlsClient(insecure=True)


@pytest.mark.parametrize("text", ["maybe", "2", "truee", "-"])
def test_a_switch_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^DYN_TCP_TLS_INSECURE: '{text}' is neither true nor false; write true"):
        TlsClient.from_env({"DYN_TCP_TLS_INSECURE": text})


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "Yes", "on"])
def test_a_switch_that_is_on(text: str) -> None:
    assert TlsClient.from_env({"DYN_TCP_TLS_INSECURE": text}) == TlsClient(insecure=True)
