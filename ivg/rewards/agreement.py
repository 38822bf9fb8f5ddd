"""How far scores agree with rewards: rank correlation, pairwise accuracy, calibration, of prefixes too."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_NUM_BINS = 10

Array = NDArray[Any]


class Pairwise(NamedTuple):
    """Share of pairs ranked rightly, and the number of pairs with different rewards."""

    accuracy: float
    num_pairs: int


def values_at(values: Array, mask: Array, percent: int) -> Array:
    """Return each row's value after the first `percent` of its response, at least one token.

    Args:
        values: (N, T).
        mask: response positions (N, T).
        percent: above 0, at most 100.
    """
    lengths = mask.sum(axis=1)
    counts = np.maximum(1, np.ceil(lengths * percent / 100).astype(int))
    starts = mask.argmax(axis=1)
    picked: Array = values[np.arange(len(values)), starts + counts - 1]
    return picked


def rank_correlation(values: Array, rewards: Array) -> float:
    """Return Spearman's correlation; NaN where either side is constant, for it has no ranks then."""
    if np.ptp(values) == 0 or np.ptp(rewards) == 0:
        return float("nan")
    return float(stats.spearmanr(values, rewards).statistic)


def pairwise_accuracy(values: Array, rewards: Array, groups: Array) -> Pairwise:
    """Compare every two responses to the same prompt whose rewards differ; equal values count one half.

    Args:
        values: (N,).
        rewards: (N,).
        groups: which prompt each response belongs to (N,).
    """
    wins, num_pairs = 0.0, 0
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        first, second = np.triu_indices(len(rows), k=1)
        agreement = np.sign(values[rows[first]] - values[rows[second]])
        agreement = agreement * np.sign(rewards[rows[first]] - rewards[rows[second]])
        differs = rewards[rows[first]] != rewards[rows[second]]
        wins += float(((1 + agreement[differs]) / 2).sum())
        num_pairs += int(differs.sum())
    return Pairwise(wins / num_pairs if num_pairs else float("nan"), num_pairs)


def calibration(values: Array, rewards: Array) -> list[dict[str, float]]:
    """Compare predicted with final reward in bins of equally many responses, lowest values first.

    Returns:
        Per bin: mean value, mean reward, its standard error (NaN for a single response), and count.
    """
    order = np.argsort(values, kind="stable")
    bins = [part for part in np.array_split(order, _NUM_BINS) if len(part)]
    return [
        {
            "value": float(values[part].mean()),
            "reward": float(rewards[part].mean()),
            "stderr": _stderr(rewards[part]),
            "count": len(part),
        }
        for part in bins
    ]


def _stderr(sample: Array) -> float:
    return float(stats.sem(sample)) if len(sample) > 1 else float("nan")
