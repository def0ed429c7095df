"""Hugging Face style configurations: which of a model's layers keep which KV, read from the fields of a config.json.

The rules follow the modelling classes of the `transformers` library, release 4.57.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dynalab.errors import ConfigError
from dynalab.workload.attention import AttentionLayer, LayerKind
from dynalab.workload.hf_fields import Fields
from dynalab.workload.hf_params import count_parameters, kv_head_count

_MOST_PARAMETERS: Final = 10**15
#: Fields whose presence means a cache that the layers here cannot describe.
_UNKNOWN_CACHES: Final = {
    "index_topk": "sparse attention with an index cache",
    "num_kv_shared_layers": "layers that share one KV cache",
    "num_global_key_value_heads": "KV heads that differ between layers",
    "global_head_dim": "head sizes that differ between layers",
    "block_configs": "KV heads that differ between layers",
    "cross_attention_layers": "cross-attention",
    "is_encoder_decoder": "an encoder",
}
_KINDS: Final = {
    "full_attention": "full",
    "attention": "full",
    "full": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "none",
    "mamba": "none",
    "mamba2": "none",
    "recurrent": "none",
    "conv": "none",
    "mlp": "none",
    "moe": "none",
}
_DTYPES: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float": "fp32", "half": "fp16"}


def read_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    name: str | None = None,
    total_params: int | None = None,
    active_params: int | None = None,
) -> dict[str, Any]:
    """Turn a configuration into the fields of a `ModelSpec`; see `ModelSpec.from_config`."""
    values, where, default_name = _load(config)
    fields = Fields(values, where)
    for field, what in _UNKNOWN_CACHES.items():
        if fields.get(field):
            raise fields.refuse(field, f"{what} is not known here; describe the layers with ModelSpec(...) instead")
    kinds = layer_kinds(fields)
    heads = _attention(fields)
    total = total_params or fields.optional("total_params", high=_MOST_PARAMETERS)
    active = active_params or fields.optional("active_params", high=_MOST_PARAMETERS)
    if total is None or active is None:
        counted = count_parameters(fields, [kind for kind, _ in kinds])
        total, active = total or counted[0], active or counted[1]
    distinct = {
        (kind, window): AttentionLayer(kind=kind, window=window, **({} if kind == "none" else heads))
        for kind, window in set(kinds)
    }
    return {
        "name": name or default_name or fields.model_type or "model",
        "layers": tuple(distinct[kind] for kind in kinds),
        "hidden_size": fields.integer("hidden_size", "n_embd", "n_embed", "d_model", high=10**6),
        "total_params": total,
        "active_params": active,
        "max_context": fields.optional("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        "kv_dtype": _kv_dtype(fields),
        "source": where,
    }


def _load(config: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[dict[str, Any], str, str]:
    """Return the fields, the name of their place for errors, and a name for the model."""
    if isinstance(config, Mapping):
        repository = str(config.get("_name_or_path") or "")
        return dict(config), f"config of {repository}" if repository else "config", Path(repository).name
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a config.json or its directory") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); give the model's config.json") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not an object; give the model's config.json")
    # ModelOpt keeps the cache's type in a file of its own.
    beside = path.with_name("hf_quant_config.json")
    if beside.is_file() and "quantization_config" not in values:
        try:
            values["quantization_config"] = json.loads(beside.read_bytes())["quantization"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{beside}: has no readable 'quantization'; repair or remove it") from None
    name = Path(str(values.get("_name_or_path") or "")).name or path.resolve().parent.name
    return values, str(path), name


def _attention(fields: Fields) -> dict[str, int]:
    """Heads and dimensions of the model's attention layers."""
    heads = fields.integer("num_attention_heads", "n_head", "n_heads", high=4096)
    if fields.get("kv_lora_rank"):
        rope = fields.integer("qk_rope_head_dim", low=0, high=4096)
        return {
            "query_heads": heads,
            "kv_heads": heads,
            "key_dim": fields.integer("qk_nope_head_dim", high=4096) + rope,
            "value_dim": fields.integer("v_head_dim", high=4096),
            "latent_dim": fields.integer("kv_lora_rank", high=10**5) + rope,
        }
    hidden = fields.integer("hidden_size", "n_embd", "n_embed", "d_model", high=10**6)
    key_dim = fields.get("head_dim", "attention_head_dim", "kv_channels")
    if key_dim is None and hidden % heads:
        raise fields.refuse("head_dim", f"is missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    key_dim = fields.integer("head_dim", "attention_head_dim", "kv_channels", default=hidden // heads, high=4096)
    kv_heads = kv_head_count(fields, heads)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"{kv_heads} does not divide the {heads} query heads")
    value_dim = fields.integer("v_head_dim", default=key_dim, high=4096)
    return {"query_heads": heads, "kv_heads": kv_heads, "key_dim": key_dim, "value_dim": value_dim}


def layer_kinds(fields: Fields) -> list[tuple[LayerKind, int | None]]:
    """Return ``(kind, window)`` of every layer."""
    n_layers = fields.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers", high=10_000)
    named = _named_kinds(fields, n_layers)
    if len(named) != n_layers:
        raise fields.refuse("layer_types", f"describes {len(named)} layers, but num_hidden_layers is {n_layers}")
    kinds: list[tuple[LayerKind, int | None]] = []
    for kind in named:
        if kind == "sliding":
            kinds.append(("sliding", fields.integer("sliding_window", "attention_window_size")))
        elif kind == "chunked":
            # At most one chunk is attended to: the window is the size that the cache never exceeds.
            kinds.append(("sliding", fields.integer("attention_chunk_size")))
        else:
            kinds.append(("none" if kind == "none" else "full", None))
    return kinds


def _named_kinds(fields: Fields, n_layers: int) -> list[str]:
    """Return full, sliding, chunked or none for every layer, from whichever field tells."""
    listed = fields.get("layer_types", "layers_block_type", "block_types")
    if listed is not None:
        if not isinstance(listed, list) or not listed:
            raise fields.refuse("layer_types", f"{listed!r} is absurd; write a list of layer kinds")
        unknown = sorted({str(kind) for kind in listed} - set(_KINDS))
        if unknown:
            raise fields.refuse("layer_types", f"{unknown[0]!r} is not a known kind; known: {', '.join(_KINDS)}")
        kinds = [_KINDS[kind] for kind in listed]
        if fields.get("attention_window_size"):  # RecurrentGemma: every attention layer is local.
            kinds = ["sliding" if kind == "full" else kind for kind in kinds]
        return kinds if fields.get("layer_types", "layers_block_type") else (kinds * n_layers)[:n_layers]
    pattern = fields.get("hybrid_override_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or set(pattern) - set("M*-E"):
            raise fields.refuse("hybrid_override_pattern", f"{pattern!r} is absurd; write M, *, - and E, one per layer")
        return ["full" if letter == "*" else "none" for letter in pattern]
    period = fields.optional("attn_layer_period")
    if period is not None:
        offset = fields.integer("attn_layer_offset", default=0, low=0)
        return ["full" if i % period == offset else "none" for i in range(n_layers)]
    full = _full_layers(fields, n_layers)
    if full is not None:
        return ["full" if i in full else "none" for i in range(n_layers)]
    if fields.get("attention_chunk_size"):
        rope = fields.get("no_rope_layers") or [(i + 1) % 4 for i in range(n_layers)]
        return ["chunked" if flag else "full" for flag in rope]
    return _sliding_kinds(fields, n_layers)


def _full_layers(fields: Fields, n_layers: int) -> set[int] | None:
    """Return the attention layers of a hybrid that lists them, or None for other models."""
    interval = fields.optional("full_attention_interval")
    if interval is not None:
        return set(range(interval - 1, n_layers, interval))
    for field in ("attn_layer_indices", "attn_type_list"):
        listed = fields.get(field)
        if listed is not None:
            numbers = _integers(fields, field, listed)
            return set(numbers) if field == "attn_layer_indices" else {i for i, flag in enumerate(numbers) if flag}
    linear = fields.get("linear_attn_config")
    if isinstance(linear, Mapping):  # Kimi Linear counts its layers from one.
        return {i - 1 for i in _integers(fields, "linear_attn_config", linear.get("full_attn_layers"))}
    return None


def _integers(fields: Fields, field: str, listed: Any) -> list[int]:
    if not isinstance(listed, list) or not all(type(item) is int for item in listed):
        raise fields.refuse(field, f"{listed!r} is absurd; write a list of whole numbers")
    return listed


def _sliding_kinds(fields: Fields, n_layers: int) -> list[str]:
    """Return full or sliding for every layer of a model with attention everywhere."""
    used = fields.get("use_sliding_window")
    if fields.get("sliding_window") is None or used is False:
        return ["full"] * n_layers
    pattern = fields.get("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(pattern, str) and pattern and not set(pattern) - set("LG"):
        return ["sliding" if pattern[i % len(pattern)] == "L" else "full" for i in range(n_layers)]
    if pattern is not None:
        every = fields.integer("sliding_window_pattern", "_sliding_window_pattern")
        return ["sliding" if (i + 1) % every else "full" for i in range(n_layers)]
    first = fields.integer("max_window_layers", default=0, low=0) if used else 0
    return ["sliding" if i >= first else "full" for i in range(n_layers)]


def _kv_dtype(fields: Fields) -> str:
    """Return the cache's element type: its own quantisation, else the activations' type, else bf16."""
    quantisation = fields.get("quantization_config")
    quantisation = quantisation if isinstance(quantisation, Mapping) else {}
    algorithm = str(quantisation.get("kv_cache_quant_algo") or "").lower()
    scheme = quantisation.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        algorithm = f"{'fp' if scheme.get('type', 'float') == 'float' else 'int'}{scheme.get('num_bits')}"
    if algorithm and algorithm != "none":
        if algorithm not in ("fp8", "int8"):
            raise fields.refuse("quantization_config", f"KV cache type {algorithm!r} is not known; known: fp8, int8")
        return algorithm
    dtype = str(fields.get("torch_dtype", "dtype") or "bfloat16").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise fields.refuse("torch_dtype", f"{dtype!r} is not a KV cache type; write one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
