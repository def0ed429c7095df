"""Layouts that follow from something known: a model and its tensor parallel size, or an engine's cache tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dynalab.errors import LayoutError
from dynalab.kv.layout import KVLayout
from dynalab.kv.layout_shape import HeadOrder, Order, whole

if TYPE_CHECKING:
    from dynalab.workload import ModelSpec


def layout_for_model(
    model: ModelSpec | str, page_tokens: int, tp: int = 1, dtype: Any = None, **options: Any
) -> KVLayout:
    """Return the layout of the blocks that one rank of a model holds.

    Parameters
    ----------
    model : ModelSpec or str
        A spec, or what :func:`dynalab.workload.model_spec` takes. Layers without a cache take no room.
    page_tokens : int
        Tokens per block.
    tp : int
        Tensor parallel size. Heads are shared out among the ranks; with fewer heads than ranks each rank keeps one,
        and the latent of MLA is kept by every rank.
    dtype : str, optional
        Element type; otherwise the model's ``kv_dtype``.
    **options
        Other fields of :class:`KVLayout`: ``order``, ``head_order``, ``alignment``, ``outer_contiguous``.

    Raises
    ------
    LayoutError
        If the layers' caches differ in shape, keys and values in size, or `tp` does not divide the heads.
    """
    from dynalab.workload import model_spec

    spec = model_spec(model)
    tp = whole("tp", tp, 1)
    layers = [layer for layer in spec.layers if layer.elements_per_token]
    kinds = {(layer.latent_dim, layer.kv_heads, layer.key_dim, layer.value_dim) for layer in layers}
    if len(kinds) > 1:
        raise LayoutError(
            f"model: the layers of {spec.name} cache vectors of {len(kinds)} shapes, which no one layout holds; "
            "write a KVLayout for each kind of layer"
        )
    ((latent, kv_heads, key_dim, value_dim),) = kinds
    taken = {"dtype": spec.kv_dtype if dtype is None else dtype, **options}
    if latent:
        return KVLayout(len(layers), 1, page_tokens, latent, **taken)
    if key_dim != value_dim:
        raise LayoutError(
            f"model: keys of {spec.name} have {key_dim} elements and values {value_dim}, which no one layout holds; "
            "write a KVLayout for each, with outer=1"
        )
    if max(kv_heads, tp) % min(kv_heads, tp):
        raise LayoutError(
            f"tp: {tp} ranks cannot share the {kv_heads} KV heads of {spec.name}; write a divisor or a multiple of it"
        )
    heads = max(kv_heads // tp, 1)
    return KVLayout(len(layers), 2, page_tokens, heads * key_dim, heads=heads, **taken)


class Reading(NamedTuple):
    """One way to read the shapes of cache tensors."""

    order: Order
    outer_contiguous: bool
    n_blocks: int
    num_layers: int
    outer: int
    page_tokens: int
    heads: int
    head_dim: int
    head_order: HeadOrder

    def __str__(self) -> str:
        place = self.order if self.outer_contiguous else f"{self.order} by block"
        return (
            f"{place} with num_layers={self.num_layers}, outer={self.outer}, page_tokens={self.page_tokens}, "
            f"heads={self.heads}, head_order={self.head_order!r}"
        )


def read_shapes(
    shapes: Sequence[Sequence[int]],
    n_blocks: int,
    *,
    dtype: Any = "float16",
    alignment: int = 1,
    **known: Any,
) -> tuple[KVLayout, int]:
    """Recognise the layout of an engine's cache tensors by their shapes.

    One tensor for all may be ``(blocks, layers, outer, ...)``, one per layer ``(blocks, outer, ...)`` or
    ``(outer, blocks, ...)``, with a region behind: ``tokens, heads, head_dim``, or ``heads, tokens, head_dim``, or
    ``tokens, inner``, or ``tokens * inner``. MLA may leave `outer` out. A single tensor without `layers` holds one.

    Parameters
    ----------
    shapes : sequence of shapes
        One per tensor.
    n_blocks : int
        Blocks that the engine speaks of; tensors may hold more.
    dtype, alignment
        Of the layout; shapes do not tell.
    **known
        What is known and decides between several readings: ``page_tokens``, ``num_layers``, ``outer``, ``heads``,
        ``head_order``, ``order``, ``outer_contiguous``. Without ``page_tokens`` and ``head_order`` tokens are taken to
        come before heads.

    Returns
    -------
    layout : KVLayout
    blocks : int
        Blocks that the tensors hold: the `n_blocks` of all addresses and views.

    Raises
    ------
    LayoutError
        If the shapes can be read in no way, or in several.

    Examples
    --------
    >>> layout, blocks = read_shapes([(1024, 2, 16, 8, 128)] * 4, 1000)
    >>> layout.order, layout.outer_contiguous, layout.heads, blocks
    ('layer_first', False, 8, 1024)
    """
    sizes = [tuple(int(size) for size in shape) for shape in shapes]
    least = whole("n_blocks", n_blocks, 1)
    for name in known:
        if name not in Reading._fields or name in {"n_blocks", "head_dim"}:
            raise LayoutError(f"{name}: shapes are not read with it; {_KNOWN}")
    if "page_tokens" in known:
        known["page_tokens"] = whole("page_tokens", known["page_tokens"], 1)
    if not sizes or len(set(sizes)) > 1:
        raise LayoutError(f"shapes: {_briefly(sizes)} are not equal tensors, one per layer or one for all; give those")
    readings = {
        reading
        for reading in _readings(sizes[0], len(sizes), least, known)
        if all(getattr(reading, name) == value for name, value in known.items())
    }
    if not readings:
        facts = "".join(f", {name}={value!r}" for name, value in known.items())
        raise LayoutError(
            f"shapes: unsupported KV cache of {_briefly(sizes)} with n_blocks={least}{facts}; "
            "give (blocks, layers, outer, tokens, heads, head_dim), or per layer (blocks, outer, ...) or "
            "(outer, blocks, ...)"
        )
    if len(readings) > 1:
        ways = "; or ".join(sorted(map(str, readings)))
        raise LayoutError(f"shapes: {_briefly(sizes)} can be read as {ways}: {_KNOWN}")
    (found,) = readings
    layout = KVLayout(
        found.num_layers,
        found.outer,
        found.page_tokens,
        found.heads * found.head_dim,
        dtype,
        order=found.order,
        outer_contiguous=found.outer_contiguous,
        heads=found.heads,
        head_order=found.head_order,
        alignment=alignment,
    )
    return layout, found.n_blocks


_KNOWN = "write what is known of page_tokens, num_layers, outer, heads, head_order, order, outer_contiguous"


def _briefly(sizes: Sequence[tuple[int, ...]]) -> str:
    distinct = sorted(set(sizes))
    return f"{len(sizes)} tensors of shape {', '.join(map(str, distinct[:3]))}" + ", ..." * (len(distinct) > 3)


def _readings(shape: tuple[int, ...], tensors: int, least: int, known: dict[str, Any]) -> Iterator[Reading]:
    """Every way to read one tensor's shape that its numbers allow."""
    if min(shape, default=0) < 1:
        return
    if shape[0] >= least:
        for outer, region in _outer_first(shape[1:]):
            for inside in _regions(region, known):
                if tensors == 1:
                    yield Reading("block_first", True, shape[0], 1, outer, *inside)
                else:
                    # With one outer index both placements are the same; they go by the contiguous one's name.
                    yield Reading("layer_first", outer == 1, shape[0], tensors, outer, *inside)
        if tensors == 1:
            for outer, region in _outer_first(shape[2:]):
                for inside in _regions(region, known):
                    yield Reading("block_first", True, shape[0], shape[1], outer, *inside)
    if len(shape) > 2 and shape[0] in (1, 2) and shape[1] >= least:
        for inside in _regions(shape[2:], known):
            yield Reading("layer_first", True, shape[1], tensors, shape[0], *inside)


def _outer_first(shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Ways to read ``[outer,] region``; a region with heads of its own never comes without key and value."""
    if 1 <= len(shape) <= 2:
        yield 1, shape
    if len(shape) >= 2 and shape[0] in (1, 2):
        yield shape[0], shape[1:]


def _regions(shape: tuple[int, ...], known: dict[str, Any]) -> Iterator[tuple[int, int, int, HeadOrder]]:
    """Ways to read a region as (page_tokens, heads, head_dim, head_order)."""
    page = known.get("page_tokens")
    hnd = page is not None or known.get("head_order") == "HND"
    if len(shape) == 3:
        if page in (None, shape[0]):
            yield shape[0], shape[1], shape[2], "NHD"
        if hnd and page in (None, shape[1]):
            yield shape[1], shape[0], shape[2], "HND"
    elif len(shape) == 2 and page in (None, shape[0]):
        yield shape[0], 1, shape[1], "NHD"
    elif len(shape) == 1 and page is not None and shape[0] % page == 0:
        yield page, 1, shape[0] // page, "NHD"
