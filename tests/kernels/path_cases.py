"""Tables of copy paths made from formulas, for the tests of choice and calibration."""

from __future__ import annotations

import math

import numpy as np

from dynalab.kernels.calibrate import COUNTS, PIECE_BYTES
from dynalab.kernels.paths import PathTable


def table_of(model, piece_bytes=PIECE_BYTES, counts=COUNTS, direction="h2d", facts=None) -> PathTable:
    """Tabulate ``{path: seconds(bytes, count)}``."""
    seconds = {path: np.array([[f(b, n) for n in counts] for b in piece_bytes]) for path, f in model.items()}
    return PathTable(facts or {"device": "model"}, piece_bytes, counts, {direction: seconds})


def gpu_model(rng=None, noise: float = 0.0):
    """Seconds of three paths on a GPU that does not exist: calls, launches, links and the batches' cliff."""

    def jitter() -> float:
        return math.exp(rng.normal(0, noise)) if rng is not None else 1.0

    return {
        "kernel": lambda b, n: (22e-6 + 30e-9 * n + b * n / 48e9) * jitter(),
        "batch": lambda b, n: (8e-6 + (450e-9 if b < 26_000 else 60e-9) * n + b * n / 52e9) * jitter(),
        "async": lambda b, n: (3e-6 + 1.6e-6 * n + b * n / 53e9) * jitter(),
    }
