"""Which block is which: hashes of a block's tokens, and of all tokens up to its end.

Two blocks may share their KV only if everything that went into it is equal: the block's own tokens, all tokens before
them, and whatever else the model saw. The *block hash* stands for the first, the *sequence hash* chains it with the
block before, and the *salt* stands for the rest.

- ``block[i]`` is XXH3-64 of the block's tokens as little-endian 32-bit words, seeded with the salt.
- ``seq[0] = block[0]``; ``seq[i]`` is XXH3-64 of ``seq[i - 1]`` and ``block[i]`` as little-endian 64-bit words, seeded
  with the salt, as in Dynamo's block manager. Its newest token library documents seed 0 for the chain:
  ``chain_seed=0``.

Notes
-----
Prompts with equal tokens must not meet where a LoRA adapter, another model, or images behind placeholder tokens make
their KV differ: give each such context a salt of its own, any number of 64 bits that depends on all of it, such as
``int.from_bytes(hashlib.sha256(b"llama-3-8b/adapter-7").digest()[:8], "little")``. An image in the midst of a prompt
matters only from its first block on: hash what comes before with the common salt, and go on with ``parent`` and the
image's salt.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.kv.xxh3 import chain_pages, hash_pages, page_keys

Hashes = npt.NDArray[np.uint64]

#: The salt of Dynamo's own tests.
DEFAULT_SALT: Final = 1337


def block_hashes(tokens: npt.ArrayLike, page_tokens: int, *, salt: int = DEFAULT_SALT) -> Hashes:
    """Hash each full block of a prompt by its own tokens.

    Parameters
    ----------
    tokens : array_like of int, shape (n,)
        Token ids, 0 to 2**32 - 1. An array of uint32 is read in place; anything else is checked and copied.
    page_tokens : int
        Tokens per block.
    salt : int
        64 bits that stand for all that makes KV differ besides tokens.

    Returns
    -------
    ndarray of uint64, shape (n // page_tokens,)
        Tokens behind the last full block are left out.

    Raises
    ------
    ConfigError
        If a token, `page_tokens` or `salt` cannot be: names it.

    Examples
    --------
    >>> block_hashes([1, 2, 3, 4, 5], page_tokens=4)
    array([14643705804678351452], dtype=uint64)
    """
    size = check_page_tokens(page_tokens)
    words = token_words(tokens)
    out = np.empty(words.size // size, np.uint64)
    if out.size:
        keys = page_keys(size, check_hash("salt", salt))
        hash_pages(words, size, keys.keys, keys.at, out)
    return out


def chain_hashes(
    parent: int | None, block_hashes: npt.ArrayLike, *, salt: int = DEFAULT_SALT, chain_seed: int | None = None
) -> Hashes:
    """Return the sequence hashes of blocks that follow a known one.

    Parameters
    ----------
    parent : int or None
        Sequence hash of the block before the first; None where the first begins a sequence.
    block_hashes : array_like of uint64, shape (n,)
    salt : int
    chain_seed : int, optional
        Seed of the chain; otherwise `salt`.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Examples
    --------
    >>> first, second = block_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4)
    >>> chain_hashes(int(first), [second])
    array([4945711292740353085], dtype=uint64)
    """
    blocks = _unsigned("block_hashes", block_hashes, np.uint64, "a hash")
    seed = check_hash("salt", salt) if chain_seed is None else check_hash("chain_seed", chain_seed)
    keys = page_keys(4, seed)
    out = np.empty(blocks.size, np.uint64)
    if parent is not None:
        chain_pages(blocks, keys.keys, np.uint64(check_hash("parent", parent)), out)
    elif blocks.size:
        out[0] = blocks[0]
        chain_pages(blocks[1:], keys.keys, blocks[0], out[1:])
    return out


def sequence_hashes(
    tokens: npt.ArrayLike,
    page_tokens: int,
    *,
    salt: int = DEFAULT_SALT,
    parent: int | None = None,
    chain_seed: int | None = None,
) -> Hashes:
    """Hash each full block of a prompt together with all that comes before it.

    Equal hashes stand for equal prefixes: what a tier stack matches, registers and evicts by.

    Parameters
    ----------
    tokens : array_like of int, shape (n,)
        Token ids, 0 to 2**32 - 1. An array of uint32 is read in place; anything else is checked and copied.
    page_tokens : int
        Tokens per block.
    salt : int
        64 bits that stand for all that makes KV differ besides tokens: model, LoRA adapter, images.
    parent : int, optional
        Sequence hash of the block before the first of these tokens; without it they begin a sequence.
    chain_seed : int, optional
        Seed of the chain; otherwise `salt`.

    Returns
    -------
    ndarray of uint64, shape (n // page_tokens,)
        Tokens behind the last full block are left out.

    Raises
    ------
    ConfigError
        If a token or a parameter cannot be: names it.

    Examples
    --------
    >>> sequence_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4)
    array([14643705804678351452,  4945711292740353085], dtype=uint64)
    >>> sequence_hashes([5, 6, 7, 8], 4, parent=14643705804678351452)
    array([4945711292740353085], dtype=uint64)
    """
    return chain_hashes(parent, block_hashes(tokens, page_tokens, salt=salt), salt=salt, chain_seed=chain_seed)


def token_words(tokens: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return tokens as checked, contiguous 32-bit words; an array that is so already comes back as it is."""
    return _unsigned("tokens", tokens, np.uint32, "a token id")


def _unsigned(field: str, values: npt.ArrayLike, dtype: type[np.unsignedinteger[Any]], what: str) -> npt.NDArray[Any]:
    """Return a flat, contiguous array of one unsigned type, or name what does not fit into it."""
    if isinstance(values, list | tuple):
        try:
            # Four times as fast as NumPy, which first looks for a type that holds all; and it takes no fractions.
            return np.asarray(array("I" if dtype is np.uint32 else "Q", values))
        except (TypeError, OverflowError):
            at = next(n for n, value in enumerate(values) if not _fits(value, dtype))
            raise _misfit(f"{field}[{at}]", values[at], dtype, what) from None
    given = np.asarray(values)
    if given.ndim != 1:
        raise ConfigError(f"{field}: an array of {given.ndim} dimensions is no row of them; give one row at a time")
    if given.dtype == dtype:
        # Compiled code may rely on alignment, and what is cut out of a message can begin at any byte.
        return np.require(given, requirements=["C", "A"])
    if given.size == 0:
        return np.empty(0, dtype)
    if given.dtype.kind not in "iu":
        raise ConfigError(f"{field}: an array of {given.dtype} holds no whole numbers; convert it to {dtype.__name__}")
    if given.min() < 0 or given.max() > np.iinfo(dtype).max:
        at = int(np.argmax((given < 0) | (given > np.iinfo(dtype).max)))
        raise _misfit(f"{field}[{at}]", int(given[at]), dtype, what)
    return given.astype(dtype)


def _fits(value: object, dtype: type[np.unsignedinteger[Any]]) -> bool:
    return isinstance(value, int | np.integer) and 0 <= int(value) <= np.iinfo(dtype).max


def _misfit(place: str, value: object, dtype: type[np.unsignedinteger[Any]], what: str) -> ConfigError:
    return ConfigError(f"{place}: {value!r:.80} is not {what}; write a whole number from 0 to {np.iinfo(dtype).max}")


def check_page_tokens(value: Any) -> int:
    """Return a number of tokens per block, or refuse it."""
    return _in_range("page_tokens", value, 1, 2**31)


def check_hash(field: str, value: Any) -> int:
    """Return a number of 64 bits, such as a salt or a hash, or refuse it."""
    return _in_range(field, value, 0, 2**64 - 1)


def _in_range(field: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ConfigError(f"{field}: {value!r:.80} is not possible; write a whole number from {least} to {most}")
    return int(value)
