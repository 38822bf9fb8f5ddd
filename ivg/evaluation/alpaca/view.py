"""How AlpacaEval rates are shown, and what their reader must know; needs no `alpaca_eval`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.evaluation.measures.statistics import wilson_interval
from ivg.evaluation.report.tables import NOTHING, Table, interval

Report = Mapping[str, Any]

OPENAI_ENDPOINT = "https://api.openai.com/v1/"


def rates_table(report: Report) -> Table:
    """Tabulate AlpacaEval's systems (`win_rates.sum_up`) above rows of the public leaderboard."""
    header = [
        "generator",
        "win rate ± stderr [95%] (%)",
        "length-controlled ± stderr (%)",
        "length (characters)",
        "n",
    ]
    rows = [_row(name, system) for name, system in report["arms"].items()]
    rows += [_row(f"{name} (leaderboard)", row) for name, row in report.get("leaderboard", {}).items()]
    return Table(f"Judged by {report['judge']['model']}, against the reference answers", header, rows)


def _row(name: str, row: Mapping[str, Any]) -> list[str]:
    low, high = (100 * end for end in wilson_interval(row["win_rate"] / 100, int(row["n_total"])))
    controlled, error = row.get("length_controlled_winrate"), row.get("lc_standard_error")
    return [
        name,
        f"{row['win_rate']:.2f} ± {row['standard_error']:.2f} [{low:.2f}, {high:.2f}]",
        NOTHING if controlled is None else f"{controlled:.2f}" + ("" if error is None else f" ± {error:.2f}"),
        f"{row['avg_length']:.0f}",
        f"{row['n_total']:.0f}",
    ]


def paired_rates_table(report: Report) -> Table | None:
    """Tabulate the last system's win rate minus the first's on the same instructions; None for one system."""
    if "paired" not in report:
        return None
    first, *_, last = report["arms"]
    difference, n = interval(report["paired"], 2, signed=True), str(report["paired"]["n"])
    rows = [[f"{last} minus {first}", difference, n]]
    return Table("Same instructions", ["generators", "win rate [95%] (points)", "n"], rows)


def direct_table(report: Report) -> Table | None:
    """Tabulate the last system against the first, compared with each other; None where that was not asked."""
    found = report.get("direct")
    if not found:
        return None
    rate = found["win_rate"]
    shown = interval(_in_percent({**rate, "ci95": rate["t95"]}), 1)
    equal = found["at_equal_length"]
    at_equal = NOTHING if equal is None else interval(_in_percent(equal), 1)
    needed = NOTHING if found["prompts_needed"] is None else f"{found['prompts_needed']:,}"
    header = [
        "generators",
        "win rate [95%] (%)",
        "at equal length [95%] (%)",
        "prompts that show it",
        "n",
    ]
    rows = [[f"{found['system']} against {found['other']}", shown, at_equal, needed, str(rate["n"])]]
    return Table("Compared with each other, in both orders", header, rows)


def _in_percent(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean": 100 * estimate["mean"], "ci95": _percent(estimate["ci95"])}


def _percent(ends: Sequence[float | None]) -> list[float | None]:
    return [None if end is None else 100 * end for end in ends]


def notes(report: Report) -> list[str]:
    """Say what a reader of the rates must know.

    Comparability, an endpoint other than OpenAI's, a missing base, nulls, no length control.
    """
    lines = []
    if report["not_comparable"]:
        lines.append(f"Not comparable with the public leaderboard: {report['not_comparable']}.")
    quality = report.get("judge_quality")
    if quality:
        lines.append(
            f"This judge beside {quality['recorded_judge'] or 'a recorded one'}: {quality['verdict']}."
        )
    elif report["not_comparable"] and not report.get("leaderboard"):
        lines.append(
            "No rows of the leaderboard beside another judge's rates, before it is known how far the two "
            "agree: measure it with `ivg eval judge`, and give --judge_quality its judge.json."
        )
    endpoint = report["judge"].get("endpoint", OPENAI_ENDPOINT)
    if endpoint != OPENAI_ENDPOINT:
        lines.append(
            f"Judged at {endpoint}, not at OpenAI's own endpoint: {report['judge']['model']} is whatever "
            "answers there by that name."
        )
    if len(report["arms"]) == 1:
        lines.append(
            "Only one generator was judged: judge its unguided base the same way too, since published "
            "baselines differ from one's own by about 2 points."
        )
    for name, system in report["arms"].items():
        if system["num_null"]:
            share = f"{system['num_null']} of {system['num_instructions']}"
            lines.append(
                f"{name}: {share} without a preference (no answer, or none in it), left out of the rate."
            )
    direct = report.get("direct")
    if direct and direct["at_equal_length"] is None:
        lines.append(f"No direct comparison at equal length: {direct['no_length_control']}.")
    if direct and direct["win_rate"]["missing"]:
        pairs = (
            f"{direct['win_rate']['missing']} of {direct['win_rate']['missing'] + direct['win_rate']['n']}"
        )
        lines.append(f"{pairs} direct comparisons lack a preference in one order or both; left out.")
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, system in report["arms"].items():
        if system["length_controlled_winrate"] is None:
            reasons[system["lc_missing"]].append(name)
    lines += [
        f"{', '.join(systems)}: no length-controlled win rate: {why}." for why, systems in reasons.items()
    ]
    return lines
