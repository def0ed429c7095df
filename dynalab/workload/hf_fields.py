"""Checked access to the fields of a config.json, with the names and defaults that its architecture implies.

The defaults follow the configuration classes of the `transformers` library, release 4.57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dynalab.errors import ConfigError

#: Fields that published files of these architectures leave out, with the defaults of their configuration classes.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "falcon": {"multi_query": True, "max_position_embeddings": 2048},
    "gpt_bigcode": {"multi_query": True},
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma3_text": {
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
    },
    "cohere2": {"sliding_window_pattern": 4},
    "gpt_oss": {"sliding_window_pattern": 2},
    "jamba": {"attn_layer_period": 8, "attn_layer_offset": 4},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False},
    "qwen3_moe": {"use_sliding_window": False},
    "qwen3_next": {"full_attention_interval": 4},
    "llama4_text": {"attention_chunk_size": 8192},
}
_NESTED: Final = ("text_config", "llm_config", "language_config")


class Fields:
    """The fields of one configuration, whose refusals name the field and the file.

    Parameters
    ----------
    values : dict
    where : str
        The file, or "config" for a dictionary.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        nested: Mapping[str, Any] = next(
            (values[name] for name in _NESTED if isinstance(values.get(name), Mapping)), {}
        )
        merged = {**values, **{key: value for key, value in nested.items() if value is not None}}
        self.where = where
        self.model_type = str(merged.get("model_type") or "")
        defaults = _DEFAULTS.get("gemma3_text" if self.model_type == "gemma3" else self.model_type, {})
        self.values: dict[str, Any] = {**defaults, **merged}

    def refuse(self, field: str, why: str) -> ConfigError:
        """Build the error for a field."""
        return ConfigError(f"{self.where}: {field}: {why}")

    def get(self, *names: str) -> Any:
        """Return the first of these fields that is there and not null, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, *names: str, default: int | None = None, low: int = 1, high: int = 2**31) -> int:
        """Return a whole number in [low, high] from the first of these fields that is there."""
        value = self.get(*names)
        field = next((name for name in names if self.values.get(name) is not None), names[0])
        if value is None:
            if default is None:
                raise self.refuse(field, f"is missing; write a whole number (known names: {', '.join(names)})")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(field, f"{value!r} is absurd; write a whole number from {low:,} to {high:,}")
        return value

    def optional(self, *names: str, low: int = 1, high: int = 2**31) -> int | None:
        """Like `integer`, but None where none of the fields is there."""
        return None if self.get(*names) is None else self.integer(*names, low=low, high=high)
