"""Do scores rank responses as they should? By scorer, and by how much of the responses was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivg.evaluation.measures.candidates import Candidates
from ivg.evaluation.measures.prefix_scores import PERCENTS
from ivg.evaluation.measures.statistics import estimate_rate
from ivg.rewards.agreement import calibration, pairwise_accuracy, rank_correlation

Array = NDArray[np.float64]

NUM_RESAMPLES = 400


def measure_scorers(scores: Mapping[str, Array], candidates: Candidates) -> dict[str, Any]:
    """Measure scorers on the same responses.

    Args:
        scores: by scorer, of each part of each response (N, parts); a column of NaN where a scorer reads
            finished responses alone.
        candidates: the N responses.

    Returns:
        JSON data: `form`, `num_prompts`, `num_responses`, and by scorer an entry per part with `percent`;
        `pairwise_accuracy`, the mean over prompts of the share of its pairs ranked rightly, ties one half;
        `best_of_n`, the share of prompts whose highest score is a chosen response's (best-of-N files, else
        null); `rank_correlation` with the rewards over all responses (Spearman), whose interval comes from
        resampling prompts; and `calibration`, in bins: of preferences the chance that the higher score is
        the better response, σ(difference), against how often it is; of rewards the score against the reward.
        A figure that is not defined is null.
    """
    return {
        "form": candidates.form,
        "num_prompts": len(np.unique(candidates.groups)),
        "num_responses": len(candidates.responses),
        "scorers": {
            name: [
                {"percent": percent, **_measure(table[:, part], candidates)}
                for part, percent in enumerate(PERCENTS)
            ]
            for name, table in scores.items()
        },
    }


def _measure(scores: Array, candidates: Candidates) -> dict[str, Any]:
    there = ~np.isnan(scores)
    names = ("pairwise_accuracy", "best_of_n", "rank_correlation", "calibration")
    if not there.any():
        return {**dict.fromkeys(names), "num_missing": len(scores)}
    scores, rewards, groups = scores[there], candidates.rewards[there], candidates.groups[there]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    accuracies = [pairwise_accuracy(scores[rows], rewards[rows], groups[rows]).accuracy for rows in members]
    found = {
        "pairwise_accuracy": None if np.isnan(accuracies).all() else estimate_rate(accuracies).as_dict(),
        "best_of_n": None,
        "rank_correlation": _rank_correlation(scores, rewards, members),
        "num_missing": int((~there).sum()),
    }
    if candidates.form == "best-of-N":
        found["best_of_n"] = estimate_rate(_picks(scores[rows], rewards[rows]) for rows in members).as_dict()
    if candidates.form == "rewards":
        bins = calibration(scores, rewards)
    else:
        predicted, observed = _favourites(scores, rewards, members)
        bins = calibration(predicted, observed)
    without_nan = [
        {name: None if np.isnan(value) else value for name, value in part.items()} for part in bins
    ]
    return {**found, "calibration": without_nan}


def _picks(scores: Array, rewards: Array) -> float:
    """Return the mean reward of the highest scores: 1 for a chosen response, in between where they tie."""
    return float(rewards[scores == scores.max()].mean())


def _favourites(scores: Array, rewards: Array, members: list[Any]) -> tuple[Array, Array]:
    """Return of every two rewards that differ the chance given to the higher score, and whether it is right.

    The model is Bradley and Terry's: σ of the difference. Equal scores are right by one half.
    """
    predicted, observed = [], []
    for rows in members:
        first, second = np.triu_indices(len(rows), k=1)
        margins = scores[rows[first]] - scores[rows[second]]
        order = np.sign(rewards[rows[first]] - rewards[rows[second]])
        predicted.append(1 / (1 + np.exp(-np.abs(margins[order != 0]))))
        observed.append((1 + np.sign(margins * order)[order != 0]) / 2)
    return np.concatenate(predicted), np.concatenate(observed)


def _rank_correlation(scores: Array, rewards: Array, members: list[Any]) -> dict[str, Any] | None:
    """Return Spearman's correlation with its 95% percentile interval over resampled prompts."""
    found = rank_correlation(scores, rewards)
    if np.isnan(found):
        return None
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(NUM_RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        resampled.append(rank_correlation(scores[rows], rewards[rows]))
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {"mean": found, "ci95": [float(low), float(high)], "n": len(members)}
