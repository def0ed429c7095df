"""Dynamo request trace v1 (``DYN_REQUEST_TRACE``): one ``request_end`` event per request.

``request.request_received_ms`` (Unix milliseconds), ``request.output_tokens``, ``request.replay.input_length``,
``request.replay.input_sequence_hashes`` (unsigned 64-bit, ``ceil(input_length / trace_block_size)``) and
``request.replay.trace_block_size``, which must be the same everywhere. Records may be wrapped in an ``event``. Tool
and payload events are skipped. Events are written when requests *end*, so that the reader sorts them by arrival.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any

from dynalab.workload.checks import Names
from dynalab.workload.formats.base import BadRecord, Batch, JSONFormat, flattened, whole

_SCHEMA = "dynamo.request.trace.v1"


class DynamoRequestTrace(JSONFormat):
    """Requests as Dynamo's frontend recorded them."""

    name = "dynamo"
    title = "Dynamo request trace v1"
    signature = ("schema", "event_type", "request.request_received_ms", "request.output_tokens", "request.replay")
    ticks = 1000
    ordered = False

    @classmethod
    def claims(cls, record: dict[str, Any]) -> bool:
        event = _unwrapped(record)
        return str(event.get("schema", "")).startswith("dynamo.request.trace") or "event_type" in event

    def begin(self, first: dict[str, Any]) -> None:
        self.names = Names("request_received_ms", "replay.input_length", "output_tokens", "input_sequence_hashes")

    def columns(self, records: list[dict[str, Any]]) -> Batch:
        events = [_unwrapped(record) for record in records]
        for event in events:
            if event.get("schema", _SCHEMA) != _SCHEMA:
                raise BadRecord(f"schema {event['schema']!r} is not {_SCHEMA!r}, the one that can be read")
        requests = [event["request"] for event in events if event["event_type"] == "request_end"]
        replays = [request["replay"] for request in requests]
        for size in {replay["trace_block_size"] for replay in replays}:
            self._settle(size)
        ids, counts = flattened([replay["input_sequence_hashes"] for replay in replays], self.names.block_ids)
        return Batch(
            whole([request["request_received_ms"] for request in requests], self.names.time),
            whole([replay["input_length"] for replay in replays], self.names.input_tokens),
            whole([request["output_tokens"] for request in requests], self.names.output_tokens),
            ids,
            counts,
            dropped=len(records) - len(requests),
        )

    def _settle(self, size: Any) -> None:
        """Take the block size of the first request and refuse another one."""
        if type(size) is not int or size < 1:
            raise BadRecord(f"trace_block_size is {size!r}: it must be a whole number from 1 up")
        if self.block_tokens is None:
            self.block_tokens = self.given_block_tokens or size
        elif self.given_block_tokens is None and size != self.block_tokens:
            raise BadRecord(f"trace_block_size is {size}, but {self.block_tokens} before: read such traces one by one")


def _unwrapped(record: dict[str, Any]) -> dict[str, Any]:
    event = record.get("event")
    return event if isinstance(event, dict) else record
