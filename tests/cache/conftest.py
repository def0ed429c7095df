"""What the tests of the cache share; the plain-Python policies and filters of ``tests/kv`` are references here too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dynalab.workload import HardwareSpec, ModelSpec, Trace, hardware_spec, model_spec, synthesize

sys.path.append(str(Path(__file__).parents[1] / "kv"))


@pytest.fixture(scope="session")
def trace() -> Trace:
    """Two minutes of synthetic chats."""
    return synthesize("conversation", duration=120, seed=1)


@pytest.fixture(scope="session")
def model() -> ModelSpec:
    return model_spec("llama-3-8b")


@pytest.fixture(scope="session")
def machine() -> HardwareSpec:
    return hardware_spec("h100-sxm")
