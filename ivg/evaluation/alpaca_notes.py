"""What a reader of AlpacaEval rates must know; apart, so that a report needs no `alpaca_eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes(report: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the rates must know: nulls, missing length control, comparability."""
    lines = []
    if report["not_comparable"]:
        lines.append(f"Not comparable with the public leaderboard: {report['not_comparable']}.")
    for name, arm in report["arms"].items():
        for reason, count in arm["num_null"].items():
            if count:
                lines.append(f"{name}: {count} of {arm['num_instructions']} without a preference: {reason}.")
        if arm["length_controlled_winrate"] is None:
            lines.append(f"{name}: no length-controlled win rate: {arm['lc_missing']}.")
    return lines
