"""The frontiers of a grid: what gold reward costs in distance from the base, in compute, and in seconds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ivg.evaluation.labelled_points import FrontierPoint, frontier

DISTANCE = "distance from the base (nats per response)"

Report = Mapping[str, Any]


def sweep_frontiers(report: Report) -> dict[str, Figure]:
    """Draw a sweep's cells by distance, by arithmetic and by tokens fed to its models.

    Args:
        report: what `eval/sweep.py` writes to `sweep.json`.

    Returns:
        Figures by file name without suffix.
    """
    methods, cost, cells = report["methods"], report["cost"], report["cells"]

    def tokens(cell: str) -> float:
        reward = methods[cell]["gold_reward"]
        return float(sum(cost[cell]["tokens_fed"].values()) / (reward["n"] + reward["missing"]))

    places: dict[str, tuple[str, Callable[[str], float]]] = {
        "frontier_distance": (DISTANCE, lambda cell: methods[cell]["distance_from_base"]["mean"]),
        "frontier_flops": (
            "arithmetic of all models (GFLOP a prompt)",
            lambda cell: cost[cell]["flops_per_prompt"] / 1e9,
        ),
        "frontier_tokens": ("tokens fed to all models (tokens a prompt)", tokens),
    }
    settings, note = short_settings([cell["setting"] for cell in cells])
    drawn = {}
    for figure, (xlabel, x) in places.items():
        points = [
            FrontierPoint(cell["method"], setting, x(cell["name"]), methods[cell["name"]]["gold_reward"])
            for cell, setting in zip(cells, settings, strict=True)
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


def short_settings(settings: Sequence[str]) -> tuple[list[str], str]:
    """Shorten settings such as `β=1, W=4 K=4 L=5` for labels in a figure.

    Returns:
        The settings without what is the same wherever it occurs, and a sentence that says so; W and K are
        joined where they are equal.
    """
    parsed = [dict(re.findall(r"([^\s,=]+)=([^\s,]+)", setting)) for setting in settings]
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
