"""The report machinery on tiny notebooks: whole or not at all, in this interpreter, the same bytes every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from dynalab.errors import ReportError
from dynalab.lab import report as module
from dynalab.lab.notebooks import notebook_path, run_notebook, settle
from dynalab.lab.report import run_to_folder

ROOT = Path(module.__file__).resolve().parents[2]
OUTPUT = """
from pathlib import Path
from dynalab.lab.provenance import save_dataset, stamp
import xarray as xr
save_dataset(stamp(xr.Dataset({"hit_ratio": 0.5}), seed=seed), Path(output_dir) / "results.nc")
(Path(output_dir) / "recommendation.yaml").write_text(f"summary: [seed {seed}, second]\\ndevice: 40GiB\\n")
"""
# Everything that is random or timed in notebooks of this kind: ids in the HTML of xarray and of pandas, addresses,
# progress bars, warnings, hash order, the working directory and a figure.
NOISY = """
import os, sys, time, warnings
import numpy as np, pandas as pd, xarray as xr
from tqdm.auto import tqdm
import matplotlib.pyplot as plt
from dynalab.lab.style import use_style
use_style()
for _ in tqdm(range(3)):
    time.sleep(0.001)
warnings.warn("at " + str(time.time()))
print(list({"lru", "fifo", "sieve", "arc"}), object())
print(os.getcwd())
display(xr.Dataset({"a": ("x", [1.0, 2.0])}), pd.DataFrame({"a": [1]}).style, object())
fig, ax = plt.subplots(figsize=(2, 1))
ax.plot(np.random.default_rng(seed).random(5))
"""


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook with a parameters cell and the given code cells."""
    v4 = nbformat.v4
    head = v4.new_code_cell('seed = 0\nname = "default"\noutput_dir = "."', metadata={"tags": ["parameters"]})
    cells = [v4.new_markdown_cell("# Tiny"), head, *(v4.new_code_cell(source) for source in sources)]
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_a_report_is_complete_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "tiny.ipynb", NOISY, OUTPUT)
    out = tmp_path / "out"
    report = run_to_folder(notebook, {"seed": 3}, out / "tiny-01")
    again = run_to_folder(notebook, {"seed": 3}, out / "elsewhere" / "tiny-02")
    assert set(contents(report.folder)) == {"report.html", "tiny.ipynb", "results.nc", "recommendation.yaml"}
    assert contents(report.folder) == contents(again.folder)
    assert sorted(entry.name for entry in out.iterdir()) == ["elsewhere", "tiny-01"], "something was left behind"
    assert report.summary() == ["seed 3", "second"]
    executed = nbformat.read(report.notebook, as_version=4)
    nbformat.validate(executed)
    assert [cell.id for cell in executed.cells].count("injected-parameters") == 1
    text = report.notebook.read_text()
    assert str(tmp_path) not in text
    assert "papermill" not in text
    assert "T_0000" in text
    assert "image/png" in text
    page = report.html.read_text()
    assert "data:image/png;base64," in page
    assert len(page) < 10_000_000


def test_another_seed_gives_another_report(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "tiny.ipynb", OUTPUT)
    first = contents(run_to_folder(notebook, {"seed": 3}, tmp_path / "a").folder)
    second = contents(run_to_folder(notebook, {"seed": 4}, tmp_path / "b").folder)
    assert all(first[name] != second[name] for name in first)


def test_an_older_report_is_replaced_whole(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "tiny.ipynb", OUTPUT)
    folder = tmp_path / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "stale.txt").write_text("old")
    run_to_folder(notebook, {}, folder)
    assert "stale.txt" not in contents(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


def test_a_failing_cell_leaves_the_older_report_and_nothing_else(tmp_path: Path) -> None:
    source = "from dynalab.errors import ConfigError\n(Path := __import__('pathlib').Path)('stray').write_text('x')\n"
    notebook = write_notebook(tmp_path / "tiny.ipynb", source + "raise ConfigError('host: too small\\nsecond line')")
    folder = tmp_path / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old")
    with pytest.raises(ReportError) as caught:
        run_to_folder(notebook, {"seed": 1}, folder)
    assert str(caught.value) == "tiny.ipynb: cell 3 failed: ConfigError: host: too small"
    assert "raise ConfigError" in str(caught.value.__cause__)
    assert contents(folder) == {"old.txt": b"old"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


def test_a_notebook_that_leaves_no_results_is_refused(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "tiny.ipynb", "open('results.nc', 'w').close()")
    with pytest.raises(ReportError, match=r"left no recommendation\.yaml in its output_dir"):
        run_to_folder(notebook, {}, tmp_path / "out" / "tiny")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dead_kernel_and_a_slow_cell_are_reported(tmp_path: Path) -> None:
    dying = write_notebook(tmp_path / "dying.ipynb", "import os; os._exit(9)")
    with pytest.raises(ReportError, match=r"dying\.ipynb: the kernel died"):
        run_notebook(dying, {}, tmp_path, progress=False)
    slow = write_notebook(tmp_path / "slow.ipynb", "import time; time.sleep(60)")
    with pytest.raises(ReportError, match=r"slow\.ipynb: a cell took longer than 1 s"):
        run_notebook(slow, {}, tmp_path, progress=False, timeout=1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notebook = write_notebook(tmp_path / "tiny.ipynb", OUTPUT)
    with pytest.raises(module.ConfigError, match=r"out: cannot write to '.*/file'"):
        run_to_folder(notebook, {}, tmp_path / "file" / "tiny")


def test_summary_falls_back_to_plain_entries(tmp_path: Path) -> None:
    (tmp_path / "recommendation.yaml").write_text(
        "device: 40 GiB\ntiers: {host: 1}\npolicy: lru\na: 1\nb: 2\nc: 3\nd: 4\n"
    )
    lines = module.Report(tmp_path, tmp_path / "x.ipynb").summary()
    assert lines == ["device: 40 GiB", "policy: lru", "a: 1", "b: 2", "c: 3"]


def test_two_runs_of_one_folder_at_once_leave_one_report(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def publish(number: int) -> None:
        draft = tmp_path / f".tiny.tmp-{number}"
        draft.mkdir()
        (draft / "report.html").write_text("the same")
        module._swap_in(draft, tmp_path / "tiny")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(publish, range(40)))
    assert contents(tmp_path / "tiny") == {"report.html": b"the same"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, kind: signal.Signals) -> None:
    notebook = write_notebook(tmp_path / "tiny.ipynb", "open('started', 'w').close(); import time; time.sleep(60)")
    out = tmp_path / "out"
    script = (
        "import signal, sys\nfrom pathlib import Path\nfrom dynalab.lab.report import run_to_folder\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        # A test runner may have been started with SIGINT ignored, which children inherit.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_to_folder(Path({str(notebook)!r}), {{}}, Path({str(out / 'tiny')!r}))\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".tiny.tmp-*/started")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode not in (0, None), errors
    assert list(out.iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_the_kernel_is_this_interpreter_whatever_the_user_has_set_up(tmp_path: Path) -> None:
    jupyter = tmp_path / "jupyter"
    foreign = jupyter / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/nonexistent/python"], "language": "python", "display_name": "x"})
    )
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("leaked = True")
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    code = "import sys, matplotlib\nprint(sys.executable, 'leaked' in globals(), matplotlib.get_backend())"
    notebook = write_notebook(tmp_path / "tiny.ipynb", code)
    script = (
        "import json\nfrom dynalab.lab.notebooks import run_notebook\n"
        f"nb = run_notebook({str(notebook)!r}, {{}}, {str(tmp_path)!r}, progress=False)\n"
        "print(json.dumps(nb.cells[-1].outputs[0].text))\n"
    )
    environment = os.environ | {
        "HOME": str(home),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PATH": str(jupyter),
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.path.relpath(ROOT, ROOT.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    executable, leaked, backend = json.loads(done.stdout.splitlines()[-1]).split()
    assert executable == sys.executable
    assert leaked == "False"
    assert "inline" in backend
    assert not {entry.name for entry in home.iterdir()} & {".ipython", ".jupyter", ".local"}


def test_a_long_temporary_folder_does_not_break_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A Unix socket's path holds 107 bytes at most.
    import tempfile

    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    executed = run_notebook(
        write_notebook(tmp_path / "tiny.ipynb", "print(seed)"), {"seed": 8}, tmp_path, progress=False
    )
    assert executed.cells[-1].outputs[0].text == "8\n"
    assert list(deep.iterdir()) == []


def test_equal_random_ids_stay_equal() -> None:
    v4 = nbformat.v4
    one, two = "12345678-1234-4abc-8def-1234567890ab", "12345678-1234-4abc-8def-1234567890ac"
    cells = [
        v4.new_code_cell(outputs=[v4.new_output("display_data", {"text/html": text})]) for text in (f"{one} {two}", two)
    ]
    settled = settle(v4.new_notebook(cells=cells), set(), set())
    first, second = (cell.outputs[0].data["text/html"] for cell in settled.cells)
    assert first[37:] == second
    assert first[:36] != second
    assert one not in first
    assert [cell.id for cell in settled.cells] == ["cell-0", "cell-1"]


def test_an_unknown_notebook_is_refused() -> None:
    with pytest.raises(ReportError, match="no notebook 'absent'"):
        notebook_path("absent")
