"""Layouts from models and from an engine's tensors, and how layouts show themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from layout_reference import layouts, storages

from dynalab.errors import ConfigError, LayoutError
from dynalab.kv import KVLayout
from dynalab.kv.layout_sources import read_shapes
from dynalab.workload import MODELS

#: Shapes of one tensor, how many there are, what is known, and (order, outer contiguous, layers, outer, page, heads,
#: inner, head order, blocks). 100 blocks are asked for.
SEEN = [
    # vLLM and SGLang: one tensor per layer, key and value outside or inside.
    ((2, 128, 16, 8, 64), 4, {}, ("layer_first", True, 4, 2, 16, 8, 512, "NHD", 128)),
    ((100, 2, 16, 8, 64), 4, {}, ("layer_first", False, 4, 2, 16, 8, 512, "NHD", 100)),
    ((100, 2, 8, 16, 64), 4, {"page_tokens": 16}, ("layer_first", False, 4, 2, 16, 8, 512, "HND", 100)),
    ((100, 2, 8, 16, 64), 4, {"head_order": "HND"}, ("layer_first", False, 4, 2, 16, 8, 512, "HND", 100)),
    ((2, 100, 8, 16, 64), 4, {"page_tokens": 16}, ("layer_first", True, 4, 2, 16, 8, 512, "HND", 100)),
    ((2, 100, 16, 512), 4, {}, ("layer_first", True, 4, 2, 16, 1, 512, "NHD", 100)),
    ((2, 100, 16 * 512), 4, {"page_tokens": 16}, ("layer_first", True, 4, 2, 16, 1, 512, "NHD", 100)),
    ((100, 2, 16 * 512), 4, {"page_tokens": 16}, ("layer_first", False, 4, 2, 16, 1, 512, "NHD", 100)),
    # MLA without an outer index, and with one.
    ((100, 64, 576), 61, {}, ("layer_first", True, 61, 1, 64, 1, 576, "NHD", 100)),
    ((100, 1, 64, 576), 61, {}, ("layer_first", True, 61, 1, 64, 1, 576, "NHD", 100)),
    ((1, 100, 64, 576), 61, {}, ("layer_first", True, 61, 1, 64, 1, 576, "NHD", 100)),
    # One tensor for all layers.
    ((100, 32, 2, 16, 8, 64), 1, {}, ("block_first", True, 32, 2, 16, 8, 512, "NHD", 100)),
    ((100, 32, 2, 8, 16, 64), 1, {"page_tokens": 16}, ("block_first", True, 32, 2, 16, 8, 512, "HND", 100)),
    ((100, 32, 2, 16, 512), 1, {}, ("block_first", True, 32, 2, 16, 1, 512, "NHD", 100)),
    ((300, 61, 64, 576), 1, {}, ("block_first", True, 61, 1, 64, 1, 576, "NHD", 300)),
    # More than 200 layers, where the rule of thumb "2 to 200" ends.
    ((100, 256, 2, 16, 8, 64), 1, {}, ("block_first", True, 256, 2, 16, 8, 512, "NHD", 100)),
    # One layer in one tensor, which a rule by the second dimension alone takes for two layers.
    ((100, 2, 16, 8, 64), 1, {}, ("block_first", True, 1, 2, 16, 8, 512, "NHD", 100)),
    ((2, 100, 16, 8, 64), 1, {}, ("layer_first", True, 1, 2, 16, 8, 512, "NHD", 100)),
]


@pytest.mark.parametrize(("shape", "tensors", "known", "wanted"), SEEN, ids=lambda value: str(value)[:40])
def test_tensors_of_engines_are_recognised(shape, tensors, known, wanted) -> None:
    layout, blocks = read_shapes([shape] * tensors, 100, dtype="bf16", **known)
    got = (layout.order, layout.outer_contiguous, layout.num_layers, layout.outer, layout.page_tokens, layout.heads)
    assert (*got, layout.inner, layout.head_order, blocks) == wanted
    assert layout.dtype == "bfloat16"
    assert sum(layout.storage_bytes(blocks)) == tensors * np.prod(shape) * 2, "no byte of the tensors is left over"
    assert KVLayout.detect([shape] * tensors, 100, dtype="bf16", **known) == layout


@given(layouts(), st.integers(1, 4))
def test_tensors_made_from_a_layout_lead_back_to_it(layout: KVLayout, n_blocks: int) -> None:
    """The tensor that an engine would make has its elements where the detected layout says, or nobody guesses."""
    layout = layout.with_(alignment=1)
    assume(layout.head_order != "universal")
    region = (layout.page_tokens, layout.heads) if layout.head_order == "NHD" else (layout.heads, layout.page_tokens)
    if layout.order == "block_first":
        shape = (n_blocks, layout.num_layers, layout.outer, *region, layout.head_dim)
    else:
        front = (layout.outer, n_blocks) if layout.outer_contiguous else (n_blocks, layout.outer)
        shape = (*front, *region, layout.head_dim)
    known = {name: getattr(layout, name) for name in ("num_layers", "outer", "page_tokens", "heads", "head_order")}
    try:
        found, blocks = read_shapes([shape] * layout.n_storages, n_blocks, dtype=layout.dtype, **known)
    except LayoutError as error:
        assert "can be read as" in str(error)  # noqa: PT017 - only small numbers of blocks leave a choice
        assert n_blocks <= 2
        return
    assert blocks == n_blocks
    arrays, _ = storages(layout, n_blocks)
    for array in arrays:
        array[:] = np.random.default_rng(array.size).integers(0, 256, array.size, np.uint8)
    for one, other in zip(found.layer_views(arrays, n_blocks), layout.layer_views(arrays, n_blocks), strict=True):
        assert (one.view(f"u{one.itemsize}") == other.view(f"u{one.itemsize}")).all()


def test_tensors_that_cannot_be_read_are_refused() -> None:
    def refused(words: str, shapes: list[tuple[int, ...]], **known: object) -> None:
        with pytest.raises(LayoutError, match=words) as caught:
            read_shapes(shapes, 100, **known)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refused(
        r"unsupported KV cache of 4 tensors of shape \(99, 2, 16, 8, 64\) with n_blocks=100", [(99, 2, 16, 8, 64)] * 4
    )
    refused("page_tokens=32", [(100, 2, 16, 8, 64)] * 4, page_tokens=32)
    refused("num_layers=5", [(100, 2, 16, 8, 64)] * 4, num_layers=5)
    refused("unsupported", [(100,)])
    refused("page_tokens=16", [(2, 100, 16 * 512 - 1)] * 4, page_tokens=16)
    refused("unsupported", [()])
    refused("unsupported", [(100, 2, 16, 0, 64)])
    refused("unsupported", [(100, 3, 16, 8, 64)] * 4)
    refused("0 tensors", [])
    refused("not equal tensors", [(100, 2, 16, 8, 64), (100, 2, 16, 8, 32)])
    refused("page_tokens: 0", [(100, 2, 16)] * 4, page_tokens=0)
    refused("page_size: shapes are not read with it; write what is known of page_tokens", [(100, 2, 16)], page_size=4)
    ways = r"can be read as .*head_order='HND'; or .*head_order='NHD'.*: write what is known"
    refused(ways, [(100, 2, 16, 16, 64)] * 4, page_tokens=16)
    assert read_shapes([(100, 2, 16, 16, 64)] * 4, 100, page_tokens=16, head_order="HND")[0].head_order == "HND"
    refused("can be read as", [(100, 2, 2, 16, 512)])
    with pytest.raises(LayoutError, match="n_blocks: 0"):
        KVLayout.detect([(100, 2, 16, 8, 64)], 0)


def test_blocks_of_models_have_the_bytes_of_the_model_table() -> None:
    several = set()
    for name, spec in MODELS.items():
        layout = KVLayout.for_model(name, 16)
        assert layout.block_bytes == spec.block_bytes(16), name
        assert layout.dtype == {"bf16": "bfloat16"}[spec.kv_dtype]
        several.add((layout.outer, layout.heads > 1))
    assert several == {(1, False), (2, True), (2, False)}
    assert KVLayout.for_model("jamba-v0.1", 16).num_layers == 4, "layers without a cache take no room"
    assert KVLayout.for_model(MODELS["llama-3-8b"].with_dtype("fp8"), 16).dtype == "fp8_e4m3"
    fp32 = KVLayout.for_model("llama-3-8b", 16, dtype="float32", order="layer_first", head_order="HND", alignment=4096)
    assert (fp32.order, fp32.head_order, fp32.alignment) == ("layer_first", "HND", 4096)
    assert fp32.block_bytes == 2 * MODELS["llama-3-8b"].block_bytes(16)


def test_heads_are_shared_among_ranks() -> None:
    whole = KVLayout.for_model("llama-3-8b", 16)
    for tp in (1, 2, 4, 8):
        rank = KVLayout.for_model("llama-3-8b", 16, tp)
        assert (rank.heads, rank.head_dim) == (8 // tp, 128)
        assert rank.block_bytes * tp == whole.block_bytes
    assert KVLayout.for_model("llama-3-8b", 16, 16).heads == 1, "a rank keeps one head at least"
    with pytest.raises(LayoutError, match="tp: 3 ranks cannot share the 8 KV heads of llama-3-8b"):
        KVLayout.for_model("llama-3-8b", 16, 3)
    with pytest.raises(LayoutError, match="tp: 12"):
        KVLayout.for_model("llama-3-8b", 16, 12)
    with pytest.raises(LayoutError, match="tp: 0"):
        KVLayout.for_model("llama-3-8b", 16, 0)
    latent = KVLayout.for_model("deepseek-v3", 64)
    assert latent == KVLayout.for_model("deepseek-v3", 64, 8), "every rank keeps the latent"
    assert (latent.outer, latent.inner, latent.num_layers) == (1, 576, 61)


def test_models_that_no_layout_holds_are_refused() -> None:
    spec = MODELS["llama-3-8b"]
    odd = spec.layers[0].model_copy(update={"kv_heads": 4})
    with pytest.raises(LayoutError, match="cache vectors of 2 shapes"):
        KVLayout.for_model(spec.model_copy(update={"layers": (*spec.layers, odd)}), 16)
    wide = spec.layers[0].model_copy(update={"key_dim": 192})
    with pytest.raises(LayoutError, match="keys of llama-3-8b have 192 elements and values 128"):
        KVLayout.for_model(spec.model_copy(update={"layers": (wide,)}), 16)
    with pytest.raises(ConfigError, match="did you mean llama-3-8b"):
        KVLayout.for_model("llama-3-8bb", 16)
    with pytest.raises(LayoutError, match="page_tokens: 0"):
        KVLayout.for_model("llama-3-8b", 0)


def test_a_layout_shows_what_decides_its_speed() -> None:
    layout = KVLayout.for_model("llama-3-8b", 16)
    text = str(layout)
    assert "2,097,152 B (2 MiB), in one piece" in text
    assert "Padding" not in text
    layered = layout.with_(order="layer_first", alignment=2**16)
    assert "in 64 pieces of 32,768 B (32 KiB)" in str(layered)
    assert "2,097,152 B (2 MiB) per block (50.0% of the memory)" in str(layered)
    assert "32 storages" in str(layered)
    page = layered._repr_html_()
    assert page.count("<tr>") == 6
    assert "in 64 pieces of 32,768 B (32 KiB)" in page
