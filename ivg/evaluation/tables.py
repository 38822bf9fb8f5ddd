"""Tables of a report, once as cells, then for the console, Markdown or HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable

from ivg.evaluation.figures import label

NOTHING = "–"


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A titled table of strings; the first column names its row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)

    def console(self) -> RichTable:
        """Return the table for `rich`."""
        table = RichTable(title=self.title, title_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def number(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Write a mean."""
    return NOTHING if estimate is None else f"{estimate['mean']:.{digits}f}"


def interval(estimate: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write a mean with its 95% interval: `0.86 [0.80, 0.92]`."""
    if estimate is None:
        return NOTHING
    sign = "+" if signed else ""
    low, high = estimate["ci95"]
    mean = f"{estimate['mean']:{sign}.{digits}f}"
    return mean if low is None else f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def methods_table(report: Mapping[str, Any]) -> Table:
    """Tabulate what `measures.compare` returned: one row per method."""
    header = [
        "method",
        "gold reward [95%]",
        "stderr",
        "distance from base (nats)",
        "distinct-2",
        "tokens",
        "n",
    ]
    rows = []
    for name, measures in report["methods"].items():
        reward = measures["gold_reward"]
        rows.append(
            [
                label(name),
                interval(reward),
                NOTHING if reward["stderr"] is None else f"{reward['stderr']:.3f}",
                interval(measures.get("distance_from_base"), 1, signed=True),
                number(measures["distinct_2"]),
                number(measures.get("num_tokens"), 1),
                f"{reward['n']}" + (f" ({reward['missing']} missing)" if reward["missing"] else ""),
            ]
        )
    return Table("Gold reward by method", header, rows)


def paired_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the reference method against each other one, on the same prompts."""
    reference = label(report["reference"])
    header = [f"{reference} minus", "difference [95%]", "bootstrap [95%]", "win rate", "n"]
    rows = []
    for other, difference in report["paired"].items():
        low, high = difference["bootstrap95"]
        bootstrap = NOTHING if low is None else f"[{low:+.3f}, {high:+.3f}]"
        wins = f"{100 * report['win_rates'][other]['mean']:.1f}%"
        rows.append([label(other), interval(difference, signed=True), bootstrap, wins, str(difference["n"])])
    return Table(f"{reference} against the others, same prompts", header, rows)


def alpaca_table(report: Mapping[str, Any]) -> Table:
    """Tabulate AlpacaEval's arms (`alpaca.sum_up`) above rows of the public leaderboard."""
    header = ["generator", "win rate (%)", "length-controlled (%)", "characters", "n"]
    rows = [_alpaca_row(name, arm) for name, arm in report["arms"].items()]
    rows += [_alpaca_row(f"{name} (leaderboard)", row) for name, row in report.get("leaderboard", {}).items()]
    if "paired" in report:
        first, *_, last = report["arms"]
        difference = interval(report["paired"], 2, signed=True)
        rows.append(
            [f"{last} minus {first}, paired", difference, NOTHING, NOTHING, str(report["paired"]["n"])]
        )
    return Table(f"AlpacaEval 2 by {report['judge']['model']}", header, rows)


def _alpaca_row(name: str, row: Mapping[str, Any]) -> list[str]:
    controlled, error = row.get("length_controlled_winrate"), row.get("lc_standard_error")
    return [
        name,
        f"{row['win_rate']:.2f} ± {row['standard_error']:.2f}",
        NOTHING if controlled is None else f"{controlled:.2f}" + ("" if error is None else f" ± {error:.2f}"),
        f"{row['avg_length']:.0f}",
        f"{row['n_total']:.0f}",
    ]


def sweep_table(report: Mapping[str, Any]) -> Table:
    """Tabulate a sweep: one row per cell, with what it buys and what it costs."""
    header = ["method", "setting", "gold reward [95%]", "distance from base (nats)", "distinct-2", "tokens"]
    header += ["tokens fed", "GFLOP a prompt", "n"]
    rows = []
    for cell in report["cells"]:
        measures, cost = report["methods"][cell["name"]], report["cost"][cell["name"]]
        reward = measures["gold_reward"]
        rows.append(
            [
                label(cell["method"]),
                cell["setting"] or NOTHING,
                interval(reward),
                interval(measures["distance_from_base"], 1, signed=True),
                number(measures["distinct_2"]),
                number(measures["num_tokens"], 1),
                f"{sum(cost['tokens_fed'].values()):,}",
                f"{cost['flops_per_prompt'] / 1e9:.2f}",
                str(reward["n"]),
            ]
        )
    return Table("Sweep over guidance settings", header, rows)


def speed_table(report: Mapping[str, Any]) -> Table:
    """Tabulate a speed comparison: one row per method and length."""
    header = ["method", "setting", "tokens", "seconds a prompt", "peak memory (MiB)", "base tokens fed"]
    header += ["guide tokens fed", "gold reward [95%]"]
    rows = []
    for run in report["runs"]:
        memory = run["peak_memory_mib"]
        rows.append(
            [
                label(run["method"]),
                run["setting"] or NOTHING,
                f"{run['num_tokens']:.1f}",
                f"{run['seconds_per_prompt']:.3f}",
                NOTHING if memory is None else f"{memory:.0f}",
                f"{run['base_tokens_fed']:,}",
                f"{run['guide_tokens_fed']:,}",
                interval(run["gold_reward"]),
            ]
        )
    return Table("Seconds and memory by response length", header, rows)
