"""What a KV layout is made of, checked, and the sizes and strides that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from dynalab.errors import LayoutError, unknown
from dynalab.kv.dtypes import canonical_dtype, numpy_dtype
from dynalab.units import MAX_BYTES

Order = Literal["block_first", "layer_first"]
HeadOrder = Literal["NHD", "HND", "universal"]
ORDERS: Final = ("block_first", "layer_first")
HEAD_ORDERS: Final = ("NHD", "HND", "universal")


class BlockStrides(NamedTuple):
    """Bytes from one index to the next inside a block; None where the block alone does not determine it."""

    layer: int | None
    outer: int | None
    head: int
    token: int


@dataclass(frozen=True)
class LayoutShape:
    """Fields and sizes of a :class:`~dynalab.kv.layout.KVLayout`, which documents them."""

    num_layers: int
    outer: int
    page_tokens: int
    inner: int
    dtype: str = "float16"
    order: Order = "block_first"
    outer_contiguous: bool = True
    heads: int = 1
    head_order: HeadOrder = "NHD"
    alignment: int = 1

    def __post_init__(self) -> None:
        for name in ("num_layers", "outer", "page_tokens", "inner", "heads", "alignment"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        object.__setattr__(self, "dtype", canonical_dtype(self.dtype))
        for name, known in (("order", ORDERS), ("head_order", HEAD_ORDERS)):
            if getattr(self, name) not in known:
                raise LayoutError(str(unknown(name, getattr(self, name), known)))
        if not isinstance(self.outer_contiguous, bool | np.bool_):
            raise LayoutError(f"outer_contiguous: {self.outer_contiguous!r} is neither True nor False; write one")
        object.__setattr__(self, "outer_contiguous", bool(self.outer_contiguous))
        if self.outer > 2:
            raise LayoutError(f"outer: {self.outer} is neither 1 (MLA) nor 2 (key and value); write one of them")
        if self.inner % self.heads:
            raise LayoutError(f"heads: {self.heads} do not divide inner={self.inner}; inner is heads * head_dim")
        if self.alignment & (self.alignment - 1):
            raise LayoutError(f"alignment: {self.alignment} is not a power of two; write 1, 256 or 4096, say")
        if self.order == "block_first" and not self.outer_contiguous:
            raise LayoutError("outer_contiguous: False is for order='layer_first'; leave it out for 'block_first'")
        if self.order == "layer_first" and self.head_order == "universal":
            raise LayoutError("head_order: 'universal' puts heads before layers; write order='block_first' with it")
        if self.bytes_per_block > MAX_BYTES:
            raise LayoutError(f"inner: {self.inner} makes a block of more than 8 EiB; is it elements per token?")

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return numpy_dtype(self.dtype).itemsize

    @property
    def head_dim(self) -> int:
        """Elements per head, token and vector."""
        return self.inner // self.heads

    @property
    def run_bytes(self) -> int:
        """Bytes of one head of one token: contiguous in every order."""
        return self.head_dim * self.itemsize

    @property
    def region_bytes(self) -> int:
        """Bytes of one layer and outer index of a block."""
        return self.page_tokens * self.inner * self.itemsize

    @property
    def regions_per_block(self) -> int:
        """Regions of a block: one per layer and outer index."""
        return self.num_layers * self.outer

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's contents, padding left out."""
        return self.regions_per_block * self.region_bytes

    @property
    def regions_per_fragment(self) -> int:
        """Regions that lie side by side in one storage."""
        if self.order == "block_first":
            return self.regions_per_block
        return 1 if self.outer_contiguous else self.outer

    @property
    def fragment_bytes(self) -> int:
        """Bytes of a block that lie in one piece: the number that decides how fast blocks are copied."""
        return self.regions_per_fragment * self.region_bytes

    @property
    def fragments_per_block(self) -> int:
        """Pieces that a block lies in."""
        return self.regions_per_block // self.regions_per_fragment

    @property
    def block_stride(self) -> int:
        """Bytes from a fragment of a block to the same one of the next block, padding included."""
        return -(-self.fragment_bytes // self.alignment) * self.alignment

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one more block takes in all storages together, padding included."""
        return self.block_stride * self.fragments_per_block

    @property
    def n_storages(self) -> int:
        """Separate allocations: one, or one per layer."""
        return 1 if self.order == "block_first" else self.num_layers

    @property
    def strides(self) -> BlockStrides:
        """Byte strides inside a block, for copies that change the order.

        The layer stride is None where layers have their own storages, the outer stride where it grows with the number
        of blocks; :meth:`KVLayout.origins` gives the addresses in every case.
        """
        run, tokens = self.run_bytes, self.page_tokens
        if self.head_order == "universal":
            return BlockStrides(self.outer * tokens * run, tokens * run, self.block_bytes // self.heads, run)
        layer = self.outer * self.region_bytes if self.order == "block_first" else None
        outer = None if self.order == "layer_first" and self.outer_contiguous else self.region_bytes
        head, token = (tokens * run, run) if self.head_order == "HND" else (run, self.heads * run)
        return BlockStrides(layer, outer, head, token)

    @property
    def content_order(self) -> tuple[str, int]:
        """What decides a block's bytes besides its shape; orders that come to the same are called the same."""
        if self.head_order == "universal" and self.regions_per_block > 1 and self.heads > 1:
            return "universal", self.heads
        if self.head_order == "NHD" or self.heads == 1 or self.page_tokens == 1:
            return "tokens", 1
        return "heads", self.heads

    def storage_bytes(self, n_blocks: int) -> list[int]:
        """Bytes that `n_blocks` blocks take in every storage, beginning at an aligned address.

        Returns
        -------
        list of int, length n_storages
            With ``block_first`` the last block is not padded.

        Examples
        --------
        >>> from dynalab.kv import KVLayout
        >>> KVLayout(5, 2, 4, 13, "float32", alignment=256).storage_bytes(7)
        [15904]
        """
        n_blocks = whole("n_blocks", n_blocks, 1)
        if n_blocks * self.bytes_per_block > MAX_BYTES:
            raise LayoutError(
                f"n_blocks: {n_blocks} blocks of {self.bytes_per_block} bytes are more than 8 EiB; ask for fewer"
            )
        if self.order == "block_first":
            return [(n_blocks - 1) * self.block_stride + self.block_bytes]
        return [n_blocks * self.bytes_per_block // self.num_layers] * self.num_layers

    def allocation_bytes(self, n_blocks: int) -> list[int]:
        """Bytes to allocate per storage where the allocator aligns nothing: then begin at `aligned_bases`."""
        return [nbytes + self.alignment - 1 for nbytes in self.storage_bytes(n_blocks)]

    def blocks_in(self, nbytes: int) -> int:
        """Blocks that fit into so many bytes (all storages together, each beginning at an aligned address).

        Examples
        --------
        >>> from dynalab.kv import KVLayout
        >>> KVLayout(5, 2, 4, 13, "float32", alignment=256).blocks_in(15904)
        7
        """
        unpadded = self.block_stride - self.block_bytes if self.order == "block_first" else 0
        return (whole("nbytes", nbytes, 0) + unpadded) // self.bytes_per_block

    def check_storages(self, sizes: list[int] | tuple[int, ...], n_blocks: int) -> None:
        """Refuse storages that are too few, too many or too small for `n_blocks` blocks.

        Parameters
        ----------
        sizes : sequence of int
            Bytes of each storage from its first aligned address.
        n_blocks : int

        Raises
        ------
        LayoutError
            Names the first storage that does not do, and the bytes that it needs.
        """
        needed = self.storage_bytes(n_blocks)
        if len(sizes) != len(needed):
            raise LayoutError(f"storages: {len(sizes)} given; order={self.order!r} has {len(needed)}")
        for index, (size, least) in enumerate(zip(sizes, needed, strict=True)):
            if size < least:
                raise LayoutError(f"storages[{index}]: {size} bytes are too few for {n_blocks} blocks; give {least}")


def whole(field: str, value: Any, least: int) -> int:
    """Return a whole number that is at least `least`, or refuse it under the name of its field."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise LayoutError(f"{field}: {value!r} is not possible; write a whole number from {least} up")
    return int(value)
