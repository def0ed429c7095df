"""The copy kernels in Numba's CUDA simulator, which wants a process of its own: one, for all checks.

No GPU and no CUDA package is needed; what runs is the kernels' own code with Python's loads and stores.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("simulated_copies.py")
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(mark) == "check" for mark in node.decorator_list)
]


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What each check said; "" is well."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    path = [str(SCRIPT.parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, f"the simulator's process ended with {done.returncode}:\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check, told) -> None:
    assert told[check] == "", told[check]


def test_no_check_was_left_out(told) -> None:
    assert set(told) == {"simulator", *CHECKS}
    assert len(CHECKS) > 10
