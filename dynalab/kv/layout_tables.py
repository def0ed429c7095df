"""Addresses and array views of blocks: plain arithmetic on flat arrays, no loop over blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import LayoutError
from dynalab.kv.dtypes import numpy_dtype
from dynalab.kv.layout_shape import LayoutShape

Addresses = npt.NDArray[np.uint64]


def block_numbers(blocks: npt.ArrayLike, n_blocks: int) -> npt.NDArray[np.uint64]:
    """Return checked block numbers.

    Parameters
    ----------
    blocks : array_like of int, shape (n,)
    n_blocks : int
        Blocks that there are.

    Raises
    ------
    LayoutError
        If they are no flat array of whole numbers, or one is out of range: names its value and place.
    """
    numbers = np.asarray(blocks)
    if numbers.size == 0:
        return np.empty(0, np.uint64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise LayoutError(
            f"blocks: an array of {numbers.dtype} of shape {numbers.shape} is no list of block numbers; "
            "give whole numbers in one dimension"
        )
    # As unsigned numbers, negative ones lie far above every count, and one comparison finds both faults.
    unsigned = numbers.astype(np.uint64)
    if unsigned.max() >= n_blocks:
        at = int(np.argmax(unsigned >= n_blocks))
        raise LayoutError(f"blocks[{at}]: {numbers[at]} is out of range; there are {n_blocks} blocks, from 0 up")
    return unsigned


def outer_stride(layout: LayoutShape, n_blocks: int) -> int:
    """Bytes from one outer index to the next in a storage of `n_blocks` blocks."""
    inside = layout.strides.outer
    return layout.block_stride * n_blocks if inside is None else inside


def first_block(layout: LayoutShape, bases: Sequence[int], n_blocks: int) -> Addresses:
    """Addresses of (head 0, token 0) of every layer and outer index of block 0, in this order.

    Parameters
    ----------
    layout : LayoutShape
    bases : sequence of int, length n_storages
    n_blocks : int

    Returns
    -------
    ndarray of uint64, shape (num_layers * outer,)
    """
    most = layout.storage_bytes(n_blocks)[0]
    if len(bases) != layout.n_storages:
        raise LayoutError(f"bases: {len(bases)} given; order={layout.order!r} has {layout.n_storages} storages")
    for index, base in enumerate(bases):
        if not 0 <= base <= 2**64 - most:
            raise LayoutError(f"bases[{index}]: {base} is no address of a storage of {most} bytes; give one in 64 bits")
        if base % layout.alignment:
            raise LayoutError(
                f"bases[{index}]: {base:#x} is not a multiple of alignment={layout.alignment}; use aligned_bases()"
            )
    starts = np.array([int(base) for base in bases], np.uint64)
    if layout.order == "block_first":
        steps = np.arange(layout.num_layers, dtype=np.uint64) * np.uint64(layout.strides.layer or 0)
        starts = starts + steps
    outers = np.arange(layout.outer, dtype=np.uint64) * np.uint64(outer_stride(layout, n_blocks))
    return (starts[:, None] + outers).ravel()


def layer_views(
    layout: LayoutShape, storages: Sequence[npt.NDArray[np.uint8]], n_blocks: int
) -> list[npt.NDArray[Any]]:
    """Show every layer as an array of shape (n_blocks, outer, page_tokens, heads, head_dim)."""
    check_arrays(layout, storages, n_blocks)
    step = layout.strides.layer
    places = [(layer, 0) if step is None else (0, layer * step) for layer in range(layout.num_layers)]
    shape = (n_blocks, layout.outer, *_inside(layout))
    strides = (layout.block_stride, outer_stride(layout, n_blocks), *_inside_strides(layout))
    return [_show(layout, storages[index], offset, shape, strides) for index, offset in places]


def whole_view(layout: LayoutShape, storages: Sequence[npt.NDArray[np.uint8]], n_blocks: int) -> npt.NDArray[Any]:
    """Show one storage as an array of shape (n_blocks, num_layers, outer, page_tokens, heads, head_dim)."""
    step = layout.strides.layer
    if step is None:
        raise LayoutError(
            "order: 'layer_first' keeps layers in separate storages, which no one array can show; use layer_views()"
        )
    check_arrays(layout, storages, n_blocks)
    shape = (n_blocks, layout.num_layers, layout.outer, *_inside(layout))
    strides = (layout.block_stride, step, outer_stride(layout, n_blocks), *_inside_strides(layout))
    return _show(layout, storages[0], 0, shape, strides)


def check_arrays(layout: LayoutShape, storages: Sequence[npt.NDArray[np.uint8]], n_blocks: int) -> None:
    """Refuse storages that are no flat arrays of bytes, or do not fit the layout."""
    for index, storage in enumerate(storages):
        if storage.dtype != np.uint8 or storage.ndim != 1 or not storage.flags.c_contiguous:
            raise LayoutError(
                f"storages[{index}]: {storage.dtype} of shape {storage.shape} is no flat array of bytes; "
                "give a contiguous one-dimensional array of uint8"
            )
    layout.check_storages([storage.size for storage in storages], n_blocks)


def _inside(layout: LayoutShape) -> tuple[int, int, int]:
    return layout.page_tokens, layout.heads, layout.head_dim


def _inside_strides(layout: LayoutShape) -> tuple[int, int, int]:
    return layout.strides.token, layout.strides.head, layout.itemsize


def _show(
    layout: LayoutShape, storage: npt.NDArray[np.uint8], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> npt.NDArray[Any]:
    return np.ndarray(shape, numpy_dtype(layout.dtype), buffer=storage, offset=offset, strides=strides)
