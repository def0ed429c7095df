"""Sequence hashes, held bit for bit to the xxHash package where it is installed, and to its stored answers anywhere."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.kv import block_hashes, chain_hashes, sequence_hashes

SEEDS = (0, 1337, 2**32 - 1, 2**64 - 1)
#: Every branch of the specification and both sides of every border: in bytes 4, 8, 16, 128, 240, then stripes of 64 and
#: rounds of 1024.
LENGTHS = (*range(1, 300), 511, 512, 513, 1024, 1025, 2048)
WORDS = ((np.arange(2048, dtype=np.uint64) * 2654435761 + 12345) & 0xFFFFFFFF).astype(np.uint32)
#: What xxHash 0.8.4 says of `WORDS` cut at `LENGTHS` under `SEEDS`; and some of it in the open, with seed 1337.
SHA256 = "e59dd1e5d40df77c24162ddb59407e23640777c0fc38b23c771ec4d5ddf05152"
STORED = {
    1: 8866690161878238418,
    2: 12166152200153140682,
    3: 2144553691359629526,
    4: 5033436397659859767,
    5: 16916570643013680986,
    16: 15045162652197401981,
    32: 18085190163104590329,
    33: 10313844374884007241,
    60: 3485390980974784256,
    61: 188972472502569178,
    256: 17627089161922429601,
    257: 10790651450483725922,
    512: 3138106163720012749,
}

tokens_of = st.lists(st.integers(0, 2**32 - 1), max_size=80)
seeds = st.one_of(st.sampled_from(SEEDS), st.integers(0, 2**64 - 1))


def digest(hash_of: Callable[[np.ndarray, int], int]) -> str:
    """One digest over the hashes of all lengths and seeds."""
    answers = [hash_of(WORDS[:n], seed) for seed in SEEDS for n in LENGTHS]
    return hashlib.sha256(struct.pack(f"<{len(answers)}Q", *answers)).hexdigest()


def ours(words: np.ndarray, seed: int) -> int:
    (value,) = block_hashes(words, words.size, salt=seed)
    return int(value)


def test_hashes_are_those_stored_from_xxhash() -> None:
    assert {n: ours(WORDS[:n], 1337) for n in STORED} == STORED
    assert digest(ours) == SHA256


def test_the_stored_hashes_are_those_of_xxhash() -> None:
    xxhash = pytest.importorskip("xxhash", reason="the xxhash package is absent; its stored answers are tested anyway")
    assert digest(lambda words, seed: xxhash.xxh3_64_intdigest(words.tobytes(), seed)) == SHA256


@given(st.integers(1, 300), st.integers(0, 3), seeds, st.integers(0, 2**32 - 1))
def test_every_page_of_a_prompt_is_hashed_as_xxhash_does(page: int, pages: int, seed: int, draw: int) -> None:
    xxhash = pytest.importorskip("xxhash", reason="the xxhash package is absent; its stored answers are tested anyway")
    tokens = np.random.default_rng(draw).integers(0, 2**32, page * pages + min(page - 1, 7), np.uint32)
    blocks = [xxhash.xxh3_64_intdigest(tokens[n * page : (n + 1) * page].tobytes(), seed) for n in range(pages)]
    assert block_hashes(tokens, page, salt=seed).tolist() == blocks
    for chain_seed in (None, 0):
        chained = blocks[:1]
        for block in blocks[1:]:
            pair = struct.pack("<QQ", chained[-1], block)
            chained.append(xxhash.xxh3_64_intdigest(pair, seed if chain_seed is None else chain_seed))
        assert sequence_hashes(tokens, page, salt=seed, chain_seed=chain_seed).tolist() == chained


def test_the_vectors_of_the_block_manager() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    assert sequence_hashes(tokens, 4).tolist() == [14643705804678351452, 4945711292740353085]
    assert sequence_hashes(tokens, 4, salt=1337).dtype == np.uint64
    assert sequence_hashes(tokens, 4, chain_seed=0).tolist() == [14643705804678351452, 13257339816715102022]
    assert sequence_hashes([*tokens, 9, 9, 9], 4).tolist() == sequence_hashes(tokens, 4).tolist()
    assert sequence_hashes(tokens, 9).shape == (0,)
    assert sequence_hashes([], 4).shape == (0,)


@given(tokens_of, st.integers(1, 9), seeds, st.data())
def test_a_sequence_can_be_hashed_in_parts(tokens: list[int], page: int, salt: int, data: st.DataObject) -> None:
    whole = sequence_hashes(tokens, page, salt=salt)
    cut = data.draw(st.integers(0, whole.size)) if whole.size else 0
    parent = int(whole[cut - 1]) if cut else None
    rest = sequence_hashes(tokens[cut * page :], page, salt=salt, parent=parent)
    assert rest.tolist() == whole[cut:].tolist()
    own = block_hashes(tokens, page, salt=salt)
    assert chain_hashes(parent, own[cut:].tolist(), salt=salt).tolist() == whole[cut:].tolist()


@given(tokens_of, st.integers(1, 9), st.data())
def test_equal_hashes_stand_for_equal_prefixes(tokens: list[int], page: int, data: st.DataObject) -> None:
    whole = sequence_hashes(tokens, page)
    if not whole.size:
        return
    at = data.draw(st.integers(0, whole.size * page - 1))
    other = list(tokens)
    other[at] = (other[at] + data.draw(st.integers(1, 2**32 - 1))) % 2**32
    changed = sequence_hashes(other, page)
    assert (changed[: at // page] == whole[: at // page]).all()
    assert (changed[at // page :] != whole[at // page :]).all()
    assert (sequence_hashes(tokens, page, salt=1338) != whole).all()


def test_tokens_of_any_whole_type_are_the_same_tokens() -> None:
    tokens = [5, 0, 127, 3, 90, 17]
    wanted = sequence_hashes(tokens, 3).tolist()
    forms = [np.array(tokens, kind) for kind in ("i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u4", ">u4", "i8", "u8")]
    frozen = np.array(tokens, np.uint32)
    frozen.flags.writeable = False
    odd = np.frombuffer(b"x" + np.array(tokens, np.uint32).tobytes(), np.uint32, offset=1)
    strided = np.repeat(np.array(tokens, np.uint32), 2)[::2]
    for form in (
        *forms,
        frozen,
        odd,
        strided,
        tuple(tokens),
        array("q", tokens),
        [np.int64(token) for token in tokens],
    ):
        assert sequence_hashes(form, 3).tolist() == wanted
    assert sequence_hashes(range(6), 3).tolist() == sequence_hashes([0, 1, 2, 3, 4, 5], 3).tolist()
    assert sequence_hashes([0xFFFFFFFF], 1).tolist() == sequence_hashes(np.array([2**32 - 1]), 1).tolist()


def test_the_prompt_is_left_alone() -> None:
    tokens = WORDS.copy()
    sequence_hashes(tokens, 16)
    assert (tokens == WORDS).all()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, -2, 3], r"tokens\[1\]: -2 is not a token id; write a whole number from 0 to 4294967295"),
        ([1, 2, 2**32], r"tokens\[2\]: 4294967296 "),
        ([2**70], r"tokens\[0\]: 1180591620717411303424 "),
        (np.array([3, -1]), r"tokens\[1\]: -1 "),
        (np.array([3, -1], np.int8), r"tokens\[1\]: -1 "),
        (np.array([3, 4, 2**32]), r"tokens\[2\]: 4294967296 "),
        (np.array([2**64 - 1], np.uint64), r"tokens\[0\]: 18446744073709551615 "),
        ([1.0, 2.0], r"tokens\[0\]: 1\.0 is not a token id"),
        ([1, None], r"tokens\[1\]: None is not a token id"),
        (["a"], r"tokens\[0\]: 'a' is not a token id"),
        ([[1, 2], [3, 4]], r"tokens\[0\]: \[1, 2\] is not a token id"),
        ("text", "an array of 0 dimensions"),
        (np.array([1.0]), "an array of float64 holds no whole numbers; convert it to uint32"),
        (np.array([True]), "an array of bool holds no whole numbers"),
        (np.array([1, None]), "an array of object holds no whole numbers"),
        (np.zeros((2, 2), np.uint32), "an array of 2 dimensions is no row of them; give one row at a time"),
        (7, "an array of 0 dimensions"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        sequence_hashes(tokens, 1)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.0, None, True, "1337"])
def test_parameters_that_cannot_be_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="salt: "):
        sequence_hashes([1, 2], 1, salt=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="page_tokens: "):
        sequence_hashes([1, 2], wrong)  # type: ignore[arg-type]
    if wrong is not None:
        with pytest.raises(ConfigError, match="chain_seed: "):
            sequence_hashes([1, 2], 1, chain_seed=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="parent: "):
            chain_hashes(wrong, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="page_tokens: 0 is not possible; write a whole number from 1"):
        block_hashes([1, 2], 0)


def test_hashes_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"block_hashes\[1\]: -1 is not a hash"):
        chain_hashes(None, np.array([1, -1]))
    with pytest.raises(ConfigError, match=r"block_hashes\[0\]: 18446744073709551616 is not a hash"):
        chain_hashes(None, [2**64])
    with pytest.raises(ConfigError, match="block_hashes: an array of float64"):
        chain_hashes(None, np.array([1.0]))
    assert chain_hashes(5, []).shape == (0,)
    assert chain_hashes(None, [2**64 - 1]).tolist() == [2**64 - 1]
