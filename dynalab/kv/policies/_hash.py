"""One good 64-bit mixer for the sketches (the finaliser of splitmix64, Steele et al., OOPSLA 2014)."""

from __future__ import annotations

import numpy as np

from dynalab.kv.policies._layout import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SEED_STEP = np.uint64(0xD1B54A32D192ED03)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@jit
def mix64(x, seed):
    """Return 64 well mixed bits of block id `x` under `seed`, as uint64."""
    z = np.uint64(x + 1) * _GOLDEN + np.uint64(seed) * _SEED_STEP
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))
