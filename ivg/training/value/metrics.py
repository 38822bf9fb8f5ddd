"""Is a value model any good? Rank correlation, pairwise accuracy and calibration by prefix length."""

from __future__ import annotations

from typing import Any

import numpy as np

from ivg.rewards.agreement import Array, calibration, pairwise_accuracy, rank_correlation, values_at

POSITIONS = (10, 25, 50, 75, 100)
_WHY_MISSING = {
    "rank_correlation": "all values or all rewards are equal",
    "pairwise_accuracy": "no two responses to the same prompt have different rewards",
}


def evaluate_values(values: Array, mask: Array, rewards: Array, groups: Array) -> list[dict[str, Any]]:
    """Judge prefix values against final rewards, one entry per prefix position.

    Args:
        values: (N, T), in the reward's unit (for rewards of 0 and 1, probabilities).
        mask: response positions (N, T).
        rewards: (N,).
        groups: which prompt each response belongs to (N,).

    Returns:
        Per position the figures, `calibration`, and `missing`: why a figure is NaN, where one is.
    """
    table: list[dict[str, Any]] = []
    for percent in POSITIONS:
        at = values_at(values, mask, percent)
        pairs = pairwise_accuracy(at, rewards, groups)
        table.append(
            {
                "percent": percent,
                "rank_correlation": rank_correlation(at, rewards),
                "pairwise_accuracy": pairs.accuracy,
                "num_pairs": pairs.num_pairs,
                "mean_squared_error": float(np.mean((at - rewards) ** 2)),
                "num_responses": len(at),
                "calibration": calibration(at, rewards),
            }
        )
        missing = {name: why for name, why in _WHY_MISSING.items() if np.isnan(table[-1][name])}
        table[-1] |= {"missing": missing} if missing else {}
    return table


def pair_accuracy_by_position(values: Array, mask: Array) -> list[dict[str, Any]]:
    """Judge prefix values on preference pairs, at the same share of the shorter response.

    Args:
        values: chosen and rejected (N, T, 2).
        mask: positions both responses have (N, T).
    """
    table = []
    for percent in POSITIONS:
        margins = values_at(values[..., 0] - values[..., 1], mask, percent)
        accuracy = float(np.mean((1 + np.sign(margins)) / 2))
        table.append({"percent": percent, "pairwise_accuracy": accuracy, "num_pairs": len(margins)})
    return table
