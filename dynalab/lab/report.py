"""Make a report: run the notebook in a hidden folder beside the target, render it, then rename it into place."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynalab.errors import ConfigError, ReportError
from dynalab.lab.parameters import ReportParameters

__all__ = ["Report", "ReportParameters", "build_report", "run_to_folder"]

#: What the notebook itself must leave in its ``output_dir``.
_MADE_BY_NOTEBOOK = ("results.nc", "recommendation.yaml")
#: What a rename onto a folder that is there already answers.
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
#: Parameters for which 0 or nothing means "not asked for": not worth a line on the page.
_OFF_WHEN_ZERO = ("measured", "measured_net", "block_tokens", "target_hit_ratio", "budget", "duration_s", "rate")
#: Attempts to put the new folder into place while another run of the same parameters does the same.
_SWAPS = 20


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes
    ----------
    folder : pathlib.Path
        Holds ``report.html``, the executed notebook, ``results.nc`` and ``recommendation.yaml``.
    notebook : pathlib.Path
        The executed notebook.
    """

    folder: Path
    notebook: Path

    @property
    def html(self) -> Path:
        """The page to read."""
        return self.folder / "report.html"

    def summary(self) -> list[str]:
        """Five lines at most: the list ``summary`` of ``recommendation.yaml``, or its first plain entries."""
        import yaml

        facts = yaml.safe_load((self.folder / "recommendation.yaml").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            return []
        lines = facts.get("summary")
        if not isinstance(lines, list):
            lines = [f"{name}: {value}" for name, value in facts.items() if not isinstance(value, dict | list)]
        return [" ".join(str(line).split()) for line in lines[:5]]


def build_report(
    parameters: ReportParameters,
    out: str | os.PathLike[str] = "reports",
    *,
    name: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Make the tuning report: ``<out>/<name>-<hash of parameters>/``.

    Parameters
    ----------
    parameters : ReportParameters
    out : path-like
        Folder of all reports; made if absent.
    name : str, optional
        First part of the folder's name; by default that of the trace.
    progress : bool
        Show a bar on a terminal.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    Report

    Raises
    ------
    DynalabError
        If the trace or a parameter cannot be used (before anything is written), or a cell fails. An older report of the
        same parameters is replaced only by a complete one.

    Examples
    --------
    >>> build_report(ReportParameters(trace="conversation", seed=1)).html  # doctest: +SKIP
    PosixPath('/home/me/reports/conversation-0a1b2c3d4e/report.html')
    """
    from dynalab.lab.notebooks import notebook_path

    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"name: {name!r} is not a plain folder name; use letters, digits, '.', '_' and '-'")
    resolved, trace = parameters.resolve()
    counts = f"{trace.n_requests:,} requests, {trace.n_accesses:,} blocks of {trace.block_tokens} tokens"
    say(f"{resolved.default_name()}: {counts}")
    values = resolved.model_dump()
    shown = {key: value for key, value in values.items() if value or key not in _OFF_WHEN_ZERO}
    if not resolved.measured:
        del shown["measured_link"]
    folder = Path(out).absolute() / f"{name or resolved.default_name()}-{resolved.digest()}"
    # The kernel reads the trace again: two copies of a large one need not lie in memory at once.
    del trace
    source = notebook_path("tuning_report")
    say(f"running {source.name} ...")
    return run_to_folder(source, values, folder, shown=shown, progress=progress)


def run_to_folder(
    source: Path,
    parameters: Mapping[str, Any],
    folder: Path,
    *,
    shown: Mapping[str, Any] | None = None,
    expected: tuple[str, ...] = _MADE_BY_NOTEBOOK,
    progress: bool = True,
) -> Report:
    """Run a notebook with ``output_dir="."`` and put all that it leaves, itself and its page into `folder`, or nothing.

    Parameters
    ----------
    source : pathlib.Path
        The notebook.
    parameters : mapping
        Its parameters without ``output_dir``.
    folder : pathlib.Path
        Replaced whole when the run is complete; untouched otherwise.
    shown : mapping, optional
        Parameters to show at the end of the page; all of them by default.
    expected : tuple of str
        Files that the notebook must leave in ``output_dir``.
    progress : bool
        Show a bar on a terminal.
    """
    import nbformat

    from dynalab.lab.html import render_html
    from dynalab.lab.notebooks import run_notebook
    from dynalab.lab.provenance import provenance

    draft = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"out: cannot write to {str(folder.parent)!r} ({error.strerror}); choose another folder"
            ) from None
        executed = run_notebook(source, {**parameters, "output_dir": "."}, draft, progress=progress)
        missing = [name for name in expected if not (draft / name).is_file()]
        if missing:
            raise ReportError(f"{source.name}: left no {' and no '.join(missing)} in its output_dir")
        nbformat.write(executed, draft / source.name)
        facts = {key: value for key, value in provenance().items() if key != "parameters"}
        page = render_html(executed, parameters=parameters if shown is None else shown, provenance=facts)
        (draft / "report.html").write_text(page, encoding="utf-8")
        _swap_in(draft, folder)
    except OSError as error:
        raise ReportError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Report(folder=folder, notebook=folder / source.name)


def _swap_in(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`, taking an older one away first and bringing it back should that fail."""
    old = draft.with_name(f"{draft.name}-old")
    try:
        for _ in range(_SWAPS):
            with suppress(FileNotFoundError):
                os.rename(folder, old)
            try:
                os.rename(draft, folder)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                # Another run of the same parameters came between; take its (equal) folder away next time round.
                shutil.rmtree(old, ignore_errors=True)
            else:
                return
        raise ReportError(f"{folder} is being replaced by other runs; wait for them to end")
    except BaseException:
        # Not looked up before: between a look and the rename another run may have put its own folder there.
        try:
            os.rename(old, folder)
        except OSError as error:
            if error.errno not in {errno.ENOENT, *_TAKEN}:
                raise
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
