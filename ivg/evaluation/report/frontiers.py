"""The frontiers of a grid: what gold reward costs in distance from the base, in compute, and in seconds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ivg.evaluation.report.figures import (
    add_caption,
    counted,
    error_bars,
    label,
    new_figure,
    plain,
    styles,
    wrapped,
)

DISTANCE = "distance from the base (nats per response)"

Report = Mapping[str, Any]


def sweep_frontiers(report: Report) -> dict[str, Figure]:
    """Draw a sweep's runs by distance, by arithmetic and by tokens fed to its models.

    Args:
        report: what `eval/sweep.py` writes to `sweep.json`; the first of what was scored beside the gold
            reward is written at each point, in brackets.

    Returns:
        Figures by file name without suffix.
    """
    methods, cost, runs = report["methods"], report["cost"], report["cells"]

    def tokens(run: str) -> float:
        reward = methods[run]["gold_reward"]
        return float(sum(cost[run]["tokens_fed"].values()) / (reward["n"] + reward["missing"]))

    places: dict[str, tuple[str, Callable[[str], float]]] = {
        "frontier_distance": (DISTANCE, lambda run: methods[run]["distance_from_base"]["mean"]),
        "frontier_flops": (
            "arithmetic of all models (GFLOP a prompt)",
            lambda run: cost[run]["flops_per_prompt"] / 1e9,
        ),
        "frontier_tokens": ("tokens fed to all models (tokens a prompt)", tokens),
    }
    settings, note = short_settings([run["setting"] for run in runs])
    if report.get("also"):
        first = report["also"][0]
        settings = [
            f"{setting} ({methods[run['name']][first]['mean']:.2f})".strip()
            for run, setting in zip(runs, settings, strict=True)
        ]
        note = f"{note} In brackets: mean {first}.".strip()
    joined, before = [], dict[str, str]()
    for run in runs:
        joined.append(_is_one_step(before.get(run["method"], run["setting"]), run["setting"]))
        before[run["method"]] = run["setting"]
    drawn = {}
    for figure, (xlabel, x) in places.items():
        points = [
            FrontierPoint(
                run["method"],
                setting,
                x(run["name"]),
                methods[run["name"]]["gold_reward"],
                is_joined=is_joined,
            )
            for run, setting, is_joined in zip(runs, settings, joined, strict=True)
        ]
        log_x = figure != "frontier_distance"
        drawn[figure] = frontier(points, unit=report["reward"], xlabel=xlabel, log_x=log_x, note=note)
    return drawn


def speed_frontier(report: Report) -> Figure:
    """Draw what the seconds of a speed comparison buy, one line per method over its response lengths.

    Args:
        report: what `eval/speed.py` writes to `speed.json`.
    """
    points = [
        FrontierPoint(
            run["method"], str(run["max_new_tokens"]), run["seconds_per_prompt"], run["gold_reward"]
        )
        for run in report["runs"]
    ]
    note = "Numbers: the length limit in tokens."
    return frontier(points, unit=report["reward"], xlabel="seconds per prompt", log_x=True, note=note)


def trade_off(report: Report) -> Figure:
    """Draw one reward against another as the weights of two pairs move, a line for each weight of the second.

    Args:
        report: `names` of the two rewards, and `points`: `betas` of the two pairs, and `rewards`, estimates
            of both on the same prompts.
    """
    first, second = report["names"]
    points = [
        FrontierPoint(
            f"{second} β={point['betas'][1]:g}",
            f"{first} β={point['betas'][0]:g}",
            point["rewards"][0]["mean"],
            point["rewards"][1],
            x_estimate=point["rewards"][0],
        )
        for point in report["points"]
    ]
    return frontier(points, ylabel=f"mean {second}", xlabel=f"mean {first}", log_x=False)


def short_settings(settings: Sequence[str]) -> tuple[list[str], str]:
    """Shorten settings such as `β=1, W=4 K=4 L=5` for labels in a figure.

    Returns:
        The settings without what is the same wherever it occurs, and a sentence that says so; W and K are
        joined where they are equal.
    """
    parsed = [_parse(setting) for setting in settings]
    values: defaultdict[str, list[str]] = defaultdict(list)
    for parts in parsed:
        for name, value in parts.items():
            values[name].append(value)
    common = {name: seen[0] for name, seen in values.items() if len(seen) > 1 and len(set(seen)) == 1}
    short = []
    for parts in parsed:
        varied = {name: value for name, value in parts.items() if name not in common}
        if "K" in varied and varied.get("W") == varied["K"]:
            varied = {{"W": "W=K"}.get(name, name): value for name, value in varied.items() if name != "K"}
        short.append(", ".join(f"{name}={value}" for name, value in varied.items()))
    note = ", ".join(f"{name}={value}" for name, value in common.items())
    return short, note and f"{note} throughout."


def _parse(setting: str) -> dict[str, str]:
    return dict(re.findall(r"([^\s,=]+)=([^\s,]+)", setting))


def _is_one_step(one: str, other: str) -> bool:
    """Tell whether two settings differ in one thing at most, for which W and K that are equal count."""
    found = [_parse(setting) for setting in (one, other)]
    different = {name for name in found[0] | found[1] if found[0].get(name) != found[1].get(name)}
    if {"W", "K"} <= different and all(parts.get("W") == parts.get("K") for parts in found):
        different.remove("K")
    return len(different) <= 1


@dataclasses.dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One setting of a method on the frontier.

    Attributes:
        method: points of one method are joined in the order given.
        setting: what varies, written beside the point (`β=0.5`).
        x: distance from the base, or compute.
        reward: gold reward, as `Estimate.as_dict` writes it.
        x_estimate: of which `x` is the mean, where it has an interval too.
        is_joined: a line leads here from the method's point before.
    """

    method: str
    setting: str
    x: float
    reward: Mapping[str, Any]
    x_estimate: Mapping[str, Any] | None = None
    is_joined: bool = True


_SIDES = ((0, -1), (1, 1))  # of an interval, and their signs
_LABEL_PLACES = [
    ((reach * side, rise), "left" if side > 0 else "right")
    for rise in (0, -8, 8, -16, 16, -24, 24, -34, 34, -46, 46)
    for side, reach in ((1, 7), (-1, 7), (1, 18), (-1, 18))
]
_FAR = 12  # points: a label that is farther away is tied to its point by a line
_LABEL_WEIGHT = 4  # a label over a label can be read by nobody, one over an interval can


def frontier(
    points: Sequence[FrontierPoint],
    *,
    unit: str = "",
    ylabel: str | None = None,
    xlabel: str,
    log_x: bool = False,
    note: str = "",
) -> Figure:
    """Draw gold reward against distance from the base (or compute), one line per method.

    Args:
        points: in the order in which each method's line runs.
        unit: what the reward is measured in.
        ylabel: the vertical axis; unset: gold reward in its unit.
        xlabel: the horizontal axis, with its unit.
        log_x: logarithmic horizontal axis.
        note: what else the caption says.
    """
    figure, axes = new_figure(5.0)
    for method, (color, marker) in styles(point.method for point in points).items():
        own = [point for point in points if point.method == method]
        axes.errorbar(
            [point.x for point in own],
            [point.reward["mean"] for point in own],
            yerr=_bars([point.reward for point in own]),
            xerr=_bars([point.x_estimate for point in own]),
            fmt=marker,
            color=color,
            label=plain(label(method)),
            capsize=3,
            alpha=0.9,
        )
        for before, point in itertools.pairwise(own):
            if point.is_joined:
                ends = (before, point)
                axes.plot([p.x for p in ends], [p.reward["mean"] for p in ends], color=color, alpha=0.9)
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(plain(xlabel))
    axes.set_ylabel(wrapped(ylabel or f"mean gold reward ({unit})"))
    axes.margins(x=0.2)  # room for the labels
    figure.legend(loc="outside upper left", ncols=2, frameon=False)  # never over the intervals
    counts = counted([point.reward for point in points])
    add_caption(figure, f"{counts}; bars are 95% intervals of the mean.{note and ' '}{note}")
    _label_points(figure, axes, points)
    return figure


def _bars(estimates: Sequence[Mapping[str, Any] | None]) -> list[list[float]] | None:
    """Return the (2, points) error bars of estimates; None where there are none."""
    known = [error_bars(estimate) for estimate in estimates if estimate is not None]
    return [[below[0] for below, _ in known], [above[0] for _, above in known]] if known else None


def _label_points(figure: Figure, axes: Axes, points: Sequence[FrontierPoint]) -> None:
    """Write each point's setting where it hides the least of points, intervals, lines and earlier labels."""
    figure.draw_without_rendering()  # the layout decides where things are
    occupied, labels = _find_occupied(axes, points), list[Bbox]()
    inside = axes.bbox.padded(-10)  # a file of finer dots has slightly wider letters
    drawn = styles(point.method for point in points)
    for point in points:
        color = [0.65 * part for part in to_rgb(drawn[point.method].color)]  # letters need contrast
        center = axes.transData.transform((point.x, point.reward["mean"]))
        placed = []
        for offset, alignment in _LABEL_PLACES:
            text = _write_label(axes, point, offset, alignment, color)
            box = text.get_window_extent()
            is_far = abs(offset[1]) > _FAR
            tie = _along(center, box.get_points().mean(axis=0)) if is_far else []
            tie = [piece for piece in tie if not piece.overlaps(box)]
            hidden = sum(box.overlaps(other) for other in occupied)
            hidden += _LABEL_WEIGHT * sum(piece.overlaps(other) for piece in (box, *tie) for other in labels)
            is_inside = all(inside.contains(x, y) for x, y in box.get_points())
            placed.append((hidden if is_inside else math.inf, (offset, alignment), box, tie))
            text.remove()
        _, (offset, alignment), box, tie = min(placed, key=lambda place: place[0])
        line = {"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 4}
        _write_label(axes, point, offset, alignment, color, arrowprops=line if tie else None)
        labels.append(box)
        occupied += tie


def _write_label(
    axes: Axes, point: FrontierPoint, offset: tuple[int, int], alignment: str, color: Any, **more: Any
) -> Annotation:
    """Write a point's setting, `offset` points of length (1/72 inch) right of and above it."""
    return axes.annotate(
        plain(point.setting),
        (point.x, point.reward["mean"]),
        offset,
        textcoords="offset points",
        fontsize=7.5,
        color=color,
        ha=alignment,
        va="center",
        **more,
    )


def _find_occupied(axes: Axes, points: Sequence[FrontierPoint]) -> list[Bbox]:
    """Return boxes around the intervals, and along the lines that join a method's points."""
    boxes = []
    for point in points:
        low, high = (point.reward["mean"] + sign * error_bars(point.reward)[side][0] for side, sign in _SIDES)
        (x, bottom), (_, top) = axes.transData.transform([(point.x, low), (point.x, high)])
        boxes.append(Bbox([[x - 6, bottom], [x + 6, top]]))
        if point.x_estimate is not None:
            below, above = (side[0] for side in error_bars(point.x_estimate))
            ends = [(point.x - below, point.reward["mean"]), (point.x + above, point.reward["mean"])]
            (left, y), (right, _) = axes.transData.transform(ends)
            boxes.append(Bbox([[left, y - 6], [right, y + 6]]))
    by_method = sorted(points, key=lambda point: point.method)
    for one, next_one in itertools.pairwise(by_method):
        if one.method == next_one.method and next_one.is_joined:
            start, end = axes.transData.transform([(p.x, p.reward["mean"]) for p in (one, next_one)])
            boxes += _along(start, end)
    return boxes


def _along(start: Any, end: Any) -> list[Bbox]:
    """Return small boxes along a line between two places, its ends left out."""
    return [Bbox([[x - 2, y - 2], [x + 2, y + 2]]) for x, y in np.linspace(start, end, num=12)[1:-1]]
