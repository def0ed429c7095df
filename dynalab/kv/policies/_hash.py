"""The two 64-bit hashes of block ids that the frequency sketches use."""

from __future__ import annotations

import numpy as np

from dynalab.kv.policies._layout import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SEED_STEP = np.uint64(0xD1B54A32D192ED03)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


@jit
def mix64(x, seed):
    """Return 64 well mixed bits of block id `x` under `seed` (finaliser of splitmix64, Steele et al., OOPSLA 2014)."""
    z = np.uint64(x + 1) * _GOLDEN + np.uint64(seed) * _SEED_STEP
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@jit
def _rotate_left(v, bits):
    return (v << np.uint64(bits)) | (v >> np.uint64(64 - bits))


@jit
def xxh64(v, seed):
    """Return XXH64 of the eight little-endian bytes of `v` under `seed`, as uint64 (Collet's xxHash specification)."""
    h = np.uint64(seed) + _P5 + np.uint64(8)
    h ^= _rotate_left(np.uint64(v) * _P2, 31) * _P1
    h = _rotate_left(h, 27) * _P1 + _P4
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))
