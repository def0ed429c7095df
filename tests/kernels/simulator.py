"""Run a script of checks in Numba's CUDA simulator, which wants a process of its own, and report on each check."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


class Checks:
    """What a script run in the simulator declares with ``@check`` and runs at its end."""

    def __init__(self) -> None:
        self.functions: list[Callable[[], None]] = []

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.functions.append(function)
        return function

    def run(self) -> None:
        """Print a JSON object: what went wrong for each check ("" for nothing), and whose simulator it was."""
        from numba import cuda

        told = {"simulator": cuda.__file__}
        for function in self.functions:
            try:
                function()
                told[function.__name__] = ""
            except Exception:
                told[function.__name__] = traceback.format_exc()
        json.dump(told, sys.stdout)


def names_of_checks(script: Path) -> list[str]:
    """Return the names of the functions that a script marks with ``@check``, without running it."""
    return [
        node.name
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(mark) == "check" for mark in node.decorator_list)
    ]


def run_script(script: Path) -> dict[str, str]:
    """Run a script with the simulator on, and return what it printed."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    path = [str(script.parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, f"the simulator's process ended with {done.returncode}:\n{done.stderr}"
    return json.loads(done.stdout)
