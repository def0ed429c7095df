"""How a layout shows itself: a small table of the sizes that decide how it is copied."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from dynalab.units import format_size

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout


def facts(layout: KVLayout) -> list[tuple[str, str]]:
    """Names and values of what a reader wants to know of a layout, fragments first."""
    pieces = layout.fragments_per_block
    lies = "in one piece" if pieces == 1 else f"in {pieces} pieces of {_size(layout.fragment_bytes)}"
    stored = f"{layout.n_storages} storage" + "s" * (layout.n_storages > 1)
    padding = layout.bytes_per_block - layout.block_bytes
    rows = [
        ("Layout", layout.summary()),
        ("Block", f"{_size(layout.block_bytes)}, {lies}"),
        ("Region", f"{_size(layout.region_bytes)} per layer and outer index, {layout.regions_per_block} per block"),
        ("Token", f"{_size(layout.block_bytes // layout.page_tokens)}"),
        ("Block stride", f"{_size(layout.block_stride)}, {stored}"),
    ]
    if padding:
        rows.append(("Padding", f"{_size(padding)} per block ({padding / layout.bytes_per_block:.1%} of the memory)"))
    return rows


def to_text(layout: KVLayout) -> str:
    """Return the layout as a table in plain text."""
    return "\n".join(f"{name:<13} {value}" for name, value in facts(layout))


def to_html(layout: KVLayout) -> str:
    """Return the layout as an HTML table for notebooks."""
    left = 'style="text-align: left; white-space: normal"'
    rows = "".join(
        f"<tr><th {left}>{html.escape(name)}</th><td {left}>{html.escape(value)}</td></tr>"
        for name, value in facts(layout)
    )
    return f"<table>{rows}</table>"


def _size(nbytes: int) -> str:
    """Bytes exactly, and in a unit where that is shorter."""
    return f"{nbytes:,} B" if nbytes < 1024 else f"{nbytes:,} B ({format_size(nbytes)})"
