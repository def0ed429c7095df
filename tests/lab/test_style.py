"""Figures: fixed looks, readable labels, the same bytes every time."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from dynalab.lab.style import label_lines, policy_style, size_axis, use_style


@pytest.fixture(autouse=True)
def _restore_style():
    with mpl.rc_context():
        yield
    plt.close("all")


def drawn(fmt: str) -> bytes:
    use_style()
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], [0.1, 0.5, 0.6], label="lru", **policy_style("lru"))
    label_lines(ax)
    buffer = io.BytesIO()
    fig.savefig(buffer, format=fmt, metadata={"Date": None} if fmt == "svg" else None)
    return buffer.getvalue()


@pytest.mark.parametrize("fmt", ["png", "svg"])
def test_figures_repeat_byte_for_byte(fmt: str) -> None:
    assert drawn(fmt) == drawn(fmt)


def test_style_forgets_the_user_settings() -> None:
    mpl.rcParams["lines.linewidth"] = 17
    mpl.rcParams["axes.facecolor"] = "black"
    use_style()
    assert mpl.rcParams["lines.linewidth"] == 1.8
    assert mpl.rcParams["axes.facecolor"] == "white"
    assert mpl.get_backend().lower() == "agg"


def test_no_two_policies_look_alike() -> None:
    from dynalab.kv.policies import POLICIES

    looks = [tuple(policy_style(name).values()) for name in POLICIES]
    assert len(set(looks)) == len(looks)
    assert not any(dash == "-." for _, dash in looks), "a shipped policy has no look of its own"
    assert policy_style("my-own") == policy_style("my-own")


def test_labels_do_not_overlap_and_keep_their_order() -> None:
    use_style()
    fig, ax = plt.subplots()
    ends = [0.50, 0.501, 0.502, 0.9, 0.1]
    for number, end in enumerate(ends):
        ax.plot([0, 1], [0, end], label=f"p{number}")
    ax.plot([0, 1], [0, 0.3], label="_hidden")
    ax.plot([0, 1], [np.nan, np.nan], label="empty")
    label_lines(ax)
    fig.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(boxes) == {"p0", "p1", "p2", "p3", "p4"}
    bottom_up = sorted(boxes, key=lambda name: boxes[name].y0)
    assert bottom_up == ["p4", "p0", "p1", "p2", "p3"]
    centres = [(boxes[name].y0 + boxes[name].y1) / 2 for name in bottom_up]
    assert np.diff(centres).min() >= 8.5 * fig.dpi / 72
    # Labels that have room stay at the end of their line.
    for name, end in (("p4", 0.1), ("p3", 0.9)):
        middle = (boxes[name].y0 + boxes[name].y1) / 2
        assert middle == pytest.approx(ax.transData.transform((1, end))[1], abs=3)


@pytest.mark.parametrize(
    ("scale", "binary", "low", "high"),
    [("linear", True, 0, 2**40), ("log", True, 2**20, 2**42), ("linear", False, 0, 4e12), ("log", False, 1e9, 1e13)],
)
def test_size_ticks_are_round(scale: str, binary: bool, low: float, high: float) -> None:
    _, ax = plt.subplots()
    ax.set_xscale(scale)
    ax.set_xlim(low, high)
    size_axis(ax.xaxis, binary=binary)
    ticks = [tick for tick in ax.xaxis.get_majorticklocs() if low <= tick <= high]
    labels = ax.xaxis.get_major_formatter().format_ticks(ticks)
    assert 3 <= len(labels) <= 9
    for label in labels:
        number, unit = label.split()
        assert float(number) == int(float(number)) or len(number) <= 3
        assert unit == "B" or unit.endswith("iB") == binary
