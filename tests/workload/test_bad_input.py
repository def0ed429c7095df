"""Bad input: one line that names file and line, the first thing that is wrong, and the cure."""

from __future__ import annotations

import gzip
import json
import os

import pytest
from test_formats import AIPERF, AZURE_2023, AZURE_SECONDS, BAILIAN, BURSTGPT, DYNAMO, MOONCAKE, aiperf, dynamo, jsonl

from dynalab.errors import TraceError
from dynalab.workload import read_trace


def row(**changes):
    return {"timestamp": 9000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2], **changes}


def without(key):
    return {name: value for name, value in row().items() if name != key}


GOOD = MOONCAKE  # three lines
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n"
BURST = BURSTGPT.splitlines(keepends=True)[0] + "5,ChatGPT,472,18,490,Conversation log\n"

# what: text, line of the culprit, message
BAD_LINES = {
    "malformed JSON": (GOOD + '{"timestamp": 3, \n', 4, r"malformed JSON \(.*\): each line must be one object"),
    "last line cut off": (GOOD.rstrip()[:-5], 3, "malformed JSON"),
    "text between lines": (GOOD + "oops\n" + GOOD, 4, "malformed JSON"),
    "NaN": (GOOD + '{"timestamp": NaN, "input_length": 6, "output_length": 5, "hash_ids": [1]}\n', 4, "NaN and Inf"),
    "Infinity": (GOOD + '{"timestamp": Infinity, "input_length": 6, "output_length": 5}\n', 4, "no JSON numbers"),
    "number instead of object": (GOOD + "17\n", 4, "a JSON int, but each line must be one object"),
    "list instead of object": (GOOD + "[1, 2]\n", 4, "a JSON list, but each line must be one object"),
    "one array": ("[" + jsonl(row()).strip() + "]", 1, "a JSON array, not an object: write one object per line"),
    "no timestamp": (GOOD + jsonl(without("timestamp")), 4, "mooncake needs the key 'timestamp'"),
    "no input_length": (GOOD + jsonl(without("input_length")), 4, "mooncake needs the key 'input_length'"),
    "no hash_ids": (GOOD + jsonl(without("hash_ids")), 4, "mooncake needs the key 'hash_ids'"),
    "hash_ids from here on": (
        jsonl(without("hash_ids")) + jsonl(row()),
        2,
        "has hash_ids, although the requests before have none",
    ),
    "null length": (GOOD + jsonl(row(input_length=None)), 4, "input_length is null: it must be a whole number"),
    "text as length": (GOOD + jsonl(row(input_length="600")), 4, "input_length is '600': it must be a whole number"),
    "fraction as length": (GOOD + jsonl(row(output_length=5.5)), 4, "output_length is 5.5: it must be a whole number"),
    "bool as length": (GOOD + jsonl(row(output_length=True)), 4, "output_length is True: it must be a whole number"),
    "negative length": (GOOD + jsonl(row(output_length=-5)), 4, "output_length is -5: it must lie between 0 and 2147"),
    "no input": (
        GOOD + jsonl(row(input_length=0, hash_ids=[])),
        4,
        "input_length is 0: it must lie between 1 and 2147",
    ),
    "huge length": (GOOD + jsonl(row(input_length=2**31)), 4, "input_length is 2147483648: it must lie between 1 and"),
    "length beyond 64 bits": (GOOD + jsonl(row(input_length=2**63)), 4, "input_length is 9223372036854775808"),
    "text as timestamp": (GOOD + jsonl(row(timestamp="later")), 4, "timestamp is 'later': it must be a number"),
    "negative timestamp": (jsonl(row(timestamp=-3)), 1, "timestamp is -3: it must be a number from 0 up"),
    "time runs backwards": (GOOD + jsonl(row(timestamp=3026)), 4, "timestamp runs backwards, from 3027 to 3026: read"),
    "floor instead of ceil": (GOOD + jsonl(row(hash_ids=[1])), 4, "1 hash_ids for 600 input tokens: blocks of 512"),
    "too many hash ids": (GOOD + jsonl(row(hash_ids=[1, 2, 3])), 4, "3 hash_ids for 600 input tokens"),
    "hash_ids no list": (GOOD + jsonl(row(hash_ids=7)), 4, "hash_ids is 7: it must be a list of whole numbers"),
    "text as hash id": (GOOD + jsonl(row(hash_ids=[1, "b"])), 4, "hash_ids holds 'b': block ids must be whole numbers"),
    "fraction as hash id": (GOOD + jsonl(row(hash_ids=[1, 2.0])), 4, "hash_ids holds 2.0"),
    "hash ids of both signs beyond 64 bits": (GOOD + jsonl(row(hash_ids=[-1, 2**63])), 4, "does not fit 64 bits"),
    "prompts as text": (jsonl({"timestamp": 0, "text_input": "Hi", "output_length": 3}), 1, "count their tokens"),
    "turns without time": (jsonl({"delay": 5, "input_length": 3, "output_length": 3}), 1, "give every row a timestamp"),
    "unknown fields": (jsonl({"when": 1, "size": 2}), 1, "no known trace format has the fields when, size; known are"),
    "unknown header": ("\nwhen,size\n1,2\n", 2, "no known trace format has the fields when, size"),
    "second line of a CSV in JSON": (GOOD + AZURE, 4, "malformed JSON"),
    "bailian with mooncake's rows": (BAILIAN + jsonl(row()), 3, "blocks of 16 tokens need 38"),
    "dynamo, other schema": (DYNAMO + jsonl({"schema": "dynamo.request.trace.v2", "event_type": "x"}), 5, "v2"),
    "dynamo, no replay": (DYNAMO + jsonl({"event_type": "request_end", "request": {}}), 5, "needs the key 'replay'"),
    "dynamo, other block size": (DYNAMO + jsonl(dynamo(5, 10, 1, [3], size=16)), 5, "trace_block_size is 16, but 64"),
    "dynamo, block size 0": (jsonl(dynamo(5, 10, 1, [3], size=0)), 1, "trace_block_size is 0: it must be a whole"),
    "dynamo, floor": (DYNAMO + jsonl(dynamo(5, 70, 1, [3])), 5, "1 input_sequence_hashes for 70 input tokens"),
    "aiperf, no length": (AIPERF + jsonl(aiperf(5, 1, 1, metrics={})), 6, "the key 'input_sequence_length'"),
    "aiperf, metrics null": (AIPERF + jsonl(aiperf(5, 1, 1, metrics=None)), 6, "a field has the wrong type for aiperf"),
    "aiperf, fraction": (AIPERF + jsonl(aiperf(5, 1.5, 1)), 6, "input_sequence_length is 1.5"),
    "azure, no date": (AZURE + "yesterday,3,4\n", 3, "TIMESTAMP is 'yesterday': it must be a date and time such as"),
    "azure, date missing": (AZURE + ",3,4\n", 3, "TIMESTAMP is '': it must be a date and time"),
    "azure, field missing": (AZURE + "2023-11-16 18:15:47,3\n", 3, "2 fields, but the header names 3: TIMESTAMP,"),
    "azure, field too many": (AZURE + "2023-11-16 18:15:47,3,4,5\n", 3, "4 fields, but the header names 3"),
    "azure, no number": (AZURE + "2023-11-16 18:15:47,many,4\n", 3, "ContextTokens is 'many': it must be a whole"),
    "azure, fraction": (AZURE + "2023-11-16 18:15:47,3,4.5\n", 3, "GeneratedTokens is '4.5': it must be a whole"),
    "azure, nothing": (AZURE + "2023-11-16 18:15:47,3,\n", 3, "GeneratedTokens is '': it must be a whole number"),
    "azure, negative": (AZURE + "2023-11-16 18:15:47,-3,4\n", 3, "ContextTokens is -3: it must lie between 1 and"),
    "azure, huge": (AZURE + f"2023-11-16 18:15:47,{10**30},4\n", 3, "ContextTokens is 10000.*: it must lie below 2"),
    "azure, backwards": (AZURE + "2023-11-16 18:15:45,3,4\n", 3, "TIMESTAMP runs backwards"),
    "azure, column missing": (
        "TIMESTAMP,ContextTokens\n2023-11-16 18:15:45,3\n",
        1,
        "the header lacks GeneratedTokens",
    ),
    "azure, no seconds": (AZURE_SECONDS + "soon,3,4\n", 4, "arrived_at is 'soon': it must be a number of seconds"),
    "azure, nan": (AZURE_SECONDS + "nan,3,4\n", 4, "arrived_at is 'nan': it must be a number of seconds"),
    "azure, infinite": (AZURE_SECONDS + "inf,3,4\n", 4, "arrived_at is 'inf': it must be a number of seconds"),
    "azure, no text": (AZURE.encode() + b"\xff\xfe,3,4\n", 3, "not a line of text"),
    "burstgpt, negative": (BURST + "6,GPT-4,-417,276,693,API log\n", 3, "Request tokens is -417"),
    "burstgpt, backwards": (BURST + "4,GPT-4,417,276,693,API log\n", 3, "Timestamp runs backwards, from 5.0 to 4.0"),
    "binary": (b"PAR1\x15\x04\x00\x00" * 9, 1, "binary data, but a trace is JSON lines or CSV"),
    "no UTF-8": (b"\xff\xd8\xff\xe0 picture", 1, "not text, but a trace is JSON lines or CSV"),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_lines_are_named(what, tmp_path):
    text, line, message = BAD_LINES[what]
    file = tmp_path / "trace.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert (caught.value.path, caught.value.line) == (str(file), line)
    assert "\n" not in str(caught.value)


def test_the_first_of_many_culprits_is_named(tmp_path):
    file = tmp_path / "trace.jsonl"
    lines = [json.dumps(row(timestamp=n)) for n in range(9000)]
    lines[7001] = "{"
    lines[6500] = json.dumps(row(timestamp=0))
    lines[6400] = ""
    lines[8000] = json.dumps(row(timestamp=8000, input_length=-1))
    file.write_text("\n".join(lines))
    with pytest.raises(TraceError, match="runs backwards, from 6499 to 0") as caught:
        read_trace(file)
    assert caught.value.line == 6501
    with pytest.raises(TraceError, match="malformed") as caught:
        read_trace(file, sort=True)
    assert caught.value.line == 7002


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.csv", "trace.jsonl.gz"])
def test_empty_files(name, tmp_path):
    file = tmp_path / name
    for text in (b"", b"\n \n"):
        file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        with pytest.raises(TraceError, match=r"is empty: a trace has at least one request"):
            read_trace(file)


def test_nothing_to_replay(tmp_path):
    (tmp_path / "a.csv").write_text(AZURE.splitlines()[0])
    with pytest.raises(TraceError, match="has a header but no requests"):
        read_trace(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(BURST.splitlines()[0] + "\n5,ChatGPT,472,0,472,API log\n")
    with pytest.raises(TraceError, match="no request to replay: all 1 lines are failures, warm-up or other events"):
        read_trace(tmp_path / "b.csv")


def test_broken_gzip(tmp_path):
    file = tmp_path / "trace.jsonl.gz"
    text = jsonl(*(row(timestamp=n) for n in range(3000)))
    whole = gzip.compress(text.encode())
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match=r"trace.jsonl.gz:\d+: the gzip stream ends too early"):
        read_trace(file)
    file.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(TraceError, match=r"broken gzip data \(CRC check failed"):
        read_trace(file)
    file.write_bytes(whole[:500] + b"\xff" * 50 + whole[550:])
    with pytest.raises(TraceError, match="broken gzip data"):
        read_trace(file)
    file.write_text(text)
    with pytest.raises(TraceError, match=r"is named .gz but is not gzipped"):
        read_trace(file)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"nowhere.jsonl: no such file or directory"):
        read_trace(tmp_path / "nowhere.jsonl")
    with pytest.raises(TraceError, match=r"\*.jsonl: no file matches this pattern"):
        read_trace(tmp_path / "*.jsonl")
    with pytest.raises(TraceError, match=r"the directory holds no .jsonl, .jsonl.gz, .csv, .csv.gz file"):
        read_trace(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text(GOOD)
    file.chmod(0)
    with pytest.raises(TraceError, match="cannot be read: Permission denied"):
        read_trace(file)


def test_the_same_file_twice(tmp_path):
    (tmp_path / "x.jsonl").write_text(GOOD)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(GOOD.encode()))
    for place in (tmp_path, tmp_path / "*.jsonl*"):
        with pytest.raises(TraceError, match=r"x.jsonl: lies beside x.jsonl.gz: keep one of them"):
            read_trace(place)
    assert len(read_trace(tmp_path / "x.jsonl")) == 3


def test_mixed_formats(tmp_path):
    (tmp_path / "1.jsonl").write_text(GOOD)
    for text, message in (
        (BAILIAN, "is Qwen-Bailian JSONL, but the files before are Mooncake JSONL: read one format at a time"),
        (AZURE_2023, "is Azure LLM inference CSV, but the files before are Mooncake JSONL"),
        (jsonl(without("hash_ids")), "some requests have hash_ids and some have not"),
        (GOOD, r"timestamp runs backwards, from 3027 to 27"),
    ):
        (tmp_path / "2.jsonl").write_text(text)
        with pytest.raises(TraceError, match=rf"2.jsonl:1: {message}"):
            read_trace(tmp_path)
    azure = tmp_path / "azure"
    azure.mkdir()
    (azure / "1.csv").write_text(AZURE)
    (azure / "2.csv").write_text(AZURE_SECONDS)
    with pytest.raises(TraceError, match=r"2.csv:1: times are in arrived_at, in TIMESTAMP in the files before"):
        read_trace(azure)


def test_formats_asked_for_by_name(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(GOOD)
    with pytest.raises(TraceError, match="there is no trace format 'moon'; use one of auto, aiperf, azure, bailian"):
        read_trace(file, "moon")
    with pytest.raises(TraceError, match=r"t.jsonl:1: not Azure LLM inference CSV, which has a CSV header"):
        read_trace(file, "azure")
    with pytest.raises(TraceError, match=r"t.jsonl:1: dynamo needs the key 'event_type', which this line lacks"):
        read_trace(file, "dynamo")
    file.write_text(AZURE)
    with pytest.raises(TraceError, match=r"t.jsonl:1: not Mooncake JSONL, which has JSON objects, one per line"):
        read_trace(file, "mooncake")
    with pytest.raises(TraceError, match=r"t.jsonl:1: the header lacks Timestamp, Request tokens, Response tokens"):
        read_trace(file, "burstgpt")


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dynalab.workload.files._LONGEST_LINE", 1 << 20)
    (tmp_path / "t.jsonl").write_text(GOOD + "{" + " " * (3 << 20))
    with pytest.raises(TraceError, match=r"t.jsonl:4: a line of more than 1 MiB: write one request per line"):
        read_trace(tmp_path / "t.jsonl")
