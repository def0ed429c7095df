"""How a trace shows itself: one line, a table with a sparkline, a summary, an xarray data set."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab import __version__

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.workload.trace import Trace


def one_line(trace: Trace) -> str:
    """Return the trace in one plain line."""
    blocks = "no block ids"
    if trace.has_blocks:
        blocks = f"{trace.n_accesses:,} accesses to {trace.n_blocks:,} blocks of {trace.block_tokens} tokens"
    return f"<Trace {trace.source!r}: {len(trace):,} requests over {trace.duration:,.6g} s, {blocks}>"


def summary(trace: Trace) -> dict[str, Any]:
    """Key figures of a trace, with units in their names.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    dict
        ``requests``, ``duration_s``, ``requests_per_s`` (mean; nan where all requests arrive at once), the sums, means
        and percentiles of ``input_tokens`` and ``output_tokens``, ``block_tokens`` (None without block ids), and with
        block ids: ``block_accesses``, ``blocks`` (different ones), ``blocks_reused``, ``infinite_cache_hit_ratio``
        (1 - blocks / block_accesses); ``source`` and ``sha256``.
    """
    result: dict[str, Any] = {
        "requests": len(trace),
        "duration_s": trace.duration,
        "requests_per_s": len(trace) / trace.duration if trace.duration else float("nan"),
    }
    for name in ("input_tokens", "output_tokens"):
        column = getattr(trace, name)
        result[f"{name}_total"] = int(column.sum(dtype=np.int64))
        result[f"{name}_mean"] = float(column.mean(dtype=np.float64))
        for percentile, value in zip((50, 90, 99), np.percentile(column, (50, 90, 99)), strict=True):
            result[f"{name}_p{percentile}"] = float(value)
        result[f"{name}_max"] = int(column.max())
    result["block_tokens"] = trace.block_tokens
    if trace.has_blocks:
        uses = np.bincount(trace.block_ids) if trace.n_accesses else np.zeros(0, np.int64)
        result["block_accesses"] = trace.n_accesses
        result["blocks"] = trace.n_blocks
        result["blocks_reused"] = int((uses > 1).sum())
        result["infinite_cache_hit_ratio"] = 1 - trace.n_blocks / trace.n_accesses if trace.n_accesses else 0.0
    result["source"] = trace.source
    result["sha256"] = trace.sha256
    return result


def sparkline(values: npt.ArrayLike, *, width: int = 360, height: int = 48, title: str = "") -> str:
    """Draw bars as an inline SVG image.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        Heights from 0 up.
    width, height : int
        Pixels.
    title : str
        Shown when the pointer rests on it, and read to those who cannot see it.

    Returns
    -------
    str
        An ``<svg>`` element in the colour of the text around it.
    """
    bars = np.asarray(values, np.float64)
    step = width / max(bars.size, 1)
    tall = bars / bars.max() * height if bars.size and bars.max() > 0 else np.zeros(bars.size)
    drawn = "".join(
        f"M{n * step:.1f} {height}v{-top:.1f}h{step * 0.85:.1f}V{height}z" for n, top in enumerate(tall) if top > 0
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img" '
        f'viewBox="0 0 {width} {height}"><title>{html.escape(title)}</title>'
        f'<path d="{drawn}" fill="currentColor" opacity="0.65"/></svg>'
    )


def to_html(trace: Trace, bins: int = 90) -> str:
    """Return the trace as a small HTML table with its arrivals as bars."""
    figures = summary(trace)
    counts, edges = np.histogram(trace.arrival, bins=min(bins, max(len(trace), 1)), range=(0, trace.duration or 1.0))
    rows = [
        ("Requests", f"{len(trace):,} over {trace.duration:,.1f} s ({figures['requests_per_s']:.3g} per second)"),
        ("Input tokens", _spread(figures, "input_tokens")),
        ("Output tokens", _spread(figures, "output_tokens")),
    ]
    if trace.has_blocks:
        rows += [
            ("Blocks", f"{trace.n_accesses:,} accesses to {trace.n_blocks:,} blocks of {trace.block_tokens} tokens"),
            (
                "Reuse",
                f"{figures['blocks_reused']:,} blocks are used again; "
                f"an infinite cache hits {figures['infinite_cache_hit_ratio']:.4f} of all accesses",
            ),
        ]
    else:
        rows.append(("Blocks", "no block ids; trace.with_prefixes(...) gives synthetic ones"))
    # A file is known by its name; a description such as "synthetic: ... requests/s" is no path.
    source = trace.source if ": " in trace.source else Path(trace.source).name
    rows.append(("Source", f"{source} (sha256 {trace.sha256[:12]})"))
    left = 'style="text-align: left; white-space: normal"'
    table = "".join(
        f"<tr><th {left}>{html.escape(name)}</th><td {left}>{html.escape(text)}</td></tr>" for name, text in rows
    )
    title = f"Requests per {edges[1]:.3g} s, at most {counts.max()}"
    return f"<div><table>{table}</table><div>{sparkline(counts, title=title)}<br><small>{title}</small></div></div>"


def _spread(figures: dict[str, Any], name: str) -> str:
    mean, median, p99, most = (figures[f"{name}_{what}"] for what in ("mean", "p50", "p99", "max"))
    return f"mean {mean:,.1f}, median {median:,.0f}, p99 {p99:,.0f}, max {most:,}"


def to_dataset(trace: Trace) -> xr.Dataset:
    """Columns as a data set with dimensions ``request`` and, with block ids, ``access``.

    Returns
    -------
    xarray.Dataset
        Variables ``arrival`` (s), ``input_tokens``, ``output_tokens``, ``blocks`` (block ids per request) over
        `request`; ``block_id`` and the ``owner`` request over `access`. Attributes say where it came from; everything
        in it can be written to netCDF.
    """
    import xarray as xr

    def variable(dim: str, values: npt.NDArray[Any], units: str, long_name: str) -> Any:
        return (dim, values, {"units": units, "long_name": long_name})

    counts = np.diff(trace.offsets)
    data = {
        "arrival": variable("request", trace.arrival, "s", "arrival since the first request"),
        "input_tokens": variable("request", trace.input_tokens, "tokens", "prompt length"),
        "output_tokens": variable("request", trace.output_tokens, "tokens", "generated length"),
    }
    attrs: dict[str, Any] = {"source": trace.source, "sha256": trace.sha256, "dynalab_version": __version__}
    if trace.block_tokens is not None:
        owner = np.repeat(np.arange(len(trace)), counts)
        data["blocks"] = variable("request", counts, "blocks", "blocks of the prompt, the last perhaps partial")
        data["block_id"] = variable("access", trace.block_ids, "1", "dense block id in order of first appearance")
        data["owner"] = variable("access", owner, "1", "request that the access belongs to")
        attrs["block_tokens"] = trace.block_tokens
    for name, value in trace.attrs.items():
        attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
    return xr.Dataset(data, attrs=attrs)
