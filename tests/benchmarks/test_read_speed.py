"""Reading one million requests: under 10 s on one core, memory below three times the columns.

Run with ``pytest tests/benchmarks/test_read_speed.py --benchmark-only -s``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REQUESTS = 1_000_000
BLOCKS = 24

# A process of its own, so that the peak is that of the reading and nothing else.
_READ = """
import json, resource, sys, time
import pandas
import dynalab.workload.reading, dynalab.workload.formats
from dynalab.workload import read_trace
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
trace = read_trace(sys.argv[1])
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
names = ("arrival", "input_tokens", "output_tokens", "block_ids", "offsets")
columns = sum(getattr(trace, name).nbytes for name in names)
print(json.dumps({"seconds": seconds, "peak_bytes": peak * 1024, "column_bytes": columns, "requests": len(trace),
                  "accesses": trace.n_accesses, "blocks": trace.n_blocks}))
"""


def _rows(hashed: bool):
    """Half of the requests share a prefix of one of the last thousand, the rest of the ids is new."""
    rng = np.random.default_rng(7)
    shared = np.where(rng.random(REQUESTS) < 0.5, rng.integers(0, BLOCKS, REQUESTS), 0)
    back = rng.integers(1, 1000, REQUESTS)
    prompts = (BLOCKS - 1) * 512 + rng.integers(1, 513, REQUESTS)
    recent: list[list[int]] = [[]] * 1000
    fresh = 0
    for n in range(REQUESTS):
        prefix = recent[(n - back[n]) % 1000][: shared[n]]
        own = BLOCKS - len(prefix)
        # An odd multiplier modulo 2**64 spreads the ids like hashes, and keeps them different.
        new = range(fresh, fresh + own)
        ids = prefix + ([i * 0x9E3779B97F4A7C15 % 2**64 for i in new] if hashed else list(new))
        fresh += own
        recent[n % 1000] = ids
        yield b'{"timestamp":%d,"input_length":%d,"output_length":350,"hash_ids":[%s]}\n' % (
            3 * n,
            prompts[n],
            ",".join(map(str, ids)).encode(),
        )


@pytest.mark.slow
@pytest.mark.parametrize("hashed", [False, True], ids=["small-ids", "64-bit-hashes"])
def test_one_million_requests(benchmark, tmp_path, hashed):
    file = tmp_path / "big.jsonl"
    with file.open("wb") as out:
        out.writelines(_rows(hashed))
    figures: dict[str, float] = {}

    def read():
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(file)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        figures.update(json.loads(done.stdout))

    benchmark.pedantic(read, rounds=1)
    figures["file_bytes"] = file.stat().st_size
    benchmark.extra_info.update(figures)
    ratio = figures["peak_bytes"] / figures["column_bytes"]
    print(f"\n{figures['seconds']:.2f} s, peak {ratio:.2f} x {figures['column_bytes'] / 1e6:.0f} MB of columns")
    assert (figures["requests"], figures["accesses"]) == (REQUESTS, REQUESTS * BLOCKS)
    assert figures["seconds"] < 10
    assert ratio < 3


def test_conversation_is_read_at_once(benchmark, shared_data):
    from dynalab.workload import read_trace

    file = shared_data / "mooncake_conversation.jsonl.gz"
    trace = benchmark(read_trace, file)
    assert len(trace) == 12031
