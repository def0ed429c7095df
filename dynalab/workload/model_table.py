"""The table of known models: the fields of their published config.json that decide the KV cache and the arithmetic.

Every row is checked twice by the tests: its bytes per token against a hand computation, and the parameters that its
fields imply against the published count, which no wrong width, depth, head count or vocabulary would meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final


def _dense(
    repository: str,
    model_type: str,
    context: int,
    shape: tuple[int, int, int, int, int],
    vocab: int,
    **more: Any,
) -> dict[str, Any]:
    """Config fields of a model; `shape` is (layers, hidden, intermediate, query heads, KV heads)."""
    layers, hidden, intermediate, heads, kv_heads = shape
    return {
        "_name_or_path": repository,
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
        **more,
    }


_TIED: Final = {"tie_word_embeddings": True}
_DEEPSEEK_V3: Final = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
}
_QWEN3_MOE: Final = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}
_GPT_OSS: Final = {"head_dim": 64, "sliding_window": 128, "num_experts_per_tok": 4}
_GEMMA2: Final = {"sliding_window": 4096}
_LLAMA_70B: Final = (80, 8192, 28672, 64, 8)
_LLAMA_8B: Final = (32, 4096, 14336, 32, 8)

#: Published config fields by name. Qwen's unused ``sliding_window`` (``use_sliding_window`` is false) is left out.
CONFIGS: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        "llama-2-7b": _dense("meta-llama/Llama-2-7b-hf", "llama", 4096, (32, 4096, 11008, 32, 32), 32000),
        "llama-2-13b": _dense("meta-llama/Llama-2-13b-hf", "llama", 4096, (40, 5120, 13824, 40, 40), 32000),
        "llama-2-70b": _dense("meta-llama/Llama-2-70b-hf", "llama", 4096, _LLAMA_70B, 32000),
        "llama-3-8b": _dense("meta-llama/Meta-Llama-3-8B", "llama", 8192, _LLAMA_8B, 128256),
        "llama-3-70b": _dense("meta-llama/Meta-Llama-3-70B", "llama", 8192, _LLAMA_70B, 128256),
        "llama-3.1-8b": _dense("meta-llama/Llama-3.1-8B", "llama", 131072, _LLAMA_8B, 128256),
        "llama-3.1-70b": _dense("meta-llama/Llama-3.1-70B", "llama", 131072, _LLAMA_70B, 128256),
        "llama-3.1-405b": _dense("meta-llama/Llama-3.1-405B", "llama", 131072, (126, 16384, 53248, 128, 8), 128256),
        "llama-3.2-1b": _dense(
            "meta-llama/Llama-3.2-1B", "llama", 131072, (16, 2048, 8192, 32, 8), 128256, head_dim=64, **_TIED
        ),
        "llama-3.2-3b": _dense(
            "meta-llama/Llama-3.2-3B", "llama", 131072, (28, 3072, 8192, 24, 8), 128256, head_dim=128, **_TIED
        ),
        "llama-3.3-70b": _dense("meta-llama/Llama-3.3-70B-Instruct", "llama", 131072, _LLAMA_70B, 128256),
        # Version 0.3; 0.1 had the same shape with a sliding window of 4096 tokens in every layer.
        "mistral-7b": _dense("mistralai/Mistral-7B-v0.3", "mistral", 32768, _LLAMA_8B, 32768, sliding_window=None),
        "mistral-7b-v0.1": _dense("mistralai/Mistral-7B-v0.1", "mistral", 32768, _LLAMA_8B, 32000, sliding_window=4096),
        "mixtral-8x7b": _dense(
            "mistralai/Mixtral-8x7B-v0.1",
            "mixtral",
            32768,
            _LLAMA_8B,
            32000,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        "mixtral-8x22b": _dense(
            "mistralai/Mixtral-8x22B-v0.1",
            "mixtral",
            65536,
            (56, 6144, 16384, 48, 8),
            32000,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        "qwen2.5-7b": _dense("Qwen/Qwen2.5-7B", "qwen2", 131072, (28, 3584, 18944, 28, 4), 152064),
        "qwen2.5-14b": _dense("Qwen/Qwen2.5-14B", "qwen2", 131072, (48, 5120, 13824, 40, 8), 152064),
        "qwen2.5-32b": _dense("Qwen/Qwen2.5-32B", "qwen2", 131072, (64, 5120, 27648, 40, 8), 152064),
        "qwen2.5-72b": _dense("Qwen/Qwen2.5-72B", "qwen2", 131072, (80, 8192, 29568, 64, 8), 152064),
        "qwen3-8b": _dense("Qwen/Qwen3-8B", "qwen3", 40960, (36, 4096, 12288, 32, 8), 151936, head_dim=128),
        "qwen3-32b": _dense("Qwen/Qwen3-32B", "qwen3", 40960, (64, 5120, 25600, 64, 8), 151936, head_dim=128),
        "qwen3-30b-a3b": _dense(
            "Qwen/Qwen3-30B-A3B",
            "qwen3_moe",
            40960,
            (48, 2048, 6144, 32, 4),
            151936,
            moe_intermediate_size=768,
            **_QWEN3_MOE,
        ),
        "qwen3-235b-a22b": _dense(
            "Qwen/Qwen3-235B-A22B",
            "qwen3_moe",
            40960,
            (94, 4096, 12288, 64, 4),
            151936,
            moe_intermediate_size=1536,
            **_QWEN3_MOE,
        ),
        "qwen3-next-80b-a3b": _dense(
            "Qwen/Qwen3-Next-80B-A3B-Instruct",
            "qwen3_next",
            262144,
            (48, 2048, 5120, 16, 2),
            151936,
            head_dim=256,
            full_attention_interval=4,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            decoder_sparse_step=1,
        ),
        "deepseek-v2-lite": _dense(
            "deepseek-ai/DeepSeek-V2-Lite",
            "deepseek_v2",
            163840,
            (27, 2048, 10944, 16, 16),
            102400,
            **{
                **_DEEPSEEK_V3,
                "q_lora_rank": None,
                "moe_intermediate_size": 1408,
                "n_routed_experts": 64,
                "n_shared_experts": 2,
                "num_experts_per_tok": 6,
                "first_k_dense_replace": 1,
            },
        ),
        "deepseek-v3": _dense(
            "deepseek-ai/DeepSeek-V3", "deepseek_v3", 163840, (61, 7168, 18432, 128, 128), 129280, **_DEEPSEEK_V3
        ),
        "deepseek-r1": _dense(
            "deepseek-ai/DeepSeek-R1", "deepseek_v3", 163840, (61, 7168, 18432, 128, 128), 129280, **_DEEPSEEK_V3
        ),
        "kimi-k2": _dense(
            "moonshotai/Kimi-K2-Instruct",
            "kimi_k2",
            131072,
            (61, 7168, 18432, 64, 64),
            163840,
            **{**_DEEPSEEK_V3, "n_routed_experts": 384, "first_k_dense_replace": 1},
        ),
        "gemma-2-9b": _dense(
            "google/gemma-2-9b", "gemma2", 8192, (42, 3584, 14336, 16, 8), 256000, head_dim=256, **_GEMMA2
        ),
        "gemma-2-27b": _dense(
            "google/gemma-2-27b", "gemma2", 8192, (46, 4608, 36864, 32, 16), 256000, head_dim=128, **_GEMMA2
        ),
        # The language model alone: the vision tower (0.4 B parameters) keeps no KV.
        "gemma-3-27b": _dense(
            "google/gemma-3-27b-it",
            "gemma3_text",
            131072,
            (62, 5376, 21504, 32, 16),
            262208,
            head_dim=128,
            sliding_window=1024,
        ),
        "gpt-oss-20b": _dense(
            "openai/gpt-oss-20b", "gpt_oss", 131072, (24, 2880, 2880, 64, 8), 201088, num_local_experts=32, **_GPT_OSS
        ),
        "gpt-oss-120b": _dense(
            "openai/gpt-oss-120b", "gpt_oss", 131072, (36, 2880, 2880, 64, 8), 201088, num_local_experts=128, **_GPT_OSS
        ),
        # Its window is as good as full: larger than the context.
        "phi-3-mini": _dense(
            "microsoft/Phi-3-mini-128k-instruct",
            "phi3",
            131072,
            (32, 3072, 8192, 32, 32),
            32064,
            sliding_window=262144,
        ),
        # num_key_value_heads stands for num_kv_heads here; multi-query attention caches one head whatever it says.
        "falcon-7b": _dense(
            "tiiuae/falcon-7b",
            "falcon",
            2048,
            (32, 4544, 18176, 71, 71),
            65024,
            multi_query=True,
            new_decoder_architecture=False,
        ),
        "falcon-40b": _dense(
            "tiiuae/falcon-40b",
            "falcon",
            2048,
            (60, 8192, 32768, 128, 8),
            65024,
            multi_query=True,
            new_decoder_architecture=True,
        ),
        "command-r-plus": _dense(
            "CohereForAI/c4ai-command-r-plus", "cohere", 131072, (64, 12288, 33792, 96, 8), 256000
        ),
        "jamba-v0.1": _dense(
            "ai21labs/Jamba-v0.1",
            "jamba",
            262144,
            (32, 4096, 14336, 32, 8),
            65536,
            attn_layer_period=8,
            attn_layer_offset=4,
            num_experts=16,
            num_experts_per_tok=2,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=16,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_dt_rank=256,
        ),
        "smollm2-135m": _dense("HuggingFaceTB/SmolLM2-135M", "llama", 8192, (30, 576, 1536, 9, 3), 49152, **_TIED),
    }
)


_ENDINGS: Final = ("-instruct", "-chat", "-it", "-hf", "-base")


def canonical_name(name: str) -> str:
    """Write a model's name as the table does: lower case, no organisation, no ending that leaves the shapes alone.

    Examples
    --------
    >>> canonical_name("meta-llama/Meta-Llama-3-8B-Instruct")
    'llama-3-8b'
    """
    short = name.strip().lower().rstrip("/").rsplit("/", 1)[-1].replace("_", "-").removeprefix("meta-")
    while ending := next((end for end in _ENDINGS if short.endswith(end)), ""):
        short = short.removesuffix(ending)
    return short
