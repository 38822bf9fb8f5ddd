"""Turn a folder of results into sections: tables, figures and samples, whatever of them is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ivg.errors import UserError, first_line
from ivg.evaluation.alpaca.judge_view import judge_notes, judge_table, systems_table
from ivg.evaluation.alpaca.view import direct_table, notes, paired_rates_table, rates_table
from ivg.evaluation.reading import read_json
from ivg.evaluation.report import figures, tables
from ivg.evaluation.report.frontiers import speed_frontier, sweep_frontiers
from ivg.evaluation.report.frontiers import trade_off as trade_off_figure
from ivg.evaluation.report.samples import Sample, read_samples
from ivg.evaluation.sweep.speed import costs_table

Data = Mapping[str, Any]
SWEEP_TEXT = (
    "What more guidance buys, and what it costs: gold reward against the distance from the base, against "
    "arithmetic, and against the tokens fed to all models."
)
VALUE_TEXT = (
    "How well the value model knows the final reward from the first part of a response. The first figure "
    "shows how it ranks responses; the second, the mean final reward of responses that it values alike."
)
ACCURACY_TEXT = (
    "How often the better of two responses has the higher score, by how much of them was read. Guidance can "
    "only use what a guide knows before the response is finished."
)
TRADE_OFF_TEXT = (
    "Two pairs guide one frozen base, each with a weight of its own that is chosen while decoding. A point "
    "is one choice; a line joins the choices that differ in the first pair's weight alone."
)
DISTANCE_NOTE = (
    "Distance from the base: negative log-likelihood of a response under the base, less that of the base's "
    "own samples. Read it beside distinct-2 and length: repetition makes text likely."
)

SAMPLES_TEXT = (
    "What each method answered; below that, where a trace was kept, how the answer came about: the "
    "candidates at every chunk boundary with their values, those kept and those dropped, and the log-ratio "
    "of the pair at every token."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        text: what to take from it, in paragraphs.
        tables: shown below the figures.
        figures: by file name without suffix.
        samples: shown below the tables.
        notes: small print, last.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[tables.Table] = ()
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()


def collect(folder: Path, *, num_samples: int) -> list[Section]:
    """Read what a folder holds.

    Args:
        folder: with any of `report.json` (or `gold_reward.json`), `sweep.json`, `speed.json`, `alpaca.json`,
            `judge.json`, `reward_accuracy.json`, `trade_off.json`, here or one folder down, and decoded files
            with traces in `decoded/` or here.
        num_samples: prompts to show side by side.

    Raises:
        UserError: no such folder, nothing in it, or a file of another shape.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds results")
    makers: dict[str, Callable[[Data], list[Section]]] = {
        "report.json": rewards, "gold_reward.json": rewards, "sweep.json": sweep, "speed.json": speed,
        "trade_off.json": trade_off, "alpaca.json": alpaca, "judge.json": judge,
        "reward_accuracy.json": reward_accuracy,
    }  # fmt: skip
    found = [
        (path, make)
        for name, make in makers.items()
        for path in [folder / name, *sorted(folder.glob(f"*/{name}"))]
        if path.exists()
    ]
    sections = []
    for path, make in found:
        is_alone = [other for _, other in found].count(make) == 1
        made = _make(path, make)
        sections += made if is_alone else [_tell_apart(section, path.relative_to(folder)) for section in made]
    decoded = folder / "decoded"
    samples = read_samples(decoded if decoded.is_dir() else folder, num_samples)
    if samples:
        sections.append(Section("Samples side by side", [SAMPLES_TEXT], samples=samples))
    if not sections:
        raise UserError(f"{folder}: holds none of {', '.join(makers)}, nor decoded files; run an evaluation")
    return sections


def _make(path: Path, make: Callable[[Data], list[Section]]) -> list[Section]:
    """Make the sections of a result, and lay out their figures: what is in it cannot fail later."""
    data = read_json(path, "a result that an evaluation wrote")
    try:
        sections = make(data)
        for section in sections:
            _check_texts(section)
            for figure in section.figures.values():
                figure.draw_without_rendering()
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"  # a wrong shape, whichever way
        raise UserError(f"{path}: not what an evaluation writes ({reason:.200}); make it again") from error
    return sections


def _check_texts(section: Section) -> None:
    cells = [cell for table in section.tables for line in (table.header, *table.rows) for cell in line]
    odd = next((text for text in (*section.text, *section.notes, *cells) if not isinstance(text, str)), None)
    if odd is not None:
        raise TypeError(f"{odd!r:.60} where text belongs")


def _tell_apart(section: Section, path: Path) -> Section:
    """Tell a section from others of its kind by the file that it shows."""
    place = str(path.with_suffix(""))
    drawn = {f"{place.replace('/', '-')}_{name}": figure for name, figure in section.figures.items()}
    return dataclasses.replace(section, title=f"{section.title}: {place}", figures=drawn)


def rewards(data: Data) -> list[Section]:
    """Gold reward by method, and how good the value model is."""
    unit = str(data["task"]["gold_reward"] if "task" in data else data.get("reward", "gold reward"))
    by_method = {name: measures["gold_reward"] for name, measures in data["methods"].items()}
    by_score = {"reward_by_method": figures.reward_by_method(by_method, unit=unit)}
    for i, other in enumerate(data.get("also", ()), start=1):
        scores = {name: measures[other] for name, measures in data["methods"].items()}
        by_score[f"also_{i}_by_method"] = figures.score_by_method(scores, name=f"mean {other}")
    paired = tables.paired_table(data) if data["paired"] else None
    sections = [
        Section(
            "Gold reward",
            [verdict(data)],
            _keep_tables(
                tables.methods_table(data),
                paired,
                tables.costs_by_method_table(data),
                tables.divergence_table(data),
            ),
            by_score,
            notes=[*_count_missing(data), *tables.one_reward_notes(data), DISTANCE_NOTE, *_state_task(data)],
        )
    ]
    if data.get("value_model"):
        drawn = {
            "value_quality": figures.value_quality(data["value_model"]),
            "value_calibration": figures.value_calibration(data["value_model"], unit=unit),
        }
        sections.append(Section("Value model", [VALUE_TEXT], figures=drawn))
    return sections


def verdict(data: Data) -> str:
    """State in one or two sentences where the reference method stands among the others."""
    name, paired = figures.label(data["reference"]), data["paired"]
    reward = data["methods"][data["reference"]]["gold_reward"]
    text = f"{name} has a mean gold reward of {tables.interval(reward)} over {reward['n']} prompts"
    standing: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for other, difference in paired.items():
        low, high = difference["ci95"]
        known = low is not None and (low > 0 or high < 0)
        place = ("above" if low > 0 else "below") if known else "not told apart from"
        standing[place].append(f"{figures.label(other)} ({tables.number(difference, signed=True)})")
    places = [f"{place} {', '.join(others)}" for place, others in standing.items() if others]
    return f"{text}: {'; '.join(places)} (paired differences, 95% intervals)." if places else f"{text}."


def _state_task(data: Data) -> list[str]:
    """Say what the quickstart knows of its task and of its base."""
    facts = []
    if "task" in data:
        facts.append(
            f"The best response that the task allows scores {data['task']['attainable_maximum']:.3f}."
        )
    if "base_weights" in data:
        same = "the same" if data["base_weights"]["identical"] else "NOT the same"
        facts.append(f"The base's weights are {same} before and after decoding (SHA-256).")
    return facts


def _keep_tables(*found: tables.Table | None) -> list[tables.Table]:
    return [table for table in found if table is not None]


def _count_missing(data: Data) -> list[str]:
    return [
        f"{figures.label(name)}: {count} responses have no gold reward ({reason})."
        for name, measures in data["methods"].items()
        for reason, count in (measures.get("missing") or {}).items()
    ]


def sweep(data: Data) -> list[Section]:
    """A sweep's table, and its frontiers against distance and compute."""
    said = [*tables.one_reward_notes(data), DISTANCE_NOTE]
    return [Section("Sweep", [SWEEP_TEXT], [tables.sweep_table(data)], sweep_frontiers(data), notes=said)]


def trade_off(data: Data) -> list[Section]:
    """What two pairs give together, each with a weight of its own."""
    drawn = {"trade_off": trade_off_figure(data)}
    return [Section("Two wishes at once", [TRADE_OFF_TEXT], [tables.trade_off_table(data)], drawn)]


def speed(data: Data) -> list[Section]:
    """Seconds and memory by response length, what each method buys, and the claim that is checked."""
    drawn = {
        "speed_seconds": figures.by_length(data["runs"], "seconds_per_prompt", "seconds per prompt"),
        "speed_memory": figures.by_length(data["runs"], "peak_memory_mib", "peak memory (MiB)"),
        "speed_reward": speed_frontier(data),
    }
    measured = f"Measured on {data['machine']}; medians of {data['repeats']} interleaved runs."
    shown = _keep_tables(costs_table(data["runs"]), tables.speed_table(data))
    said = [measured, *tables.one_reward_notes(data)]
    return [Section("Speed", data["findings"], shown, drawn, notes=said)]


def reward_accuracy(data: Data) -> list[Section]:
    """How often guides and reward models rank responses as they should."""
    drawn = {"reward_accuracy": figures.reward_accuracy(data)}
    said = [data["prediction"]["text"]] if "prediction" in data else []
    shown = [tables.reward_accuracy_table(data)]
    return [Section("Rewards of guides", [ACCURACY_TEXT, *said], shown, drawn)]


def judge(data: Data) -> list[Section]:
    """How far a judge agrees with another's recorded comparisons, and with itself."""
    return [Section("How good the judge is", judge_notes(data), [judge_table(data), systems_table(data)])]


def alpaca(data: Data) -> list[Section]:
    """AlpacaEval's win rates, with what a reader must know."""
    found = _keep_tables(rates_table(data), paired_rates_table(data), direct_table(data))
    return [Section("AlpacaEval 2", notes(data), found)]
