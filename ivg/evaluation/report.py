"""Turn a folder of results into sections: tables, figures and samples, whatever of them is there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ivg.errors import UserError
from ivg.evaluation import figures, more_figures, tables
from ivg.evaluation.alpaca_notes import notes
from ivg.evaluation.samples import Sample, read_samples

Data = Mapping[str, Any]
DISTANCE = "distance from the base (nats per response)"
DISTANCE_NOTE = (
    "Distance from the base: negative log-likelihood of a response under the base, less that of the base's "
    "own samples. Read it beside distinct-2 and length: repetition makes text likely."
)

SAMPLES_NOTE = (
    "What each method answered. Where a trace was kept: the candidates at every chunk boundary with their "
    "values, dropped ones struck out, and tokens shaded by log-ratio (blue: likelier for the tuned model)."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        text: paragraphs.
        tables: in order.
        figures: by file name without suffix.
        samples: shown after all else.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[tables.Table] = ()
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()


def collect(folder: Path, *, num_samples: int) -> list[Section]:
    """Read what a folder holds.

    Args:
        folder: with any of `report.json` (or `gold_reward.json`), `sweep.json`, `speed.json`, `alpaca.json`,
            here or one folder down, and decoded files with traces in `decoded/` or here.
        num_samples: prompts to show side by side.

    Raises:
        UserError: no such folder, nothing in it, or a file of another shape.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds results")
    makers: dict[str, Callable[[Data], list[Section]]] = {
        "report.json": rewards, "gold_reward.json": rewards, "sweep.json": sweep, "speed.json": speed,
        "alpaca.json": alpaca,
    }  # fmt: skip
    sections = []
    for name, make in makers.items():
        for path in [folder / name, *sorted(folder.glob(f"*/{name}"))]:
            if path.is_file():
                sections += _made(path, make)
    decoded = folder / "decoded"
    samples = read_samples(decoded if decoded.is_dir() else folder, num_samples)
    if samples:
        sections.append(Section("Samples side by side", [SAMPLES_NOTE], samples=samples))
    if not sections:
        raise UserError(f"{folder}: holds none of {', '.join(makers)}, nor decoded files; run an evaluation")
    return sections


def _made(path: Path, make: Callable[[Data], list[Section]]) -> list[Section]:
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # wrong shape, whichever way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not what an evaluation writes ({reason}); make it again") from error


def rewards(data: Data) -> list[Section]:
    """Gold reward by method, the frontier, and how good the value model is."""
    unit = str(data["task"]["gold_reward"] if "task" in data else data.get("reward", "gold reward"))
    by_method = {name: measures["gold_reward"] for name, measures in data["methods"].items()}
    shown = [tables.methods_table(data)]
    if data["paired"]:
        shown.append(tables.paired_table(data))
    sections = [
        Section(
            "Gold reward",
            [*_missing(data), DISTANCE_NOTE],
            shown,
            {"reward_by_method": figures.reward_by_method(by_method, unit=unit)},
        )
    ]
    if data.get("frontier"):
        points = [figures.FrontierPoint(**point) for point in data["frontier"]]
        figure = figures.frontier(points, unit=unit, xlabel=DISTANCE)
        sections.append(Section("Frontier of reward against distance", figures={"frontier": figure}))
    if data.get("value_model"):
        drawn = {
            "value_quality": more_figures.value_quality(data["value_model"]),
            "value_calibration": more_figures.value_calibration(data["value_model"], unit=unit),
        }
        sections.append(Section("Value model", figures=drawn))
    return sections


def _missing(data: Data) -> list[str]:
    return [
        f"{figures.label(name)}: {count} responses have no gold reward ({reason})."
        for name, measures in data["methods"].items()
        for reason, count in (measures.get("missing") or {}).items()
    ]


def sweep(data: Data) -> list[Section]:
    """A sweep's table and its frontiers against distance and compute."""

    def points(x: Callable[[str], float]) -> list[figures.FrontierPoint]:
        return [
            figures.FrontierPoint(
                cell["method"], cell["setting"], x(cell["name"]), data["methods"][cell["name"]]["gold_reward"]
            )
            for cell in data["cells"]
        ]

    by_distance = points(lambda name: float(data["methods"][name]["distance_from_base"]["mean"]))
    by_compute = points(lambda name: float(data["cost"][name]["flops_per_prompt"]) / 1e9)
    unit = data["reward"]
    drawn = {
        "sweep_distance": figures.frontier(by_distance, unit=unit, xlabel=DISTANCE),
        "sweep_compute": figures.frontier(
            by_compute, unit=unit, xlabel="compute (GFLOP a prompt)", log_x=True
        ),
    }
    return [Section("Sweep", [DISTANCE_NOTE], [tables.sweep_table(data)], drawn)]


def speed(data: Data) -> list[Section]:
    """Seconds and memory by response length, and what each method buys."""
    text = [
        *data["findings"],
        f"Measured on {data['machine']}; medians of {data['repeats']} interleaved runs.",
    ]
    drawn = {
        "speed_seconds": more_figures.by_length(data["runs"], "seconds_per_prompt", "seconds per prompt"),
        "speed_memory": more_figures.by_length(data["runs"], "peak_memory_mib", "peak memory (MiB)"),
    }
    return [Section("Speed", text, [tables.speed_table(data)], drawn)]


def alpaca(data: Data) -> list[Section]:
    """AlpacaEval's win rates, with what a reader must know."""
    return [Section("AlpacaEval 2", notes(data), [tables.alpaca_table(data)])]
