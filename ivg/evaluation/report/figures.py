"""Figures: labelled axes with units, intervals where there are any, n in the caption.

Each function returns a matplotlib `Figure` and touches no global state. Texts from files pass `plain`, since
matplotlib would read what stands between two dollar signs as a formula.
"""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivg.evaluation.safe_text import visible

DPI = 200
MINUS = "\N{MINUS SIGN}"
GREY = "#5b6472"
WIDTH = 4.6  # inches: small, so that its letters stay readable where a phone shrinks it
LINE = 46  # characters of an axis label in one line
CAPTION_LINE = 68  # characters of a caption in one line, for each panel

LABELS = {
    "base": "base",
    "best_of_n": "best-of-N",
    "token_implicit": "token guidance",
    "token_implicit_best_of_n": "best-of-N of token-guided",
    "chunk_explicit": "chunk guidance",
    "ivg": "IVG",
    "ivg_both_pairs": "IVG with both pairs",
    "tuned": "DPO-tuned model",
    "best_of_n_equal_compute": "best-of-N at equal compute",
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


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is."""
    return visible(text).replace("$", r"\$")


def read_plain(drawn: str) -> str:
    """Return the text that `plain` was given."""
    return drawn.replace(r"\$", "$")


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
    """Make an axis label plain, and break it where it would be longer than the axis."""
    return textwrap.fill(plain(text), line)


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the common width, height in inches."""
    figure, (axes,) = new_panels(height, 1)
    return figure, axes


def new_panels(height: float, number: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with empty panels of the common width side by side."""
    figure = Figure(figsize=(WIDTH * number, height), layout="constrained")
    panels = [figure.add_subplot(1, number, place) for place in range(1, number + 1)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure, panels


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
    line = CAPTION_LINE * round(figure.get_figwidth() / WIDTH)
    figure.supxlabel(textwrap.fill(plain(text), line), fontsize=9, color=GREY, x=0.01, ha="left")


Estimates = Mapping[str, Mapping[str, Any]]  # by method, as `Estimate.as_dict` writes them


def reward_by_method(methods: Estimates, *, unit: str) -> Figure:
    """Draw the mean gold reward of each method with its 95% interval.

    Args:
        methods: gold reward by method; drawn from top to bottom.
        unit: what the reward is measured in, for the axis.
    """
    return score_by_method(methods, name=f"mean gold reward ({unit})")


def score_by_method(methods: Estimates, *, name: str) -> Figure:
    """Draw the mean of any score of each method with its 95% interval.

    Args:
        methods: the score by method; drawn from top to bottom.
        name: of the score, for the axis.
    """
    figure, axes = new_figure(1.2 + 0.42 * len(methods))
    drawn = styles(methods)
    for row, (method, score) in enumerate(methods.items()):
        color, marker = drawn[method]
        axes.errorbar(score["mean"], row, xerr=error_bars(score), fmt=marker, color=color, capsize=4)
        axes.annotate(
            f"{score['mean']:.3f}".replace("-", MINUS),
            (score["mean"], row),
            (0, 7),
            textcoords="offset points",
            ha="center",
        )
    axes.set_yticks(range(len(methods)), [plain(label(method)) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel(wrapped(name, LINE + 12), loc="right")
    axes.margins(x=0.12)  # room for the numbers
    axes.grid(visible=False, axis="y")
    add_caption(figure, f"{counted(methods.values())}; bars are 95% intervals of the mean.")
    return figure


def by_length(runs: Sequence[Mapping[str, Any]], key: str, ylabel: str) -> Figure:
    """Draw a cost against response length, one line per method.

    Args:
        runs: entries of `speed.json`.
        key: what is drawn; entries where it is null are left out.
        ylabel: its name with the unit.
    """
    figure, axes = new_figure(4.2)
    for method, (color, marker) in styles(run["method"] for run in runs).items():
        own = [run for run in runs if run["method"] == method and run[key] is not None]
        axes.plot(
            [run["num_tokens"] for run in own],
            [run[key] for run in own],
            f"{marker}-",
            color=color,
            label=plain(label(method)),
        )
    axes.set_xlabel("mean response length (tokens)")
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    add_caption(figure, f"n = {runs[0]['num_prompts']} prompts at each length.")
    return figure


def reward_accuracy(report: Mapping[str, Any]) -> Figure:
    """Draw how often each scorer prefers the better response, by how much of the responses it has read.

    Args:
        report: of `reward_accuracy.measure_scorers`.
    """
    figure, axes = new_figure(4.2)
    scorers = report["scorers"]
    for name, (color, marker) in styles(scorers).items():
        known = [row for row in scorers[name] if row["pairwise_accuracy"] is not None]
        if not known:
            continue
        found = [row["pairwise_accuracy"] for row in known]
        bars = np.concatenate([error_bars(estimate) for estimate in found], axis=1)  # (2, positions)
        axes.errorbar(
            [row["percent"] for row in known],
            [estimate["mean"] for estimate in found],
            yerr=bars,
            fmt=f"{marker}-",
            color=color,
            capsize=3,
            label=plain(name),
        )
    axes.axhline(0.5, linestyle=":", color=GREY)
    axes.set_xlabel("share of the response read (%)")
    axes.set_ylabel("pairs ranked rightly (0.5: chance)")
    axes.set_ylim(top=1.02)
    figure.legend(loc="outside upper left", ncols=1, frameon=False)
    add_caption(figure, f"n = {report['num_prompts']} prompts, 95% intervals.")
    return figure


ValueTable = Sequence[Mapping[str, Any]]
_AGREEMENTS = ("rank_correlation", "pairwise_accuracy")


def value_quality(table: ValueTable) -> Figure:
    """Draw how well a value model ranks responses from their prefixes.

    Args:
        table: per prefix share its `rank_correlation` and `pairwise_accuracy`, or the latter alone.
    """
    figure, axes = new_figure(3.8)
    _draw_agreement(axes, table)
    add_caption(figure, _held_out(table))
    return figure


def value_calibration(table: ValueTable, *, unit: str) -> Figure:
    """Draw final reward against predicted value, one line per prefix share.

    Args:
        table: per prefix share its `calibration` bins with `value`, `reward` and `count`.
        unit: what the reward is measured in.
    """
    figure, axes = new_figure(4.2)
    _draw_calibration(axes, table, unit)
    add_caption(figure, f"{_held_out(table).rstrip('.')}, in bins of equal size.")
    return figure


def plot_evaluation(table: ValueTable, path: Path, unit: str) -> None:
    """Draw what there is of agreement by prefix position, and of calibration, into one PNG.

    Args:
        table: from `evaluate_values` or `pair_accuracy_by_position`, which has no calibration.
        path: the PNG file.
        unit: what is predicted, for the axes of the calibration.
    """
    has_calibration = "calibration" in table[0]
    figure, panels = new_panels(4.2, 2 if has_calibration else 1)
    _draw_agreement(panels[0], table)
    if has_calibration:
        _draw_calibration(panels[1], table, unit)
    add_caption(figure, _held_out(table))
    save_png(figure, path)


def _held_out(table: ValueTable) -> str:
    what = "responses" if "num_responses" in table[0] else "pairs"
    return f"n = {table[0][f'num_{what}']} held-out {what}."


def _draw_agreement(axes: Axes, table: ValueTable) -> None:
    curves = {key: [row[key] for row in table] for key in _AGREEMENTS if key in table[0]}
    for key, (color, marker) in styles(_AGREEMENTS).items():
        if key in curves:
            percents = [row["percent"] for row in table]
            axes.plot(percents, curves[key], f"{marker}-", color=color, label=key.replace("_", " "))
    what = "the final reward" if "rank_correlation" in curves else "the preference"
    axes.set_xlabel("share of the response read (%)")
    axes.set_ylabel(f"agreement with {what} (1: perfect)")
    axes.set_ylim(lowest_shown([value for values in curves.values() for value in values]), 1.05)
    axes.legend(frameon=False, loc="lower right")


def lowest_shown(values: Sequence[float | None]) -> float:
    """Return where an axis of shares and correlations begins: below 0 only as far as there are values."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return min([0.0, *known]) - 0.05


def _draw_calibration(axes: Axes, table: ValueTable, unit: str) -> None:
    for row, (color, marker) in zip(table, itertools.cycle(STYLES)):
        bins = row["calibration"]
        axes.plot(
            [part["value"] for part in bins],
            [part["reward"] for part in bins],
            f"{marker}-",
            color=color,
            label=f"{row['percent']}% read",
        )
    span = [part[key] for row in table for part in row["calibration"] for key in ("value", "reward")]
    axes.plot([min(span), max(span)], [min(span), max(span)], ":", color=GREY, label="calibrated")
    axes.set_xlabel(wrapped(f"predicted value ({unit})"))
    axes.set_ylabel(wrapped(f"mean final reward ({unit})"))
    axes.legend(frameon=False, fontsize=9)
