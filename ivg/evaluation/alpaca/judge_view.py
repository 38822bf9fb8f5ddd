"""How the measures of a judge (`judge_quality.measure_judge`) are shown; needs no `alpaca_eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivg.evaluation.report.tables import NOTHING, Table, interval

Report = Mapping[str, Any]

ROWS = {
    "agreement": "agreement with the recorded verdicts",
    "kappa": "Cohen's kappa",
    "rank_correlation": "rank correlation of the systems' win rates (Kendall)",
    "position_bias": "preference for the first place (0: none, 0.5: always)",
    "order_flips": "verdicts that change with the order",
    "repeat_flips": "verdicts that change when asked again",
    "repeat_variance": "variance of an answer when asked again",
    "null_rate": "answers without a preference",
}


def judge_table(report: Report) -> Table:
    """Tabulate the measures, each with its interval."""
    rows = [
        [text, interval(report[name], signed=name == "position_bias"), _count(report[name])]
        for name, text in ROWS.items()
    ]
    return Table(f"Judge {report['judge']['model']}", ["measure", "[95%]", "n (instructions)"], rows)


def systems_table(report: Report) -> Table:
    """Tabulate each system's win rate by this judge and by the recorded one."""
    rows = []
    for name, system in report["systems"].items():
        if system is None:
            rows.append([name, NOTHING, NOTHING, NOTHING, "0"])
            continue
        judged, recorded = (interval(system[who], 1) for who in ("judge", "recorded"))
        difference = interval(system["difference"], 1, signed=True)
        rows.append([name, judged, recorded, difference, str(system["difference"]["n"])])
    header = ["system", "this judge [95%] (%)", "recorded [95%] (%)", "difference [95%] (points)", "n"]
    return Table("Win rates of the same comparisons", header, rows)


def judge_notes(report: Report) -> list[str]:
    """Say what a reader of the measures must know, the verdict first."""
    recorded = report["recorded_judge"] or "a judge that the recordings do not name"
    lines = [
        f"Verdict: {report['verdict']}.",
        f"Recorded by {recorded}; {report['num_comparisons']} comparisons, each asked in both orders and "
        f"{report['num_repeats']} times again; {report['num_left_out']} recorded ones left out (equal "
        "answers, or no preference).",
    ]
    bias = report["position_bias"]
    if bias is not None and bias["ci95"][0] is not None and not bias["ci95"][0] <= 0 <= bias["ci95"][1]:
        place = "first" if bias["mean"] > 0 else "second"
        lines.append(f"It favours the answer shown {place}: ask in both orders, and average.")
    if report["rank_correlation"] is None:
        lines.append("No rank correlation: it needs recordings of 3 systems whose win rates differ.")
    return lines


def _count(estimate: Mapping[str, Any] | None) -> str:
    return NOTHING if estimate is None else str(estimate["n"])
