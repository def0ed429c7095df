"""Figures of requests over connections: each in its place over time, outcomes through a fault, a pool that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dynalab.lab.style import BLACK, BLUE, GREY, ORANGE, PINK, RED, SKY

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

    from dynalab.net.observed import Glance

_AGAIN: Final = "ok after a retry"
#: Every outcome has its colour in all figures; those that a figure does not show are left out of its legend.
OUTCOME_COLOURS: Final[dict[str, str]] = {
    "ok": BLUE,
    _AGAIN: SKY,
    "timed out": PINK,
    "lost": RED,
    "could not connect": ORANGE,
    "overloaded": GREY,
    "unavailable": "#b0b0b0",
    "handler failed": "#5b3a29",
    "other error": BLACK,
    "cancelled": "#d8d8d8",
}
#: What the bars of :func:`request_chart` mean.
_ON_THE_WAY, _HELD = "#d9d9d9", "#e3bcd2"
#: A reply that leaves so soon after its handler is done was not held up [s].
_AT_ONCE: Final = 2e-3


def lanes(begin: npt.ArrayLike, end: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Give intervals that overlap different lanes: each the lowest that is free when it begins.

    Parameters
    ----------
    begin, end : array_like of float, shape (n,)
        In any order; an interval that ends when another begins makes room for it.

    Returns
    -------
    ndarray of int, shape (n,)
        From 0 up; as many as there are intervals at once at most.

    Examples
    --------
    >>> lanes([0, 1, 2], [3, 2, 4]).tolist()
    [0, 1, 1]
    """
    begins, ends = np.asarray(begin, float), np.asarray(end, float)
    found = np.zeros(begins.size, int)
    free_at: list[float] = []
    for k in np.argsort(begins, kind="stable").tolist():
        lane = next((lane for lane, free in enumerate(free_at) if free <= begins[k]), len(free_at))
        if lane == len(free_at):
            free_at.append(0.0)
        free_at[lane] = float(ends[k])
        found[k] = lane
    return found


def request_chart(ax: Axes, requests: xr.Dataset, kinds: Mapping[str, tuple[float, str]], until: float) -> list[Patch]:
    """Draw each request in a row of its connection: on its way, handled, and held up though it is done.

    Parameters
    ----------
    ax : matplotlib Axes
    requests : xarray.Dataset
        From :func:`dynalab.net.trial.with_handling`.
    kinds : mapping
        Name to the shortest service [s] of that kind, and the colour of its handlers; shortest first.
    until : float
        Requests asked for later [s] are left out.

    Returns
    -------
    list of matplotlib Patch
        For a legend, where the caller has room for it.
    """
    from matplotlib.patches import Patch

    shown = requests.isel(request=(requests.asked < until) & requests.done.notnull())
    asked, began, done, ended = (shown[name].values * 1e3 for name in ("asked", "began", "done", "ended"))
    colours = np.full(asked.size, BLACK, object)
    for least, colour in kinds.values():
        colours[shown.service.values >= least] = colour
    over, row, ticks = shown.connection.values, 0, []
    for connection in np.unique(over):
        here = np.flatnonzero(over == connection)
        lane = lanes(asked[here], np.maximum(done, ended)[here])
        y = row + lane
        size: dict[str, Any] = {"height": 0.86, "linewidth": 0}
        ax.barh(y, (began - asked)[here], left=asked[here], color=_ON_THE_WAY, **size)
        ax.barh(y, (done - began)[here], left=began[here], color=colours[here], **size)
        late = ended[here] - done[here] > _AT_ONCE * 1e3
        ax.barh(y[late], (ended - done)[here][late], left=done[here][late], color=_HELD, **size)
        ax.plot(ended[here], y, "|", color=BLACK, markersize=3.5, markeredgewidth=0.9)
        rows = int(lane.max()) + 1
        ticks.append((row + (rows - 1) / 2, str(int(connection) + 1)))
        row += rows
        ax.axhline(row - 0.5, color="#b5b5b5", linewidth=0.6)
    ax.set_yticks([y for y, _ in ticks], [name for _, name in ticks], fontsize=7)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, until * 1e3), ylim=(row - 0.5, -0.5), ylabel="connection", xlabel="time (ms)")
    ax.grid(axis="y", visible=False)
    names = [Patch(color=colour, label=name) for name, (_, colour) in kinds.items()]
    names += [Patch(color=_HELD, label="done, reply held up"), Patch(color=_ON_THE_WAY, label="on its way")]
    return names


def outcome_counts(requests: xr.Dataset, width: float) -> pd.DataFrame:
    """Count outcomes by when requests were asked for.

    Parameters
    ----------
    requests : xarray.Dataset
        From :func:`dynalab.net.trial.open_loop`.
    width : float
        Of a window [s].

    Returns
    -------
    pandas.DataFrame
        A row for each window, by its beginning [s]; a column for each outcome that occurred, with "ok after a retry"
        apart from "ok".
    """
    import pandas as pd

    told = requests.outcome.values.astype(object)
    told[(told == "ok") & (requests.attempts.values > 1)] = _AGAIN
    window = np.floor(requests.asked.values / width).astype(int)
    counts = pd.crosstab(window, told).reindex(range(int(window.max()) + 1), fill_value=0)
    counts = counts[[name for name in OUTCOME_COLOURS if name in counts.columns]]
    return counts.set_axis(counts.index * width, axis=0).rename_axis(index="asked", columns="outcome")


def outcome_bars(ax: Axes, requests: xr.Dataset, width: float = 0.1) -> None:
    """Draw how requests ended, by when they were asked for: a bar for each window.

    Parameters
    ----------
    ax : matplotlib Axes
    requests, width
        As for :func:`outcome_counts`.
    """
    counts = outcome_counts(requests, width)
    below = np.zeros(len(counts))
    for name in counts.columns:
        ax.bar(
            counts.index, counts[name], width, bottom=below, align="edge", color=OUTCOME_COLOURS[str(name)], label=name
        )
        below += counts[name].to_numpy()
    ax.set_ylabel(f"requests in {1e3 * width:g} ms")
    ax.grid(axis="x", visible=False)


def growth_chart(ax: Axes, glances: Sequence[Glance], origin: float) -> None:
    """Draw requests in flight on each connection over time, one upon the other, and those that wait on top.

    Parameters
    ----------
    ax : matplotlib Axes
    glances : sequence of Glance
        From :meth:`dynalab.net.observed.ObservedPool.watched`.
    origin : float
        Zero of the time axis [s, ``time.monotonic()``].
    """
    import matplotlib as mpl

    at = np.array([one.at for one in glances]) - origin
    most = max(len(one.in_flight) for one in glances)
    rows = np.zeros((most + 1, len(glances)))
    for column, one in enumerate(glances):
        rows[: len(one.in_flight), column] = one.in_flight
        rows[most, column] = one.waiting
    shades = [mpl.colormaps["Blues"](0.35 + 0.55 * k / max(1, most - 1)) for k in range(most)]
    names = [*(f"connection {k + 1}" for k in range(most)), "waiting"]
    ax.stackplot(at * 1e3, rows, colors=[*shades, ORANGE], labels=names, step="post", linewidth=0)
    ax.set(xlabel="time (ms)", ylabel="requests", xlim=(0, at.max() * 1e3), ylim=(0, None))
