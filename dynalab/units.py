"""Sizes, durations and bandwidths as people write them: one parser for each, used by every part of dynalab.

Inside dynalab a size is a number of bytes (int), a duration a number of seconds (float) and a bandwidth a number of
bytes per second (float). Only this module turns text into them and back.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from numbers import Integral, Real
from typing import Final

from dynalab.errors import ConfigError

#: The largest size that fits the int64 arrays which the simulators keep sizes in.
MAX_BYTES: Final = 2**63 - 1

_PREFIXES: Final = "kmgtpe"
_SIZE_UNITS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    **{f"{p}{tail}": 1000 ** (i + 1) for i, p in enumerate(_PREFIXES) for tail in ("", "b")},
    **{f"{p}{tail}": 1024 ** (i + 1) for i, p in enumerate(_PREFIXES) for tail in ("i", "ib")},
}
_DURATION_UNITS: Final[dict[str, Fraction]] = {
    name: seconds
    for seconds, names in {
        Fraction(1, 10**9): ("ns",),
        Fraction(1, 10**6): ("us", "µs", "μs"),
        Fraction(1, 1000): ("ms",),
        Fraction(1): ("", "s", "sec", "secs", "second", "seconds"),
        Fraction(60): ("m", "min", "mins", "minute", "minutes"),
        Fraction(3600): ("h", "hr", "hrs", "hour", "hours"),
        Fraction(86400): ("d", "day", "days"),
    }.items()
    for name in names
}
# Exponents are short so that a typo such as "1e999999999" is refused instead of filling memory with digits.
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([a-zµμ]*)", re.IGNORECASE)
_COMPOUND = re.compile(rf"(?:{_NUMBER}\s*[a-zµμ]+\s*){{2,}}", re.IGNORECASE)

SIZE_EXAMPLES: Final = '"40GiB" (2**30 bytes each), "4TB" (10**12 bytes), "512 MiB" or a number of bytes such as 1234'
DURATION_EXAMPLES: Final = '"90s", "5m", "1h", "250ms", "1h30m" or a number of seconds such as 3600'
BANDWIDTH_EXAMPLES: Final = '"50GB/s", "2.6 GiB/s" or a number of bytes per second such as 5e10'


def _refuse(field: str, value: object, why: str, examples: str) -> ConfigError:
    return ConfigError(f"{field}: {value!r} {why}; write {examples}")


def _number(value: object) -> Fraction | None:
    """Return a finite number exactly, or None for anything else (a bool is a slip, not a number)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return Fraction(int(value))
    return Fraction(float(value)) if math.isfinite(value) else None


def parse_size(value: object, *, field: str = "size") -> int:
    """Read a size in bytes.

    Parameters
    ----------
    value : str, int or float
        A number with a unit: ``kB MB GB TB PB EB`` (powers of 1000, the ``B`` may be left out), ``KiB MiB GiB TiB PiB
        EiB`` (powers of 1024, likewise), ``B``; in any case of letters, with or without a space. Without a unit: bytes.
    field : str
        Name of the setting, for the error.

    Returns
    -------
    int
        Bytes, rounded to the nearest byte.

    Raises
    ------
    ConfigError
        If the value is no such size, is negative, a fraction of a byte, or larger than `MAX_BYTES`.

    Examples
    --------
    >>> parse_size("40GiB"), parse_size("4TB"), parse_size("512 mib"), parse_size("1.5e12"), parse_size(1234)
    (42949672960, 4000000000000, 536870912, 1500000000000, 1234)
    """
    scale = 1
    number = _number(value)
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value.strip())
        if match is None or match[2].lower() not in _SIZE_UNITS:
            raise _refuse(field, value, "is not a size", SIZE_EXAMPLES)
        number, scale = Fraction(match[1]), _SIZE_UNITS[match[2].lower()]
    if number is None:
        raise _refuse(field, value, "is not a size", SIZE_EXAMPLES)
    exact = number * scale
    if exact < 0:
        raise _refuse(field, value, "is negative", SIZE_EXAMPLES)
    if exact > MAX_BYTES:
        raise _refuse(field, value, "is more than 8 EiB", SIZE_EXAMPLES)
    if (scale == 1 and exact.denominator != 1) or 0 < exact < 1:
        # "0.5" without a unit is a forgotten "GiB" far more often than half a byte.
        raise _refuse(field, value, "is a fraction of a byte: is the unit missing?", SIZE_EXAMPLES)
    return round(exact)


def format_size(nbytes: float, binary: bool = True) -> str:
    """Write a size with four significant digits at most.

    Parameters
    ----------
    nbytes : float
        Bytes; negative ones (differences) keep their sign.
    binary : bool
        Powers of 1024 (KiB, MiB, ...) or of 1000 (kB, MB, ...).

    Examples
    --------
    >>> format_size(40 * 2**30), format_size(131_072), format_size(4e12, binary=False), format_size(1.26e9)
    ('40 GiB', '128 KiB', '4 TB', '1.173 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB") if binary else ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    return _scaled(float(nbytes), 1024.0 if binary else 1000.0, units)


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    """Write `value` with the first unit in which it stays below `base` after rounding."""
    for unit in units[:-1]:
        # Rounded first: 1023.99 KiB is "1 MiB", never "1024 KiB".
        if abs(float(f"{value:.4g}")) < base or not math.isfinite(value):
            return f"{_digits(value)} {unit}"
        value /= base
    return f"{_digits(value)} {units[-1]}"


def _digits(value: float) -> str:
    """Four significant digits without an exponent for the range that the units leave (up to some thousands)."""
    return f"{float(f'{value:.4g}'):g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"


def parse_duration(value: object, *, field: str = "duration") -> float:
    """Read a duration in seconds.

    Parameters
    ----------
    value : str, int or float
        A number with a unit (``ns us ms s m h d``, or their longer names), several of them in a row (``"1h30m"``), or a
        number alone: seconds.
    field : str
        Name of the setting, for the error.

    Returns
    -------
    float
        Seconds, zero or more.

    Raises
    ------
    ConfigError
        If the value is no such duration, is negative or not finite.

    Examples
    --------
    >>> parse_duration("1h"), parse_duration("90s"), parse_duration("5m"), parse_duration(3600), parse_duration("1h30m")
    (3600.0, 90.0, 300.0, 3600.0, 5400.0)
    """
    seconds = _number(value)
    if isinstance(value, str):
        text = value.strip()
        parts = [text] if _QUANTITY.fullmatch(text) else _split_compound(text)
        seconds = None
        for part in parts:
            match = _QUANTITY.fullmatch(part)
            if match is None or match[2].lower() not in _DURATION_UNITS:
                raise _refuse(field, value, "is not a duration", DURATION_EXAMPLES)
            term = Fraction(match[1]) * _DURATION_UNITS[match[2].lower()]
            if term < 0:
                raise _refuse(field, value, "is negative", DURATION_EXAMPLES)
            seconds = term if seconds is None else seconds + term
    if seconds is None:
        raise _refuse(field, value, "is not a duration", DURATION_EXAMPLES)
    if seconds < 0:
        raise _refuse(field, value, "is negative", DURATION_EXAMPLES)
    return float(seconds)


def _split_compound(text: str) -> list[str]:
    """Split ``"1h 30m"`` into its quantities; nothing where the text is not a row of them."""
    if not _COMPOUND.fullmatch(text):
        return []
    return [match[0] for match in re.finditer(rf"{_NUMBER}\s*[a-zµμ]+", text, re.IGNORECASE)]


def format_duration(seconds: float) -> str:
    """Write a duration with one unit and four significant digits at most.

    Examples
    --------
    >>> format_duration(0.0123), format_duration(90), format_duration(5400), format_duration(3600 * 36)
    ('12.3 ms', '90 s', '1.5 h', '1.5 d')
    """
    size = abs(seconds)
    for unit, scale, below in (("ns", 1e-9, 1e-6), ("us", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 120.0)):
        if size < below and size > 0:
            return f"{_digits(seconds / scale)} {unit}"
    if size == 0 or not math.isfinite(seconds):
        return f"{_digits(seconds)} s"
    unit, scale = ("min", 60.0) if size < 3600 else ("h", 3600.0) if size < 86400 else ("d", 86400.0)
    return f"{_digits(seconds / scale)} {unit}"


def parse_bandwidth(value: object, *, field: str = "bandwidth") -> float:
    """Read a bandwidth in bytes per second: a size with ``/s`` (or ``ps``) behind it, or a plain number.

    Bits per second ("Gb/s", "Gbps", "Gbit/s") are refused, not converted: the ``B`` must be a capital one.

    Raises
    ------
    ConfigError
        If the value is no such bandwidth, or is not above zero.

    Examples
    --------
    >>> parse_bandwidth("50GB/s"), parse_bandwidth("2 GiB/s"), parse_bandwidth(5e10)
    (50000000000.0, 2147483648.0, 50000000000.0)
    """
    number = _number(value)
    if isinstance(value, str):
        # A capital B, unlike in sizes: "50Gb/s" and "50Gbps" are network bits, eight times less.
        match = re.fullmatch(rf"({_NUMBER})\s*(?:([A-Za-z]*B)(?:/s|ps))?", value.strip())
        unit = "" if match is None or match[2] is None else match[2].lower()
        if match is None or unit not in _SIZE_UNITS:
            raise _refuse(field, value, "is not a bandwidth", BANDWIDTH_EXAMPLES)
        number = Fraction(match[1]) * _SIZE_UNITS[unit]
    if number is None:
        raise _refuse(field, value, "is not a bandwidth", BANDWIDTH_EXAMPLES)
    if number <= 0:
        raise _refuse(field, value, "is not above zero", BANDWIDTH_EXAMPLES)
    return float(number)
