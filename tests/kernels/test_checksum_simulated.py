"""The device's checksum in Numba's CUDA simulator: the kernels' own code, against the CPU twin."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulator import names_of_checks, run_script

SCRIPT = Path(__file__).with_name("simulated_checksums.py")
CHECKS = names_of_checks(SCRIPT)


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return run_script(SCRIPT)


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check: str, told: dict[str, str]) -> None:
    assert told[check] == "", told[check]


def test_no_check_was_left_out(told: dict[str, str]) -> None:
    assert set(told) == {"simulator", *CHECKS}
    assert len(CHECKS) >= 10
