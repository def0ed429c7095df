"""Figures that several notebooks draw: policies over capacity, tables as heat maps, a cache step by step, a frontier.

Every function draws on axes that the caller made, and returns nothing but what the caller needs to go on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.lab.style import BLUE, GREY, policy_style

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dynalab.workload import Trace

#: How the numbers of a figure came about, for :func:`caption`.
SIMULATED = "Simulated: metadata-only replay"
COUNTED = "Counted in the trace"
_HIT = "#cfe3f1"


def caption(fig: Figure, trace: Trace, how: str = SIMULATED) -> None:
    """Write below a figure whether its numbers are simulated, counted or published, and for which trace.

    A figure travels without its notebook; this line travels with it.

    Parameters
    ----------
    fig : matplotlib Figure
    trace : Trace
    how : str
        :data:`SIMULATED`, :data:`COUNTED`, or words of your own.
    """
    made = "preset" in trace.attrs and "seed" in trace.attrs
    source = f"synthetic {trace.attrs['preset']}, seed {trace.attrs['seed']}" if made else Path(trace.source).name
    text = f"{how}. Trace: {source} ({len(trace):,} requests)"
    # Wider than a figure, a line would widen it.
    fig.supxlabel(textwrap.fill(text, 150), x=0.01, ha="left", fontsize=7, color=GREY)


def capacity_axis(ax: Axes, block_tokens: int | None, label: str = "cache capacity") -> None:
    """Make the x axis one of blocks: logarithmic, with round numbers written out.

    Parameters
    ----------
    ax : matplotlib Axes
        Already drawn on, so that its limits are known.
    block_tokens : int or None
        Tokens per block, named in the label.
    label : str
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    # Three ticks per decade where there is room for them, else one.
    ax.xaxis.set_major_locator(LogLocator(10.0, subs=(1.0, 3.0) if high / max(low, 1e-9) < 3000 else (1.0,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel(f"{label} (blocks of {block_tokens} tokens)" if block_tokens else f"{label} (blocks)")


def policy_lines(ax: Axes, ratios: xr.DataArray, baseline: str | None = None) -> None:
    """Draw one line per policy over capacity, in percent, or as percentage points above a baseline.

    Parameters
    ----------
    ax : matplotlib Axes
    ratios : xarray.DataArray
        Hit ratios over (policy, capacity).
    baseline : str, optional
        Policy to draw the others against; its own line is zero.
    """
    values = 100 * ratios
    if baseline is not None:
        _require(ratios, baseline)
        values = values - values.sel(policy=baseline)
    for name in values.policy.values.tolist():
        ax.plot(values.capacity, values.sel(policy=name), label=name, **policy_style(name))
    named = str(ratios.attrs.get("long_name", "hit ratio"))
    ax.set_ylabel(f"{named} (%)" if baseline is None else f"{named} against {baseline} (pp)")
    capacity_axis(ax, None)


def _require(ratios: xr.DataArray, policy: str) -> None:
    names = ratios.policy.values.tolist()
    if policy not in names:
        raise ConfigError(f"baseline: {policy!r} was not replayed; choose from {', '.join(names)}")


def heat_table(
    ax: Axes, table: pd.DataFrame, text: Callable[[float], str] = "{:.1f}".format, *, centre: float | None = None
) -> None:
    """Draw a table whose cells are coloured by their value; dark is much.

    Parameters
    ----------
    ax : matplotlib Axes
    table : pandas.DataFrame
        Numbers; the index names rows, the columns columns. Cells that are not finite stay white.
    text : callable
        Turns a value into what its cell says.
    centre : float, optional
        Value that stays white between two colours: purple above, orange below, which the colour-blind tell apart.
    """
    import matplotlib as mpl
    from matplotlib.colors import Normalize, TwoSlopeNorm

    values = table.to_numpy(np.float64)
    shown = values[np.isfinite(values)]
    norm: Normalize
    if centre is None:
        norm = Normalize(shown.min(), shown.max() + 1e-12)
        colours = mpl.colormaps["Blues"]
    else:
        reach = max(float(np.abs(shown - centre).max()), 1e-12)
        norm = TwoSlopeNorm(centre, centre - reach, centre + reach)
        colours = mpl.colormaps["PuOr"]
    ax.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto", alpha=0.9)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = colours(norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            ax.text(column, row, text(value), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(table.shape[1]), [_plain(name) for name in table.columns])
    ax.set_yticks(range(table.shape[0]), [_plain(name) for name in table.index])
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _plain(name: Any) -> str:
    return f"{name:,}" if isinstance(name, int | np.integer) else str(name)


@dataclass(frozen=True)
class Step:
    """One access of a small cache, for drawing.

    Attributes
    ----------
    block : int
        The block that was asked for.
    hit : bool
    victim : int
        The block that had to leave, -1 for none.
    slots : tuple of int
        What each slot holds afterwards, -1 for nothing. A block keeps its slot while it stays.
    """

    block: int
    hit: bool
    victim: int
    slots: tuple[int, ...]


def cache_steps(policy: str, accesses: Sequence[int], capacity: int, **facts: Any) -> list[Step]:
    """Run a small cache and remember what it holds after every access.

    Parameters
    ----------
    policy : str
    accesses : sequence of int
        Block ids from 0 up.
    capacity : int
        Slots.
    **facts
        ``position``, ``parent`` or ``priority`` per block, for policies that need them.

    Returns
    -------
    list of Step

    Examples
    --------
    >>> [step.hit for step in cache_steps("lru", [0, 1, 0, 2, 1], 2)]
    [False, False, True, False, False]
    """
    from dynalab.kv.policies import PolicyState, get_policy

    needed = {name: value for name, value in facts.items() if name in get_policy(policy).needs}
    state = PolicyState(policy, capacity, max(accesses) + 1, **needed)
    slots = [-1] * capacity
    steps = []
    for index, block in enumerate(accesses):
        later = [i for i in range(index + 1, len(accesses)) if accesses[i] == block]
        hit, victim = state.access(block, next_use=later[0] if later else -1)
        if not hit:
            slots[slots.index(victim)] = block
        steps.append(Step(block, bool(hit), int(victim), tuple(slots)))
    return steps


def draw_steps(ax: Axes, steps: Sequence[Step], names: Sequence[str], title: str) -> None:
    """Draw a small cache over time: a column per access, a row per slot, hits shaded.

    Parameters
    ----------
    ax : matplotlib Axes
    steps : sequence of Step
        From :func:`cache_steps`.
    names : sequence of str
        Of the blocks, by id.
    title : str
        The number of hits is added to it.
    """
    from matplotlib.patches import Rectangle

    rows = len(steps[0].slots)
    for column, step in enumerate(steps):
        ax.text(column, -0.95, names[step.block], ha="center", va="center", fontweight="bold", fontsize=9)
        for row, block in enumerate(step.slots):
            here = block == step.block
            face = (_HIT if step.hit else "#f3f3f3") if here else "white"
            ax.add_patch(Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, facecolor=face, edgecolor="#bbbbbb"))
            if block >= 0:
                colour = BLUE if here and step.hit else "black" if here else GREY
                weight = "bold" if here and step.hit else "normal"
                ax.text(
                    column, row, names[block], ha="center", va="center", fontsize=8, color=colour, fontweight=weight
                )
    ax.set_xlim(-0.6, len(steps) - 0.4)
    ax.set_ylim(rows - 0.4, -1.5)
    ax.set_yticks([])
    ax.set_xticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{title}: {sum(step.hit for step in steps)} hits", fontsize=9.5)


def efficient(cost: npt.ArrayLike, gain: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Mark the points that no other point beats: none costs less and gives as much, or gives more at the same cost.

    Parameters
    ----------
    cost, gain : array_like of float, shape (n,)

    Returns
    -------
    ndarray of bool, shape (n,)
        Of equal points the first is marked.

    Examples
    --------
    >>> efficient([1, 2, 3], [5, 4, 6])
    array([ True, False,  True])
    """
    costs, gains = np.asarray(cost, np.float64), np.asarray(gain, np.float64)
    # By cost, and the highest gain first on a tie: a point then counts if it gives more than all before it.
    order = np.lexsort((-gains, costs))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gains[order][:-1]])) if costs.size else gains
    marks = np.zeros(costs.size, bool)
    marks[order] = gains[order] > best
    return marks
