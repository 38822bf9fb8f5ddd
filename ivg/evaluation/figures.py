"""Figures for reports: labelled axes with units, intervals where there are any, n in the caption.

Each function returns a matplotlib `Figure` and touches no global state.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# Okabe and Ito's palette, which people with any colour vision can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 200
GREY = "#6b7280"
WIDTH = 5.2  # inches: small, so that its letters stay readable where a phone shrinks it

LABELS = {
    "base": "base",
    "best_of_n": "best-of-N",
    "token_implicit": "token guidance",
    "token_implicit_best_of_n": "best-of-N of token-guided",
    "chunk_explicit": "chunk guidance",
    "ivg": "IVG",
}


@dataclasses.dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One setting of a method on the frontier.

    Attributes:
        method: points of one method are joined in the order given.
        setting: what varies, written beside the point (`β=0.5`).
        x: distance from the base, or compute.
        reward: gold reward, as `Estimate.as_dict` writes it.
    """

    method: str
    setting: str
    x: float
    reward: Mapping[str, Any]


def label(method: str) -> str:
    """Return a method's name for people."""
    return LABELS.get(method, method.replace("_", " "))


def reward_by_method(methods: Mapping[str, Mapping[str, Any]], *, unit: str) -> Figure:
    """Draw the mean gold reward of each method with its 95% interval.

    Args:
        methods: gold reward by method, as `Estimate.as_dict` writes it; drawn from top to bottom.
        unit: what the reward is measured in, for the axis.
    """
    figure, axes = new_figure(1.2 + 0.42 * len(methods))
    for row, reward in enumerate(methods.values()):
        colour = PALETTE[row % len(PALETTE)]
        axes.errorbar(reward["mean"], row, xerr=_interval(reward), fmt="o", color=colour, capsize=4)
        axes.annotate(
            f"{reward['mean']:.3f}", (reward["mean"], row), (0, 7), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(methods)), [label(name) for name in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel(f"mean gold reward ({unit})", loc="right")  # units can be longer than the axis
    axes.grid(axis="x", alpha=0.3)
    add_caption(figure, f"{_counts(methods.values())}; bars are 95% intervals of the mean.")
    return figure


_SIDES = ((0, -1), (1, 1))  # of an interval, and their signs
_LABEL_PLACES = [
    ((reach * side, rise), "left" if side > 0 else "right")
    for rise in (0, -8, 8, -16, 16)
    for side, reach in ((1, 7), (-1, 7), (1, 14))
]


def frontier(points: Sequence[FrontierPoint], *, unit: str, xlabel: str, log_x: bool = False) -> Figure:
    """Draw gold reward against distance from the base (or compute), one line per method.

    Args:
        points: in the order in which each method's line runs.
        unit: what the reward is measured in.
        xlabel: the horizontal axis, with its unit.
        log_x: logarithmic horizontal axis.
    """
    figure, axes = new_figure(4.8)
    for i, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = [point for point in points if point.method == method]
        axes.errorbar(
            [point.x for point in own],
            [point.reward["mean"] for point in own],
            yerr=[[_interval(p.reward)[side][0] for p in own] for side in (0, 1)],
            fmt=f"{MARKERS[i % len(MARKERS)]}-",
            color=PALETTE[i % len(PALETTE)],
            label=label(method),
            capsize=3,
            alpha=0.9,
        )
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"mean gold reward ({unit})")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)  # room for the labels
    figure.legend(loc="outside upper left", ncols=2, frameon=False)  # never over the intervals
    add_caption(figure, f"{_counts([point.reward for point in points])}; bars are 95% intervals of the mean.")
    _label_points(figure, axes, points)
    return figure


def _label_points(figure: Figure, axes: Axes, points: Sequence[FrontierPoint]) -> None:
    """Write each point's setting where it hides the fewest points, intervals and earlier labels."""
    figure.draw_without_rendering()  # the layout decides where things are
    taken = []
    for point in points:
        low, high = (point.reward["mean"] + sign * _interval(point.reward)[side][0] for side, sign in _SIDES)
        (x, bottom), (_, top) = axes.transData.transform([(point.x, low), (point.x, high)])
        taken.append(Bbox([[x - 6, bottom], [x + 6, top]]))
    colors = dict(zip(dict.fromkeys(point.method for point in points), itertools.cycle(PALETTE)))
    for point in points:
        placed = []
        for offset, alignment in _LABEL_PLACES:
            text = axes.annotate(
                point.setting,
                (point.x, point.reward["mean"]),
                offset,
                textcoords="offset points",
                fontsize=7,
                color=colors[point.method],
                ha=alignment,
                va="center",
            )
            box = text.get_window_extent()
            hidden = sum(box.overlaps(other) for other in taken)
            is_inside = all(axes.bbox.contains(x, y) for x, y in box.get_points())
            placed.append((hidden if is_inside else len(taken), text, box))
            text.set_visible(False)
        _, text, box = min(placed, key=lambda place: place[0])
        for _, other, _ in placed:
            if other is not text:
                other.remove()
        text.set_visible(True)
        taken.append(box)


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, creating its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Without the version stamp the same data gives the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def data_uri(figure: Figure) -> str:
    """Return a figure as a PNG data URI, for pages that must stand alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the common width, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _interval(estimate: Mapping[str, Any]) -> list[list[float]]:
    """Return the distances from the mean to the interval's ends, as error bars want them."""
    low, high = estimate["ci95"]
    if low is None or high is None:
        return [[0.0], [0.0]]
    return [[estimate["mean"] - low], [high - estimate["mean"]]]


def _counts(estimates: Any) -> str:
    counts = sorted({estimate["n"] for estimate in estimates})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} prompts"


def add_caption(figure: Figure, text: str) -> None:
    """Write a figure's caption, n included, below it."""
    figure.supxlabel(text, fontsize=9, color=GREY, x=0.01, ha="left")
