"""Figures for reports: labelled axes with units, intervals where there are any, n in the caption.

Each function returns a matplotlib `Figure` and touches no global state.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 200
MINUS = "\N{MINUS SIGN}"
GREY = "#5b6472"
WIDTH = 4.6  # inches: small, so that its letters stay readable where a phone shrinks it
LINE = 46  # characters of an axis label in one line

LABELS = {
    "base": "base",
    "best_of_n": "best-of-N",
    "token_implicit": "token guidance",
    "token_implicit_best_of_n": "best-of-N of token-guided",
    "chunk_explicit": "chunk guidance",
    "ivg": "IVG",
}


class Style(NamedTuple):
    """How a method is drawn in every figure."""

    color: str
    marker: str


# Okabe and Ito's palette, which people with any colour vision can tell apart.
STYLES = (
    Style("#56B4E9", "X"),
    Style("#009E73", "^"),
    Style("#D55E00", "s"),
    Style("#E69F00", "v"),
    Style("#CC79A7", "D"),
    Style("#0072B2", "o"),
    Style("#000000", "P"),
)


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Give every method a style: a known one its own, others what is left, in order."""
    names = list(dict.fromkeys(names))
    known = dict(zip(LABELS, STYLES, strict=False))
    free = [style for style in STYLES if style not in [known.get(name) for name in names]]
    others = [name for name in names if name not in known]
    own = {name: (free or STYLES)[i % len(free or STYLES)] for i, name in enumerate(others)}
    return {name: known.get(name) or own[name] for name in names}


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
    drawn = styles(methods)
    for row, (name, reward) in enumerate(methods.items()):
        color, marker = drawn[name]
        axes.errorbar(reward["mean"], row, xerr=error_bars(reward), fmt=marker, color=color, capsize=4)
        axes.annotate(
            f"{reward['mean']:.3f}".replace("-", MINUS),
            (reward["mean"], row),
            (0, 7),
            textcoords="offset points",
            ha="center",
        )
    axes.set_yticks(range(len(methods)), [label(name) for name in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel(wrapped(f"mean gold reward ({unit})", LINE + 12), loc="right")
    axes.margins(x=0.12)  # room for the numbers
    axes.grid(axis="x", alpha=0.3)
    add_caption(figure, f"{counted(methods.values())}; bars are 95% intervals of the mean.")
    return figure


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


def wrapped(text: str, line: int = LINE) -> str:
    """Break an axis label where it would be longer than the axis."""
    return textwrap.fill(text, line)


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the common width, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def error_bars(estimate: Mapping[str, Any]) -> list[list[float]]:
    """Return the distances from the mean to the interval's ends, as error bars want them."""
    low, high = estimate["ci95"]
    if low is None or high is None:
        return [[0.0], [0.0]]
    return [[estimate["mean"] - low], [high - estimate["mean"]]]


def counted(estimates: Iterable[Mapping[str, Any]]) -> str:
    """Say for a caption how many prompts estimates are of."""
    counts = sorted({estimate["n"] for estimate in estimates})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} prompts"


def add_caption(figure: Figure, text: str) -> None:
    """Write a figure's caption, n included, below it."""
    figure.supxlabel(text, fontsize=9, color=GREY, x=0.01, ha="left")
