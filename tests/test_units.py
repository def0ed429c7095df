"""Sizes, durations and bandwidths: read as people write them, and refused with a cure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynalab.errors import ConfigError, DynalabError
from dynalab.units import (
    MAX_BYTES,
    format_duration,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40GiB", 40 * 2**30),
        ("4TB", 4 * 10**12),
        ("512 MiB", 512 * 2**20),
        ("512mib", 512 * 2**20),
        ("512 Mi", 512 * 2**20),
        ("1k", 1000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1.5e12", 1_500_000_000_000),
        ("  7 b ", 7),
        ("7 bytes", 7),
        ("0", 0),
        ("0GiB", 0),
        ("0.1GB", 100_000_000),
        (".5KiB", 512),
        ("2.PiB", 2 * 2**50),
        (1234, 1234),
        (1e9, 10**9),
        (np.int64(5), 5),
        (np.float64(6.0), 6),
    ],
)
def test_sizes_are_exact(text, expected):
    size = parse_size(text)
    assert size == expected
    assert type(size) is int


@pytest.mark.parametrize(
    "bad",
    [
        "12 parsecs",
        "",
        " ",
        "-1GiB",
        "nan",
        "inf",
        "1e99GiB",
        "1e999999999",
        "GiB",
        "1 2 GiB",
        "1,5GiB",
        "0x10",
        "40GiB/s",
        "0.5",
        1.5,
        "0.1B",
        "٤٠GiB",
        -1,
        True,
        None,
        float("nan"),
        float("inf"),
        2**63,
        b"40GiB",
        ["40GiB"],
        1 + 0j,
    ],
)
def test_bad_sizes_name_field_value_and_cure(bad):
    with pytest.raises(ConfigError) as caught:
        parse_size(bad, field="host")
    message = str(caught.value)
    assert message.startswith(f"host: {bad!r} ")
    assert '"40GiB"' in message
    assert "\n" not in message


def test_the_largest_size_fits_int64():
    assert parse_size(MAX_BYTES) == np.iinfo(np.int64).max
    with pytest.raises(ConfigError, match="more than 8 EiB"):
        parse_size("8EiB")


@given(st.integers(0, MAX_BYTES))
def test_every_byte_count_survives_as_text(n):
    assert parse_size(str(n)) == parse_size(f"{n}B") == parse_size(f" {n} bytes") == n


@given(st.integers(0, 2**20), st.sampled_from(["kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]), st.booleans())
def test_units_multiply_exactly(n, unit, space):
    base = 1024 if "i" in unit else 1000
    expected = n * base ** (1 + "kmgt".index(unit[0].lower()))
    for spelled in (unit, unit.lower(), unit.upper()):
        assert parse_size(f"{n}{' ' * space}{spelled}") == expected


@example(1045, True)
@given(st.integers(0, 2**62), st.booleans())
def test_formatted_sizes_read_back_within_their_four_digits(n, binary):
    back = parse_size(format_size(n, binary))
    # Half a unit of the fourth digit, and half a byte because sizes are whole bytes.
    assert abs(back - n) <= 5.1e-4 * n + 0.5
    if n < 1000:
        assert back == n


@pytest.mark.parametrize(
    ("nbytes", "binary", "text"),
    [
        (0, True, "0 B"),
        (1023, True, "1023 B"),
        (1024, True, "1 KiB"),
        (2**20 - 1, True, "1 MiB"),
        (999_999, False, "1 MB"),
        (999, False, "999 B"),
        (1_749_384, False, "1.749 MB"),
        (-3 * 2**30, True, "-3 GiB"),
        (2**63 - 1, True, "8 EiB"),
        (5e21, False, "5000 EB"),
        (float("nan"), True, "nan B"),
    ],
)
def test_sizes_are_written_in_the_largest_fitting_unit(nbytes, binary, text):
    assert format_size(nbytes, binary) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1h", 3600.0),
        ("90s", 90.0),
        ("5m", 300.0),
        ("5 min", 300.0),
        ("2 Hours", 7200.0),
        ("250ms", 0.25),
        ("3us", 3e-6),
        ("3 µs", 3e-6),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1h 30m 15.5s", 5415.5),
        ("1.5h", 5400.0),
        ("1e3", 1000.0),
        (3600, 3600.0),
        (0.25, 0.25),
        ("0", 0.0),
    ],
)
def test_durations(text, expected):
    seconds = parse_duration(text)
    assert seconds == expected
    assert type(seconds) is float


@pytest.mark.parametrize(
    "bad",
    [
        "12 parsecs",
        "",
        "-1h",
        "1h-30m",
        "nan",
        "inf",
        "h",
        "1h30",
        "1:30",
        "1e999",
        True,
        None,
        float("inf"),
        -0.5,
        {"seconds": 1},
    ],
)
def test_bad_durations_name_field_value_and_cure(bad):
    with pytest.raises(DynalabError) as caught:
        parse_duration(bad, field="duration of the trace")
    message = str(caught.value)
    assert message.startswith(f"duration of the trace: {bad!r} ")
    assert '"90s"' in message
    assert "\n" not in message


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59))
def test_compound_durations_add_up(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.floats(0, 1e9, allow_nan=False).filter(lambda x: x == 0 or x > 1e-11))
def test_formatted_durations_read_back_within_their_four_digits(seconds):
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=5.1e-4, abs=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50GB/s", 50e9),
        ("50 GBps", 50e9),
        ("2 GiB/s", 2.0 * 2**30),
        ("1e9", 1e9),
        (5e10, 5e10),
        (3, 3.0),
        ("9B/s", 9.0),
    ],
)
def test_bandwidths(text, expected):
    assert parse_bandwidth(text) == expected


@pytest.mark.parametrize(
    "bad", ["50GB", "50 Gbit/s", "50Gb/s", "50Gbps", "fast", "", "0GB/s", "-1GB/s", 0, True, None, float("nan")]
)
def test_bad_bandwidths_name_field_value_and_cure(bad):
    with pytest.raises(ConfigError) as caught:
        parse_bandwidth(bad, field="d2h")
    assert str(caught.value).startswith(f"d2h: {bad!r} ")
    assert '"50GB/s"' in str(caught.value)
