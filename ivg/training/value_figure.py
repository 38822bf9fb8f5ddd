"""The judgement of a value model as a figure: agreement by prefix position, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Table = Sequence[Mapping[str, Any]]
# What the left panel shows, and its markers.
_CURVES = {"rank_correlation": "o", "pairwise_accuracy": "s"}


def plot_evaluation(table: Table, path: Path, unit: str) -> None:
    """Draw what there is of agreement by prefix position, and of calibration, into a PNG.

    Args:
        table: from `evaluate_values` or `pair_accuracy_by_position`, which has no calibration.
        path: the PNG file.
        unit: what is predicted, for the axes of the calibration.
    """
    # Optional dependency: only an evaluation that draws needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    has_calibration = "calibration" in table[0]
    num_panels = 2 if has_calibration else 1
    figure, axes = plt.subplots(
        1, num_panels, figsize=(5 * num_panels, 4), layout="constrained", squeeze=False
    )
    what = "the final reward" if has_calibration else "the preference"
    _draw_agreement(axes[0, 0], table, what)
    if has_calibration:
        _draw_calibration(axes[0, 1], table, unit)
        figure.suptitle(f"Value model on {table[0]['num_responses']} held-out responses")
    else:
        figure.suptitle(f"Value model on {table[0]['num_pairs']} held-out pairs")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lowest_shown(values: Sequence[float]) -> float:
    """Return where an axis of shares and correlations begins: below 0 only as far as there are values."""
    finite = [value for value in values if np.isfinite(value)]
    return min([0.0, *finite]) - 0.05


def _draw_agreement(axes: Any, table: Table, what: str) -> None:
    percents = [row["percent"] for row in table]
    curves = {name: [row[name] for row in table] for name in _CURVES if name in table[0]}
    for name, values in curves.items():
        axes.plot(percents, values, marker=_CURVES[name], label=name.replace("_", " "))
    axes.set(xlabel="share of the response seen (%)", ylabel=f"agreement with {what}")
    axes.set_ylim(lowest_shown([value for values in curves.values() for value in values]), 1.05)
    axes.legend()


def _draw_calibration(axes: Any, table: Table, unit: str) -> None:
    for row in table:
        bins = row["calibration"]
        label = f"{row['percent']} %"
        axes.plot([b["value"] for b in bins], [b["reward"] for b in bins], marker=".", label=label)
    span = [b[key] for row in table for b in row["calibration"] for key in ("value", "reward")]
    diagonal = [min(span), max(span)]
    axes.plot(diagonal, diagonal, color="grey", linestyle=":", label="calibrated")
    axes.set(xlabel=f"predicted value ({unit})", ylabel=f"mean final reward ({unit})")
    axes.legend(title="response seen")
