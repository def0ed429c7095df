"""Reading the ``DYN_TCP_*`` variables of the environment into the fields of a configuration."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dynalab.errors import ConfigError, did_you_mean
from dynalab.units import parse_duration, parse_size

_log = logging.getLogger(__name__)
_PREFIX: Final = "DYN_TCP_"


class Variable(NamedTuple):
    """A variable, the field that it sets, and how its text is read."""

    name: str
    field: str
    read: Callable[[str, str], Any]


def read_variables(variables: tuple[Variable, ...], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields whose variables are set and not blank.

    Raises
    ------
    ConfigError
        If a value is none: names the variable, the value and what would be right.
    """
    found: dict[str, Any] = {}
    for name, field, read in variables:
        text = environ.get(name, "").strip()
        if text:
            found[field] = read(name, text)
    _warn_of_slips(environ)
    return found


def whole(least: int, most: int | None = None) -> Callable[[str, str], int]:
    """Return a reader of whole numbers within bounds."""

    def read(name: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= (int(text) if most is None else most):
            span = f"from {least} up" if most is None else f"from {least} to {most}"
            raise ConfigError(f"{name}: {text!r} is not a whole number {span}; write one, or unset it")
        return int(text)

    return read


def seconds(name: str, text: str) -> float:
    """Read a duration above zero."""
    value = parse_duration(text, field=name)
    if value == 0:
        raise ConfigError(f"{name}: {text!r} leaves no time; write a number of seconds above 0, or unset it")
    return value


def seconds_or_none(name: str, text: str) -> float:
    """Read a duration, which may be zero."""
    return parse_duration(text, field=name)


def size(least: int, most: int) -> Callable[[str, str], int]:
    """Return a reader of sizes within bounds."""

    def read(name: str, text: str) -> int:
        value = parse_size(text, field=name)
        if not least <= value <= most:
            raise ConfigError(f"{name}: {text!r} is not from {least} to {most} bytes; write such a size, or unset it")
        return value

    return read


def truth(name: str, text: str) -> bool:
    """Read a switch."""
    lower = text.lower()
    if lower not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ConfigError(f"{name}: {text!r} is neither true nor false; write true, 1, yes, on, false, 0, no or off")
    return lower in ("true", "1", "yes", "on")


def name_of_host(_: str, text: str) -> str:
    """Read a name that stands as it is."""
    return text


def path(_: str, text: str) -> Path:
    """Read a file's path."""
    return Path(text)


# What Dynamo's runtimes read under this prefix: for us, or for themselves only.
_KNOWN: Final = tuple(
    _PREFIX + name
    for name in (
        "CHANNEL_BUFFER",
        "CONNECT_TIMEOUT",
        "GLOBAL_CONNECT_LIMIT",
        "HOST_IDLE_TTL_SECS",
        "LATENCY_TRACE",
        "MAX_MESSAGE_SIZE",
        "POOL_SIZE",
        "REQUEST_TIMEOUT",
        "RESPONSE_STREAM_HOST",
        "RPC_HOST",
        "RPC_PORT",
        "TLS_CA_CERT_PATH",
        "TLS_CERT_PATH",
        "TLS_CLIENT_CA_CERT_PATH",
        "TLS_CLIENT_CERT_PATH",
        "TLS_CLIENT_KEY_PATH",
        "TLS_HANDSHAKE_TIMEOUT_SECS",
        "TLS_INSECURE",
        "TLS_KEY_PATH",
        "TLS_SERVER_NAME",
        "WORKER_POOL_SIZE",
        "WORK_QUEUE_SIZE",
    )
)


def _warn_of_slips(environ: Mapping[str, str]) -> None:
    """Log variables that nobody reads and that come so close to one that somebody does that they are meant for it."""
    for name in environ:
        if name.startswith(_PREFIX) and name not in _KNOWN:
            close = did_you_mean(name, _KNOWN, most=1, cutoff=0.9)
            if close:
                _log.warning("%s is not read; did you mean %s?", name, close[0])
