"""Where an endpoint listens: the forms in which addresses are written, and the one in which they are used."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from dynalab.errors import AddressError

_FORMS: Final = 'write "host:port", "[IPv6]:port" or "tcp://host:port", each with or without "/endpoint" behind it'
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MOST_NAME: Final = 253
_MOST_TEXT: Final = 2048


class Address(NamedTuple):
    """A host, a port and perhaps a path there; `str` gives the first two as ``"host:port"``.

    Attributes
    ----------
    host : str
        A name in lower case, or a literal IP address without brackets.
    port : int
        1 to 65,535.
    path : str or None
        The endpoint's path without the slash before it.
    """

    host: str
    port: int
    path: str | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str | Address) -> Address:
    """Read an address; one that was read already is returned as it is.

    Parameters
    ----------
    text : str or Address
        ``"host:port"``, ``"[IPv6]:port"`` or ``"tcp://host:port"``, each with or without ``"/endpoint path"``. The host
        is a literal IP address or a name; nothing is resolved here.

    Raises
    ------
    AddressError
        If the text is no such address: names it, and what would be right.

    Examples
    --------
    >>> parse_address("10.0.0.7:9000")
    Address(host='10.0.0.7', port=9000, path=None)
    >>> parse_address("tcp://[::1]:9000/generate").path, str(parse_address("tcp://[::1]:9000/generate"))
    ('generate', '[::1]:9000')
    >>> parse_address("::1:9000")
    Traceback (most recent call last):
        ...
    dynalab.errors.AddressError: address: '::1:9000' has an IPv6 address without brackets; write "[::1]:9000"
    """
    if isinstance(text, Address):
        return text
    if not isinstance(text, str):
        raise AddressError(f"address: {text!r:.80} is no text; {_FORMS}")
    return _parse(text)


# A client gets its addresses as text with every request: each is read once. Refusals are not kept.
@lru_cache(maxsize=1024)
def _parse(text: str) -> Address:
    if len(text) > _MOST_TEXT:
        raise AddressError(f"address: {text[:40]!r}... has {len(text)} characters; {_FORMS}")
    scheme = _SCHEME.match(text)
    if scheme is not None and scheme[1].lower() != "tcp":
        raise AddressError(f"address: {text!r} is for {scheme[1]}, and this is plain TCP; {_FORMS}")
    socket, _, path = text[scheme.end() if scheme else 0 :].partition("/")
    host, colon, port = socket.rpartition(":")
    if not colon or not host or host == "[]":
        raise AddressError(f"address: {text!r} has no {'port' if not colon else 'host'}; {_FORMS}")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise AddressError(f"address: {text!r} has port {port!r}; write a number from 1 to 65535 behind the last colon")
    return Address(_host(host, int(port), text), int(port), path or None)


def _host(host: str, port: int, text: str) -> str:
    """Return the host as the resolver takes it, or refuse it."""
    if host.startswith("[") and host.endswith("]"):
        return _literal(IPv6Address, host[1:-1], text)
    if ":" in host:
        try:
            IPv6Address(host)
        except ValueError:
            raise AddressError(f"address: {text!r} has the host {host!r}, which is none; {_FORMS}") from None
        raise AddressError(f'address: {text!r} has an IPv6 address without brackets; write "[{host}]:{port}"')
    if re.fullmatch(r"[0-9.]+", host):
        # The C library reads "127.1" and "2130706433" as addresses, too: mostly slips, so that they are refused.
        return _literal(IPv4Address, host, text)
    name = host.removesuffix(".")
    if len(name) > _MOST_NAME or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise AddressError(
            f"address: {text!r} has the host {host!r}, which is no host name; names are letters, digits, '-', '_' "
            "and dots (write others in punycode, xn--...)"
        )
    return host.lower()


def _literal(kind: type[IPv4Address] | type[IPv6Address], host: str, text: str) -> str:
    try:
        return str(kind(host))
    except ValueError:
        version = 4 if kind is IPv4Address else 6
        raise AddressError(f"address: {text!r} has {host!r}, which is no IPv{version} address; {_FORMS}") from None
