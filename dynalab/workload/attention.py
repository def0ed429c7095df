"""One layer of a model as its KV cache sees it: what it keeps per token and what it attends to."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dynalab.spec import Spec

LayerKind = Literal["full", "sliding", "none"]


class AttentionLayer(Spec):
    """One layer as its cache sees it.

    Attributes
    ----------
    kind : {"full", "sliding", "none"}
        Attends to everything before it, to the last `window` tokens (itself included), or keeps no growing cache at all
        (Mamba, linear attention, or an MLP alone).
    window : int or None
        Tokens; only for ``"sliding"``.
    query_heads, kv_heads : int
        Heads that ask, and heads that are cached (equal for MHA, fewer for GQA, one for MQA).
    key_dim, value_dim : int
        Elements per head of a key and of a value. With MLA: those of the attention itself, after expansion.
    latent_dim : int
        Elements cached per token instead of keys and values (MLA: kv_lora_rank + qk_rope_head_dim), else 0.
    """

    _what: ClassVar[str] = "attention layer"

    kind: LayerKind = "full"
    window: int | None = Field(default=None, gt=0)
    query_heads: int = Field(default=0, ge=0)
    kv_heads: int = Field(default=0, ge=0)
    key_dim: int = Field(default=0, ge=0)
    value_dim: int = Field(default=0, ge=0)
    latent_dim: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "sliding") != (self.window is not None):
            raise ValueError("window belongs to kind='sliding', and only to it")
        if self.kind != "none" and not (self.query_heads and self.kv_heads and self.key_dim and self.value_dim):
            raise ValueError("an attention layer needs query_heads, kv_heads, key_dim and value_dim above zero")
        if self.kv_heads and self.query_heads % self.kv_heads:
            raise ValueError(f"query_heads={self.query_heads} is not a multiple of kv_heads={self.kv_heads}")
        return self

    @property
    def elements_per_token(self) -> int:
        """Elements that one more token adds to this layer's cache."""
        if self.kind == "none":
            return 0
        return self.latent_dim or self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def flops_per_pair(self) -> int:
        """FLOP per attended pair of tokens: a dot product with the key and a scaled addition of the value, per head."""
        return 0 if self.kind == "none" else 2 * self.query_heads * (self.key_dim + self.value_dim)

    def pairs(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count the (query, key) pairs that a causal prefill of so many tokens from scratch attends to.

        That is the sum of min(position, window) over the positions 1 .. tokens.
        """
        ramp = tokens if self.window is None else np.minimum(tokens, self.window)
        return ramp * (ramp + 1) // 2 + (tokens - ramp) * ramp
