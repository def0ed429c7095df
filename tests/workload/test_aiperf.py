"""AIPerf itself: what it wrote is read, what we write is replayed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, takewhile
from pathlib import Path

import numpy as np
import pytest

from dynalab.workload import Trace, read_trace

#: Made by AIPerf 0.13.0, which replayed what ``SENT.write()`` makes after 2 requests of warm-up; the server refused
#: request 2, answered request 5 with nothing, and was too slow for request 7.
EXPORT = Path(__file__).parent / "data" / "aiperf_0_13_profile_export.jsonl"
SENT = Trace.from_columns(
    [0, 0.1, 0.25, 0.3, 0.3, 0.42, 0.55, 0.9],
    [40, 17, 33, 5, 64, 40, 1, 21],
    [6, 4, 13, 1, 3, 9, 2, 19],
    [0, 1, 2, 0, 3, 0, 1, 4, 5, 6, 7, 8, 9, 0, 1, 2, 10, 0, 11],
    block_tokens=16,
)
ANSWERED = [0, 1, 3, 4, 6]


def test_an_export_of_aiperf_itself_is_read():
    trace = read_trace(EXPORT)
    assert trace.attrs["format"] == "aiperf"
    assert trace.attrs["dropped_rows"] == 2 + 3
    assert not trace.has_blocks
    # Requests of one instant leave in any order.
    sent = [0, 1, 4, 3, 6]
    assert sorted(sent) == ANSWERED
    assert trace.input_tokens.tolist() == SENT.input_tokens[sent].tolist()
    assert trace.output_tokens.tolist() == SENT.output_tokens[sent].tolist()
    assert np.abs(trace.arrival - SENT.arrival[sent]).max() < 0.005
    # The first profiled request left at this instant of Unix time.
    assert trace.attrs["origin_s"] == pytest.approx(1795354337.9085767, abs=1e-6)


def test_an_export_is_written_for_aiperf_to_replay_again(tmp_path):
    trace = read_trace(EXPORT)
    rows = [json.loads(line) for line in trace.write(tmp_path / "again.jsonl").open()]
    assert [(row["input_length"], row["output_length"]) for row in rows] == [(40, 6), (17, 4), (64, 3), (5, 1), (1, 2)]
    assert all(set(row) == {"timestamp", "input_length", "output_length"} for row in rows)
    assert [row["timestamp"] for row in rows] == pytest.approx([0, 100.343, 301.9997, 302.491, 551.089], abs=1e-3)


class _Chat(BaseHTTPRequestHandler):
    """OpenAI's streamed chat completions: exactly the tokens asked for."""

    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(body["max_completion_tokens"]):
            self._send([{"index": 0, "delta": {"content": "w"}, "finish_reason": None}])
        self._send([{"index": 0, "delta": {}, "finish_reason": "length"}])
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, choices: list[object]) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "lab/letters", "choices": choices}
        self.wfile.write(b"data: %s\n\n" % json.dumps(chunk).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.seen: list[dict[str, object]] = []


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def aiperf() -> str:
    beside = Path(sys.executable).with_name("aiperf")
    found = str(beside) if beside.is_file() else shutil.which("aiperf")
    if found is None:
        pytest.skip("AIPerf is absent (pip install 'dynalab[aiperf]', or put its own environment on PATH)")
    return found


def _tokenizer(home: Path) -> None:
    """Put a tokenizer of one token per letter into a hub cache, where AIPerf finds it without a network."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate(["<s>", *letters])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<s>", **special}],
        "normalizer": {"type": "Replace", "pattern": {"Regex": "[^ -~]"}, "content": "?"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "clean_up_tokenization_spaces": False}
    cache = home / "hub" / "models--lab--letters"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(snapshot.name)
    (snapshot / "tokenizer.json").write_text(json.dumps(content))
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings))


def _blocks(body: dict[str, object]) -> list[str]:
    """Text of every block of a prompt: AIPerf begins each with the tokenizer's first special token."""
    [message] = body["messages"]  # type: ignore[misc]
    return message["content"].split("<s>")[1:]


def _common(one: list, other: list) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@pytest.mark.slow
def test_aiperf_replays_what_we_write(aiperf, server, tmp_path):
    rng = np.random.default_rng(5)
    # Ids shared at every depth, the last at many lengths; requests 18 and 19 repeat earlier prompts.
    full, tail = rng.integers(0, 4, 18), rng.choice([7, 8, 11, 15, 16], 18)
    rows = [[*range(whole), 90 + whole] for whole in full]
    rows += [rows[3], rows[11]]
    prompts = np.append(16 * full + tail, (16 * full + tail)[[3, 11]])
    arrival = np.append(np.linspace(0, 2, 17), [2, 2.5, 3])
    ids = [block for row in rows for block in row]
    # Output lengths tell the requests apart.
    trace = Trace.from_columns(arrival, prompts, rng.permutation(20) + 1, ids, block_tokens=16)
    file = trace.write(tmp_path / "trace.jsonl.gz")
    _tokenizer(tmp_path / "hf")
    command = [aiperf, "profile", "--model", "lab/letters", "--url", f"localhost:{server.server_port}"]
    command += ["--endpoint-type", "chat", "--streaming", "--ui", "none", "--artifact-dir", str(tmp_path / "artifacts")]
    command += ["--no-gpu-telemetry", "--no-server-metrics", "--workers-max", "2", "--random-seed", "1"]
    # What the docstring of Trace.write tells to give.
    command += ["--input-file", str(file), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule"]
    command += ["--isl-block-size", "16", "--extra-inputs", "ignore_eos:true"]
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    offline["AIPERF_DATASET_MMAP_CACHE_ENABLED"] = "false"
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    back = read_trace(tmp_path / "artifacts")
    assert (len(back), back.attrs["dropped_rows"]) == (20, 0)
    lengths = sorted(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    assert sorted(zip(back.input_tokens.tolist(), back.output_tokens.tolist(), strict=True)) == lengths
    assert np.abs(back.arrival - trace.arrival).max() < 0.5

    bodies = sorted(server.seen, key=lambda body: body["max_completion_tokens"])
    assert [body["max_completion_tokens"] for body in bodies] == list(range(1, 21))
    assert all(body["ignore_eos"] is True for body in bodies)
    texts = [_blocks(bodies[tokens - 1]) for tokens in trace.output_tokens]
    assert [sum(1 + len(text) for text in prompt) for prompt in texts] == trace.input_tokens.tolist()
    written = read_trace(file, block_tokens=16)
    sent = np.split(written.block_ids, written.offsets[1:-1])
    pairs = list(combinations(range(20), 2))
    assert [_common(texts[a], texts[b]) for a, b in pairs] == [_common(list(sent[a]), list(sent[b])) for a, b in pairs]
