"""Fixtures for everyone: the public data sets, where they lie beside the repository; and how hypothesis searches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from dynalab.workload import Trace


# A developer's run searches on and finds new cases; CI repeats one search, so that a failure is the change's.
# No deadline per example: machines are shared, and the first call of a kernel compiles it.
settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the public data sets; skips where there is none."""
    place = Path(os.environ.get("DYNALAB_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not place.is_dir():
        pytest.skip("the public data sets are absent (set DYNALAB_DATA to their directory)")
    return place


@pytest.fixture(scope="session")
def conversation(shared_data: Path) -> Trace:
    """The Mooncake conversation trace of the FAST'25 release."""
    from dynalab.workload import read_trace

    file = shared_data / "mooncake_conversation.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file.name} is absent")
    return read_trace(file)
