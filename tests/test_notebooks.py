"""Every notebook runs headless at its defaults, in under a minute, without a trace outside its folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import dynalab
from dynalab.lab.notebooks import run_notebook

ROOT = Path(dynalab.__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Seconds that one notebook may take on two cores.
LIMIT = 60


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_at_its_defaults(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    begin = time.monotonic()
    executed = run_notebook(path, {}, tmp_path, progress=False, timeout=LIMIT)
    seconds = time.monotonic() - begin
    assert seconds < LIMIT
    assert path.read_bytes() == before
    counts = [cell.execution_count for cell in executed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "every cell ran, in order"
    shown = [out for cell in executed.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in shown), "a notebook shows at least one figure"
