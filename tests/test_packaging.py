"""What holds the house together: metadata, rooms, notebooks' form, and that CI does what the README says."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

import dynalab

ROOT = Path(dynalab.__file__).resolve().parents[1]
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("these tests look at a checkout, and dynalab is installed without one", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The rooms of the house and what each may import, lowest first; errors, units and the base of specs belong to everyone.
EVERYWHERE = {"errors", "units", "spec", ""}
ROOMS: dict[str, set[str]] = {
    "workload": set(),
    "kernels": set(),
    "pools": set(),
    "testing": {"workload", "kv", "tiers"},
    "kv": {"workload"},
    "net": {"pools"},
    "cache": {"workload", "kv"},
    "tiers": {"workload", "kv", "kernels", "pools"},
    "serving": {"workload", "kv", "cache"},
    "aiperf": {"workload"},
    "planner": {"workload", "serving"},
}
ROOMS["lab"] = set(ROOMS) - {"testing"}
ROOMS["cli"] = {"lab", "workload", "kv"}
ROOMS["__main__"] = {"cli"}


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file imports anywhere, functions included."""
    found = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package[: len(package) - node.level + 1])
            names = [f"{base}.{node.module}" if node.module else f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "dynalab" else [module]
        else:
            continue
        found |= {name.split(".")[1] if "." in name else "" for name in names if name.split(".")[0] == "dynalab"}
    return {name for name in found if not name.startswith("__version")}


@pytest.mark.parametrize("file", sorted((ROOT / "dynalab").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_lower_imports_anything_higher(file: Path) -> None:
    parts = file.relative_to(ROOT / "dynalab").with_suffix("").parts
    room = parts[0]
    if room in EVERYWHERE or room == "__init__":
        assert imported_rooms(file) <= EVERYWHERE
        return
    assert room in ROOMS, "a new room needs a line in design and in this test"
    assert imported_rooms(file) <= ROOMS[room] | {room} | EVERYWHERE


def test_the_room_test_sees_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "dynalab" / "kv" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import dynalab.cache.replay\nfrom dynalab import serving\ndef f():\n    from ..lab import report\n"
        "from dynalab.errors import X\nimport numpy\nfrom . import y\n"
    )
    assert imported_rooms(file) == {"cache", "serving", "lab", "errors", "kv"}


def test_importing_dynalab_is_cheap() -> None:
    heavy = ["numpy", "pandas", "xarray", "matplotlib", "numba", "pydantic", "papermill", "nbformat", "sklearn"]
    script = (
        "import sys\nimport dynalab, dynalab.cli, dynalab.lab, dynalab.errors\n"
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def requirement(text: str) -> tuple[str, frozenset[str]]:
    """Name and set of bounds, extras left out."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(.*)", text.strip())
    assert match, text
    return re.sub(r"[-_.]+", "-", match[1]).lower(), frozenset(
        bound.strip() for bound in match[2].split(",") if bound.strip()
    )


def test_environment_has_the_same_set_as_pyproject() -> None:
    wanted = dict(map(requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]))
    # conda names its packages otherwise, and has no extras.
    wanted |= {"python": frozenset({PROJECT["requires-python"]}), "pip": frozenset(), "h5py": frozenset()}
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(requirement(entry) for entry in listed if isinstance(entry, str))
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    assert pip[0] == "-e ."
    from_pip = dict(map(requirement, pip[1:]))
    assert not set(conda) & set(from_pip)
    assert conda | from_pip == wanted


def test_extras_are_those_that_the_readme_promises() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"test", "cuda", "uvloop", "aiperf", "all"}
    assert extras["all"] == ["dynalab[test,cuda,uvloop,aiperf]"]
    assert PROJECT["version"] == dynalab.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def test_the_wheel_carries_the_notebooks() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"]["notebooks"] == "dynalab/notebooks"
    from dynalab.lab.notebooks import notebook_path

    assert notebook_path("tuning_report") == ROOT / "notebooks" / "tuning_report.ipynb"


def commands(text: str) -> set[str]:
    """Commands of a shell text, with the virtual environment's folder taken off."""
    found = set()
    for line in text.splitlines():
        for part in re.split(r"&&|;", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            words = [re.sub(r"^(\.venv|\$venv)/bin/", "", word) for word in words if word not in {"--quiet", "$"}]
            found.add(" ".join(words))
    return found


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "not executable"
    ran = commands(script.read_text())
    readme = (ROOT / "README.md").read_text()
    for command in ("pip install -e .", "dynalab report", "pip install -e '.[test]'", "python -m pytest"):
        assert f".venv/bin/{command}" in readme, f"the README lacks {command!r}"
    assert {"pip install -e .[test]", "python -m pytest"} <= ran
    assert any(command.startswith("dynalab report --out ") for command in ran)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_the_conventions(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert 15 <= len(cells) <= 30
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    code = code_cells(path)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), "clear the outputs"
    assert "parameters" in code[0]["metadata"].get("tags", []), "tag the first code cell 'parameters'"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    for statement in ast.parse("".join(code[0]["source"])).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign), ast.unparse(statement)
        assert statement.value is not None
        ast.literal_eval(statement.value)
    headings = [
        line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines()
    ]
    assert any(re.fullmatch(r"##+ What we learned", line) for line in headings)
    after = "".join("".join(cell["source"]) for cell in code)
    assert "assert " in after, "a notebook asserts its own headline numbers"


def test_the_tuning_report_takes_every_report_parameter() -> None:
    from dynalab.lab.notebooks import notebook_path
    from dynalab.lab.parameters import ReportParameters

    body = ast.parse("".join(code_cells(notebook_path("tuning_report"))[0]["source"])).body
    given = {}
    for statement in body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target  # type: ignore[attr-defined]
        given[ast.unparse(target)] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    assert given.pop("output_dir") in ("", ".")
    assert given == ReportParameters().model_dump(), "names and defaults must be those of `dynalab report`"


def test_files_stay_small_and_say_what_they_are() -> None:
    for file in (ROOT / "dynalab").rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), f"{file} has no docstring"
        assert len(file.read_text().splitlines()) <= 400, f"{file} holds more than one idea"


def test_help_starts_quickly_without_heavy_imports() -> None:
    begin = time.perf_counter()
    script = "import sys, dynalab.cli\ntry: dynalab.cli.main(['report', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print('numpy' in sys.modules)"], capture_output=True, text=True, cwd=ROOT
    )
    assert time.perf_counter() - begin < 1
    assert done.stdout.splitlines()[-1] == "False", done.stderr
