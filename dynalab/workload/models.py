"""What a model asks of a KV cache: bytes per token and the arithmetic of a prefill, from the shapes of its layers.

The sizes here are the engine's own: one key and one value vector per token, KV head and attention layer, or one shared
latent vector where the model has multi-head latent attention (MLA). Sizes taken from model names or rules of thumb have
been published up to 1024 times too small, hence everything is computed from config fields.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Self, overload

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dynalab.errors import ConfigError, did_you_mean
from dynalab.spec import Spec
from dynalab.workload.attention import AttentionLayer
from dynalab.workload.hf_config import read_config
from dynalab.workload.model_table import CONFIGS, canonical_name

KVDtype = Literal["fp32", "bf16", "fp16", "fp8", "int8"]

#: Bytes per element. Scale factors of fp8 and int8 caches (a few bytes per head or tensor) are not counted.
KV_DTYPE_BYTES: Final[dict[str, int]] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}

Counts = npt.NDArray[np.integer[Any]]


class ModelSpec(Spec):
    """A model: its layers, its parameters and the element type of its KV cache.

    The sizes are those of the whole model: with tensor parallelism every rank holds its share of them (except where a
    model has fewer KV heads than ranks, or MLA, which engines replicate).

    Attributes
    ----------
    name : str
    layers : tuple of AttentionLayer
        In order, one per layer of the model, layers without a cache included.
    hidden_size : int
        Width of the residual stream.
    total_params, active_params : int
        Parameters in memory, and those that one token passes through (fewer in a mixture of experts). Both count the
        embedding tables, as published figures mostly do.
    max_context : int or None
        Tokens; None where the configuration does not say.
    kv_dtype : {"fp32", "bf16", "fp16", "fp8", "int8"}
    source : str
        Where the fields come from.

    Examples
    --------
    >>> spec = model_spec("llama-3-8b")
    >>> spec.bytes_per_token, spec.block_bytes(512), spec.with_dtype("fp8").bytes_per_token
    (131072, 67108864, 65536)
    """

    _what: ClassVar[str] = "model"

    name: str = Field(min_length=1)
    layers: tuple[AttentionLayer, ...] = Field(min_length=1)
    hidden_size: int = Field(gt=0)
    total_params: int = Field(gt=0)
    active_params: int = Field(gt=0)
    max_context: int | None = Field(default=None, gt=0)
    kv_dtype: KVDtype = "bf16"
    source: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active_params > self.total_params:
            raise ValueError(f"active_params={self.active_params} exceeds total_params={self.total_params}")
        if not any(layer.elements_per_token for layer in self.layers):
            raise ValueError("no layer has a KV cache, so there is nothing to tier")
        return self

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str],
        *,
        name: str | None = None,
        total_params: int | None = None,
        active_params: int | None = None,
    ) -> ModelSpec:
        """Read a Hugging Face style configuration.

        Parameters
        ----------
        config : dict or path
            The fields, a ``config.json``, or a directory that holds one.
        name : str, optional
            Otherwise taken from the configuration or its path.
        total_params, active_params : int, optional
            Take precedence over the counts that the fields give; needed for architectures that cannot be counted.

        Raises
        ------
        ConfigError
            If a needed field is missing or absurd, or the attention is of a kind whose cache is not known here.
        """
        return cls(**read_config(config, name=name, total_params=total_params, active_params=active_params))

    def __repr__(self) -> str:
        # A line for notebooks and errors: pydantic's own would spell out every layer.
        kinds = ", ".join(f"{count} {layer.kind}" for layer, count in self._groups)
        cache = f"{self.bytes_per_token:,} B of {self.kv_dtype} KV per token"
        return f"ModelSpec({self.name}: {kinds} layers, {cache}, {self.total_params / 1e9:.3g}e9 parameters)"

    __str__ = __repr__

    @cached_property
    def _groups(self) -> tuple[tuple[AttentionLayer, int], ...]:
        """The distinct layers and how often each occurs: two at most in published models."""
        return tuple(Counter(self.layers).items())

    @property
    def n_layers(self) -> int:
        """Layers in all, those without a KV cache included."""
        return len(self.layers)

    @property
    def dtype_bytes(self) -> int:
        """Bytes per element of the KV cache."""
        return KV_DTYPE_BYTES[self.kv_dtype]

    @property
    def bytes_per_token(self) -> int:
        """Bytes by which the cache grows per token while the context is shorter than every window.

        This is also what one token of a cached *block* takes, whatever the context's length: a block may end any later
        request's prefix, so that tiers keep its sliding layers too. A long context held by the engine needs less per
        token (see `kv_bytes`).
        """
        return sum(layer.elements_per_token * count for layer, count in self._groups) * self.dtype_bytes

    @property
    def asymptotic_bytes_per_token(self) -> int:
        """Bytes by which the cache grows per token once every sliding window is full (the full-attention layers)."""
        full = sum(layer.elements_per_token * count for layer, count in self._groups if layer.kind == "full")
        return full * self.dtype_bytes

    @overload
    def kv_bytes(self, context_tokens: int) -> int: ...
    @overload
    def kv_bytes(self, context_tokens: Counts) -> npt.NDArray[np.int64]: ...
    def kv_bytes(self, context_tokens: int | Counts) -> int | npt.NDArray[np.int64]:
        """Bytes of KV that an engine holds for one sequence: sliding layers saturate at their window.

        Parameters
        ----------
        context_tokens : int or ndarray of int
            Tokens of the sequence.

        Returns
        -------
        int or ndarray of int64, same shape
            Exact. The constant state of Mamba and linear-attention layers is not KV and not counted.
        """
        tokens = _counts("context_tokens", context_tokens)
        total = np.zeros_like(tokens)
        for layer, count in self._groups:
            held = tokens if layer.window is None else np.minimum(tokens, layer.window)
            total = total + held * (count * layer.elements_per_token * self.dtype_bytes)
        return int(total) if total.ndim == 0 else total

    def kv_bytes_per_token(self, context_tokens: int | None = None) -> float:
        """Mean bytes per token of a sequence of that length; without a length, `bytes_per_token`."""
        if context_tokens is None:
            return float(self.bytes_per_token)
        if context_tokens < 1:
            raise ConfigError(
                f"context_tokens: {context_tokens!r} is not a length; write a number of tokens above zero"
            )
        return self.kv_bytes(context_tokens) / context_tokens

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of one cached block of `block_tokens` tokens, all layers together."""
        if int(_counts("block_tokens", block_tokens)) < 1:
            raise ConfigError(f"block_tokens: {block_tokens!r} is not a block size; write a number such as 16 or 512")
        return self.bytes_per_token * int(block_tokens)

    @overload
    def prefill_flops(self, new_tokens: int, cached_tokens: int = 0) -> float: ...
    @overload
    def prefill_flops(self, new_tokens: Counts, cached_tokens: int | Counts = 0) -> npt.NDArray[np.float64]: ...
    def prefill_flops(
        self, new_tokens: int | Counts, cached_tokens: int | Counts = 0
    ) -> float | npt.NDArray[np.float64]:
        """FLOP to compute `new_tokens` behind `cached_tokens` whose KV is already there.

        ``2 * active_params * new + sum over layers of 2 * query_heads * (key_dim + value_dim) * pairs``, where `pairs`
        counts the causally attended (query, key) pairs, at most `window` per query in sliding layers. That is the
        forward third of the model FLOPs in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B: 6 N + 12 L H Q T
        per token for training, which counts 4 L H Q T for a full, not a causal, row), so that a utilisation (MFU) given
        by that convention turns it into seconds. Two known biases: N includes the embedding tables, of which a prefill
        multiplies almost nothing (a few percent of a large model, a fifth of a 1B one); and with MLA the expansion of
        *cached* latents into keys and values, and with Mamba the scan itself, are left out.

        Parameters
        ----------
        new_tokens, cached_tokens : int or ndarray of int
            Arrays are broadcast.

        Returns
        -------
        float or ndarray of float64
        """
        new, cached = _counts("new_tokens", new_tokens), _counts("cached_tokens", cached_tokens)
        total = (2.0 * self.active_params * new).astype(np.float64)
        for layer, count in self._groups:
            pairs = layer.pairs(cached + new) - layer.pairs(cached)
            total = total + np.float64(count * layer.flops_per_pair) * pairs
        return float(total) if total.ndim == 0 else total

    def with_dtype(self, kv_dtype: str) -> ModelSpec:
        """Return the same model with another element type of the KV cache, such as ``"fp8"``."""
        if kv_dtype not in KV_DTYPE_BYTES:
            raise ConfigError(
                f"kv_dtype: {kv_dtype!r} is not a KV cache type; write one of {', '.join(KV_DTYPE_BYTES)}"
            )
        return self.model_copy(update={"kv_dtype": kv_dtype})


def _counts(field: str, value: int | Counts) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise ConfigError(f"{field}: {value!r} is not a number of tokens; write whole numbers of zero or more")
    return array.astype(np.int64)


#: The known models by name; see `dynalab.workload.model_table` for their fields.
MODELS: Final[Mapping[str, ModelSpec]] = MappingProxyType(
    {name: ModelSpec.from_config(config, name=name) for name, config in CONFIGS.items()}
)
# The repositories' own names, such as mixtral-8x7b-v0.1, lead to the same rows.
_NAMES: Final = {canonical_name(config["_name_or_path"]): name for name, config in CONFIGS.items()}
_NAMES.update({name: name for name in CONFIGS})


def model_spec(model: str | os.PathLike[str] | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """Find a model by its name in the table, or read its configuration.

    Parameters
    ----------
    model : str, path, dict or ModelSpec
        A name of `MODELS` in any case of letters (an organisation in front and endings such as ``-instruct`` do not
        matter), a path to a ``config.json`` or its directory, the fields of one, or a spec.

    Raises
    ------
    ConfigError
        If there is no such model: with the closest names.

    Examples
    --------
    >>> model_spec("meta-llama/Llama-3.1-405B-Instruct").bytes_per_token
    516096
    """
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, Mapping):
        return ModelSpec.from_config(model)
    if not isinstance(model, str | os.PathLike) or not str(model).strip():
        raise ConfigError(
            f"model: {model!r} is not a model; write a name such as 'llama-3-8b' or a path to a config.json"
        )
    text = os.fspath(model)
    # Something that lies on disk and is written as a path is meant as one, even where its last part is a known name.
    is_path = isinstance(model, os.PathLike) or (os.sep in text and Path(text).exists())
    found = None if is_path else _NAMES.get(canonical_name(text))
    if found is not None:
        return MODELS[found]
    if is_path or Path(text).exists() or Path(text).suffix == ".json":
        return ModelSpec.from_config(model)
    close = did_you_mean(canonical_name(text), MODELS, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(
        f"model: {text!r} is not in the table; {hint}any other model: pass the path of its config.json "
        f"(known: {', '.join(sorted(MODELS))})"
    )
