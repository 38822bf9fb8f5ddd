"""Tables of a report, once as cells, then for the console, Markdown or HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from ivg.evaluation.report.figures import label
from ivg.evaluation.safe_text import plain_markdown, visible

NOTHING = "–"


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A titled table of strings; the first column names its row.

    Attributes:
        group_by: column whose change starts a new group of rows; None for none.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    group_by: int | None = None

    def starts_group(self, i: int) -> bool:
        """Tell whether a row, not the first, begins another group than the row before it."""
        by = self.group_by
        return by is not None and i > 0 and self.rows[i][by] != self.rows[i - 1][by]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.header, *self.rows]
        written = ["| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines]
        return "\n".join([written[0], "| --- |" + " ---: |" * (len(self.header) - 1), *written[1:]])

    def console(self) -> RichTable:
        """Return the table for `rich`, whose markup is read in plain strings alone."""
        table = RichTable(title=Text(visible(self.title)), title_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(Text(visible(name)), justify="left" if i == 0 else "right", overflow="fold")
        for i, row in enumerate(self.rows):
            if self.starts_group(i):
                table.add_section()
            table.add_row(*(Text(visible(cell)) for cell in row))
        return table


def _markdown_cell(cell: str) -> str:
    return plain_markdown(cell).replace("|", "\\|")


def number(estimate: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write a mean."""
    return NOTHING if estimate is None else f"{estimate['mean']:{'+' if signed else ''}.{digits}f}"


def interval(estimate: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write a mean with its 95% interval: `0.86 [0.80, 0.92]`."""
    if estimate is None:
        return NOTHING
    sign = "+" if signed else ""
    low, high = estimate["ci95"]
    mean = f"{estimate['mean']:{sign}.{digits}f}"
    return mean if low is None else f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def also_header(report: Mapping[str, Any]) -> list[str]:
    """Name the columns of what was scored beside the gold reward."""
    return [f"{name} [95%]" for name in report.get("also", ())]


def also_cells(report: Mapping[str, Any], measures: Mapping[str, Any]) -> list[str]:
    """Write those columns' cells for one method."""
    return [interval(measures[name]) for name in report.get("also", ())]


def one_reward_notes(report: Mapping[str, Any]) -> list[str]:
    """Say that one reward stands alone, where none was scored beside it."""
    if report.get("also"):
        return []
    return [
        "One reward alone: it says nothing of what a search gave up for it. Show one that no search saw, by "
        "--also NAME=DOTTED.NAME of gold-reward, or also: {NAME: DOTTED.NAME} in a grid's YAML."
    ]


def methods_table(report: Mapping[str, Any]) -> Table:
    """Tabulate what `measures.compare` returned: one row per method."""
    header = ["method", "gold reward [95%]", "stderr", *also_header(report), "distance from base (nats)"]
    header += ["distinct-1", "distinct-2", "tokens", "n"]
    rows = []
    for name, measures in report["methods"].items():
        reward = measures["gold_reward"]
        rows.append(
            [
                label(name),
                interval(reward),
                NOTHING if reward["stderr"] is None else f"{reward['stderr']:.3f}",
                *also_cells(report, measures),
                interval(measures.get("distance_from_base"), 1, signed=True),
                number(measures["distinct_1"]),
                number(measures["distinct_2"]),
                number(measures.get("num_tokens"), 1),
                f"{reward['n']}" + (f" ({reward['missing']} missing)" if reward["missing"] else ""),
            ]
        )
    return Table("Gold reward by method", header, rows)


def divergence_table(report: Mapping[str, Any]) -> Table | None:
    """Tabulate the divergence of those methods where it is known; None if there are none."""
    rows = []
    for name, measures in report["methods"].items():
        if "kl_to_base" in measures:
            kl = measures["kl_to_base"]
            rows.append([label(name), "the base", interval(kl, 2), "sampled", str(kl["n"])])
        if "kl_bound" in measures:
            bound = f"at most {measures['kl_bound']:.2f}"
            rows.append([label(name), "what it chose among", bound, "log N − (N − 1) / N", NOTHING])
    header = ["method", "from", "KL divergence (nats per response) [95%]", "how it is known", "n"]
    return Table("Divergence where it is known", header, rows) if rows else None


def costs_by_method_table(report: Mapping[str, Any]) -> Table | None:
    """Tabulate what each method's answers cost, and how they ended; None where a report does not say."""
    if "cost" not in report:
        return None
    seconds = report.get("timing", {}).get("seconds_per_prompt", {})
    reasons = sorted({reason for cost in report["cost"].values() for reason in cost["finish_reasons"]})
    header = ["method", "tokens fed to the base", "tokens fed to all models", "GFLOP", "seconds"]
    header += [f"ended by {reason}" for reason in reasons]
    rows = [
        [
            label(name),
            f"{cost['base_tokens_fed']:.1f}",
            f"{cost['tokens_fed']:.1f}",
            f"{cost['gflop']:.1f}",
            f"{seconds[name]:.2f}" if name in seconds else NOTHING,
            *(f"{cost['finish_reasons'].get(reason, 0.0):.0%}" for reason in reasons),
        ]
        for name, cost in report["cost"].items()
    ]
    return Table("What a prompt cost, all its rows together, and how its answer ended", header, rows)


def trade_off_table(report: Mapping[str, Any]) -> Table:
    """Tabulate what both rewards are at each weight of two pairs."""
    first, second = report["names"]
    also = report.get("also", ())
    header = [f"β of {first}", f"β of {second}", f"{first} [95%]", f"{second} [95%]"]
    header += [*(f"{name} [95%]" for name in also), "distance from base (nats)", "distinct-2", "tokens", "n"]
    rows = [
        [
            *(f"{beta:g}" for beta in point["betas"]),
            *(interval(reward) for reward in point["rewards"]),
            *(interval(point["also"][name]) for name in also),
            interval(point["distance_from_base"], 1, signed=True),
            number(point["distinct_2"]),
            number(point["num_tokens"], 1),
            str(point["rewards"][0]["n"]),
        ]
        for point in report["points"]
    ]
    return Table(f"{first} and {second} by the weights of their pairs", header, rows, group_by=0)


def paired_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the reference method against each other one, on the same prompts."""
    reference = label(report["reference"])
    also = report.get("paired_also", {})
    header = [f"{reference} minus", "difference [95%]", "bootstrap [95%]", "win rate [95%]"]
    header += [*(f"{name}, difference [95%]" for name in also), "n"]
    rows = []
    for other, difference in report["paired"].items():
        low, high = difference["bootstrap95"]
        bootstrap = NOTHING if low is None else f"[{low:+.3f}, {high:+.3f}]"
        wins = interval(report["win_rates"][other])
        beside = [interval(differences[other], signed=True) for differences in also.values()]
        shown = interval(difference, signed=True)
        rows.append([label(other), shown, bootstrap, wins, *beside, str(difference["n"])])
    return Table(f"{reference} against the others, same prompts", header, rows)


def sweep_table(report: Mapping[str, Any]) -> Table:
    """Tabulate a sweep: one row per run, with what it buys and what it costs."""
    header = ["method", "setting", "gold reward [95%]", *also_header(report), "distance from base (nats)"]
    header += ["distinct-2", "tokens", "tokens fed", "GFLOP a prompt", "n"]
    rows = []
    for run in report["cells"]:
        measures, cost = report["methods"][run["name"]], report["cost"][run["name"]]
        reward = measures["gold_reward"]
        rows.append(
            [
                label(run["method"]),
                run["setting"] or NOTHING,
                interval(reward),
                *also_cells(report, measures),
                interval(measures["distance_from_base"], 1, signed=True),
                number(measures["distinct_2"]),
                number(measures["num_tokens"], 1),
                f"{sum(cost['tokens_fed'].values()):,}",
                f"{cost['flops_per_prompt'] / 1e9:.2f}",
                str(reward["n"]),
            ]
        )
    return Table("Sweep over guidance settings", header, rows, group_by=0)


def speed_table(report: Mapping[str, Any]) -> Table:
    """Tabulate a speed comparison: one row per method and length."""
    header = ["method", "setting", "up to (tokens)", "mean length (tokens)", "seconds a prompt"]
    header += ["peak memory (MiB)", "base tokens fed"]
    header += ["guide tokens fed", "gold reward [95%]", *also_header(report), "n"]
    rows = []
    for run in report["runs"]:
        memory = run["peak_memory_mib"]
        rows.append(
            [
                label(run["method"]),
                run["setting"] or NOTHING,
                str(run["max_new_tokens"]),
                f"{run['num_tokens']:.1f}",
                f"{run['seconds_per_prompt']:.3f}",
                NOTHING if memory is None else f"{memory:.0f}",
                f"{run['base_tokens_fed']:,}",
                f"{run['guide_tokens_fed']:,}",
                interval(run["gold_reward"]),
                *also_cells(report, run.get("also", {})),
                str(run["gold_reward"]["n"]),
            ]
        )
    return Table("Seconds and memory by response length", header, rows, group_by=2)


def reward_accuracy_table(report: Mapping[str, Any]) -> Table:
    """Tabulate what `reward_accuracy.measure_scorers` returned: a row per scorer and part of the response."""
    header = ["scorer", "read", "pairs ranked rightly [95%]", "rank correlation [95%]"]
    has_best = report["form"] == "best-of-N"
    header += ["best is a chosen one [95%]"] * has_best + ["n (prompts)"]
    rows = []
    for name, parts in report["scorers"].items():
        for part in parts:
            accuracy = part["pairwise_accuracy"]
            if accuracy is None:
                continue
            measured = [interval(accuracy), interval(part["rank_correlation"], 2)]
            measured += [interval(part["best_of_n"])] * has_best
            rows.append([name, f"{part['percent']}%", *measured, str(accuracy["n"])])
    return Table("How often the better response has the higher score", header, rows, group_by=0)


def ifeval_table(report: Mapping[str, Any]) -> Table:
    """Tabulate IFEval's four accuracies: a row per file."""
    kinds = {
        "prompt_strict": "prompts, strict [95%]",
        "prompt_loose": "prompts, loose [95%]",
        "instruction_strict": "instructions, strict [95%]",
        "instruction_loose": "instructions, loose [95%]",
    }
    rows = [
        [label(name), *(interval(found[kind]) for kind in kinds), str(found["prompt_strict"]["n"])]
        for name, found in report["ifeval"].items()
    ]
    return Table("IFEval accuracy", ["method", *kinds.values(), "n (prompts)"], rows)
