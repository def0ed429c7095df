"""Every public format, from a few lines of it to a trace."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest
from trace_strategies import rows_of

from dynalab.errors import TraceError
from dynalab.workload import read_trace
from dynalab.workload.formats import FORMATS


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def dynamo(received, prompt, output, hashes, size=64, **more):
    return {
        "schema": "dynamo.request.trace.v1",
        "event_type": "request_end",
        "event_time_unix_ms": received + 500,
        "request": {
            "request_id": f"r{received}",
            "request_received_ms": received,
            "output_tokens": output,
            "replay": {"trace_block_size": size, "input_length": prompt, "input_sequence_hashes": hashes},
        },
        **more,
    }


def aiperf(start, prompt, output, **changes):
    metrics = {
        "input_sequence_length": {"value": prompt, "unit": "tokens"},
        "output_sequence_length": {"value": output, "unit": "tokens"},
        "inter_chunk_latency": {"value": [1.0, 2.0], "unit": "ms"},
    }
    row = {
        "metadata": {"request_start_ns": start, "benchmark_phase": "profiling", "was_cancelled": False},
        "metrics": metrics,
        "error": None,
    }
    return {**row, **changes}


MOONCAKE = jsonl(
    {"timestamp": 27, "input_length": 600, "output_length": 5, "hash_ids": [46, 47]},
    {"timestamp": 3027, "input_length": 1024, "output_length": 6, "hash_ids": [46, 48]},
    {"timestamp": 3027, "input_length": 1, "output_length": 0, "hash_ids": [49]},
)
BAILIAN = jsonl(
    {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33, "output_length": 5, "type": "text",
     "turn": 1, "hash_ids": [1089, 1090, 1091]},
    {"chat_id": 2, "parent_chat_id": 1, "timestamp": 62.5, "input_length": 32, "output_length": 6, "type": "text",
     "turn": 2, "hash_ids": [1089, 1090]},
)  # fmt: skip
DYNAMO = jsonl(
    {"event_type": "request_payload", "request_id": "r1"},
    dynamo(1_780_000_004_500, 65, 8, [2**64 - 1, 12]),
    {"timestamp": 3, "event": dynamo(1_780_000_001_000, 128, 7, [2**64 - 1, 2**63], agent_context={"session_id": "s"})},
    {"schema": "dynamo.request.trace.v1", "event_type": "tool_end", "event_time_unix_ms": 3, "tool": {}},
)
AIPERF = jsonl(
    aiperf(1_780_000_000_000_000_123, 550, 20, metadata={"request_start_ns": 1, "benchmark_phase": "warmup"}),
    aiperf(1_780_000_003_250_000_000, 550.0, 20),
    aiperf(1_780_000_001_000_000_000, 300, 10),
    aiperf(1_780_000_002_000_000_000, 1, 1, error={"code": 500, "type": "x", "message": "y"}, metrics={}),
    aiperf(0, 1, 1, metadata={"request_start_ns": 5, "was_cancelled": True, "benchmark_phase": "profiling"}),
)
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-12 00:00:00+00:00,76,15
"""
AZURE_SECONDS = "arrived_at,num_prefill_tokens,num_decode_tokens\r\n0.5,374,44\r\n4.814579,396,109\r\n"
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,API log
60,GPT-4,0,0,0,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
BURSTGPT_2 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.5,"a,b",1.5,ChatGPT,472,18,490,Conversation log
45.0,,,GPT-4,17,3,20,API log
"""

# name: text, format, arrivals (s), input tokens, output tokens, block ids, block tokens, dropped rows
SAMPLES = {
    "mooncake": (MOONCAKE, "mooncake", [0, 3, 3], [600, 1024, 1], [5, 6, 0], [[0, 1], [0, 2], [3]], 512, 0),
    "bailian": (BAILIAN, "bailian", [0, 62.5 - 61.114], [33, 32], [5, 6], [[0, 1, 2], [0, 1]], 16, 0),
    "dynamo": (DYNAMO, "dynamo", [0, 3.5], [128, 65], [7, 8], [[0, 1], [0, 2]], 64, 2),
    "aiperf": (AIPERF, "aiperf", [0, 2.25], [300, 550], [10, 20], None, None, 3),
    "azure-2023": (AZURE_2023, "azure", [0, 4.314579], [374, 396], [44, 109], None, None, 0),
    "azure-2024": (AZURE_2024, "azure", [0, 0.007405, 172799.99007], [2162, 2399, 76], [5, 6, 15], None, None, 0),
    "azure-seconds": (AZURE_SECONDS, "azure", [0, 4.814579 - 0.5], [374, 396], [44, 109], None, None, 0),
    "burstgpt": (BURSTGPT, "burstgpt", [0, 113], [472, 417], [18, 276], None, None, 2),
    "burstgpt-2": (BURSTGPT_2, "burstgpt", [0, 39.5], [472, 17], [18, 3], None, None, 0),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_format_is_detected_and_read(sample, packed, tmp_path):
    text, name, arrival, prompts, outputs, rows, size, dropped = SAMPLES[sample]
    data = text.encode()
    file = tmp_path / ("trace.txt.gz" if packed else "trace.txt")
    file.write_bytes(gzip.compress(data) if packed else data)
    for format in ("auto", name):
        trace = read_trace(file, format)
        assert trace.arrival.tolist() == arrival
        assert trace.input_tokens.tolist() == prompts
        assert trace.output_tokens.tolist() == outputs
        assert trace.block_tokens == size
        assert rows_of(trace) == (rows or [[] for _ in prompts])
        assert trace.attrs["format"] == name
        assert trace.attrs["dropped_rows"] == dropped
        assert trace.sha256 == hashlib.sha256(data).hexdigest()
        assert trace.source == str(file)
    columns = (trace.arrival, trace.input_tokens, trace.output_tokens, trace.block_ids, trace.offsets)
    assert [column.dtype.name for column in columns] == ["float64", "int32", "int32", "int32", "int64"]


def test_every_format_has_a_sample():
    assert {sample[1] for sample in SAMPLES.values()} == set(FORMATS)


def test_origin_tells_the_first_timestamp(tmp_path):
    for name, origin in (("mooncake", 0.027), ("bailian", 61.114), ("dynamo", 1_780_000_001.0), ("burstgpt", 5.0)):
        (tmp_path / name).write_text(SAMPLES[name][0])
        assert read_trace(tmp_path / name).attrs["origin_s"] == origin


def test_mooncake_variants(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(jsonl({"timestamp": 0.5, "input_length": 9, "output_length": 1, "session_id": "a"},
                          {"timestamp": 2, "input_length": 7, "output_length": 1, "hash_ids": None}))  # fmt: skip
    trace = read_trace(file)
    assert trace.arrival.tolist() == [0, 0.0015]
    assert not trace.has_blocks
    file.write_text(jsonl({"created_time": 10, "input_tokens": 9, "output_tokens": 1, "hash_ids": [3]}))
    assert read_trace(file).n_accesses == 1
    # A byte order mark, blank lines, Windows line ends and no line end at the end.
    file.write_bytes(b"\xef\xbb\xbf\n" + MOONCAKE.replace("\n", "\r\n\r\n").encode().strip())
    assert read_trace(file).input_tokens.tolist() == [600, 1024, 1]


def test_block_size_can_be_given(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(jsonl({"timestamp": 0, "input_length": 300, "output_length": 1, "hash_ids": [1, 2, 3]}))
    assert read_trace(file, block_tokens=128).block_tokens == 128
    with pytest.raises(TraceError, match=r"t.jsonl:1: 3 hash_ids for 300 input tokens: blocks of 512 tokens need 1 "
                                         r"\(the last may be partial\); if a block holds 128 tokens, pass "
                                         r"block_tokens=128"):  # fmt: skip
        read_trace(file)
    for wrong in (0, -4, 12.5, True):
        with pytest.raises(TraceError, match=r"block_tokens is .*: it must be a whole number from 1 up"):
            read_trace(file, block_tokens=wrong)


def test_sort_is_stable(tmp_path):
    file = tmp_path / "t.jsonl"
    rows = [(20, 4, [9]), (10, 700, [9, 8]), (20, 6, [7]), (10, 3, [5])]
    file.write_text(jsonl(*({"timestamp": at, "input_length": n, "output_length": 1, "hash_ids": ids}
                            for at, n, ids in rows)))  # fmt: skip
    trace = read_trace(file, sort=True)
    assert trace.input_tokens.tolist() == [700, 3, 4, 6]
    assert rows_of(trace) == [[0, 1], [2], [0], [3]]
    with pytest.raises(TraceError, match=r"t.jsonl:2: timestamp runs backwards, from 20 to 10: read it with sort=True"):
        read_trace(file)


def test_several_files_are_one_trace(tmp_path):
    lines = MOONCAKE.splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(lines[1:]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[0].encode()))
    (tmp_path / "README.md").write_text("not a trace")
    whole = tmp_path / "elsewhere"
    whole.mkdir()
    (whole / "trace.jsonl").write_text(MOONCAKE)
    one = read_trace(whole)
    for place in (tmp_path, str(tmp_path / "[ab].jsonl*")):
        many = read_trace(place)
        assert many.equals(one)
        assert many.sha256 == one.sha256
        assert many.attrs["files"] == ["a.jsonl.gz", "b.jsonl"]


def test_csv_columns_may_move_from_file_to_file(tmp_path):
    (tmp_path / "1.csv").write_text(AZURE_2023)
    (tmp_path / "2.csv").write_text("GeneratedTokens,TIMESTAMP,ContextTokens\n7,2023-11-16 18:15:51,8\n")
    trace = read_trace(tmp_path)
    assert trace.input_tokens.tolist() == [374, 396, 8]
    assert trace.arrival[2] == 4.31941


def test_aiperf_artifact_directory(tmp_path):
    (tmp_path / "profile_export.jsonl").write_text(AIPERF)
    (tmp_path / "profile_export_aiperf.csv").write_text("Metric,avg\nrequest_latency,3\n")
    assert len(read_trace(tmp_path)) == 2


def test_aiperf_counts_output_by_its_parts(tmp_path):
    row = aiperf(1, 10, 1)
    del row["metrics"]["output_sequence_length"]
    row["metrics"] |= {"output_token_count": {"value": 7}, "reasoning_token_count": {"value": 3}}
    (tmp_path / "t.jsonl").write_text(jsonl(row))
    assert read_trace(tmp_path / "t.jsonl").output_tokens.tolist() == [10]


def test_large_input_in_many_batches(tmp_path):
    n = 30_000
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, 5000, n)
    counts = -(-prompts // 512)
    raw = rng.integers(-(2**63), 2**63, 400)[rng.integers(0, 400, counts.sum())]
    ends = np.cumsum(counts)
    rows = zip(prompts.tolist(), ends - counts, ends, strict=True)
    text = jsonl(*({"timestamp": 3 * at, "input_length": prompt, "output_length": 2, "hash_ids": raw[low:high].tolist()}
                   for at, (prompt, low, high) in enumerate(rows)))  # fmt: skip
    assert len(text) > 4 << 20
    (tmp_path / "t.jsonl").write_text(text)
    trace = read_trace(tmp_path / "t.jsonl", progress=True)
    assert trace.input_tokens.tolist() == prompts.tolist()
    assert trace.arrival[-1] == 3 * (n - 1) / 1000
    names: dict[int, int] = {}
    assert trace.block_ids.tolist() == [names.setdefault(block, len(names)) for block in raw.tolist()]


def test_azure_file(shared_data):
    file = shared_data / "azure_llm_2023_conv.csv"
    if not file.is_file():
        pytest.skip(f"{file.name} is absent")
    trace = read_trace(file)
    assert len(trace) == 19366
    assert trace.sha256 == "439e4138b7e384f316de614c071f7162be05b8af0cef866f82faacd1b0472249"
    assert (trace.input_tokens[0], trace.output_tokens[1], trace.arrival[1]) == (374, 109, 4.314579)
