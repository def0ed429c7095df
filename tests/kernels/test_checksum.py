"""The block checksum: equal to its definition, indifferent to layout, and sure to notice damage."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from checksum_reference import checksum, mix, unmix
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.kernels.checksum import checksum_blocks, checksum_regions

RNG = np.random.default_rng(11)


def sums(blocks: np.ndarray, seed: int = 0) -> np.ndarray:
    """Checksums of the rows of a C-contiguous matrix."""
    assert blocks.flags.c_contiguous
    addresses = blocks.ctypes.data + np.arange(len(blocks), dtype=np.uint64) * np.uint64(blocks.strides[0])
    return checksum_blocks(addresses, blocks[0].nbytes, seed=seed)


def flipped(block: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Copies of a block of uint64 words, each with its row of `bits` (numbers within the block) flipped."""
    copies = np.repeat(block[None], len(bits), axis=0)
    for column in bits.T:
        copies[np.arange(len(bits)), column // 64] ^= np.uint64(1) << (column % 64).astype(np.uint64)
    return copies


@given(st.binary(max_size=200), st.integers(0, 7), st.integers(0, 2**64 - 1))
def test_equals_the_definition_at_every_length_and_alignment(data: bytes, offset: int, seed: int) -> None:
    memory = np.frombuffer(b"\xff" * offset + data + b"\xff" * 16, np.uint8)
    assert checksum_blocks([memory.ctypes.data + offset], len(data), seed=seed)[0] == checksum(data, seed)


@pytest.mark.parametrize("words", [127, 128, 129, 255, 256, 257, 1024, 5000])
@pytest.mark.parametrize("tail", [0, 3])
def test_equals_the_definition_around_the_strips(words: int, tail: int) -> None:
    memory = RNG.integers(0, 256, words * 8 + tail, dtype=np.uint8)
    assert checksum_blocks([memory.ctypes.data], memory.size)[0] == checksum(memory.tobytes())


@given(st.data(), st.integers(1, 5), st.integers(0, 40), st.integers(0, 3))
def test_scattered_regions_give_the_checksum_of_the_whole(data: st.DataObject, regions: int, nbytes: int, n: int):
    memory = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)), np.uint8)
    starts = data.draw(st.lists(st.integers(0, 64 - nbytes), min_size=n * regions, max_size=n * regions))
    found = checksum_regions(memory.ctypes.data + np.array(starts, np.int64), nbytes, regions, seed=3)
    pieces = [memory[start : start + nbytes].tobytes() for start in starts]
    assert found.tolist() == [checksum(b"".join(pieces[i * regions : (i + 1) * regions]), 3) for i in range(n)]


def test_many_regions_of_many_words() -> None:
    memory = RNG.integers(0, 256, (6, 3001 * 8), dtype=np.uint8)
    order = RNG.permutation(6)
    addresses = memory.ctypes.data + order * memory.strides[0]
    whole = [checksum(memory[order[:3]].tobytes()), checksum(memory[order[3:]].tobytes())]
    assert checksum_regions(addresses, memory.shape[1], 3).tolist() == whole


@given(st.integers(0, 2**64 - 1))
def test_the_mixer_is_a_bijection(x: int) -> None:
    assert unmix(mix(x)) == x


@given(st.binary(min_size=8, max_size=96), st.data())
def test_damage_in_one_word_is_always_caught(data: bytes, draw: st.DataObject) -> None:
    word = draw.draw(st.integers(0, (len(data) - 1) // 8))
    end = min(len(data), word * 8 + 8)
    other = draw.draw(st.binary(min_size=end - word * 8, max_size=end - word * 8))
    damaged = np.frombuffer(data[: word * 8] + other + data[end:], np.uint8)
    changed = damaged.tobytes() != data
    assert (checksum_blocks([damaged.ctypes.data], len(data))[0] != checksum(data)) == changed


def test_every_single_bit_reaches_every_bit_of_the_checksum() -> None:
    """Strict avalanche: each of 512 input bits flips each of the 64 output bits in half of the cases (6 sigma)."""
    trials, words = 256, 8
    flips = np.zeros((words * 64, 64))
    for _ in range(trials):
        block = RNG.integers(0, 2**64, words, dtype=np.uint64)
        changes = sums(flipped(block, np.arange(words * 64)[:, None])) ^ sums(block[None])
        flips += np.unpackbits(changes.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    assert np.abs(flips / trials - 0.5).max() < 6 * 0.5 / trials**0.5


@pytest.mark.parametrize("content", ["zeros", "ones", "random", "half-floats"])
def test_no_two_flipped_bits_cancel(content: str) -> None:
    """All pairs of bits of a small block, and the same bit of two words, where plain sums and XORs cancel."""
    words = {
        "zeros": np.zeros(6, np.uint64),
        "ones": np.full(6, 2**64 - 1, np.uint64),
        "random": RNG.integers(0, 2**64, 6, dtype=np.uint64),
        "half-floats": RNG.standard_normal(24).astype(np.float16).view(np.uint64),
    }[content]
    pairs = np.stack(np.triu_indices(words.size * 64, 1), axis=1)
    found = sums(flipped(words, pairs))
    assert len(np.unique(found)) == len(pairs) > 70_000
    assert sums(words[None])[0] not in found


@pytest.mark.parametrize("bit", [0, 15, 31, 32, 47, 63])
def test_one_bit_position_flipped_in_many_pairs_of_words(bit: int) -> None:
    """A stuck line flips one bit position everywhere: 2,000 words, a million pairs, no collision but by chance 3e-8."""
    words = RNG.integers(0, 2**64, 1450, dtype=np.uint64)
    pairs = np.stack(np.triu_indices(words.size, 1), axis=1)
    # Differences of single flips are enough to know those of pairs, since checksums are sums before the last mixing.
    single = np.array(
        [unmix(int(x)) for x in sums(flipped(words, np.arange(words.size)[:, None] * 64 + bit))], np.uint64
    )
    change = single - np.uint64(unmix(int(sums(words[None])[0])))
    both = change[pairs[:, 0]] + change[pairs[:, 1]]
    assert len(both) > 10**6
    assert both.all()
    assert len(np.unique(both)) == len(both)


def test_swapped_words_and_sectors_are_caught() -> None:
    block = RNG.integers(0, 2**64, 4096, dtype=np.uint64)
    pairs = RNG.integers(0, 4096, (2000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    copies = np.repeat(block[None], len(pairs), axis=0)
    rows = np.arange(len(pairs))
    copies[rows, pairs[:, 0]], copies[rows, pairs[:, 1]] = block[pairs[:, 1]], block[pairs[:, 0]]
    found = sums(copies)
    assert sums(block[None])[0] not in found
    assert len(np.unique(found)) == len(np.unique(np.sort(pairs, axis=1), axis=0))
    sectors = block.reshape(8, 512)
    assert len({int(sums(np.roll(sectors, n, axis=0).reshape(1, -1))[0]) for n in range(8)}) == 8


def test_zeroed_and_repeated_sectors_are_caught() -> None:
    block = RNG.integers(0, 2**64, (8, 512), dtype=np.uint64)
    damaged = [block.copy() for _ in range(16)]
    for n in range(8):
        damaged[n][n] = 0
        damaged[8 + n][n] = block[n - 1]
    found = sums(np.stack([block, *damaged]).reshape(17, -1))
    assert len(np.unique(found)) == 17


def test_zero_blocks_of_different_length_and_seed_differ() -> None:
    zeros = np.zeros(4096, np.uint8)
    found = {int(checksum_blocks([zeros.ctypes.data], n, seed=seed)[0]) for n in range(2049) for seed in range(3)}
    assert len(found) == 2049 * 3


def test_constant_and_counting_blocks_have_no_collisions() -> None:
    """Low-entropy contents: constants, ramps and single set bytes, 200,000 blocks."""
    ramps = np.arange(100_000, dtype=np.uint64)[:, None] + np.arange(4, dtype=np.uint64)
    constants = np.repeat(np.arange(100_000, dtype=np.uint64)[:, None], 4, axis=1)
    found = np.concatenate([sums(ramps), sums(constants)])
    assert len(np.unique(found)) == len(np.unique(np.concatenate([ramps, constants]), axis=0))


def test_low_bits_of_checksums_are_uniform() -> None:
    """Tables are indexed by low bits: chi-square of 2**10 buckets over 2**17 counting blocks, within 6 sigma."""
    blocks = np.arange(2**18, dtype=np.uint64).reshape(-1, 2)
    for shift in (0, 27, 54):
        counts = np.bincount((sums(blocks) >> np.uint64(shift)).astype(np.int64) & 1023, minlength=1024)
        chi = ((counts - 128.0) ** 2 / 128.0).sum()
        assert abs(chi - 1023) < 6 * (2 * 1023) ** 0.5


def test_nothing_in_nothing_out() -> None:
    assert checksum_blocks([], 4096).shape == (0,)
    assert checksum_blocks([], 4096).dtype == np.uint64
    assert checksum_blocks([0, 0], 0).tolist() == [checksum(b"")] * 2
    assert checksum_regions(np.empty(0, np.uint64), 8, 7).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([8, 0], 8, 1, 0), "addresses: entry 1 is null"),
        (([8, 8, 8], 8, 2, 0), "addresses: 3 of them are not 2 per block"),
        (([[8]], 8, 1, 0), "addresses: an array int64"),
        (([8.0], 8, 1, 0), "addresses: an array float64"),
        (([8], -1, 1, 0), "nbytes: -1 cannot be"),
        (([8], 8, 0, 0), "regions: 0 cannot be"),
        (([8], 8, 1, -1), "seed: -1 does not fit"),
        (([8], 8, 1, 2**64), "seed: 18446744073709551616 does not fit"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple, message: str) -> None:
    addresses, nbytes, regions, seed = arguments
    with pytest.raises(ConfigError, match=message):
        checksum_regions(addresses, nbytes, regions, seed=seed)


def test_the_interpreter_runs_on_meanwhile() -> None:
    memory = np.zeros(1 << 24, np.uint8)
    addresses = np.full(64, memory.ctypes.data, np.uint64)
    checksum_blocks(addresses[:1], 8)
    worker = threading.Thread(target=checksum_blocks, args=(addresses, memory.size))
    ticks = 0
    worker.start()
    while worker.is_alive():
        ticks += 1
        time.sleep(0)
    assert ticks > 100
