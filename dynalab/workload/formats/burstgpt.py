"""BurstGPT CSV: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` (later releases add columns).

Timestamps are seconds. Rows with 0 response tokens are requests that failed, some with 0 request tokens as well: they
are dropped and counted in ``attrs["dropped_rows"]``, as in BurstGPT's own ``without_fails`` files. There are no block
ids.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any

import numpy as np

from dynalab.workload.checks import Names
from dynalab.workload.formats.base import Batch, CSVFormat, TimeColumn


class BurstGPTCSV(CSVFormat):
    """ChatGPT and GPT-4 requests by the second."""

    name = "burstgpt"
    title = "BurstGPT CSV"
    signature = ("Timestamp", "Request tokens", "Response tokens")
    ticks = 1

    @classmethod
    def claims(cls, header: list[str]) -> bool:
        return "Request tokens" in header or "Response tokens" in header

    def named(self, header: list[str]) -> Names:
        return Names("Timestamp", "Request tokens", "Response tokens")

    def times(self, column: Any) -> TimeColumn:
        return column.to_numpy(np.float64)

    def keep(self, batch: Batch) -> Batch:
        # Negative lengths stay, for the reader to refuse.
        served = (batch.output_tokens != 0) & (batch.input_tokens != 0)
        return Batch(
            batch.time[served],
            batch.input_tokens[served],
            batch.output_tokens[served],
            dropped=int(served.size - served.sum()),
        )
