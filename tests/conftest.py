"""For everyone: where the public data sets lie, how hypothesis searches, and how a whole run uses several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

    from dynalab.workload import Trace


# A developer's run searches on and finds new cases; CI repeats one search, so that a failure is the change's.
# No deadline per example: machines are shared, and the first call of a kernel compiles it.
settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

#: Worth the memory and the start of a process; more would mostly wait for the longest file.
MOST_PROCESSES = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Say what ``-n auto`` in pyproject.toml means: every core for the whole suite, and no process for chosen tests."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or config.getoption("benchmark_only", False):
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(cores, MOST_PROCESSES) if cores > 1 else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """Give each process whole files, whose tests share what they set up and count; notebooks go one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the processes begin with files that take long, for one that came last would be waited for."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


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
