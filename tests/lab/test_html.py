"""The page of a report: one file, readable anywhere, code hidden."""

from __future__ import annotations

from html.parser import HTMLParser

import nbformat
import pytest

from dynalab.lab.html import render_html

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one red pixel
)


class References(HTMLParser):
    """Everything that a browser would fetch or run when it opens a page, and the anchors inside it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.styles: list[str] = []
        self._in_style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [str(values[key]) for key in ("src", "srcset", "data", "poster") if key in values]
        if tag == "link":
            self.fetched.append(str(values.get("href")))
        if tag == "a":
            self.links.append(str(values.get("href")))
        if "id" in values:
            self.ids.append(str(values["id"]))
        self.scripts += tag == "script"
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)


def assert_offline(page: str) -> References:
    """Fail if opening the page would touch the network or run a script."""
    references = References(page)
    assert [url for url in references.fetched if not url.startswith("data:")] == []
    assert references.scripts == 0
    assert not any("@import" in style or "url(" in style for style in references.styles)
    return references


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    code = v4.new_code_cell("secret_source = 1", execution_count=1)
    code.outputs = [
        v4.new_output("stream", name="stdout", text="kept words\n"),
        v4.new_output("stream", name="stderr", text="a warning\n"),
        v4.new_output("display_data", data={"image/png": PNG, "text/plain": "<Figure>"}),
        v4.new_output("display_data", data={"application/javascript": "alert(1)"}),
        v4.new_output("execute_result", data={"text/html": "<table><tr><td>cell</td></tr></table>"}, execution_count=1),
    ]
    silent = v4.new_code_cell("silent_source = 2", execution_count=2)
    prose = v4.new_markdown_cell(
        "# Tiers & curves\n\nProse.\n\n## First <part>\n\n### `Inner` part\n\n## Second part\n"
    )
    return v4.new_notebook(cells=[prose, code, silent])


def test_page_is_self_contained_and_hides_code(notebook: nbformat.NotebookNode) -> None:
    page = render_html(notebook)
    references = assert_offline(page)
    assert references.fetched == [f"data:image/png;base64,{PNG}"]
    assert "kept words" in page
    assert "<td>cell</td>" in page
    for hidden in ("secret_source", "silent_source", "a warning", "alert(1)", "In&nbsp;["):
        assert hidden not in page


def test_contents_point_at_headings(notebook: nbformat.NotebookNode) -> None:
    page = render_html(notebook)
    references = References(page)
    assert "<title>Tiers &amp; curves</title>" in page
    anchors = [link.removeprefix("#") for link in references.links]
    assert len(anchors) == 3
    assert set(anchors) <= set(references.ids)
    contents = page[page.index("<nav>") : page.index("</nav>")]
    assert contents.index("Inner part") < contents.index("Second part")
    assert "anchor-link" not in page


def test_parameters_and_provenance_are_escaped(notebook: nbformat.NotebookNode) -> None:
    page = render_html(
        notebook,
        title="<T>",
        parameters={"trace_format": "<b>", "policies": ["lru", "arc"]},
        provenance={"device": "none"},
    )
    assert "<title>&lt;T&gt;</title>" in page
    assert "&lt;b&gt;" in page
    assert "lru, arc" in page
    assert "trace format" in page
    assert page.index("Provenance") > page.index("Parameters of this report")


def test_notebook_is_left_alone(notebook: nbformat.NotebookNode) -> None:
    before = nbformat.writes(notebook)
    render_html(notebook)
    assert nbformat.writes(notebook) == before


def test_external_resources_would_be_caught() -> None:
    with pytest.raises(AssertionError):
        assert_offline('<link rel="stylesheet" href="https://example.org/a.css">')
    with pytest.raises(AssertionError):
        assert_offline("<style>@import 'https://example.org/a.css';</style>")
