"""One look for every figure: colours that colour-blind readers can tell apart, fixed per policy and per tier.

The palette is Okabe and Ito's (Color Universal Design, 2008) without its yellow, which vanishes on white. A policy
keeps its colour and dash pattern in every figure of every notebook, whichever others stand beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
    "#7f7f7f",
)
PALETTE: Final = (BLUE, RED, GREEN, ORANGE, PINK, SKY, GREY, BLACK)

#: Colour and line style per policy. Families share a dash: solid for the classics, dashed for those that keep ghosts or
#: frequencies, dotted for those of the KV cache field; the offline bound is black.
_POLICY_LOOKS: Final[dict[str, tuple[str, str]]] = {
    "lru": (BLUE, "-"),
    "fifo": (GREY, "-"),
    "lfu": (RED, "-"),
    "clock": (SKY, "-"),
    "sieve": (GREEN, "-"),
    "slru": (ORANGE, "-"),
    "2q": (PINK, "-"),
    "arc": (BLUE, "--"),
    "s3fifo": (GREEN, "--"),
    "wtinylfu": (RED, "--"),
    "lirs": (ORANGE, "--"),
    "priority": (SKY, ":"),
    "multilru": (RED, ":"),
    "lineage": (GREEN, ":"),
    "length_aware": (PINK, ":"),
    "belady": (BLACK, "--"),
}

TIER_COLOURS: Final[dict[str, str]] = {
    "device": GREEN,
    "host": BLUE,
    "disk": ORANGE,
    "remote": PINK,
    "miss": "#c8c8c8",
    "recompute": "#c8c8c8",
}

#: Width of a figure in inches: the column of the HTML report.
WIDTH: Final = 7.6
#: The usual figure, and one with two panels side by side.
SINGLE: Final = (WIDTH, 3.9)
PAIR: Final = (WIDTH, 3.2)


def use_style() -> None:
    """Set matplotlib up for a report: the defaults first, so that no user's matplotlibrc changes a figure.

    In a notebook, figures are embedded as PNG at twice the resolution. Works with any backend, Agg included.
    """
    import matplotlib as mpl
    from cycler import cycler

    backend = mpl.rcParams["backend"]
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "backend": backend,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.labelsize": 9.5,
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.dpi": 96,
            "figure.figsize": SINGLE,
            "font.size": 9,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.bbox": "tight",
            "savefig.dpi": 192,
            # Ids inside SVG files would otherwise be random, and files differ from run to run.
            "svg.hashsalt": "dynalab",
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
        }
    )
    _retina_figures()


def _retina_figures() -> None:
    """Make a notebook embed PNG figures at twice the resolution; nothing outside IPython."""
    import sys

    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("retina")


def policy_style(name: str) -> dict[str, Any]:
    """Colour and dash of a policy, as keyword arguments of ``Axes.plot``.

    A name that is not in the table (a policy of your own) gets a look that depends on the name only.

    Examples
    --------
    >>> policy_style("lru")
    {'color': '#0072b2', 'linestyle': '-'}
    """
    if name in _POLICY_LOOKS:
        colour, dash = _POLICY_LOOKS[name]
    else:
        from zlib import crc32

        colour, dash = PALETTE[crc32(name.encode()) % len(PALETTE)], "-."
    return {"color": colour, "linestyle": dash}


def label_lines(ax: Axes, *, gap: float = 1.15, fontsize: float = 8.5) -> None:
    """Name every labelled line at its right end, in its own colour, and push the names apart where they would overlap.

    A legend makes the reader's eye travel; a name beside the line does not. Call it last, when the limits are set.

    Parameters
    ----------
    ax : matplotlib Axes
        Lines whose label begins with an underscore are left out, as in a legend.
    gap : float
        Least distance of two names, in heights of the font.
    fontsize : float
        In points.
    """
    from scipy.optimize import isotonic_regression

    # Autoscaling is lazy: asking for the limits makes the transform below the final one.
    ax.get_xlim(), ax.get_ylim()
    ends = []
    for line in ax.get_lines():
        label = str(line.get_label())
        xy = ax.transData.transform(np.column_stack([line.get_xdata(orig=False), line.get_ydata(orig=False)]))
        xy = xy[np.isfinite(xy).all(axis=1)]
        if not label.startswith("_") and len(xy):
            ends.append((float(xy[-1, 1]), label, line.get_color()))
    if not ends:
        return
    ends.sort(key=lambda end: end[0])
    pixels = gap * fontsize * ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    wanted = np.array([end[0] for end in ends])
    steps = pixels * np.arange(len(ends))
    # Least squares under "each at least one gap above the one below" is an isotonic regression of the gaps taken out.
    placed = isotonic_regression(wanted - steps).x + steps
    to_axes = ax.transAxes.inverted()
    for height, (_, label, colour) in zip(placed, ends, strict=True):
        y = float(to_axes.transform((0.0, height))[1])
        ax.annotate(
            label,
            xy=(1.0, y),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            color=colour,
            fontsize=fontsize,
            annotation_clip=False,
        )


def size_axis(axis: Axis, *, binary: bool = True) -> None:
    """Write the ticks of an axis in bytes as "10 GiB" (or "10 GB"), at round numbers of that unit.

    Parameters
    ----------
    axis : matplotlib Axis
        ``ax.xaxis`` or ``ax.yaxis``; linear or logarithmic. Its limits should be set or autoscaled before.
    binary : bool
        Powers of 1024, or of 1000.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

    from dynalab.units import format_size

    low, high = sorted(axis.get_view_interval())
    # A label such as "256 GiB" is half an inch wide; ticks need some air besides.
    box = axis.axes.get_window_extent().transformed(axis.get_figure(root=True).dpi_scale_trans.inverted())  # type: ignore[union-attr]
    steps = max(2.0, box.width / 0.8 if axis.axis_name == "x" else box.height / 0.45)  # type: ignore[attr-defined]
    if axis.get_scale() == "log":
        # Powers of two a few apart: 1 GiB, 4 GiB, 16 GiB ...; decimal sizes keep matplotlib's powers of ten.
        axis.set_major_locator(LogLocator(2.0 ** max(1, np.ceil(np.log2(high / low) / steps)) if binary else 10.0))
        axis.set_minor_locator(NullLocator())
    elif binary:
        # A fifth of a TiB is an ugly number of GiB; steps that are powers of two stay round in every unit.
        axis.set_major_locator(MultipleLocator(2.0 ** np.ceil(np.log2((high - low) / steps))))
    else:
        axis.set_major_locator(MaxNLocator(nbins=int(steps), steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_size(value, binary=binary)))
