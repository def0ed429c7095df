"""XXH3-64 of pages of tokens, compiled: the hash by which Dynamo's KV block manager and router know a block.

Written from the public specification (Collet, "XXH3", xxHash 0.8). Every page of a prompt has one length and one seed,
so all that depends on these is computed once, in `page_keys`, and the compiled loops read a page once, front to back.
The input is whole little-endian 32-bit words, as tokens are; lengths that are no multiple of four bytes do not occur.

All compiled functions live in this one file: their disk cache is keyed by it.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]

_SECRET: Final = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_MASK: Final = 2**64 - 1

_PRIME32_1 = np.uint64(0x9E3779B1)
_PRIME32_2 = np.uint64(0x85EBCA77)
_PRIME32_3 = np.uint64(0xC2B2AE3D)
_PRIME64_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME64_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME64_3 = np.uint64(0x165667B19E3779F9)
_PRIME64_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME64_5 = np.uint64(0x27D4EB2F165667C5)
_AVALANCHE = np.uint64(0x165667919E3779F9)
_RRMXMX = np.uint64(0x9FB21C651E98DF25)
_LOW32 = np.uint64(0xFFFFFFFF)

#: Words of a page up to which each branch of the specification reaches: 8, 16, 128 and 240 bytes.
_TWO, _FOUR, _SHORT, _MIDDLE = 2, 4, 32, 60
_STRIPE_WORDS, _STRIPES_PER_ROUND = 16, 16


class PageKeys(NamedTuple):
    """What the hash of a page needs besides its words.

    Attributes
    ----------
    keys : ndarray of uint64, shape (n_keys,)
        Parts of the secret, with the seed worked in. Up to 240 bytes two per 16-byte step; beyond: the 24 words of the
        secret, then those of the last stripe (8) and of the merge (8), which lie at odd places.
    at : ndarray of int64, shape (n_steps,)
        The word at which each 16-byte step begins; empty beyond 240 bytes.
    """

    keys: Hashes
    at: npt.NDArray[np.int64]


def _secret_word(at: int) -> int:
    return int.from_bytes(_SECRET[at : at + 8], "little")


@functools.lru_cache(maxsize=256)
def page_keys(n_words: int, seed: int) -> PageKeys:
    """Work the seed into the secret for pages of `n_words` words, at least one."""
    n_bytes = 4 * n_words
    if n_words <= _TWO:
        mixed = seed ^ (int.from_bytes((seed & 0xFFFFFFFF).to_bytes(4, "big"), "little") << 32)
        return _page_keys([(_secret_word(8) ^ _secret_word(16)) - mixed], [])
    if n_words <= _FOUR:
        low, high = _secret_word(24) ^ _secret_word(32), _secret_word(40) ^ _secret_word(48)
        return _page_keys([low + seed, high - seed], [])
    if n_words <= _MIDDLE:
        places = _short_places(n_bytes) if n_words <= _SHORT else _middle_places(n_bytes)
        keys = [_secret_word(secret + 8 * half) + seed * (1 - 2 * half) for _, secret in places for half in (0, 1)]
        return _page_keys(keys, [at // 4 for at, _ in places])
    words = [_secret_word(at) + (seed if at % 16 == 0 else -seed) for at in range(0, len(_SECRET), 8)]
    seeded = b"".join((word & _MASK).to_bytes(8, "little") for word in words)
    odd = [int.from_bytes(seeded[at : at + 8], "little") for first in (121, 11) for at in range(first, first + 64, 8)]
    return _page_keys(words + odd, [])


def _page_keys(keys: list[int], at: list[int]) -> PageKeys:
    return PageKeys(np.array([key & _MASK for key in keys], np.uint64), np.array(at, np.int64))


def _short_places(n_bytes: int) -> list[tuple[int, int]]:
    """List the steps of 17 to 128 bytes, as (byte of the input, byte of the secret): from both ends inwards."""
    pairs = (n_bytes - 1) // 32 + 1
    fronts = [(16 * n, 32 * n) for n in range(pairs)]
    return fronts + [(n_bytes - 16 - 16 * n, 32 * n + 16) for n in range(pairs)]


def _middle_places(n_bytes: int) -> list[tuple[int, int]]:
    """List the steps of 129 to 240 bytes: eight, the rest with the secret from byte 3, then the last 16 bytes."""
    steps = [(16 * n, 16 * n if n < 8 else 16 * (n - 8) + 3) for n in range(n_bytes // 16)]
    return [*steps, (n_bytes - 16, 136 - 17)]


# Read-only arrays are taken as they are: buffers of a tokenizer or a network message often are read-only.
_WORDS = numba.types.Array(numba.uint32, 1, "C", readonly=True)
_KEYS = numba.types.Array(numba.uint64, 1, "C", readonly=True)
_PLACES = numba.types.Array(numba.int64, 1, "C", readonly=True)
_OUT = numba.types.Array(numba.uint64, 1, "C")

_inline = numba.njit(nogil=True, error_model="numpy", forceinline=True)


@_inline
def _word64(words, at):
    return np.uint64(words[at]) | (np.uint64(words[at + 1]) << np.uint64(32))


@_inline
def _fold(a, b):
    """Multiply to 128 bits, and return the two halves exclusive-ored; by 32-bit parts, for Numba knows no 128 bits."""
    a0, a1, b0, b1 = a & _LOW32, a >> np.uint64(32), b & _LOW32, b >> np.uint64(32)
    low, middle, cross = a0 * b0, a1 * b0, a0 * b1
    carry = (low >> np.uint64(32)) + (middle & _LOW32) + cross
    high = (middle >> np.uint64(32)) + (carry >> np.uint64(32)) + a1 * b1
    return ((carry << np.uint64(32)) | (low & _LOW32)) ^ high


@_inline
def _avalanche(h):
    h = (h ^ (h >> np.uint64(37))) * _AVALANCHE
    return h ^ (h >> np.uint64(32))


@_inline
def _swap_bytes(v):
    v = ((v & np.uint64(0x00FF00FF00FF00FF)) << np.uint64(8)) | ((v >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF))
    v = ((v & np.uint64(0x0000FFFF0000FFFF)) << np.uint64(16)) | ((v >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF))
    return (v << np.uint64(32)) | (v >> np.uint64(32))


@_inline
def _rotate_left(v, bits):
    return (v << np.uint64(bits)) | (v >> np.uint64(64 - bits))


@_inline
def _two_words(first, last, n_bytes, key):
    h = ((first << np.uint64(32)) + last) ^ key
    h ^= _rotate_left(h, 49) ^ _rotate_left(h, 24)
    h *= _RRMXMX
    h ^= (h >> np.uint64(35)) + np.uint64(n_bytes)
    h *= _RRMXMX
    return h ^ (h >> np.uint64(28))


@_inline
def _four_words(first, last, n_bytes, key_low, key_high):
    low, high = first ^ key_low, last ^ key_high
    return _avalanche(np.uint64(n_bytes) + _swap_bytes(low) + high + _fold(low, high))


@_inline
def _steps(words, begin, n_words, keys, at):
    acc = np.uint64(4 * n_words) * _PRIME64_1
    for step in range(at.size):
        if step == 8 and n_words > _SHORT:
            acc = _avalanche(acc)
        place = begin + at[step]
        acc += _fold(_word64(words, place) ^ keys[2 * step], _word64(words, place + 2) ^ keys[2 * step + 1])
    return _avalanche(acc)


@_inline
def _stripe(acc, words, at, keys, first_key):
    for lane in range(8):
        value = _word64(words, at + 2 * lane)
        key = value ^ keys[first_key + lane]
        acc[lane ^ 1] += value
        acc[lane] += (key & _LOW32) * (key >> np.uint64(32))


@_inline
def _long(words, begin, n_words, keys, acc):
    acc[0], acc[1], acc[2], acc[3] = _PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3
    acc[4], acc[5], acc[6], acc[7] = _PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1
    # The last stripe ends with the input; it is taken with keys of its own, and overlaps the one before.
    stripes = (n_words - 1) // _STRIPE_WORDS
    for stripe in range(stripes):
        turn = stripe % _STRIPES_PER_ROUND
        _stripe(acc, words, begin + stripe * _STRIPE_WORDS, keys, turn)
        if turn == _STRIPES_PER_ROUND - 1:
            for lane in range(8):
                acc[lane] = (acc[lane] ^ (acc[lane] >> np.uint64(47)) ^ keys[16 + lane]) * _PRIME32_1
    _stripe(acc, words, begin + n_words - _STRIPE_WORDS, keys, 24)
    total = np.uint64(4 * n_words) * _PRIME64_1
    for pair in range(4):
        total += _fold(acc[2 * pair] ^ keys[32 + 2 * pair], acc[2 * pair + 1] ^ keys[33 + 2 * pair])
    return _avalanche(total)


@numba.njit(numba.void(_WORDS, numba.int64, _KEYS, _PLACES, _OUT), nogil=True, error_model="numpy", cache=True)
def hash_pages(words, n_words, keys, at, out):
    """Hash page after page of `n_words` words into `out`, with the keys of `page_keys`."""
    acc = np.empty(8, np.uint64)
    for page in range(out.size):
        begin = page * n_words
        if n_words <= _TWO:
            first, last = np.uint64(words[begin]), np.uint64(words[begin + n_words - 1])
            out[page] = _two_words(first, last, 4 * n_words, keys[0])
        elif n_words <= _FOUR:
            first, last = _word64(words, begin), _word64(words, begin + n_words - 2)
            out[page] = _four_words(first, last, 4 * n_words, keys[0], keys[1])
        elif n_words <= _MIDDLE:
            out[page] = _steps(words, begin, n_words, keys, at)
        else:
            out[page] = _long(words, begin, n_words, keys, acc)


@numba.njit(numba.void(_KEYS, _KEYS, numba.uint64, _OUT), nogil=True, error_model="numpy", cache=True)
def chain_pages(hashes, keys, parent, out):
    """Hash each of `hashes` together with the result before it (`parent` at first), as 16 bytes, into `out`."""
    for page in range(hashes.size):
        parent = _four_words(parent, hashes[page], 16, keys[0], keys[1])
        out[page] = parent
