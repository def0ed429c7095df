"""The block checksum in plain Python, as its docstring defines it."""

from __future__ import annotations

_BITS = 2**64 - 1


def mix(x: int) -> int:
    for _ in range(2):
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 & _BITS
    return x ^ x >> 32


def unmix(x: int) -> int:
    """The inverse of `mix`, which exists only if `mix` is a bijection."""
    inverse = pow(0xD6E8FEB86659FD93, -1, 2**64)
    for _ in range(2):
        x ^= x >> 32
        x = x * inverse & _BITS
    return x ^ x >> 32


def checksum(data: bytes, seed: int = 0) -> int:
    step = 0x9E3779B97F4A7C15
    key = mix(seed ^ step)
    total = key + len(data) * step
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8], "little")
        total += mix(word ^ (key + i // 8 * step & _BITS))
    return mix(total & _BITS)
