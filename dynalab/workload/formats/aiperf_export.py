"""AIPerf's ``profile_export.jsonl``: one line per request that AIPerf sent.

Arrival is ``metadata.request_start_ns``, lengths are ``metrics.input_sequence_length`` and
``metrics.output_sequence_length`` (where it is absent: ``output_token_count`` plus ``reasoning_token_count``). Lines of
failed or cancelled requests and of the warm-up phase are dropped and counted: they have no lengths to replay. Lines
are written when requests end, so that the reader sorts them by arrival. There are no block ids.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any

from dynalab.workload.checks import Names
from dynalab.workload.formats.base import Batch, JSONFormat, whole


class AIPerfExport(JSONFormat):
    """Requests as AIPerf sent them."""

    name = "aiperf"
    title = "AIPerf profile_export.jsonl"
    signature = ("metadata.request_start_ns", "metrics.input_sequence_length", "metrics.output_sequence_length")
    ticks = 10**9
    ordered = False

    @classmethod
    def claims(cls, record: dict[str, Any]) -> bool:
        return isinstance(record.get("metadata"), dict) and "request_start_ns" in record["metadata"]

    def begin(self, first: dict[str, Any]) -> None:
        self.names = Names("request_start_ns", "input_sequence_length", "output_sequence_length")

    def columns(self, records: list[dict[str, Any]]) -> Batch:
        sent = [record for record in records if _replayable(record)]
        return Batch(
            whole([record["metadata"]["request_start_ns"] for record in sent], self.names.time),
            whole([_value(record["metrics"], "input_sequence_length") for record in sent], self.names.input_tokens),
            whole([_output(record["metrics"]) for record in sent], self.names.output_tokens),
            dropped=len(records) - len(sent),
        )


def _replayable(record: dict[str, Any]) -> bool:
    metadata = record["metadata"]
    return (
        record.get("error") is None
        and not metadata.get("was_cancelled")
        and metadata.get("benchmark_phase", "profiling") == "profiling"
    )


def _output(metrics: dict[str, Any]) -> Any:
    if metrics.get("output_sequence_length") is not None or "output_token_count" not in metrics:
        return _value(metrics, "output_sequence_length")
    reasoning = _value(metrics, "reasoning_token_count") if metrics.get("reasoning_token_count") else 0
    return _value(metrics, "output_token_count") + reasoning


def _value(metrics: dict[str, Any], tag: str) -> Any:
    """Return a metric's value; AIPerf writes some counts as 550.0."""
    value = metrics[tag]["value"]
    return int(value) if isinstance(value, float) and value.is_integer() else value
