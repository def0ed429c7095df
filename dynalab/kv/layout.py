"""Where the bytes of a KV block lie: shapes, orders and strides, and flat tables of addresses for those who copy.

A block holds, for `page_tokens` tokens, one *region* per layer and outer index (key and value; MLA has one). Three
orders are in use, and how far a block's bytes lie apart decides how fast it is copied, more than any kernel does:

``block_first``
    ``[block][layer][outer][tokens, inner]`` in one storage: a block is one fragment.
``layer_first``, ``outer_contiguous=False``
    One storage per layer, ``[block][outer][tokens, inner]``: one fragment per layer.
``layer_first``, ``outer_contiguous=True``
    One storage per layer, ``[outer][block][tokens, inner]``: one fragment per layer and outer index.

Inside a region the heads come behind the tokens (``NHD``) or before them (``HND``); in a ``universal`` block they come
before everything, ``[heads, layers, outer, tokens, head_dim]``, so that ranks of another tensor parallel size find
their share in one piece.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import LayoutError, unknown
from dynalab.kv.layout_shape import LayoutShape
from dynalab.kv.layout_tables import Addresses, block_numbers, first_block, layer_views, whole_view

if TYPE_CHECKING:
    from dynalab.workload import ModelSpec


@dataclass(frozen=True)
class KVLayout(LayoutShape):
    """The layout of KV blocks in one tier's memory.

    Parameters
    ----------
    num_layers : int
        Layers with a cache.
    outer : {1, 2}
        Vectors per token and layer that are kept apart: key and value, or the one latent of MLA.
    page_tokens : int
        Tokens per block.
    inner : int
        Elements per token and vector: ``heads * head_dim``.
    dtype : str, numpy.dtype or type
        A NumPy type of numbers, or ``"bfloat16"``, ``"fp8_e4m3"``, ``"fp8_e5m2"``, which views show as unsigned bits.
    order : {"block_first", "layer_first"}
    outer_contiguous : bool
        For ``layer_first``: ``[outer][block]`` per layer (True) or ``[block][outer]``.
    heads : int
        KV heads among which `inner` is divided; it matters to every head order but NHD.
    head_order : {"NHD", "HND", "universal"}
        ``universal`` needs ``block_first``.
    alignment : int
        Bytes, a power of two: every block's fragments begin at multiples of it if the storages do.

    Raises
    ------
    LayoutError
        If a field cannot be so: names the field, its value and what would be right.

    Examples
    --------
    >>> layout = KVLayout(num_layers=32, outer=2, page_tokens=16, inner=1024, dtype="float16")
    >>> layout.region_bytes, layout.block_bytes, layout.fragments_per_block
    (32768, 2097152, 1)
    >>> layout.with_(order="layer_first").fragments_per_block
    64
    """

    @classmethod
    def for_model(
        cls, model: ModelSpec | str, page_tokens: int, tp: int = 1, dtype: Any = None, **options: Any
    ) -> KVLayout:
        """Lay out the cache of one rank of a model: see :func:`dynalab.kv.layout_sources.layout_for_model`.

        Examples
        --------
        >>> KVLayout.for_model("llama-3-8b", 16, tp=2).block_bytes, KVLayout.for_model("deepseek-v3", 64).outer
        (1048576, 1)
        """
        from dynalab.kv.layout_sources import layout_for_model

        return layout_for_model(model, page_tokens, tp, dtype, **options)

    @classmethod
    def detect(cls, shapes: Sequence[Sequence[int]], n_blocks: int, **known: Any) -> KVLayout:
        """Recognise the layout of an engine's cache tensors: see :func:`dynalab.kv.layout_sources.read_shapes`.

        Examples
        --------
        >>> KVLayout.detect([(2, 1000, 16, 8, 128)] * 32, 1000).outer_contiguous
        True
        """
        from dynalab.kv.layout_sources import read_shapes

        return read_shapes(shapes, n_blocks, **known)[0]

    def with_(self, **changes: Any) -> KVLayout:
        """Return the layout with some fields changed (``outer_contiguous`` goes back to True with ``block_first``)."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise unknown("field", name, known)
        if changes.get("order") == "block_first":
            changes.setdefault("outer_contiguous", True)
        return replace(self, **changes)

    def aligned_bases(self, addresses: Sequence[int]) -> list[int]:
        """Return the first aligned address from each given one up: where the storages begin in plain allocations."""
        return [-(-int(address) // self.alignment) * self.alignment for address in addresses]

    def origins(self, bases: Sequence[int], n_blocks: int, blocks: npt.ArrayLike) -> Addresses:
        """Addresses of the first element (head 0, token 0) of every layer and outer index of some blocks.

        Together with the head and token `strides` they say where every run of `run_bytes` lies, in every order.

        Parameters
        ----------
        bases : sequence of int, length n_storages
            Address of each storage, aligned.
        n_blocks : int
            Blocks in the storages.
        blocks : array_like of int, shape (n,)
            Block numbers from 0 up; they may repeat.

        Returns
        -------
        ndarray of uint64, shape (n * num_layers * outer,)
            In order block, layer, outer.

        Raises
        ------
        LayoutError
            If a block number is out of range, or the bases do not fit the layout.
        """
        return self._addresses(bases, n_blocks, blocks, 1)

    def regions(self, bases: Sequence[int], n_blocks: int, blocks: npt.ArrayLike) -> tuple[Addresses, int]:
        """Addresses of all regions of some blocks, and the bytes of each: a flat table for a copy.

        Parameters and order of the addresses are those of `origins`.

        Returns
        -------
        addresses : ndarray of uint64, shape (n * num_layers * outer,)
        nbytes : int

        Raises
        ------
        LayoutError
            Also if the head order is universal: its blocks have no contiguous regions.

        Examples
        --------
        >>> KVLayout(num_layers=1, outer=2, page_tokens=4, inner=8).regions([4096], 10, [3, 0])
        (array([4480, 4544, 4096, 4160], dtype=uint64), 64)
        """
        return self.chunks(bases, n_blocks, blocks, self.region_bytes)

    def chunks(
        self, bases: Sequence[int], n_blocks: int, blocks: npt.ArrayLike, fragment_bytes: int | None = None
    ) -> tuple[Addresses, int]:
        """Addresses of the contiguous pieces of some blocks, and the bytes of each: the shortest table for a copy.

        Parameters
        ----------
        bases, n_blocks, blocks
            As for `origins`.
        fragment_bytes : int, optional
            Smaller pieces, to match another layout's: see `shared_fragment`.

        Returns
        -------
        addresses : ndarray of uint64, shape (n * block_bytes / nbytes,)
            In order block, layer, outer.
        nbytes : int
        """
        nbytes = self.fragment_bytes if fragment_bytes is None else fragment_bytes
        return self._addresses(bases, n_blocks, blocks, self._regions_in(nbytes)), nbytes

    def _addresses(self, bases: Sequence[int], n_blocks: int, blocks: npt.ArrayLike, step: int) -> Addresses:
        """Addresses of every `step`-th (layer, outer) of each block: those of block 0, moved block by block."""
        starts = first_block(self, bases, n_blocks)[::step]
        offsets = block_numbers(blocks, n_blocks) * np.uint64(self.block_stride)
        return (offsets[:, None] + starts).ravel()

    def _regions_in(self, nbytes: int) -> int:
        """Regions in a piece of so many bytes; refuses pieces that do not lie together."""
        counts = (1, self.outer, self.regions_per_block)
        if self.content_order[0] == "universal":
            counts = (self.regions_per_block,) * 3
        sizes = {count * self.region_bytes: count for count in counts if count <= self.regions_per_fragment}
        if nbytes not in sizes:
            raise LayoutError(
                f"fragment_bytes: pieces of {nbytes} bytes do not lie together in {self.summary()}; "
                f"choose from {', '.join(map(str, sizes))}"
            )
        return sizes[nbytes]

    def view(self, storages: Sequence[npt.NDArray[np.uint8]], n_blocks: int) -> npt.NDArray[Any]:
        """Show the one storage of a block-first layout as an array, whatever its head order.

        Parameters
        ----------
        storages : sequence of ndarray of uint8, shape (bytes,)
            Each from its first aligned byte.
        n_blocks : int

        Returns
        -------
        ndarray, shape (n_blocks, num_layers, outer, page_tokens, heads, head_dim)
            A view, writable if the storage is.

        Raises
        ------
        LayoutError
            If layers have storages of their own, or the storages do not fit.
        """
        return whole_view(self, storages, n_blocks)

    def layer_views(self, storages: Sequence[npt.NDArray[np.uint8]], n_blocks: int) -> list[npt.NDArray[Any]]:
        """Show the storages as one array per layer: possible in every order.

        Returns
        -------
        list of ndarray, length num_layers, each of shape (n_blocks, outer, page_tokens, heads, head_dim)
            Views, writable if the storages are.
        """
        return layer_views(self, storages, n_blocks)

    def same_bytes(self, other: KVLayout) -> bool:
        """Whether blocks of both differ by the placement of their regions only, so that a copy by table does."""
        return self._contents == other._contents and self.content_order == other.content_order

    def compatible(self, other: KVLayout) -> bool:
        """Whether blocks of both hold the same elements, perhaps in another order."""
        return self.same_bytes(other) or (self._contents == other._contents and self.heads == other.heads)

    @property
    def _contents(self) -> tuple[int, int, int, int, str]:
        return self.num_layers, self.outer, self.page_tokens, self.inner, self.dtype

    def shared_fragment(self, other: KVLayout) -> int:
        """Bytes of the largest pieces that are contiguous in both layouts, for `chunks` of either.

        Raises
        ------
        LayoutError
            If the layouts do not hold the same bytes.
        """
        if not self.same_bytes(other):
            cure = "permute the heads" if self.compatible(other) else "choose layouts of one shape and dtype"
            raise LayoutError(f"layouts: {self.summary()} and {other.summary()} do not hold the same bytes; {cure}")
        return min(self.fragment_bytes, other.fragment_bytes)

    def fingerprint(self) -> str:
        """Return 16 hex digits that are the same for equal layouts, in every process and version of Python."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """Return the layout in a few words.

        Examples
        --------
        >>> KVLayout(32, 2, 16, 1024, heads=8).summary()
        '32 layers x 2 x 16 tokens x 8 heads x 128 float16, block_first NHD'
        """
        order = self.order if self.outer_contiguous else f"{self.order} by block"
        padded = f", aligned to {self.alignment}" if self.alignment > 1 else ""
        shape = f"{self.num_layers} layers x {self.outer} x {self.page_tokens} tokens x {self.heads} heads"
        return f"{shape} x {self.head_dim} {self.dtype}, {order} {self.head_order}{padded}"

    def __str__(self) -> str:
        from dynalab.kv.layout_display import to_text

        return to_text(self)

    def _repr_html_(self) -> str:
        from dynalab.kv.layout_display import to_html

        return to_html(self)
