"""Public trace formats, one small file each, and their detection."""

from __future__ import annotations

import csv
from typing import Any

import orjson

from dynalab.errors import TraceError
from dynalab.workload.formats.aiperf_export import AIPerfExport
from dynalab.workload.formats.azure import AzureCSV
from dynalab.workload.formats.bailian import BailianJSONL
from dynalab.workload.formats.base import BadRecord, Batch, Format
from dynalab.workload.formats.burstgpt import BurstGPTCSV
from dynalab.workload.formats.dynamo_trace import DynamoRequestTrace
from dynalab.workload.formats.mooncake import MooncakeJSONL

#: Formats by name, the more particular ones first: a Bailian line would pass for a Mooncake one.
FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (DynamoRequestTrace, AIPerfExport, BailianJSONL, MooncakeJSONL, AzureCSV, BurstGPTCSV)
}

__all__ = ["FORMATS", "BadRecord", "Batch", "Format", "detect", "format_named", "parse_first"]


def format_named(name: str) -> type[Format]:
    """Return the format called `name`.

    Raises
    ------
    TraceError
        If there is none of that name.
    """
    if name not in FORMATS:
        raise TraceError(f"there is no trace format {name!r}; use one of auto, {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


def parse_first(line: bytes) -> dict[str, Any] | list[str]:
    """Return the first line of a file as a JSON object or as the fields of a CSV header.

    Raises
    ------
    BadRecord
        If the line is neither.
    """
    text = line.strip()
    if text[:1] in b"{[":
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise BadRecord(f"malformed JSON ({error})") from None
        if not isinstance(record, dict):
            raise BadRecord("a JSON array, not an object: write one object per line")
        return record
    try:
        return [name.strip() for name in next(csv.reader([text.decode()]))]
    except (UnicodeDecodeError, csv.Error):
        raise BadRecord("not text, but a trace is JSON lines or CSV, either perhaps gzipped") from None


def detect(first: dict[str, Any] | list[str]) -> type[Format]:
    """Return the format of a file by its first record or its header.

    Raises
    ------
    BadRecord
        If no format claims it.
    """
    for kind in FORMATS.values():
        if kind.recognises(first):
            return kind
    found = ", ".join(map(str, first))[:200]
    raise BadRecord(
        f"no known trace format has the fields {found}; known are "
        + ", ".join(f"{kind.name} ({', '.join(kind.signature)})" for kind in FORMATS.values())
    )
