"""KVLayout: sizes, addresses and views, held to a reference that finds one element at a time."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_reference import ORDERS, layouts, position, shapes, storages

import dynalab
from dynalab.errors import ConfigError, LayoutError
from dynalab.kv import KVLayout

SMALL = KVLayout(num_layers=5, outer=2, page_tokens=4, inner=13, dtype="float32")


def every_element(layout: KVLayout, n_blocks: int) -> list[tuple[int, ...]]:
    dims = (n_blocks, layout.num_layers, layout.outer, layout.page_tokens, layout.heads, layout.head_dim)
    return list(product(*map(range, dims)))


def bits(view: np.ndarray) -> np.ndarray:
    """Elements as unsigned integers, so that nan equals nan."""
    return view.view(f"u{view.dtype.itemsize}")


def test_the_sizes_of_the_reference() -> None:
    assert SMALL.region_bytes == 208
    assert SMALL.block_stride == SMALL.block_bytes == SMALL.fragment_bytes == 2080
    assert SMALL.with_(alignment=256).block_stride == 2304
    assert SMALL.storage_bytes(7) == [14_560]
    for contiguous in (True, False):
        layered = SMALL.with_(order="layer_first", outer_contiguous=contiguous)
        assert layered.storage_bytes(7) == [2912] * 5
        assert sum(layered.storage_bytes(7)) == 14_560
        assert layered.fragments_per_block == (10 if contiguous else 5)
    aligned = SMALL.with_(alignment=256)
    assert aligned.storage_bytes(7) == [6 * 2304 + 2080]
    assert aligned.allocation_bytes(7) == [6 * 2304 + 2080 + 255]
    starts, nbytes = aligned.chunks([1024], 7, range(7))
    assert set(np.diff(starts)) == {2304}
    assert nbytes == 2080


@given(layouts(), st.integers(1, 4), st.data())
def test_tables_give_the_address_of_every_region(layout: KVLayout, n_blocks: int, data: st.DataObject) -> None:
    bases = layout.aligned_bases([2**40 + 12345 * n for n in range(layout.n_storages)])
    blocks = data.draw(st.lists(st.integers(0, n_blocks - 1), max_size=6))
    wanted = []
    for b, l, o in product(blocks, range(layout.num_layers), range(layout.outer)):
        storage, byte = position(layout, n_blocks, b, l, o, 0, 0, 0)
        wanted.append(bases[storage] + byte)
    origins = layout.origins(bases, n_blocks, blocks)
    assert origins.dtype == np.uint64
    assert origins.tolist() == wanted
    if layout.content_order[0] == "universal":
        with pytest.raises(LayoutError, match="do not lie together"):
            layout.regions(bases, n_blocks, blocks)
    else:
        addresses, nbytes = layout.regions(bases, n_blocks, blocks)
        assert addresses.tolist() == wanted
        assert nbytes == layout.page_tokens * layout.inner * layout.itemsize
    chunks, nbytes = layout.chunks(bases, n_blocks, blocks)
    assert nbytes == layout.fragment_bytes
    assert chunks.size == len(blocks) * layout.fragments_per_block
    assert chunks.size * nbytes == len(blocks) * layout.block_bytes
    assert chunks.tolist() == wanted[:: layout.regions_per_fragment]


@given(layouts(), st.integers(1, 3))
def test_views_and_strides_put_every_element_where_the_reference_does(layout: KVLayout, n_blocks: int) -> None:
    arrays, bases = storages(layout, n_blocks)
    views = layout.layer_views(arrays, n_blocks)
    whole = layout.view(arrays, n_blocks) if layout.order == "block_first" else np.stack(views, axis=1)
    assert whole.shape == (
        n_blocks,
        layout.num_layers,
        layout.outer,
        layout.page_tokens,
        layout.heads,
        layout.head_dim,
    )
    origins = layout.origins(bases, n_blocks, range(n_blocks)).reshape(whole.shape[:3])
    for value, (b, l, o, t, h, d) in enumerate(every_element(layout, n_blocks)):
        bits(views[l])[b, o, t, h, d] = value % 251
        storage, byte = position(layout, n_blocks, b, l, o, t, h, d)
        assert arrays[storage][byte] == value % 251
        arrays[storage][byte] = 255
        assert bits(views[l])[b, o, t, h, d] & 0xFF == 255
        if layout.order == "block_first":
            assert bits(whole)[b, l, o, t, h, d] & 0xFF == 255
        by_stride = int(origins[b, l, o]) + t * layout.strides.token + h * layout.strides.head + d * layout.itemsize
        assert by_stride == bases[storage] + byte
        if layout.strides.layer is not None:
            assert int(origins[b, l, o] - origins[b, 0, o]) == l * layout.strides.layer
        if layout.strides.outer is not None:
            assert int(origins[b, l, o] - origins[b, l, 0]) == o * layout.strides.outer


@given(layouts(), st.integers(1, 5))
def test_fragments_are_disjoint_aligned_and_inside(layout: KVLayout, n_blocks: int) -> None:
    # Storages far apart, so that a region beyond its own storage meets no other one by chance.
    bases = [layout.alignment * 2**30 * (n + 1) for n in range(layout.n_storages)]
    starts, nbytes = layout.chunks(bases, n_blocks, range(n_blocks))
    starts = np.sort(starts).astype(np.int64)
    assert (np.diff(starts) >= nbytes).all()
    assert (starts % layout.alignment == 0).all()
    ends = [base + size for base, size in zip(bases, layout.storage_bytes(n_blocks), strict=True)]
    home = np.searchsorted(np.array(bases), starts, side="right") - 1
    assert (starts + nbytes <= np.array(ends)[home]).all()
    if layout.order == "block_first":
        assert starts[-1] + nbytes == ends[0], "the last block is not padded"
    assert layout.blocks_in(sum(layout.storage_bytes(n_blocks))) == n_blocks
    assert layout.blocks_in(sum(layout.storage_bytes(n_blocks)) - 1) == n_blocks - 1


@given(st.data(), shapes())
def test_a_copy_by_table_or_by_runs_equals_a_copy_by_views(data: st.DataObject, shape: dict[str, object]) -> None:
    source, target = data.draw(layouts(shape)), data.draw(layouts(shape))
    assert source.compatible(target)
    blocks = data.draw(st.permutations(range(3)))
    given_bytes, from_bases = storages(source, 3)
    for array in given_bytes:
        array[:] = np.random.default_rng(array.size).integers(0, 256, array.size, np.uint8)
    by_view, _ = storages(target, 3)
    for theirs, ours in zip(target.layer_views(by_view, 3), source.layer_views(given_bytes, 3), strict=True):
        theirs[...] = ours[blocks]
    by_copy, to_bases = storages(target, 3)
    if source.same_bytes(target):
        piece = source.shared_fragment(target)
        reads, nbytes = source.chunks(from_bases, 3, blocks, piece)
        writes, _ = target.chunks(to_bases, 3, range(3), piece)
        assert nbytes == piece == min(source.fragment_bytes, target.fragment_bytes)
    else:
        with pytest.raises(LayoutError, match="permute the heads"):
            source.shared_fragment(target)
        nbytes = source.run_bytes
        reads, writes = (
            (
                layout.origins(bases, 3, numbers).astype(np.int64)[:, None, None]
                + np.arange(layout.page_tokens)[:, None] * layout.strides.token
                + np.arange(layout.heads) * layout.strides.head
            ).ravel()
            for layout, bases, numbers in ((source, from_bases, blocks), (target, to_bases, range(3)))
        )
    assert reads.size == writes.size
    for read, write in zip(reads, writes, strict=True):
        ctypes.memmove(int(write), int(read), nbytes)
    for one, other in zip(by_copy, by_view, strict=True):
        assert (one == other).all()


def test_orders_that_come_to_the_same_bytes_are_known_as_such() -> None:
    layout = KVLayout(2, 2, 4, 8, heads=4)
    hnd, universal = layout.with_(head_order="HND"), layout.with_(head_order="universal")
    assert layout.same_bytes(layout.with_(order="layer_first", alignment=64))
    assert layout.same_bytes(layout.with_(heads=2)), "tokens first: heads only divide what is contiguous"
    assert not hnd.same_bytes(hnd.with_(heads=2))
    assert not hnd.compatible(hnd.with_(heads=2))
    assert not layout.same_bytes(hnd)
    assert not hnd.same_bytes(universal)
    assert layout.compatible(universal)
    assert not layout.compatible(layout.with_(dtype="bfloat16")), "equal width, other numbers"
    assert not layout.compatible(layout.with_(page_tokens=8, inner=4, heads=4))
    one = KVLayout(1, 1, 4, 8, heads=4, head_order="universal")
    assert one.same_bytes(one.with_(head_order="HND"))
    assert one.regions([0], 2, [1])[0].tolist() == [64]
    token = KVLayout(2, 2, 1, 8, heads=4)
    assert token.same_bytes(token.with_(head_order="HND"))
    assert not token.same_bytes(token.with_(head_order="universal"))
    with pytest.raises(LayoutError, match="choose layouts of one shape and dtype"):
        layout.shared_fragment(layout.with_(dtype="bfloat16"))


def test_smaller_pieces_are_served_where_they_lie_together() -> None:
    layout = KVLayout(3, 2, 4, 8)
    region = layout.region_bytes
    for pieces, size in ((6, region), (3, 2 * region), (1, 6 * region)):
        addresses, nbytes = layout.chunks([0], 4, [2], size)
        assert addresses.tolist() == [2 * 6 * region + n * size for n in range(pieces)]
        assert nbytes == size
    with pytest.raises(LayoutError, match=f"pieces of {3 * region} bytes .* choose from {region}, {2 * region}"):
        layout.chunks([0], 4, [2], 3 * region)
    with pytest.raises(LayoutError, match=r"choose from 64$"):
        layout.with_(order="layer_first").chunks([0, 4096, 8192], 4, [2], 2 * region)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 0}, "num_layers: 0"),
        ({"outer": 3}, "outer: 3 is neither"),
        ({"page_tokens": 0}, "page_tokens: 0"),
        ({"page_tokens": True}, "page_tokens: True"),
        ({"page_tokens": 16.0}, r"page_tokens: 16\.0"),
        ({"inner": -1}, "inner: -1"),
        ({"inner": 2**62}, "more than 8 EiB"),
        ({"heads": 2}, "heads: 2 do not divide inner=13"),
        ({"alignment": 3}, "alignment: 3 is not a power of two"),
        ({"alignment": 0}, "alignment: 0"),
        ({"dtype": "flot32"}, "did you mean 'float32'"),
        ({"dtype": None}, "dtype: None"),
        ({"dtype": "object"}, "dtype: 'object'"),
        ({"dtype": ">f4"}, "dtype: '>f4'"),
        ({"order": "block-first"}, "order: 'block-first' does not exist; did you mean 'block_first'"),
        ({"head_order": "NDH"}, "head_order: 'NDH'"),
        ({"outer_contiguous": False}, "leave it out for 'block_first'"),
        ({"outer_contiguous": 1}, "outer_contiguous: 1"),
        ({"order": "layer_first", "head_order": "universal"}, "write order='block_first'"),
    ],
)
def test_fields_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(LayoutError, match=words) as caught:
        SMALL.with_(**changes)
    assert "\n" not in str(caught.value)


def test_changes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'page_tokens'"):
        SMALL.with_(page_token=4)
    by_block = SMALL.with_(order="layer_first", outer_contiguous=False)
    assert by_block.with_(order="block_first") == SMALL
    with pytest.raises(AttributeError):
        SMALL.inner = 4  # type: ignore[misc]


def test_blocks_that_do_not_exist_are_refused() -> None:
    for layout in (SMALL, SMALL.with_(order="layer_first")):
        bases = [0] * layout.n_storages
        assert layout.chunks(bases, 7, [6])[0].size
        for wrong in ([0, 7], np.array([0, 7], np.int32), np.array([0, 7], np.uint64)):
            with pytest.raises(LayoutError, match=r"blocks\[1\]: 7 is out of range; there are 7 blocks"):
                layout.regions(bases, 7, wrong)
        with pytest.raises(LayoutError, match=r"blocks\[0\]: -1 is out of range"):
            layout.chunks(bases, 7, np.array([-1, 3], np.int16))
        for wrong in ([0.0], [[0]], ["a"], 3):
            with pytest.raises(LayoutError, match="no list of block numbers"):
                layout.origins(bases, 7, wrong)
        with pytest.raises(LayoutError, match="n_blocks: 0"):
            layout.origins(bases, 0, [])
        for empty in ([], np.empty(0), np.empty(0, np.int32)):
            assert layout.regions(bases, 7, empty)[0].shape == (0,)


def test_storages_that_do_not_fit_are_refused() -> None:
    layered = SMALL.with_(order="layer_first")
    layered.check_storages([2912] * 5, 7)
    with pytest.raises(LayoutError, match=r"storages\[3\]: 2911 bytes are too few for 7 blocks; give 2912"):
        layered.check_storages([2912, 2912, 2912, 2911, 2912], 7)
    SMALL.check_storages([14_560], 7)
    for view in (SMALL.view, SMALL.layer_views):
        with pytest.raises(LayoutError, match="14559 bytes are too few"):
            view([np.zeros(14_559, np.uint8)], 7)
    with pytest.raises(LayoutError, match="storages: 1 given; order='layer_first' has 5"):
        layered.layer_views([np.zeros(14_560, np.uint8)], 7)
    for wrong in (np.zeros(4000, np.float32), np.zeros((2, 9000), np.uint8), np.zeros(40_000, np.uint8)[::2]):
        with pytest.raises(LayoutError, match="no flat array of bytes"):
            SMALL.view([wrong], 7)
    with pytest.raises(LayoutError, match=r"use layer_views\(\)"):
        layered.view([np.zeros(2912, np.uint8)] * 5, 7)
    with pytest.raises(LayoutError, match=r"n_blocks: .* more than 8 EiB"):
        SMALL.storage_bytes(2**60)


def test_bases_that_do_not_fit_are_refused() -> None:
    aligned = SMALL.with_(alignment=256)
    with pytest.raises(LayoutError, match=r"bases\[0\]: 0x1080 is not a multiple of alignment=256"):
        aligned.chunks([0x1080], 7, [0])
    assert aligned.aligned_bases([0x1080, 0x1100]) == [0x1100, 0x1100]
    with pytest.raises(LayoutError, match="bases: 2 given"):
        SMALL.chunks([0, 0], 7, [0])
    for wrong in (-8, 2**64 - 14_559):
        with pytest.raises(LayoutError, match=r"bases\[0\]: .* give one in 64 bits"):
            SMALL.chunks([wrong], 7, [0])
    assert SMALL.chunks([2**64 - 14_560], 7, [6])[0].tolist() == [2**64 - 2080]


def test_views_keep_to_the_storage() -> None:
    storage = np.zeros(14_560, np.uint8)
    view = SMALL.view([storage], 7)
    assert np.shares_memory(view, storage)
    assert view.flags.writeable
    storage.flags.writeable = False
    assert not SMALL.view([storage], 7).flags.writeable
    assert KVLayout(1, 1, 1, 1, "bf16").view([np.array([0x80, 0x3F], np.uint8)], 1).item() == 0x3F80


@pytest.mark.parametrize("fields", ORDERS)
def test_layouts_are_values(fields: dict[str, object]) -> None:
    layout = KVLayout(2, 2, 4, 8, heads=4, **fields)
    same = KVLayout(np.int64(2), 2, 4, np.uint8(8), np.float16, heads=4, **fields)
    assert layout == same
    assert hash(layout) == hash(same)
    assert layout.fingerprint() == same.fingerprint()
    others = [layout.with_(**{name: getattr(layout, name) * 2}) for name in ("num_layers", "page_tokens", "alignment")]
    prints = {other.fingerprint() for other in [layout, *others, layout.with_(dtype="bfloat16")]}
    assert len(prints) == 5
    assert eval(repr(layout)) == layout


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    # The literal also holds it over versions: files on disk remember it.
    assert SMALL.fingerprint() == "135c570695b21ec6"
    script = "from dynalab.kv import KVLayout; import sys; print(KVLayout(5, 2, 4, 13, 'float32').fingerprint())\n"
    script += "print('numba' in sys.modules)"
    root = Path(dynalab.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split() == [SMALL.fingerprint(), "False"], "layouts need no compiler"
