"""The CPU's permuting copy beside NumPy's transposes: every layout into every other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from copy_cases import aligned, as_nhd, layer_bases, layout_strides
from hypothesis import given
from hypothesis import strategies as st

from dynalab.errors import ConfigError
from dynalab.kernels.permute import Permutation, permute_blocks

NAMES = ("NHD", "HND", "universal")


def convert(source: str, target: str, shape: tuple[int, ...], seed: int = 0, threads: int = 1) -> None:
    _, layers, outer, heads, tokens, run = shape
    total = int(np.prod(shape))
    memory = {"source": aligned(total), "target": aligned(total)}
    memory["source"][:] = np.random.default_rng(seed).integers(0, 256, total, dtype=np.uint8)
    where = [layer_bases(memory[side], name, *shape) for side, name in (("source", source), ("target", target))]
    strides = [layout_strides(name, outer, heads, tokens, run, layers) for name in (source, target)]
    permute_blocks(*where, *strides, (outer, heads, tokens), run, threads=threads)
    np.testing.assert_array_equal(
        as_nhd(memory["target"], target, shape), as_nhd(memory["source"], source, shape), f"{source} to {target}"
    )


@pytest.mark.parametrize(("source", "target"), list(itertools.product(NAMES, repeat=2)))
def test_between_all_layouts(source, target) -> None:
    convert(source, target, (3, 2, 2, 4, 5, 24))


@given(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.tuples(
        *[st.integers(1, 3)] * 2, st.integers(1, 2), *[st.integers(1, 4)] * 2, st.sampled_from([1, 4, 6, 16, 80])
    ),
    st.integers(1, 3),
)
def test_any_shape(source, target, shape, threads) -> None:
    convert(source, target, shape, threads=threads)


def test_large_enough_for_streaming_and_threads() -> None:
    convert("NHD", "HND", (10, 2, 2, 4, 64, 2048), threads=3)


def test_the_roundtrip_of_the_field() -> None:
    """2 heads, 2 layers, 2 outer, 3 tokens, 4 float32, 2 blocks: NHD to universal by the formula, and back.

    Universal is [head, layer, outer, token, number]; of an NHD stack, [layer, outer] each hold [token, head, number].
    """
    nh, nl, no, nt, hd, blocks = 2, 2, 2, 3, 4, 2
    run = 4 * hd
    stack = np.random.default_rng(3).standard_normal((blocks, nl, no, nt * nh * hd)).astype(np.float32)
    universal = np.zeros((blocks, nh * nl * no * nt * hd), np.float32)
    nhd, uni = (layout_strides(name, no, nh, nt, run, nl) for name in ("NHD", "universal"))
    shape = (blocks, nl, no, nh, nt, run)
    stack_bases, uni_bases = layer_bases(stack, "NHD", *shape), layer_bases(universal, "universal", *shape)
    permute_blocks(stack_bases, uni_bases, nhd, uni, (no, nh, nt), run)
    for b, h, l, o, t, d in itertools.product(*map(range, (blocks, nh, nl, no, nt, hd))):
        at = (((h * nl + l) * no + o) * nt + t) * hd + d
        inner = (t * nh + h) * hd + d
        assert universal[b, at] == stack[b, l, o, inner]
    back = np.zeros_like(stack)
    permute_blocks(uni_bases, layer_bases(back, "NHD", *shape), uni, nhd, (no, nh, nt), run)
    np.testing.assert_array_equal(back, stack)


def test_padding_between_regions_stays_as_it_was() -> None:
    source, target = aligned(4096), aligned(4096)
    source[:], target[:] = 1, 7
    permute_blocks([source.ctypes.data], [target.ctypes.data], (1024, 64, 16), (2048, 128, 32), (2, 2, 3), 16)
    expected = np.full(4096, 7, np.uint8)
    for o, h, t in itertools.product(range(2), range(2), range(3)):
        expected[o * 2048 + h * 128 + t * 32 :][:16] = 1
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize(
    ("shape", "strides", "run", "runs", "merged"),
    [
        ((2, 4, 8), (1024, 32, 128), 32, 1, 2048),  # a whole layer of NHD
        ((2, 4, 8), (1 << 20, 32, 128), 32, 2, 1024),  # outer-contiguous storage: K and V apart
        ((1, 4, 8), (0, 64, 256), 32, 32, 32),  # gaps between heads
    ],
)
def test_what_is_contiguous_on_both_sides_is_merged(shape, strides, run, runs, merged) -> None:
    permutation = Permutation.between(shape, strides, strides, run)
    assert (permutation.runs, permutation.run_bytes) == (runs, merged)


def test_tokens_of_a_head_stay_together_from_hnd_to_universal() -> None:
    hnd, uni = (layout_strides(name, 2, 8, 16, 256, 32) for name in ("HND", "universal"))
    permutation = Permutation.between((2, 8, 16), hnd, uni, 256)
    assert (permutation.runs, permutation.run_bytes) == (16, 4096)


def test_nothing_to_permute() -> None:
    permute_blocks([], [], (0, 0, 0), (0, 0, 0), (2, 2, 2), 16)
    permute_blocks([0], [0], (64, 32, 16), (64, 16, 32), (0, 2, 2), 16)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([4096], [4096], (1, 2), (1, 2, 3), (1, 1, 1), 4), "src_strides"),
        (([4096], [4096], (1, 2, 3), (1.5, 2, 3), (1, 1, 1), 4), "dst_strides"),
        (([4096], [4096], (1, 2, 3), (1, 2, 3), (1, -1, 1), 4), "negative"),
        (([4096], [4096], (1, 2, 3), (1, 2, 3), (1, 1, 1), -4), "negative"),
        (([4096], [[4096]], (1, 2, 3), (1, 2, 3), (1, 1, 1), 4), "src_bases"),
        (([0], [4096], (64, 32, 16), (64, 16, 32), (2, 2, 2), 4), "null"),
    ],
)
def test_arguments_that_do_not_fit(arguments, says) -> None:
    with pytest.raises(ConfigError, match=says):
        permute_blocks(*arguments)
