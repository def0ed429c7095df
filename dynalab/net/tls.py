"""TLS and mutual TLS: which files, checked when a context is made, and what a failed handshake means."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from dynalab.errors import ConfigError
from dynalab.net._env import Variable, name_of_host, path, read_variables, truth
from dynalab.spec import Spec

_log = logging.getLogger(__name__)


class TlsClient(Spec):
    """Whom a client trusts, and how it shows who it is.

    The fields are described in ``TlsClient.model_fields[name].description``.

    Examples
    --------
    >>> TlsClient(ca_cert="/etc/tls/ca.pem").server_name is None
    True
    >>> TlsClient()
    Traceback (most recent call last):
        ...
    dynalab.errors.ConfigError: TLS client: no ca_cert (DYN_TCP_TLS_CA_CERT_PATH) to check servers by; give the file \
of the CA, or insecure=True (DYN_TCP_TLS_INSECURE=1) for a test
    """

    _what: ClassVar[str] = "TLS client"

    ca_cert: Path | None = Field(default=None, description="PEM file of the authorities that servers are checked by")
    insecure: bool = Field(default=False, description="take any server's certificate: for tests only")
    client_cert: Path | None = Field(default=None, description="PEM file of the client's own certificate chain")
    client_key: Path | None = Field(default=None, description="PEM file of its key, without passphrase")
    server_name: str | None = Field(
        default=None, min_length=1, description="name in the server's certificate; None: the host of the address"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _both("client_cert", self.client_cert, "client_key", self.client_key, _CLIENT)
        if self.ca_cert is None and not self.insecure:
            raise ConfigError(
                "no ca_cert (DYN_TCP_TLS_CA_CERT_PATH) to check servers by; give the file of the CA, or "
                "insecure=True (DYN_TCP_TLS_INSECURE=1) for a test"
            )
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **fields: Any) -> Self | None:
        """Read the variables by which Dynamo's TCP client is set up.

        ============================ =========== ================================
        variable                     field       value
        ============================ =========== ================================
        DYN_TCP_TLS_CA_CERT_PATH     ca_cert     a PEM file
        DYN_TCP_TLS_INSECURE         insecure    true, 1, yes, on or the opposite
        DYN_TCP_TLS_CLIENT_CERT_PATH client_cert a PEM file
        DYN_TCP_TLS_CLIENT_KEY_PATH  client_key  a PEM file
        DYN_TCP_TLS_SERVER_NAME      server_name a name
        ============================ =========== ================================

        Parameters
        ----------
        environ : mapping of str to str
        **fields
            Fields of this class; they win over variables.

        Returns
        -------
        TlsClient or None
            None where nothing asks for TLS: connections are plain.

        Raises
        ------
        ConfigError
            If a value is none, or what belongs together is not.
        """
        found = read_variables(_CLIENT, environ) | fields
        return cls(**found) if any(found.values()) else None

    def context(self) -> ssl.SSLContext:
        """Read the files and return what asyncio takes as ``ssl=``.

        Raises
        ------
        ConfigError
            If a file is absent, is none, has expired, or certificate and key do not match: names it.
        """
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        if self.insecure:
            _log.warning("TLS client: insecure: servers' certificates are not checked")
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca_cert is not None:
            _trust(context, "ca_cert", self.ca_cert)
        if self.client_cert is not None and self.client_key is not None:
            _identify(context, "client_cert", self.client_cert, "client_key", self.client_key)
        return context


class TlsServer(Spec):
    """How an endpoint shows who it is, and whether its clients must, too.

    The fields are described in ``TlsServer.model_fields[name].description``.

    Examples
    --------
    >>> TlsServer(cert="/etc/tls/tls.crt", key="/etc/tls/tls.key").client_ca_cert is None
    True
    """

    _what: ClassVar[str] = "TLS server"

    cert: Path | None = Field(default=None, description="PEM file of the server's certificate chain")
    key: Path | None = Field(default=None, description="PEM file of its key, without passphrase")
    client_ca_cert: Path | None = Field(
        default=None, description="PEM file of the authorities that clients are checked by; None: any client may come"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _both("cert", self.cert, "key", self.key, _SERVER)
        if self.cert is None:
            raise ConfigError("neither cert nor key (DYN_TCP_TLS_CERT_PATH, DYN_TCP_TLS_KEY_PATH); give both files")
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **fields: Any) -> Self | None:
        """Read the variables by which Dynamo's shared TCP endpoint is set up.

        =============================== ============== ================================
        variable                        field          value
        =============================== ============== ================================
        DYN_TCP_TLS_CERT_PATH           cert           a PEM file
        DYN_TCP_TLS_KEY_PATH            key            a PEM file
        DYN_TCP_TLS_CLIENT_CA_CERT_PATH client_ca_cert a PEM file: clients must show a
                                                       certificate (mutual TLS)
        =============================== ============== ================================

        Parameters, returns and raises as :meth:`TlsClient.from_env`.
        """
        found = read_variables(_SERVER, environ) | fields
        return cls(**found) if any(found.values()) else None

    def context(self) -> ssl.SSLContext:
        """Read the files and return what asyncio takes as ``ssl=``; raises as :meth:`TlsClient.context`."""
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        if self.cert is not None and self.key is not None:
            _identify(context, "cert", self.cert, "key", self.key)
        if self.client_ca_cert is not None:
            _trust(context, "client_ca_cert", self.client_ca_cert)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


_CLIENT: Final = (
    Variable("DYN_TCP_TLS_CA_CERT_PATH", "ca_cert", path),
    Variable("DYN_TCP_TLS_INSECURE", "insecure", truth),
    Variable("DYN_TCP_TLS_CLIENT_CERT_PATH", "client_cert", path),
    Variable("DYN_TCP_TLS_CLIENT_KEY_PATH", "client_key", path),
    Variable("DYN_TCP_TLS_SERVER_NAME", "server_name", name_of_host),
)
_SERVER: Final = (
    Variable("DYN_TCP_TLS_CERT_PATH", "cert", path),
    Variable("DYN_TCP_TLS_KEY_PATH", "key", path),
    Variable("DYN_TCP_TLS_CLIENT_CA_CERT_PATH", "client_ca_cert", path),
)

# By words of OpenSSL's reason, the first that fits.
_CURES: Final = (
    ("certificate has expired", "renew the peer's certificate"),
    ("not yet valid", "compare the clocks of both machines"),
    ("mismatch", "connect by a name in the server's certificate, or give it as server_name (DYN_TCP_TLS_SERVER_NAME)"),
    ("certificate is not valid for", "connect by a name in the server's certificate, or give it as server_name"),
    ("self signed", "give the CA that signed the peer's certificate as ca_cert (DYN_TCP_TLS_CA_CERT_PATH)"),
    ("local issuer", "give the CA that signed the peer's certificate as ca_cert (DYN_TCP_TLS_CA_CERT_PATH)"),
    ("protocol version", "both sides must speak TLS 1.2 or later"),
    ("unsupported protocol", "both sides must speak TLS 1.2 or later"),
    ("unexpected eof", "the peer hung up during the handshake: see its log for the reason"),
    ("certificate required", "the server asks for a certificate: give client_cert and client_key"),
    ("peer did not return", "the server asks for a certificate: give client_cert and client_key"),
    ("unknown ca", "the peer does not trust this side's certificate: have one of its authorities sign it"),
    ("wrong version number", "the peer does not speak TLS, or another protocol: set both sides alike"),
    ("http request", "the peer speaks plain HTTP: set both sides alike"),
)


def explain_tls(error: ssl.SSLError) -> str:
    """Say in one line why a handshake failed, and what would cure it.

    Examples
    --------
    >>> explain_tls(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"))
    'TLS: wrong version number; the peer does not speak TLS, or another protocol: set both sides alike'
    """
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.args[-1]
    text = str(reason).split("] ")[-1].split(" (_ssl.c")[0]
    told = text.replace("_", " ").lower() if text.isupper() else text
    cure = next(
        (cure for words, cure in _CURES if words in told.lower().replace("-", " ")),
        "compare the TLS settings of both sides",
    )
    return f"TLS: {told.rstrip('.')}; {cure}"


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _both(one: str, first: Path | None, two: str, second: Path | None, names: tuple[Variable, ...]) -> None:
    if (first is None) != (second is None):
        given, missing = (one, two) if second is None else (two, one)
        variable = {variable.field: variable.name for variable in names}[missing]
        raise ConfigError(f"{given} is given without {missing} ({variable}); give both, or neither")


def _check_readable(field: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{field}: {str(file)!r} cannot be read: {error.strerror}; give a PEM file") from None


def _trust(context: ssl.SSLContext, field: str, file: Path) -> None:
    _check_readable(field, file)
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        raise ConfigError(f"{field}: {str(file)!r} holds no certificate; give a PEM file with one") from None
    ends = [ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in context.get_ca_certs()]
    if ends and max(ends) < time.time():
        until = time.strftime("%Y-%m-%d", time.gmtime(max(ends)))
        raise ConfigError(f"{field}: {str(file)!r} expired on {until}; renew it")


class _PassphraseAskedFor(Exception):
    pass


def _no_passphrase() -> str:
    # Without this, OpenSSL would ask at the terminal, and wait for ever where there is none.
    raise _PassphraseAskedFor


def _identify(context: ssl.SSLContext, cert_field: str, cert: Path, key_field: str, key: Path) -> None:
    _check_readable(cert_field, cert)
    _check_readable(key_field, key)
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _PassphraseAskedFor:
        raise ConfigError(f"{key_field}: {str(key)!r} has a passphrase; write the key without one") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{key_field}: {str(key)!r} is not the key of {cert_field} {str(cert)!r}; give the one that it was "
                "made with"
            ) from None
        raise ConfigError(
            f"{cert_field}, {key_field}: {str(cert)!r} and {str(key)!r} are no certificate and its key "
            f"({error.reason or error}); give PEM files"
        ) from None
