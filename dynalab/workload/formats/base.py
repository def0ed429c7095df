"""What a trace format is: how its lines become columns."""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import orjson

from dynalab.workload.checks import Names

IntColumn = npt.NDArray[np.int64]
TimeColumn = npt.NDArray[np.int64] | npt.NDArray[np.float64]


class BadRecord(Exception):
    """A line, or one of several lines, that its format does not allow; the reader finds out which."""


@dataclass
class Batch:
    """Columns of some lines.

    Attributes
    ----------
    time : ndarray of int64 or float64, shape (n,)
        In the format's unit, with the format's origin.
    input_tokens, output_tokens : ndarray of int64, shape (n,)
    ids : ndarray of int64, shape (n_accesses,), optional
        Block ids of all requests, end to end.
    counts : ndarray of int64, shape (n,), optional
        Block ids per request.
    dropped : int
        Lines that are no request to replay (failed, cancelled, warm-up, other events).
    """

    time: TimeColumn
    input_tokens: IntColumn
    output_tokens: IntColumn
    ids: IntColumn | None = None
    counts: IntColumn | None = None
    dropped: int = 0


class Format(ABC):
    """One public format. An instance lives for one reading and remembers what the first record settled.

    Attributes
    ----------
    name, title : str
        For `read_trace(format=...)`, and for people.
    signature : tuple of str
        Fields by which people recognise it.
    ticks : int
        Units of the time column per second.
    ordered : bool
        Whether rows come in order of arrival. Where not (records written when a request ends), the reader sorts.
    names : Names
        What the columns are called in this format.
    block_tokens : int or None
        Tokens per block id; None where the format (or this file) has no block ids.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    signature: ClassVar[tuple[str, ...]]
    ticks: int
    ordered: ClassVar[bool] = True
    has_header: ClassVar[bool] = False

    def __init__(self, block_tokens: int | None = None) -> None:
        self.given_block_tokens = block_tokens
        self.block_tokens: int | None = None
        self.names = Names()

    @classmethod
    @abstractmethod
    def recognises(cls, first: dict[str, Any] | list[str]) -> bool:
        """Whether a file with this first record (JSON) or header (CSV) is of this format."""

    @abstractmethod
    def begin(self, first: Any) -> None:
        """Settle names and block size by the first record or header of a file."""

    @abstractmethod
    def parse(self, lines: Sequence[bytes]) -> Batch:
        """Turn lines, none of them blank, into columns.

        Raises
        ------
        BadRecord
            If any line is wrong. For a single line the message says what is wrong with it.
        """


class JSONFormat(Format):
    """A format of one JSON object per line."""

    @classmethod
    def recognises(cls, first: dict[str, Any] | list[str]) -> bool:
        """Whether a first line is a JSON object of this format."""
        return isinstance(first, dict) and cls.claims(first)

    @classmethod
    @abstractmethod
    def claims(cls, record: dict[str, Any]) -> bool:
        """Whether a first record is of this format."""

    @abstractmethod
    def columns(self, records: list[dict[str, Any]]) -> Batch:
        """Turn records into columns; KeyError and TypeError mean a bad record."""

    def parse(self, lines: Sequence[bytes]) -> Batch:
        """Turn JSON lines into columns."""
        try:
            records = list(map(orjson.loads, lines))
        except orjson.JSONDecodeError as error:
            hint = ""
            if any(word in line for line in lines[:1] for word in (b"NaN", b"Infinity")):
                hint = "; NaN and Infinity are no JSON numbers"
            raise BadRecord(f"malformed JSON ({error}){hint}: each line must be one object") from None
        if set(map(type, records)) != {dict}:
            raise BadRecord(f"a JSON {type(records[0]).__name__}, but each line must be one object")
        try:
            return self.columns(records)
        except KeyError as error:
            raise BadRecord(f"{self.name} needs the key {error.args[0]!r}, which this line lacks") from None
        except (TypeError, AttributeError):
            raise BadRecord(f"a field has the wrong type for {self.name} ({', '.join(self.signature)})") from None


class CSVFormat(Format):
    """A format of comma-separated lines below a header."""

    has_header = True
    header: list[str]

    @classmethod
    def recognises(cls, first: dict[str, Any] | list[str]) -> bool:
        """Whether a first line is a header of this format."""
        return isinstance(first, list) and cls.claims(first)

    @classmethod
    @abstractmethod
    def claims(cls, header: list[str]) -> bool:
        """Whether a header is of this format."""

    def begin(self, first: Any) -> None:
        """Settle where the columns are."""
        self.header = first
        self.names = self.named(first)
        lacking = [name for name in self.names[:3] if name not in first]
        if lacking:
            raise BadRecord(f"the header lacks {', '.join(lacking)}: {self.title} needs {', '.join(self.names[:3])}")

    @abstractmethod
    def named(self, header: list[str]) -> Names:
        """Return what the columns are called below this header."""

    @abstractmethod
    def times(self, column: Any) -> TimeColumn:
        """Turn the time column, a pandas Series of str, into numbers; ValueError for what is none."""

    def keep(self, batch: Batch) -> Batch:
        """Drop lines that are no request."""
        return batch

    def parse(self, lines: Sequence[bytes]) -> Batch:
        """Turn CSV lines into columns."""
        import pandas as pd

        if len(lines) == 1:
            self._explain(lines[0])
        text = b"\n".join(lines)
        if b'"' not in text and text.count(b",") != len(lines) * (len(self.header) - 1):
            raise BadRecord("a line has more or fewer fields than the header")
        names = self.names
        lengths = (names.input_tokens, names.output_tokens)
        try:
            table = pd.read_csv(
                io.BytesIO(text),
                header=None,
                names=self.header,
                index_col=False,
                usecols=[names.time, *lengths],
                dtype={names.time: self.time_dtype(), **dict.fromkeys(lengths, "int64")},
                na_filter=False,
            )
            times = self.times(table[names.time])
        except (ValueError, OverflowError) as error:
            raise BadRecord(str(error)) from None
        prompts, outputs = (table[name].to_numpy(np.int64) for name in lengths)
        return self.keep(Batch(times, prompts, outputs))

    def time_dtype(self) -> str:
        """Return how pandas shall read the time column."""
        return "float64"

    def _explain(self, line: bytes) -> None:
        """Raise BadRecord with what is wrong with a line, if anything is."""
        try:
            fields = next(csv.reader([line.decode()]))
        except (UnicodeDecodeError, csv.Error, StopIteration):
            raise BadRecord("not a line of text") from None
        if len(fields) != len(self.header):
            raise BadRecord(f"{len(fields)} fields, but the header names {len(self.header)}: {','.join(self.header)}")
        row = dict(zip(self.header, fields, strict=True))
        for name in (self.names.input_tokens, self.names.output_tokens):
            try:
                value = int(row[name])
            except ValueError:
                raise BadRecord(f"{name} is {row[name]!r}: it must be a whole number") from None
            if abs(value) >= 2**63:
                raise BadRecord(f"{name} is {value}: it must lie below 2**31")
        self.check_time(row[self.names.time])

    def check_time(self, text: str) -> None:
        """Raise BadRecord where the text of a time is none."""
        try:
            finite = math.isfinite(float(text))
        except ValueError:
            finite = False
        if not finite:
            raise BadRecord(f"{self.names.time} is {text!r}: it must be a number of seconds")


def whole(values: Sequence[Any], name: str) -> IntColumn:
    """Return a column of whole numbers, or raise BadRecord."""
    if not set(map(type, values)) <= {int}:
        wrong = next(value for value in values if type(value) is not int)
        raise BadRecord(f"{name} is {_shown(wrong)}: it must be a whole number")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        wrong = next(value for value in values if abs(value) >= 2**63)
        raise BadRecord(f"{name} is {wrong}: it must lie below 2**31") from None


def numbers(values: Sequence[Any], name: str) -> TimeColumn:
    """Return a column of numbers, int64 where all of them are whole, or raise BadRecord."""
    kinds = set(map(type, values))
    if kinds <= {int}:
        return whole(values, name)
    if not kinds <= {int, float}:
        wrong = next(value for value in values if type(value) not in (int, float))
        raise BadRecord(f"{name} is {_shown(wrong)}: it must be a number")
    return np.array(values, dtype=np.float64)


def flattened(lists: Iterable[Any], name: str) -> tuple[IntColumn, IntColumn]:
    """Return lists of ids end to end, and how many each has, or raise BadRecord.

    Ids from 2**63 up, as unsigned 64-bit hashes are, keep their bits.
    """
    lists = list(lists)
    if not set(map(type, lists)) <= {list}:
        wrong = next(item for item in lists if type(item) is not list)
        raise BadRecord(f"{name} is {_shown(wrong)}: it must be a list of whole numbers")
    flat = list(chain.from_iterable(lists))
    if not set(map(type, flat)) <= {int}:
        wrong = next(item for item in flat if type(item) is not int)
        raise BadRecord(f"{name} holds {_shown(wrong)}: block ids must be whole numbers")
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    try:
        return np.array(flat, dtype=np.int64), counts
    except OverflowError:
        pass
    try:
        return np.array(flat, dtype=np.uint64).view(np.int64), counts
    except OverflowError:
        raise BadRecord(f"{name} holds an id that does not fit 64 bits") from None


def _shown(value: object) -> str:
    """Return a value as JSON would show it, cut short."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
