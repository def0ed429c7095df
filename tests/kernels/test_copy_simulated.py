"""The copy kernels in Numba's CUDA simulator, which wants a process of its own: one, for all checks.

No GPU and no CUDA package is needed; what runs is the kernels' own code with Python's loads and stores.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from simulator import names_of_checks, run_script

SCRIPT = Path(__file__).with_name("simulated_copies.py")
CHECKS = names_of_checks(SCRIPT)


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What each check said; "" is well."""
    return run_script(SCRIPT)


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check, told) -> None:
    assert told[check] == "", told[check]


def test_no_check_was_left_out(told) -> None:
    assert set(told) == {"simulator", *CHECKS}
    assert len(CHECKS) > 10
