"""The columnar request trace that every other room of dynalab starts from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TraceError


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in file order, one column per fact.

    A trace either has block ids (``block_tokens`` is set) or not (``block_tokens`` is None, ``block_ids`` is empty and
    every offset is 0). Block ids are *dense*: ``0 .. n_blocks - 1`` in order of first appearance, so that simulators can
    use them as array indices. Request ``r`` owns ``block_ids[offsets[r]:offsets[r + 1]]``, of which only the last may
    cover fewer than ``block_tokens`` tokens. Equal ids stand for equal tokens *and* an equal prefix.

    Attributes
    ----------
    arrival : ndarray of float64, shape (n_requests,)
        Arrival times in seconds since the first request, never falling.
    input_tokens, output_tokens : ndarray of int32, shape (n_requests,)
        Prompt and generated lengths in tokens.
    block_ids : ndarray of int32, shape (n_accesses,)
    offsets : ndarray of int64, shape (n_requests + 1,)
    block_tokens : int or None
        Tokens per block.
    source : str
        Where the trace came from: a path, or the synthesiser's own description.
    sha256 : str
        Of the (uncompressed) text it was read from, or of its columns where it was made here.
    attrs : dict
        Anything else worth keeping (format, seed, parameters).
    """

    arrival: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    block_ids: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    block_tokens: int | None = None
    source: str = "memory"
    sha256: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
