"""Parameter counts from the fields of a configuration: total, and those that one token passes through.

Weight matrices only: norms and biases, below one part in a thousand, are left out. The counts serve FLOP estimates, and
as a checksum of the table of models: a wrong width, depth or head count would not meet the published number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from dynalab.workload.hf_fields import Fields

#: Architectures whose feed-forward part has two matrices (up, down), not three (gate, up, down).
_UNGATED: Final = {
    "bloom",
    "falcon",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "mpt",
    "nemotron",
    "nemotron_h",
    "opt",
    "phi",
    "starcoder2",
}
#: Architectures that share input and output embeddings where the file does not say.
_TIED: Final = {
    "bloom",
    "cohere",
    "cohere2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "opt",
}


def count_parameters(fields: Fields, kinds: Sequence[str]) -> tuple[int, int]:
    """Count the parameters of a model.

    Parameters
    ----------
    fields : Fields
    kinds : sequence of {"full", "sliding", "none"}
        One per layer.

    Returns
    -------
    tuple of int
        Total and active.
    """
    hidden = fields.integer("hidden_size", "n_embd", "n_embed", "d_model")
    tied = fields.get("tie_word_embeddings")
    tied = fields.model_type in _TIED if tied is None else bool(tied)
    total = active = fields.integer("vocab_size") * hidden * (1 if tied else 2)
    # Nemotron-H: a layer is one mixer *or* one feed-forward part; everywhere else it is both.
    pattern = fields.get("hybrid_override_pattern")
    for i, kind in enumerate(kinds):
        letter = "" if pattern is None else pattern[i]
        mixer = 0 if letter in ("-", "E") else _mixer(fields, hidden, kind)
        stored, used = (0, 0) if letter in ("M", "*") else _feed_forward(fields, hidden, i, letter)
        total += mixer + stored
        active += mixer + used
    return total, active


def _mixer(fields: Fields, hidden: int, kind: str) -> int:
    """Parameters of one attention, Mamba or linear-attention layer."""
    if kind != "none":
        return _attention(fields, hidden)
    if fields.get("linear_num_value_heads"):  # Gated DeltaNet (Qwen3-Next)
        key = fields.integer("linear_num_key_heads") * fields.integer("linear_key_head_dim")
        heads = fields.integer("linear_num_value_heads")
        value = heads * fields.integer("linear_value_head_dim")
        conv = (2 * key + value) * fields.integer("linear_conv_kernel_dim", default=4)
        return hidden * (2 * key + 2 * value + 2 * heads) + conv + value * hidden
    state = fields.optional("mamba_d_state", "ssm_state_size")
    heads_of_mamba2 = fields.optional("mamba_n_heads", "mamba_num_heads")
    if state is None:
        raise fields.refuse(
            "total_params", "parameters of these layers cannot be counted; add total_params and active_params"
        )
    width = fields.integer("mamba_d_conv", "conv_kernel", default=4)
    inner = hidden * fields.integer("mamba_expand", "expand", default=2)
    if heads_of_mamba2 is not None:  # Mamba-2 (Granite 4, Bamba, Nemotron-H)
        inner = heads_of_mamba2 * fields.integer("mamba_d_head", "mamba_head_dim", default=inner // heads_of_mamba2)
        channels = inner + 2 * fields.integer("mamba_n_groups", "n_groups", default=1) * state
        return hidden * (inner + channels + heads_of_mamba2) + channels * width + inner * hidden
    rank = fields.get("mamba_dt_rank")
    rank = -(-hidden // 16) if rank in (None, "auto") else fields.integer("mamba_dt_rank")
    return 3 * hidden * inner + inner * (width + rank + 2 * state) + rank * inner + inner * state


def _attention(fields: Fields, hidden: int) -> int:
    heads = fields.integer("num_attention_heads", "n_head", "n_heads")
    if fields.get("kv_lora_rank"):
        rank, rope = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim", low=0)
        nope, value = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
        low = fields.optional("q_lora_rank")
        query = hidden * heads * (nope + rope) if low is None else low * (hidden + heads * (nope + rope))
        return query + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    key = fields.integer("head_dim", "attention_head_dim", "kv_channels", default=hidden // heads)
    value = fields.integer("v_head_dim", default=key)
    # Qwen3-Next's attention has an output gate as wide as its queries.
    query = heads * key * (2 if fields.model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text") else 1)
    return hidden * (query + kv_head_count(fields, heads) * (key + value) + heads * value)


def _feed_forward(fields: Fields, hidden: int, layer: int, letter: str) -> tuple[int, int]:
    """Return the total and active parameters of one layer's feed-forward part."""
    matrices = 2 if fields.model_type in _UNGATED else 3
    experts = fields.optional("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", low=0) or 0
    if letter == "-" or experts < 2 or not (letter == "E" or _is_mixture(fields, layer)):
        default = 4 * hidden if fields.model_type in _UNGATED else None
        names = ("intermediate_size_mlp", "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
        dense = matrices * hidden * fields.integer(*names, default=default)
        return dense, dense
    width = fields.integer("moe_intermediate_size", "intermediate_size")
    chosen = fields.integer("num_experts_per_tok", "experts_per_token", "moe_topk", high=experts)
    shared = fields.optional(
        "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size", low=0
    )
    if shared is None:
        always = 1 if fields.model_type.startswith("llama4") else 0
        shared = width * fields.integer("n_shared_experts", "num_shared_experts", default=always, low=0)
    common = matrices * hidden * shared + hidden * experts
    one = matrices * hidden * width
    return common + experts * one, common + chosen * one


def _is_mixture(fields: Fields, layer: int) -> bool:
    """Tell whether a layer of a mixture-of-experts model has experts (the others are dense)."""
    listed = fields.get("mlp_only_layers")
    if isinstance(listed, list) and layer in listed:
        return False
    frequency = fields.get("moe_layer_freq")
    if isinstance(frequency, list):
        return bool(layer < len(frequency) and frequency[layer])
    if layer < fields.integer("first_k_dense_replace", default=0, low=0):
        return False
    if fields.get("expert_layer_period"):
        return layer % fields.integer("expert_layer_period") == fields.integer("expert_layer_offset", default=0, low=0)
    if layer % fields.integer("moe_layer_freq", default=1):
        return False
    step = fields.integer("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    return (layer + 1) % step == 0


def kv_head_count(fields: Fields, heads: int) -> int:
    """Return the cached heads: GQA's count, one for MQA, or all of them."""
    # Falcon-7B says num_kv_heads=71 beside multi_query=true; its attention caches one head all the same.
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1
    nested = fields.get("attn_config")
    if isinstance(nested, Mapping) and nested.get("kv_n_heads"):
        return Fields(nested, f"{fields.where}: attn_config").integer("kv_n_heads", high=4096)
    names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
    return fields.integer(*names, default=heads, high=4096)
