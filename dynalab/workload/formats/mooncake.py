"""Mooncake JSONL (FAST'25 trace release) and its later variants.

``timestamp`` in milliseconds (whole or not), ``input_length``, ``output_length``, and ``hash_ids``: one id for each
block of 512 tokens, ``ceil(input_length / 512)`` of them, the last perhaps partial. Dynamo's replay also writes
``created_time``, ``input_tokens`` and ``output_tokens``. Traces without ``hash_ids`` give a trace without blocks.
Further keys (``session_id``, ``delay``, ``priority``...) are ignored: arrivals are what the timestamps say.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any, ClassVar

from dynalab.workload.checks import Names
from dynalab.workload.formats.base import BadRecord, Batch, JSONFormat, flattened, numbers, whole

_ALIASES = (("timestamp", "created_time"), ("input_length", "input_tokens"), ("output_length", "output_tokens"))


class MooncakeJSONL(JSONFormat):
    """One request per line, milliseconds, blocks of 512 tokens."""

    name = "mooncake"
    title = "Mooncake JSONL"
    signature: ClassVar[tuple[str, ...]] = ("timestamp", "input_length", "output_length", "hash_ids")
    ticks = 1000
    default_block_tokens = 512

    @classmethod
    def claims(cls, record: dict[str, Any]) -> bool:
        return any(key in record for key in ("hash_ids", "input_length", "input_tokens", "text_input", "messages"))

    def begin(self, first: dict[str, Any]) -> None:
        time, prompt, output = (
            usual if usual in first else other if other in first else usual for usual, other in _ALIASES
        )
        if prompt not in first and ("text_input" in first or "messages" in first):
            raise BadRecord("prompts as text have no length: count their tokens and give input_length")
        if time not in first and ("delay" in first or "delay_ms" in first):
            raise BadRecord("turns with a delay have no arrival time: give every row a timestamp")
        self.names = Names(time, prompt, output, "hash_ids")
        if first.get("hash_ids") is not None:
            self.block_tokens = self.given_block_tokens or self.default_block_tokens
        else:
            self.block_tokens = None

    def columns(self, records: list[dict[str, Any]]) -> Batch:
        time, prompt, output, hashes = self.names
        batch = Batch(
            numbers([record[time] for record in records], time),
            whole([record[prompt] for record in records], prompt),
            whole([record[output] for record in records], output),
        )
        if self.block_tokens is not None:
            batch.ids, batch.counts = flattened([record[hashes] for record in records], hashes)
        elif any(record.get(hashes) is not None for record in records):
            raise BadRecord(f"has {hashes}, although the requests before have none")
        return batch
