"""Writing Mooncake JSONL that others replay, and reading it again."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_strategies import any_traces, prefix_traces, rows_of, shared_tokens

from dynalab.errors import TraceError
from dynalab.workload import Trace, read_trace

tmp_path_is_fine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@tmp_path_is_fine
@given(trace=prefix_traces(), name=st.sampled_from(("t.jsonl", "t.jsonl.gz")))
def test_written_and_read_is_equal(trace, name, tmp_path):
    file = trace.write(tmp_path / name)
    assert file == tmp_path / name
    assert read_trace(file, block_tokens=trace.block_tokens).equals(trace)
    assert [child.name for child in tmp_path.iterdir() if child.name.startswith(".")] == []


@tmp_path_is_fine
@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=20))
def test_any_arrival_comes_back_to_the_nanosecond(tmp_path, times):
    trace = Trace.from_columns(sorted(times), [1] * len(times), [1] * len(times))
    once = read_trace(trace.write(tmp_path / "t.jsonl"))
    assert np.all(np.abs(once.arrival - trace.arrival) <= 1.1e-9 + np.spacing(trace.arrival))
    assert read_trace(once.write(tmp_path / "t.jsonl")).equals(once)


def test_whole_milliseconds_stay_whole(tmp_path):
    stamps = np.arange(0, 100_000, 7)
    trace = Trace.from_columns(stamps / 1000, np.ones(stamps.size, int), np.ones(stamps.size, int))
    rows = [json.loads(line) for line in trace.write(tmp_path / "t.jsonl").open()]
    assert [row["timestamp"] for row in rows] == stamps.tolist()
    assert {type(row["timestamp"]) for row in rows} == {int}
    later = trace.slice(0.7).speedup(7).write(tmp_path / "later.jsonl")
    assert [json.loads(line)["timestamp"] for line in later.open()] == list(range(stamps.size - 100))
    assert rows[1] == {"timestamp": 7, "input_length": 1, "output_length": 1}


@tmp_path_is_fine
@given(trace=any_traces())
def test_a_hash_id_always_stands_for_the_same_number_of_tokens(trace, tmp_path):
    size = trace.block_tokens
    lengths: dict[int, int] = {}
    for line in trace.write(tmp_path / "t.jsonl").open():
        row = json.loads(line)
        left = row["input_length"]
        for block in row["hash_ids"]:
            assert lengths.setdefault(block, min(left, size)) == min(left, size)
            left -= size
        assert -size < left <= 0
    again = read_trace(tmp_path / "t.jsonl", block_tokens=size)
    assert shared_tokens(again) <= shared_tokens(trace)


def test_a_short_appearance_of_a_block_gets_an_id_of_its_own(tmp_path):
    trace = Trace.from_columns([0, 1, 2, 3], [8, 6, 6, 8], [1] * 4, [5, 6, 5, 6, 5, 6, 5, 6], block_tokens=4)
    again = read_trace(trace.write(tmp_path / "t.jsonl"), block_tokens=4)
    assert rows_of(again) == [[0, 1], [0, 2], [0, 2], [0, 1]]


def test_requests_without_output_are_refused(tmp_path):
    trace = Trace.from_columns([0, 1, 2, 3], [5, 6, 7, 8], [1, 0, 2, 0])
    wanted = (
        r"2 of 4 requests generate no token \(the first is request 1\): keep .* trace.filter\(trace.output_tokens > 0\)"
    )
    with pytest.raises(TraceError, match=wanted):
        trace.write(tmp_path / "t.jsonl")
    assert not list(tmp_path.iterdir())
    kept = trace.filter(trace.output_tokens > 0)
    assert read_trace(kept.write(tmp_path / "t.jsonl")).input_tokens.tolist() == [5, 7]


def test_equal_traces_give_equal_files(tmp_path):
    trace = Trace.from_columns([0, 1.5], [600, 500], [10, 20], [7, 8, 7], block_tokens=512)
    first = trace.write(tmp_path / "a.jsonl.gz").read_bytes()
    assert trace.write(tmp_path / "b.jsonl.gz").read_bytes() == first
    assert gzip.decompress(first) == trace.write(tmp_path / "c.jsonl").read_bytes()


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    trace = Trace.from_columns([0], [9], [1])
    file = tmp_path / "t.jsonl"
    file.write_text("what was there before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynalab.workload.writing._write_rows", full)
    with pytest.raises(TraceError, match=r"t.jsonl: cannot be written: No space left on device"):
        trace.write(file)
    assert file.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [file]


def test_places_that_cannot_be_written(tmp_path):
    trace = Trace.from_columns([0], [9], [1], [1], block_tokens=16)
    with pytest.raises(TraceError, match=r"nowhere.t.jsonl: cannot be written: No such file or directory"):
        trace.write(tmp_path / "nowhere" / "t.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(TraceError, match=r"d.jsonl: cannot be written: Is a directory"):
        trace.write(tmp_path / "d.jsonl")
    assert [child.name for child in tmp_path.iterdir()] == ["d.jsonl"]
    with pytest.raises(TraceError, match="cannot write a trace without its partial blocks: do that before full_block"):
        trace.full_blocks().write(tmp_path / "t.jsonl")


def test_conversation_keeps_its_structure(conversation, tmp_path):
    again = read_trace(conversation.write(tmp_path / "t.jsonl.gz"))
    assert again.equals(conversation)
    assert again.attrs["origin_s"] == 0
