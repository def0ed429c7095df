"""The command line: one line per error, exit code 2, nothing left behind; and quick to start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import dynalab
from dynalab import cli
from dynalab.workload import read_trace

ROOT = Path(dynalab.__file__).resolve().parents[1]
TINY = """
import json, os
os.makedirs(output_dir, exist_ok=True)
open(output_dir + "/results.nc", "w").write(trace_sha256)
open(output_dir + "/recommendation.yaml", "w").write("summary: " + json.dumps([model, host, str(policies)]))
"""


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "dynalab", *arguments], capture_output=True, text=True, env=environment, **options
    )  # type: ignore[call-overload]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    rows = [{"timestamp": i, "input_length": 600, "output_length": 5, "hash_ids": [0, i + 1]} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tiny_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a quick notebook in the place of the tuning report."""
    from dynalab.lab import notebooks
    from dynalab.lab.parameters import ReportParameters

    defaults = "\n".join(f"{name} = {value!r}" for name, value in ReportParameters().model_dump().items())
    head = nbformat.v4.new_code_cell(f'{defaults}\noutput_dir = ""', metadata={"tags": ["parameters"]})
    path = tmp_path / "tuning_report.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[head, nbformat.v4.new_code_cell(TINY)]), path)
    monkeypatch.setattr(notebooks, "notebook_path", lambda name: path)
    return path


def test_help_and_version() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert run("--version").stdout == f"dynalab {dynalab.__version__}\n"


def test_help_names_the_defaults_of_the_parameters() -> None:
    from dynalab.lab.parameters import ReportParameters

    defaults = ReportParameters().model_dump()
    assert {name for _, name, _, _ in cli._REPORT_OPTIONS} | {"policies", "trace_sha256"} == set(defaults)
    for option, name, _, text in cli._REPORT_OPTIONS:
        default = defaults[name]
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert f"(default: {shown}" in text, option


def test_report_writes_where_it_says(
    trace: Path, tiny_notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports"
    options = ["--trace", str(trace), "--host", "1TiB", "--policy", "lru", "--policy", "arc", "--out", str(out)]
    assert cli.main(["report", *options]) == 0
    printed = capsys.readouterr()
    first, *lines = printed.out.splitlines()
    page = Path(first)
    assert page.is_file()
    assert page.name == "report.html"
    assert page.parent.parent == out
    assert page.parent.name.startswith("tiny-")
    assert len(page.parent.name) == len("tiny-") + 10
    assert lines == ["  llama-3-70b", "  1TiB", "  ['lru', 'arc']"]
    assert "5 requests, 10 blocks of 512 tokens" in printed.err
    names = {entry.name for entry in page.parent.iterdir()}
    assert names == {"report.html", "tuning_report.ipynb", "results.nc", "recommendation.yaml"}
    assert len((page.parent / "results.nc").read_text()) == 64

    before = {entry.name: entry.read_bytes() for entry in page.parent.iterdir()}
    assert cli.main(["report", *options, "--name", "mine"]) == 0
    (renamed,) = out.glob("mine-*")
    assert renamed.name.removeprefix("mine-") == page.parent.name.removeprefix("tiny-")
    assert {entry.name: entry.read_bytes() for entry in renamed.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trace", "absent.jsonl"], ["absent.jsonl", "no such file"]),
        (["--model", "no-such-model"], ["no-such-model"]),
        (["--hardware", "no-such-machine"], ["no-such-machine"]),
        (["--policy", "no-such-policy"], ["no-such-policy"]),
        (["--device", "many"], ["device", "many"]),
        (["--device", "0", "--host", "0", "--disk", "0"], ["all are 0"]),
        (["--name", "a/b"], ["a/b", "folder name"]),
        (["--no-such-option"], ["--no-such-option", "--help"]),
    ],
)
def test_bad_options_are_refused_in_one_line_before_anything_is_written(
    options: list[str], words: list[str], tmp_path: Path, tiny_notebook: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports"
    try:
        code = cli.main(["report", "--duration", "20s", "--out", str(out), *options])
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("dynalab")
    assert "Traceback" not in errors
    for word in words:
        assert word in errors
    assert not out.exists()


def test_a_bad_line_of_a_trace_is_named(trace: Path, tmp_path: Path) -> None:
    with trace.open("a") as file:
        file.write('{"timestamp": 9, "input_length": "many"}\n')
    done = run("report", "--trace", str(trace), "--out", str(tmp_path / "reports"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{trace}:6: " in done.stderr
    assert not (tmp_path / "reports").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("report", "--trace", "absent.jsonl", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dynalab.lab import report

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "build_report", interrupted)
    assert cli.main(["report"]) == 130
    assert capsys.readouterr().err == "dynalab report: interrupted, nothing was left behind\n"


def test_trace_summary_and_conversion(trace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    done = run("trace", str(trace), "--write", str(copy))
    assert done.returncode == 0, done.stderr
    facts = dict(re.split(r"\s{2,}", line) for line in done.stdout.splitlines())
    assert (facts["requests"], facts["blocks"], facts["block tokens"]) == ("5", "6", "512")
    assert run("trace", str(copy)).stdout.splitlines()[0] == done.stdout.splitlines()[0]


def test_a_trace_without_block_ids_is_refused_with_the_way_out_which_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, ready = tmp_path / "azure.csv", tmp_path / "ready.jsonl"
    rows = "".join(f"{t}.0,{700 + 40 * t},{30 + t}\n" for t in range(40))
    plain.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    assert cli.main(["report", "--trace", str(plain), "--out", str(tmp_path / "reports")]) == 2
    assert "--with-prefixes --write" in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()
    assert cli.main(["trace", str(plain), "--with-prefixes", "--seed", "3", "--write", str(ready)]) == 0
    again = read_trace(ready)
    assert again.has_blocks
    assert again.input_tokens.tolist() == [700 + 40 * t for t in range(40)]


def test_trace_synthesis_repeats(tmp_path: Path) -> None:
    options = ["--synthesize", "conversation", "--duration", "30s", "--rate", "2", "--seed", "4", "--write"]
    for name in ("a.jsonl", "b.jsonl"):
        assert cli.main(["trace", *options, str(tmp_path / name)]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.jsonl").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["PATH", "--synthesize"]),
        (["x.jsonl", "--synthesize", "conversation"], ["either"]),
        (["x.jsonl", "--seed", "0"], ["--seed", "--synthesize"]),
        (["--synthesize", "no-such-preset"], ["no-such-preset"]),
        (["--synthesize", "conversation", "--duration", "soon"], ["duration", "soon"]),
        (["absent.jsonl"], ["absent.jsonl"]),
    ],
)
def test_bad_trace_commands(options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    for word in words:
        assert word in errors


def test_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from dynalab.kv.policies import POLICIES

    assert cli.main(["policies"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "title", "needs", "source"]
    assert [row.split()[0] for row in rows] == list(POLICIES)


def test_doctor_speaks_to_people_and_programs() -> None:
    text = run("doctor")
    assert text.returncode == 0, text.stderr
    assert text.stdout.strip()
    facts = run("doctor", "--json")
    assert facts.returncode == 0, facts.stderr
    assert {"name", "status", "value"} <= set(json.loads(facts.stdout)[0])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m dynalab policies | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_input_may_be_closed() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m dynalab policies <&-"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
