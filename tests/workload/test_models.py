"""Models: bytes per token from the fields of every attention family, and the arithmetic of a prefill."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynalab.errors import ConfigError
from dynalab.workload.attention import AttentionLayer
from dynalab.workload.model_table import CONFIGS, canonical_name
from dynalab.workload.models import MODELS, ModelSpec, model_spec

#: Layers x (heads x dimensions) x bytes, multiplied by hand. The first six are published as true in the field.
BYTES_PER_TOKEN = {
    "llama-3-8b": 131_072,
    "llama-2-70b": 327_680,
    "llama-3-70b": 327_680,
    "llama-2-7b": 524_288,
    "llama-3.1-405b": 516_096,
    "deepseek-v3": 70_272,
    "llama-2-13b": 40 * 2 * 40 * 128 * 2,
    "llama-3.1-8b": 32 * 2 * 8 * 128 * 2,
    "llama-3.1-70b": 80 * 2 * 8 * 128 * 2,
    "llama-3.3-70b": 80 * 2 * 8 * 128 * 2,
    "llama-3.2-1b": 16 * 2 * 8 * 64 * 2,
    "llama-3.2-3b": 28 * 2 * 8 * 128 * 2,
    "mistral-7b": 32 * 2 * 8 * 128 * 2,
    "mistral-7b-v0.1": 32 * 2 * 8 * 128 * 2,
    "mixtral-8x7b": 32 * 2 * 8 * 128 * 2,
    "mixtral-8x22b": 56 * 2 * 8 * 128 * 2,
    "qwen2.5-7b": 28 * 2 * 4 * 128 * 2,
    "qwen2.5-14b": 48 * 2 * 8 * 128 * 2,
    "qwen2.5-32b": 64 * 2 * 8 * 128 * 2,
    "qwen2.5-72b": 80 * 2 * 8 * 128 * 2,
    "qwen3-8b": 36 * 2 * 8 * 128 * 2,
    "qwen3-32b": 64 * 2 * 8 * 128 * 2,
    "qwen3-30b-a3b": 48 * 2 * 4 * 128 * 2,
    "qwen3-235b-a22b": 94 * 2 * 4 * 128 * 2,
    "qwen3-next-80b-a3b": 12 * 2 * 2 * 256 * 2,
    "deepseek-v2-lite": 27 * (512 + 64) * 2,
    "deepseek-r1": 61 * (512 + 64) * 2,
    "kimi-k2": 61 * (512 + 64) * 2,
    "gemma-2-9b": 42 * 2 * 8 * 256 * 2,
    "gemma-2-27b": 46 * 2 * 16 * 128 * 2,
    "gemma-3-27b": 62 * 2 * 16 * 128 * 2,
    "gpt-oss-20b": 24 * 2 * 8 * 64 * 2,
    "gpt-oss-120b": 36 * 2 * 8 * 64 * 2,
    "phi-3-mini": 32 * 2 * 32 * 96 * 2,
    "falcon-7b": 32 * 2 * 1 * 64 * 2,
    "falcon-40b": 60 * 2 * 8 * 64 * 2,
    "command-r-plus": 64 * 2 * 8 * 128 * 2,
    "jamba-v0.1": 4 * 2 * 8 * 128 * 2,
    "smollm2-135m": 30 * 2 * 3 * 64 * 2,
}

#: Published parameters (of the safetensors files or the model cards) and, for mixtures, the active ones in 1e9 as the
#: cards give them: (total, active, tolerance of active). Cards round, and some leave the embeddings out.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "phi-3-mini": 3_821_079_552,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "command-r-plus": 103_810_674_688,
    "jamba-v0.1": 51_570_323_328,
    "smollm2-135m": 134_515_008,
}
ACTIVE = {
    "mixtral-8x7b": 12.9e9,
    "mixtral-8x22b": 39.1e9,
    "qwen3-30b-a3b": 3.3e9,
    "qwen3-235b-a22b": 22.2e9,
    "deepseek-v3": 37.5e9,
    "kimi-k2": 32.8e9,
    "jamba-v0.1": 12.1e9,
}

#: What others published (a thousand times too low, or without MLA), to be refused for good.
WRONG = {
    "llama-3-8b": 128,
    "llama-2-70b": 320,
    "llama-2-7b": 2_048,
    "deepseek-v3": 1_749_384,
    "llama-3.1-405b": 516_018,
}

BASE = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}


def spec(**more):
    return ModelSpec.from_config({**BASE, **more})


def kinds(model):
    return "".join({"full": "F", "sliding": "S", "none": "-"}[layer.kind] for layer in model.layers)


def test_every_model_of_the_table_is_checked_by_hand():
    assert len(MODELS) >= 25
    assert {name: model.bytes_per_token for name, model in MODELS.items()} == BYTES_PER_TOKEN


@pytest.mark.parametrize("name", WRONG)
def test_the_wrong_values_of_others_are_not_ours(name):
    assert MODELS[name].bytes_per_token == BYTES_PER_TOKEN[name] != WRONG[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_fields_imply_the_published_parameters(name):
    assert MODELS[name].total_params == pytest.approx(PARAMETERS[name], rel=5e-4)


@pytest.mark.parametrize("name", MODELS)
def test_only_mixtures_of_experts_leave_parameters_idle(name):
    model = MODELS[name]
    if name in ACTIVE:
        assert model.active_params == pytest.approx(ACTIVE[name], rel=0.02)
    mixture = any("experts" in field for field in CONFIGS[name])
    assert (model.active_params < model.total_params) == mixture


def test_gpt_oss_active_parameters_without_the_input_embedding_are_those_of_the_model_card():
    for name, published in (("gpt-oss-20b", 3.61e9), ("gpt-oss-120b", 5.13e9)):
        embedding = 201_088 * 2880
        assert MODELS[name].active_params - embedding == pytest.approx(published, rel=0.005)


def test_smollm2_in_fp32_is_what_a_real_run_of_it_keeps():
    assert MODELS["smollm2-135m"].with_dtype("fp32").bytes_per_token == 46_080


def test_dtypes_scale_the_cache_and_nothing_else():
    model = MODELS["gemma-3-27b"]
    eight = model.with_dtype("fp8")
    assert eight.bytes_per_token * 2 == model.bytes_per_token
    assert eight.kv_bytes(9999) * 2 == model.kv_bytes(9999)
    assert eight.prefill_flops(100) == model.prefill_flops(100)
    assert eight.with_dtype("bf16") == model
    with pytest.raises(ConfigError, match="kv_dtype: 'fp7' is not a KV cache type; write one of fp32"):
        model.with_dtype("fp7")


def test_multi_head_grouped_and_multi_query_attention():
    assert spec().bytes_per_token == 4 * 2 * 8 * 32 * 2
    assert spec(num_key_value_heads=None).bytes_per_token == 4 * 2 * 8 * 32 * 2
    assert spec(num_key_value_heads=2).bytes_per_token == 4 * 2 * 2 * 32 * 2
    assert spec(num_key_value_heads=2, head_dim=128).bytes_per_token == 4 * 2 * 2 * 128 * 2
    assert spec(num_key_value_heads=2, head_dim=48, v_head_dim=32).bytes_per_token == 4 * 2 * (48 + 32) * 2
    assert spec(model_type="gpt_bigcode").bytes_per_token == 4 * 2 * 1 * 32 * 2
    assert spec(model_type="falcon", num_kv_heads=8).bytes_per_token == 4 * 2 * 1 * 32 * 2
    assert (
        spec(model_type="falcon", num_kv_heads=8, new_decoder_architecture=True).bytes_per_token == 4 * 2 * 8 * 32 * 2
    )
    assert spec(model_type="falcon", n_head_kv=4, multi_query=False).bytes_per_token == 4 * 2 * 4 * 32 * 2
    assert spec(attn_config={"kv_n_heads": 2}).bytes_per_token == 4 * 2 * 2 * 32 * 2


def test_gpt2_style_names_are_understood():
    config = {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    model = ModelSpec.from_config(config)
    assert model.bytes_per_token == 12 * 2 * 768 * 2
    assert model.max_context == 1024
    assert model.total_params == pytest.approx(124_439_808, rel=0.01)


def test_latent_attention_keeps_one_latent_per_layer():
    mla = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 24, "q_lora_rank": None}
    model = spec(**mla, num_key_value_heads=8)
    assert model.bytes_per_token == 4 * (64 + 16) * 2
    layer = model.layers[0]
    assert layer.flops_per_pair == 2 * 8 * (32 + 16 + 24)
    with pytest.raises(ConfigError, match="config: v_head_dim: is missing"):
        spec(**{**mla, "v_head_dim": None})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"sliding_window": 128}, "SSSS"),
        ({"sliding_window": None}, "FFFF"),
        ({"sliding_window": 128, "use_sliding_window": False}, "FFFF"),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 3}, "FFFS"),
        ({"model_type": "qwen2", "sliding_window": 128, "max_window_layers": 0}, "FFFF"),
        ({"sliding_window": 128, "sliding_window_pattern": 2}, "SFSF"),
        ({"sliding_window": 128, "sliding_window_pattern": "LLG"}, "SSFS"),
        ({"model_type": "gemma2"}, "SFSF"),
        ({"model_type": "cohere2", "sliding_window": 64}, "SSSF"),
        ({"model_type": "gpt_oss", "sliding_window": 64}, "SFSF"),
        ({"sliding_window": 8, "layer_types": ["full_attention", *["sliding_attention"] * 3]}, "FSSS"),
        ({"layer_types": ["mamba", "attention", "mamba", "attention"], "mamba_d_state": 16}, "-F-F"),
        ({"model_type": "jamba", "num_hidden_layers": 8, "mamba_d_state": 16}, "----F---"),
        ({"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16}, "-F-F"),
        ({"hybrid_override_pattern": "M-*-", "mamba_num_heads": 8, "ssm_state_size": 16}, "--F-"),
        (
            {
                "model_type": "qwen3_next",
                "linear_num_value_heads": 4,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            "---F",
        ),
        ({"attn_layer_indices": [2], "mamba_d_state": 16, "mamba_n_heads": 8}, "--F-"),
        ({"attn_type_list": [0, 0, 1, 1], "total_params": 10**6, "active_params": 10**6}, "--FF"),
        ({"linear_attn_config": {"full_attn_layers": [4]}, "total_params": 9, "active_params": 9}, "---F"),
        (
            {
                "block_types": ["recurrent", "recurrent", "attention"],
                "attention_window_size": 2048,
                "total_params": 10**6,
                "active_params": 10**6,
            },
            "--S-",
        ),
        ({"attention_chunk_size": 8192}, "SSSF"),
        ({"attention_chunk_size": 8192, "no_rope_layers": [1, 0, 1, 0]}, "SFSF"),
    ],
)
def test_which_layers_keep_what(more, expected):
    assert kinds(spec(**more)) == expected


def test_nested_text_configs_win_over_the_outer_fields():
    text = {**BASE, "model_type": "gemma3_text", "num_attention_heads": None, "sliding_window": 16}
    outer = {"model_type": "gemma3", "torch_dtype": "float16", "vision_config": {"hidden_size": 7}, "text_config": text}
    model = ModelSpec.from_config(outer)
    # Published Gemma 3 files leave out the heads: 8 and 4 of 256 by their configuration class.
    assert model.layers[0].query_heads == 8
    assert model.bytes_per_token == 4 * 2 * 4 * 256 * 2
    assert model.kv_dtype == "fp16"
    assert kinds(model) == "SSSS"


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ({}, "bf16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"dtype": "torch.float32"}, "fp32"),
        ({"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}, "bf16"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}, "fp8"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "int"}}}, "int8"),
        ({"quantization_config": {"kv_cache_quant_algo": "FP8"}}, "fp8"),
        ({"quantization_config": {"kv_cache_quant_algo": None}}, "bf16"),
    ],
)
def test_the_cache_has_the_type_that_the_configuration_says(more, dtype):
    assert spec(**more).kv_dtype == dtype


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers: is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is absurd"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True is absurd"),
        ({"num_attention_heads": "8"}, "num_attention_heads: '8' is absurd"),
        ({"num_attention_heads": 10**9}, "num_attention_heads: 1000000000 is absurd"),
        ({"hidden_size": -256}, "hidden_size: -256 is absurd"),
        ({"hidden_size": 250}, "head_dim: is missing, and hidden_size 250 is not a multiple of 8 heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide the 8 query heads"),
        ({"num_key_value_heads": [2, 2, 4, 4]}, "num_key_value_heads: [2, 2, 4, 4] is absurd"),
        ({"sliding_window": 0}, "sliding_window: 0 is absurd"),
        ({"layer_types": ["full_attention"]}, "layer_types: describes 1 layers, but num_hidden_layers is 4"),
        ({"layer_types": ["quantum"] * 4}, "layer_types: 'quantum' is not a known kind"),
        ({"layer_types": "full_attention"}, "layer_types: 'full_attention' is absurd"),
        ({"hybrid_override_pattern": "MXM*"}, "hybrid_override_pattern: 'MXM*' is absurd"),
        ({"attn_layer_indices": ["2"]}, "attn_layer_indices: ['2'] is absurd"),
        ({"linear_attn_config": {}}, "linear_attn_config: None is absurd"),
        ({"index_topk": 2048}, "index_topk: sparse attention"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers: layers that share one KV cache"),
        ({"torch_dtype": "float4"}, "torch_dtype: 'float4' is not a KV cache type"),
        ({"quantization_config": {"kv_cache_quant_algo": "NVFP4"}}, "KV cache type 'nvfp4' is not known"),
        ({"vocab_size": None}, "vocab_size: is missing"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"layer_types": ["linear_attention", "full_attention"] * 2}, "total_params: parameters of these layers"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok: 5 is absurd"),
    ],
)
def test_absurd_configurations_name_the_field_and_the_file(more, culprit, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, **more}))
    for config, where in (({**BASE, **more}, "config"), (path, str(path)), (str(tmp_path), str(path))):
        with pytest.raises(ConfigError) as caught:
            ModelSpec.from_config(config)
        message = str(caught.value)
        assert message.startswith(f"{where}: ")
        assert culprit in message
        assert "\n" not in message


def test_uncountable_parameters_can_be_given():
    more = {"layer_types": ["linear_attention", "full_attention"] * 2}
    model = ModelSpec.from_config({**BASE, **more}, total_params=10**12, active_params=10**9)
    assert (model.total_params, model.active_params) == (10**12, 10**9)
    assert spec(**more, total_params=10**12, active_params=10**9).total_params == 10**12


def test_files_are_read_with_their_names_and_their_cache_type(tmp_path):
    home = tmp_path / "My-Model"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(BASE))
    model = model_spec(str(home))
    assert (model.name, model.kv_dtype, model.source) == ("My-Model", "bf16", str(home / "config.json"))
    assert model_spec(home / "config.json") == model
    (home / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}')
    assert model_spec(home).kv_dtype == "fp8"
    (home / "hf_quant_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json: has no readable 'quantization'"):
        model_spec(home)


@pytest.mark.parametrize(
    ("text", "why"), [("{", "is not JSON"), ("[1]", "holds a list, not an object"), ("\x00", "is not JSON")]
)
def test_files_that_are_no_configuration(tmp_path, text, why):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        model_spec(path)
    assert str(caught.value).startswith(f"{path}: {why}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read \(No such file"):
        model_spec(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        model_spec(tmp_path)


@pytest.mark.parametrize(
    "written",
    ["llama-3-8b", "LLAMA-3-8B", " llama_3_8b ", "meta-llama/Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct-hf"],
)
def test_names_are_forgiving(written):
    assert model_spec(written) is MODELS["llama-3-8b"]


def test_specs_and_dictionaries_pass_through():
    assert model_spec(MODELS["kimi-k2"]) is MODELS["kimi-k2"]
    assert model_spec(BASE).bytes_per_token == 4 * 2 * 256 * 2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_repository_of_a_model_leads_to_it(name):
    repository = CONFIGS[name]["_name_or_path"]
    assert model_spec(repository) is model_spec(repository.split("/")[1]) is MODELS[name]
    assert MODELS[name].source == f"config of {repository}"
    assert canonical_name(name) == name


def test_an_unknown_name_comes_with_close_ones_and_the_way_out():
    with pytest.raises(ConfigError) as caught:
        model_spec("lama-3-8b")
    message = str(caught.value)
    assert message.startswith("model: 'lama-3-8b' is not in the table; did you mean llama-3-8b")
    assert "config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", ["", None, 3, True, b"llama-3-8b"])
def test_things_that_are_no_model(bad):
    with pytest.raises(ConfigError, match="is not a model; write a name such as"):
        model_spec(bad)


def brute_pairs(new, cached, window):
    return sum(min(cached + i, window or 10**9) for i in range(1, new + 1))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50))
def test_flops_count_every_attended_pair(new, cached, window):
    model = spec(num_key_value_heads=2, sliding_window=window, sliding_window_pattern=2)
    attention = sum(2 * 8 * (32 + 32) * brute_pairs(new, cached, layer.window) for layer in model.layers)
    assert model.prefill_flops(new, cached) == 2 * model.active_params * new + attention


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000))
def test_prefilling_in_two_steps_costs_what_one_costs(first, second, cached):
    model = MODELS["gpt-oss-20b"]
    parts = model.prefill_flops(first, cached) + model.prefill_flops(second, cached + first)
    assert parts == pytest.approx(model.prefill_flops(first + second, cached), rel=1e-12)


def test_full_attention_is_four_flop_per_head_dimension_and_pair():
    model = MODELS["llama-3-8b"]
    pairs = 1000 * 1001 // 2
    assert model.prefill_flops(1000) == 2 * model.active_params * 1000 + 32 * 4 * 32 * 128 * pairs


@given(st.sampled_from(sorted(MODELS)), st.integers(0, 300_000))
def test_kv_bytes_saturate_at_the_windows_and_never_shrink(name, tokens):
    model = MODELS[name]
    here, there = model.kv_bytes(tokens), model.kv_bytes(tokens + 1)
    assert 0 <= there - here <= model.bytes_per_token
    assert there - here >= model.asymptotic_bytes_per_token
    assert here <= tokens * model.bytes_per_token
    by_hand = sum(min(tokens, layer.window or tokens) * layer.elements_per_token for layer in model.layers)
    assert here == by_hand * model.dtype_bytes


def test_windows_bound_a_long_sequence():
    assert MODELS["mistral-7b-v0.1"].kv_bytes(10**6) == 4096 * 131_072
    assert MODELS["mistral-7b"].kv_bytes(10**6) == 10**6 * 131_072
    gemma = MODELS["gemma-3-27b"]
    # 62 layers of which every sixth is full: 10 full ones.
    assert gemma.kv_bytes(100_000) == 2 * 16 * 128 * 2 * (10 * 100_000 + 52 * 1024)
    assert gemma.kv_bytes_per_token(100_000) == gemma.kv_bytes(100_000) / 100_000
    assert gemma.kv_bytes_per_token() == gemma.bytes_per_token


def test_arrays_give_what_scalars_give():
    model = MODELS["gemma-2-9b"]
    tokens = np.array([[0, 1, 4096], [4097, 8000, 10**6]])
    assert model.kv_bytes(tokens).tolist() == [[model.kv_bytes(int(t)) for t in row] for row in tokens]
    flops = model.prefill_flops(tokens, 7)
    assert flops.dtype == np.float64
    assert flops.tolist() == [[model.prefill_flops(int(t), 7) for t in row] for row in tokens]
    assert type(model.kv_bytes(3)) is int
    assert type(model.prefill_flops(3)) is float


def test_blocks_hold_every_layer():
    assert MODELS["llama-3-8b"].block_bytes(512) == 64 * 2**20
    assert MODELS["gpt-oss-20b"].block_bytes(16) == 16 * 49_152


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None, "16"])
def test_bad_block_sizes(bad):
    with pytest.raises(ConfigError, match="block_tokens: "):
        MODELS["llama-3-8b"].block_bytes(bad)


@pytest.mark.parametrize("bad", [-1, 1.5, True, None, np.array([1, -2])])
def test_bad_token_counts(bad):
    with pytest.raises(ConfigError, match="context_tokens: "):
        MODELS["llama-3-8b"].kv_bytes(bad)
    with pytest.raises(ConfigError, match="new_tokens: "):
        MODELS["llama-3-8b"].prefill_flops(bad)
    with pytest.raises(ConfigError, match="cached_tokens: "):
        MODELS["llama-3-8b"].prefill_flops(1, bad)


def test_a_spec_is_shown_in_one_line():
    assert (
        repr(MODELS["gemma-3-27b"])
        == str(MODELS["gemma-3-27b"])
        == ("ModelSpec(gemma-3-27b: 52 sliding, 10 full layers, 507,904 B of bf16 KV per token, 27e9 parameters)")
    )


def test_specs_are_frozen_and_checked():
    good = dict(MODELS["llama-3-8b"])
    with pytest.raises(ValidationError):
        MODELS["llama-3-8b"].name = "other"
    for change, why in (
        ({"active_params": 10**15}, "active_params=1000000000000000 exceeds total_params"),
        ({"hidden_size": 0}, "model 'llama-3-8b': hidden_size: 0: input should be greater than 0"),
        ({"hiden_size": 4096}, "hiden_size is no field of it; write one of name, layers"),
        ({"layers": (AttentionLayer(kind="none"),)}, "no layer has a KV cache"),
        ({"kv_dtype": "fp7"}, "kv_dtype: 'fp7'"),
    ):
        with pytest.raises(ConfigError) as caught:
            ModelSpec(**{key: value for key, value in good.items() if not key.startswith("_")} | change)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="window belongs to kind='sliding'"):
        AttentionLayer(query_heads=1, kv_heads=1, key_dim=1, value_dim=1, window=3)
    with pytest.raises(ConfigError, match="query_heads=3 is not a multiple of kv_heads=2"):
        AttentionLayer(query_heads=3, kv_heads=2, key_dim=1, value_dim=1)
    with pytest.raises(ConfigError, match="needs query_heads"):
        AttentionLayer(kind="full")
