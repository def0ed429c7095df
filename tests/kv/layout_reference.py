"""Where each element of each block lies, one at a time in plain Python, and layouts to try it with."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dynalab.kv import KVLayout
from dynalab.kv.dtypes import numpy_dtype

ORDERS = [
    {"order": "block_first", "head_order": "NHD"},
    {"order": "block_first", "head_order": "HND"},
    {"order": "block_first", "head_order": "universal"},
    {"order": "layer_first", "head_order": "NHD"},
    {"order": "layer_first", "head_order": "HND"},
    {"order": "layer_first", "head_order": "NHD", "outer_contiguous": False},
    {"order": "layer_first", "head_order": "HND", "outer_contiguous": False},
]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    """Fields that say what a block holds."""
    heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return {
        "num_layers": draw(st.integers(1, 4)),
        "outer": draw(st.integers(1, 2)),
        "page_tokens": draw(st.integers(1, 4)),
        "inner": heads * head_dim,
        "heads": heads,
        "dtype": draw(st.sampled_from(["float16", "uint32", "bfloat16", "fp8_e4m3", "float64"])),
    }


@st.composite
def layouts(draw: st.DrawFn, shape: dict[str, object] | None = None) -> KVLayout:
    """Layouts of every order, of one shape if that is given."""
    fields = draw(shapes()) if shape is None else shape
    return KVLayout(**fields, **draw(st.sampled_from(ORDERS)), alignment=2 ** draw(st.integers(0, 8)))


def position(layout: KVLayout, n_blocks: int, b: int, l: int, o: int, t: int, h: int, d: int) -> tuple[int, int]:
    """Storage and byte in it of one element: the index written in mixed radix, slowest digit first."""
    L, O, T = layout.num_layers, layout.outer, layout.page_tokens
    H, D, width = layout.heads, layout.inner // layout.heads, np.dtype(numpy_dtype(layout.dtype)).itemsize

    def rank(*digits: tuple[int, int]) -> int:
        number = 0
        for digit, radix in digits:
            number = number * radix + digit
        return number * width

    def padded(nbytes: int) -> int:
        while nbytes % layout.alignment:
            nbytes += 1
        return nbytes

    token_and_head = [(t, T), (h, H)] if layout.head_order == "NHD" else [(h, H), (t, T)]
    if layout.order == "block_first":
        if layout.head_order == "universal":
            inside = rank((h, H), (l, L), (o, O), (t, T), (d, D))
        else:
            inside = rank((l, L), (o, O), *token_and_head, (d, D))
        return 0, b * padded(L * O * T * H * D * width) + inside
    if layout.outer_contiguous:
        return l, (o * n_blocks + b) * padded(T * H * D * width) + rank(*token_and_head, (d, D))
    return l, b * padded(O * T * H * D * width) + rank((o, O), *token_and_head, (d, D))


def storages(layout: KVLayout, n_blocks: int, fill: int = 0) -> tuple[list[np.ndarray], list[int]]:
    """Arrays of exactly the bytes that a layout asks for, at aligned addresses, and these addresses."""
    arrays, bases = [], []
    for least, room in zip(layout.storage_bytes(n_blocks), layout.allocation_bytes(n_blocks), strict=True):
        whole = np.full(room, fill, np.uint8)
        (base,) = layout.aligned_bases([whole.ctypes.data])
        start = base - whole.ctypes.data
        arrays.append(whole[start : start + least])
        bases.append(base)
    return arrays, bases
