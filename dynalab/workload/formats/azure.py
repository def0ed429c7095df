"""Azure LLM inference traces as CSV: the original 2023 and 2024 files and the processed ``arrived_at`` form.

Original: ``TIMESTAMP,ContextTokens,GeneratedTokens`` with date and time (2023 in steps of 100 ns, 2024 with a time
zone). Processed (vidur): ``arrived_at,num_prefill_tokens,num_decode_tokens`` with seconds. There are no block ids.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any

import numpy as np

from dynalab.workload.checks import Names
from dynalab.workload.formats.base import BadRecord, CSVFormat, TimeColumn

_DATED = Names("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_PROCESSED = Names("arrived_at", "num_prefill_tokens", "num_decode_tokens")


class AzureCSV(CSVFormat):
    """Dates become nanoseconds; seconds stay seconds."""

    name = "azure"
    title = "Azure LLM inference CSV"
    signature = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    @classmethod
    def claims(cls, header: list[str]) -> bool:
        return any(name in header for name in (*_DATED[:3], *_PROCESSED[:3]))

    def named(self, header: list[str]) -> Names:
        names = _DATED if any(name in header for name in _DATED[:3]) else _PROCESSED
        self.ticks = 10**9 if names is _DATED else 1
        return names

    @property
    def _dated(self) -> bool:
        return self.names is _DATED

    def time_dtype(self) -> str:
        return "str" if self._dated else "float64"

    def times(self, column: Any) -> TimeColumn:
        if not self._dated:
            return column.to_numpy(np.float64)
        import pandas as pd

        stamps = pd.to_datetime(column, format="ISO8601", utc=True).dt.as_unit("ns")
        return stamps.to_numpy("datetime64[ns]").view(np.int64)

    def check_time(self, text: str) -> None:
        if not self._dated:
            return super().check_time(text)
        import pandas as pd

        try:
            missing = pd.isna(pd.to_datetime(text, format="ISO8601", utc=True))
        except ValueError:
            missing = True
        if missing:
            raise BadRecord(f"TIMESTAMP is {text!r}: it must be a date and time such as 2023-11-16 18:15:46.6805900")
        return None
