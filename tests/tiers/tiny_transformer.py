"""A small language model in NumPy whose keys and values live in pages: what an engine does with a stack's blocks.

**Why reuse cannot change a bit.** Floating point sums depend on their order, and a library may choose the order by
shape, stride or alignment. So every token is computed by itself, in the prompt as in the answer, from vectors of one
shape; keys and values are rounded to the pages' dtype before anybody uses them, the token's own included, and read from
the pages into fresh arrays first; every sum runs along the first axis of a contiguous array, in an order that follows
from its shape, and no product goes through a BLAS. The logits are then a function of the tokens and of the pages' bytes
alone. Who computed a page, when, and where it has been since, can show only if bytes were changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.kv import KVLayout

Floats = npt.NDArray[np.float32]


def total(terms: Floats) -> Floats:
    """Sum along the first axis, in an order that depends on the shape alone."""
    return np.add.reduce(np.ascontiguousarray(terms), axis=0)


class TinyTransformer:
    """Random weights, grouped-query attention, rotary positions, a gated feed-forward network.

    Parameters
    ----------
    layout : KVLayout
        Of the pages: a key and a value per layer and token, ``heads`` KV heads.
    vocabulary, width, queries_per_head : int
        Tokens; length of the residual stream; query heads that share a KV head.
    seed : int
    """

    def __init__(
        self, layout: KVLayout, *, vocabulary: int = 50, width: int = 24, queries_per_head: int = 2, seed: int = 0
    ) -> None:
        assert layout.outer == 2
        self.layout, self.vocabulary = layout, vocabulary
        self._groups, self._heads, self._size = queries_per_head, layout.heads, layout.head_dim
        rng = np.random.default_rng(seed)

        def weights(*shape: int) -> Floats:
            return rng.normal(0, shape[-2] ** -0.5, shape).astype(np.float32)

        n, inner = layout.num_layers, layout.inner
        self._embedding = rng.normal(0, 1, (vocabulary, width)).astype(np.float32)
        # Queries, keys and values side by side.
        self._project = weights(n, width, (queries_per_head + 2) * inner)
        self._combine = weights(n, queries_per_head * inner, width)
        self._gate_up = weights(n, width, 4 * width)
        self._down = weights(n, 2 * width, width)
        self._unembed = weights(width, vocabulary)
        self._frequency = (100.0 ** -(np.arange(self._size // 2) / (self._size // 2))).astype(np.float32)

    def new_page(self) -> npt.NDArray[Any]:
        """Memory for the keys and values of a page of tokens, apart from any stack."""
        layout = self.layout
        return np.zeros((layout.num_layers, layout.outer, layout.page_tokens, layout.inner), layout.dtype)

    def step(self, token: int, position: int, pages: Sequence[npt.NDArray[Any]]) -> Floats:
        """Compute one token: write its keys and values into its page, and return the logits of the next.

        Parameters
        ----------
        token, position : int
        pages : sequence of ndarray of shape (num_layers, 2, page_tokens, inner)
            Those of all tokens so far, this one's included.
        """
        page, row = divmod(position, self.layout.page_tokens)
        inner, groups = self.layout.inner, self._groups
        x = self._embedding[token]
        for layer in range(self.layout.num_layers):
            mixed = total(_unit(x)[:, None] * self._project[layer])
            queries = self._turned(mixed[: groups * inner].reshape(groups * self._heads, self._size), position)
            key = self._turned(mixed[groups * inner : -inner].reshape(self._heads, self._size), position)
            pages[page][layer, 0, row] = key.reshape(-1)
            pages[page][layer, 1, row] = mixed[-inner:]
            x = x + total(self._attend(layer, queries, position, pages)[:, None] * self._combine[layer])
            gate, up = total(_unit(x)[:, None] * self._gate_up[layer]).reshape(2, -1)
            x = x + total((gate / (1 + np.exp(-gate)) * up)[:, None] * self._down[layer])
        return total(_unit(x)[:, None] * self._unembed)

    def _attend(self, layer: int, queries: Floats, position: int, pages: Sequence[npt.NDArray[Any]]) -> Floats:
        """Return what the heads see, side by side."""
        count = -(-(position + 1) // self.layout.page_tokens)
        past = np.concatenate([page[layer] for page in pages[:count]], axis=1)[:, : position + 1].astype(np.float32)
        keys, values = past.reshape(2, position + 1, self._heads, self._size)
        asked = queries.reshape(self._heads, self._groups, self._size)
        # First axis last: (size, heads, groups, tokens) and (tokens, heads, groups, size).
        scores = total(asked.transpose(2, 0, 1)[..., None] * keys.transpose(2, 1, 0)[:, :, None, :])
        shares = np.exp((scores - scores.max(axis=-1, keepdims=True)) * np.float32(self._size**-0.5))
        shares = shares.transpose(2, 0, 1)
        seen = total(shares[..., None] * values[:, :, None, :]) / total(shares)[..., None]
        return seen.reshape(-1)

    def _turned(self, vectors: Floats, position: int) -> Floats:
        """Rotate pairs of elements by angles that grow with the position."""
        angle = np.float32(position) * self._frequency
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = vectors[:, 0::2], vectors[:, 1::2]
        turned = np.empty_like(vectors)
        turned[:, 0::2], turned[:, 1::2] = a * cos - b * sin, a * sin + b * cos
        return turned


def _unit(x: Floats) -> Floats:
    """Scale a vector to a root mean square of one."""
    return x / np.sqrt(total(x * x) / np.float32(x.size) + np.float32(1e-6))
