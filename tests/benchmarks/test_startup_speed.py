"""How long a user waits before anything happens: importing the package, asking for help, asking for a recommendation.

Run with ``python -m pytest tests/benchmarks --benchmark-only``.
"""

from __future__ import annotations

import subprocess
import sys

from dynalab.cache import recommend
from dynalab.workload import Trace


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_import_takes_under_half_a_second(benchmark) -> None:
    benchmark.pedantic(run, args=("-c", "import dynalab"), rounds=5, warmup_rounds=1)
    assert benchmark.stats.stats.median < 0.5


def test_help_takes_under_half_a_second(benchmark) -> None:
    benchmark.pedantic(run, args=("-m", "dynalab", "--help"), rounds=5, warmup_rounds=1)
    assert benchmark.stats.stats.median < 0.5


def test_a_recommendation_takes_under_fifteen_seconds(benchmark, conversation: Trace) -> None:
    tiers = {"device": "40GiB", "host": "512GiB", "disk": "4TB"}
    benchmark.pedantic(recommend, args=(conversation, "llama-3-70b"), kwargs=tiers, rounds=3, warmup_rounds=1)
    assert benchmark.stats.stats.median < 15
