"""Turn an executed notebook into one HTML file that opens anywhere: no code, no network, figures inside.

nbconvert's ``basic`` template renders the cells; the page around it (table of contents, style, provenance) is
``report.html.j2`` and ``report.css`` beside this module.
"""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

_HERE = Path(__file__).parent
_HEADING = re.compile(r'<h(?P<level>[1-3]) id="(?P<id>[^"]*)">(?P<body>.*?)</h(?P=level)>', re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
#: What a page without scripts can show.
_SCRIPTS = (
    "application/javascript",
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)


def render_html(
    notebook: NotebookNode,
    *,
    title: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Render an executed notebook as a self-contained page.

    Parameters
    ----------
    notebook : NotebookNode
        Executed; not changed.
    title : str, optional
        Of the page; the notebook's first heading by default.
    parameters : mapping, optional
        Shown as a table at the end.
    provenance : mapping, optional
        Likewise, folded, behind the parameters.

    Returns
    -------
    str
        HTML without a reference to anything outside itself.
    """
    from jinja2 import Environment, FileSystemLoader

    body = _render_cells(notebook)
    headings = [(int(m["level"]), m["id"], _heading_text(m["body"])) for m in _HEADING.finditer(body)]
    top = next((text for level, _, text in headings if level == 1), None)
    page = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("report.html.j2").render(
        title=title or top or "dynalab report",
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        contents=[(level, anchor, text) for level, anchor, text in headings if level > 1],
        body=body,
        parameters=_rows(parameters),
        provenance=_rows(provenance),
    )


def _render_cells(notebook: NotebookNode) -> str:
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )
    body, _ = exporter.from_notebook_node(_readable(notebook))
    # The sign beside each heading that links to itself is an editor's tool, not a reader's.
    return re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', "", body)


def _readable(notebook: NotebookNode) -> NotebookNode:
    """Copy of a notebook without stderr, scripts, and code cells that show nothing."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = []
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stderr":
                    continue
                if "data" in output:
                    for mime in _SCRIPTS:
                        output.data.pop(mime, None)
                    if not output.data:
                        continue
                outputs.append(output)
            cell.outputs = outputs
            if not outputs:
                continue
        cells.append(cell)
    notebook.cells = cells
    return notebook


def _heading_text(body: str) -> str:
    return html.unescape(_TAG.sub("", body)).strip()


def _rows(facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Name and value of each fact; a sequence as a comma-separated row."""
    rows = []
    for name, value in (facts or {}).items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        rows.append((name.replace("_", " "), text))
    return rows
