"""Report parameters: everything wrong is said before anything starts, in one line; equal runs get equal hashes."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dynalab.errors import ConfigError, DynalabError, TraceError
from dynalab.lab.parameters import ReportParameters


def write_trace(path: Path, requests: int = 8) -> Path:
    """A Mooncake trace of two-block prompts that share their first block."""
    lines = [
        json.dumps({"timestamp": 1000 * i, "input_length": 1000, "output_length": 10, "hash_ids": [0, i + 1]})
        for i in range(requests)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "my trace.v1.jsonl")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"device": "40 gigs"}, ["device", "40 gigs", "40GiB"]),
        ({"host": "-1GiB"}, ["host", "-1GiB", "negative"]),
        ({"device": 0, "host": "0", "disk": "0GiB"}, ["device, host, disk", "all are 0"]),
        ({"model": "llama-9-1b"}, ["llama-9-1b"]),
        ({"hardware": "abacus"}, ["abacus"]),
        ({"policies": "lru,lrru"}, ["lrru", "lru"]),
        ({"policies": []}, ["policies", "default"]),
        ({"policies": ["default", "lru"]}, ["default"]),
        ({"target_hit_ratio": 1.5}, ["target_hit_ratio", "1.5", "less than or equal to 1"]),
        ({"target_hit_ratio": "nan"}, ["target_hit_ratio", "nan", "finite"]),
        ({"target_hit_ratio": 0.4, "budget": 100}, ["target_hit_ratio", "0.4", "budget 100"]),
        ({"block_tokens": "many"}, ["block_tokens", "many", "integer"]),
        ({"block_tokens": -1}, ["block_tokens", "-1"]),
        ({"speedup": 0}, ["speedup", "0", "greater than 0"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"duration_s": "1 fortnight"}, ["duration_s", "fortnight"]),
        ({"trace_sha256": "abc"}, ["trace_sha256", "abc"]),
        ({"colour": "red"}, ["colour", "no such parameter", "block_tokens"]),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ReportParameters(**values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_texts_of_a_command_line_are_understood() -> None:
    made = ReportParameters(
        block_tokens="128", speedup="2.5", duration_s="1h", policies=["lru,S3FIFO", "lru"], seed="7"
    )
    assert (made.block_tokens, made.speedup, made.duration_s, made.seed) == (128, 2.5, 3600.0, 7)
    assert made.policies == ["lru", "s3fifo"]
    assert ReportParameters(policies="all").policies == "all"
    assert ReportParameters().tier_bytes() == {"device": 40 << 30, "host": 512 << 30, "disk": 4 * 10**12}


def test_defaults_pass_their_own_checks() -> None:
    # pydantic does not validate defaults by itself.
    assert ReportParameters(**ReportParameters().model_dump()) == ReportParameters()


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ReportParameters().seed = 3  # type: ignore[misc]


def test_resolving_reads_the_trace_and_pins_it(trace: Path) -> None:
    resolved, read = ReportParameters(trace=str(trace)).resolve()
    assert read.n_requests == 8
    assert resolved.trace == str(trace)
    assert resolved.trace_sha256 == read.sha256
    assert len(read.sha256) == 64
    assert resolved.load_trace().n_accesses == 16
    assert resolved.default_name() == "my-trace"


def test_relative_paths_become_absolute(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parent)
    resolved, _ = ReportParameters(trace=trace.name).resolve()
    assert resolved.trace == str(trace)


def test_a_changed_trace_is_noticed(trace: Path) -> None:
    resolved, _ = ReportParameters(trace=str(trace)).resolve()
    write_trace(trace, requests=9)
    with pytest.raises(TraceError, match="another trace"):
        resolved.load_trace()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trace": "absent.jsonl"}, ["absent.jsonl", "no such file", "conversation"]),
        ({"rate": 2}, ["rate", "2", "presets", "speedup"]),
        ({"duration_s": "1h"}, ["duration_s", "3600", "presets"]),
        ({"device": "1KiB", "host": 0, "disk": 0}, ["device", "'1KiB'", "512 tokens", "bytes or more"]),
        ({"host": "1KiB"}, ["host", "'1KiB'"]),
        ({"trace_format": "parquet"}, ["parquet"]),
    ],
)
def test_what_the_trace_does_not_allow_is_refused(trace: Path, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DynalabError) as caught:
        ReportParameters(**{"trace": str(trace)} | values).resolve()
    for word in words:
        assert word in str(caught.value)


def test_a_trace_without_blocks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    with pytest.raises(TraceError, match="with_prefixes"):
        ReportParameters(trace=str(path)).resolve()


def digest(**values: Any) -> str:
    return ReportParameters(**values).resolve()[0].digest()


def test_equal_contents_have_equal_hashes(trace: Path, tmp_path: Path) -> None:
    first = digest(trace=str(trace))
    assert len(first) == 10
    assert int(first, 16) >= 0
    copy = tmp_path / "elsewhere.jsonl.gz"
    copy.write_bytes(gzip.compress(trace.read_bytes()))
    assert digest(trace=str(copy)) == first, "the same text elsewhere, compressed"
    assert digest(trace=str(trace), device="40 gib", disk="4e12") == first, "the same sizes, written otherwise"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"device": "41GiB"},
        {"policies": ["lru"]},
        {"model": "llama-3-8b"},
        {"speedup": 2},
        {"target_hit_ratio": 0.3},
        {"block_tokens": 1024},
    ],
)
def test_another_parameter_gives_another_hash(trace: Path, change: dict[str, Any]) -> None:
    assert digest(trace=str(trace), **change) != digest(trace=str(trace))


def test_a_model_file_counts_by_content(trace: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    facts = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "vocab_size": 1000,
        "torch_dtype": "bfloat16",
    }
    config.write_text(json.dumps(facts))
    moved = tmp_path / "moved" / "config.json"
    moved.parent.mkdir()
    shutil.copy(config, moved)
    first = digest(trace=str(trace), model=str(config))
    assert digest(trace=str(trace), model=str(moved)) == first
    config.write_text(json.dumps(facts | {"num_hidden_layers": 4}))
    assert digest(trace=str(trace), model=str(config)) != first


def test_presets_are_hashed_by_what_they_make() -> None:
    short = {"trace": "conversation", "duration_s": 30}
    assert digest(**short) == digest(**short)
    assert digest(**short, seed=1) != digest(**short)
    assert ReportParameters(**short).default_name() == "conversation"
