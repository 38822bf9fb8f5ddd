"""Figures of what guidance costs, and of how good a value model is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ivg.evaluation.figures import (
    GREY,
    STYLES,
    add_caption,
    label,
    new_figure,
    styles,
    wrapped,
)


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
            label=label(method),
        )
    axes.set_xlabel("mean response length (tokens)")
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    add_caption(figure, f"n = {runs[0]['num_prompts']} prompts at each length.")
    return figure


def value_quality(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how well a value model ranks responses from their prefixes.

    Args:
        table: per prefix share its `rank_correlation` and `pairwise_accuracy`.
    """
    figure, axes = new_figure(3.8)
    percents = [row["percent"] for row in table]
    for key, (color, marker) in styles(("rank_correlation", "pairwise_accuracy")).items():
        drawn = [row[key] for row in table]
        axes.plot(percents, drawn, f"{marker}-", color=color, label=key.replace("_", " "))
    axes.set_xlabel("share of the response read (%)")
    axes.set_ylabel("agreement with the final reward (1: perfect)")
    axes.set_ylim(top=1.05)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    add_caption(figure, f"n = {table[0]['num_responses']} held-out responses.")
    return figure


def value_calibration(table: Sequence[Mapping[str, Any]], *, unit: str) -> Figure:
    """Draw final reward against predicted value, one line per prefix share.

    Args:
        table: per prefix share its `calibration` bins with `value`, `reward` and `count`.
        unit: what the reward is measured in.
    """
    figure, axes = new_figure(4.2)
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
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    add_caption(figure, f"n = {table[0]['num_responses']} held-out responses, in bins of equal size.")
    return figure
