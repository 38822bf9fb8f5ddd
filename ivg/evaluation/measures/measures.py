"""From decoded rows to the numbers of a report: one mapping per measure, then estimates and comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.statistics import (
    Scores,
    estimate,
    estimate_rate,
    is_rate,
    mean_by_prompt,
    paired_difference,
    win_rate,
)
from ivg.evaluation.measures.text import distinct

# Measure name -> prompt id -> score.
Measures = Mapping[str, Scores]

DISTANCES = {"distance_from_base": "nll", "distance_per_token": "nll_per_token"}


def measure(
    decoded: Decoded,
    rewards: Sequence[float],
    nll: Sequence[float] | None = None,
    also: Mapping[str, Sequence[float]] | None = None,
) -> Measures:
    """Measure one method's responses, averaged by prompt.

    Args:
        decoded: its output rows.
        rewards: gold reward of each row; NaN where the reward model gave none.
        nll: negative log-likelihood of each row under the base (`distance.response_nll`), if it was scored.
        also: by name, further scores of each row, which are shown beside the gold reward.

    Returns:
        `gold_reward`, `distinct_1`, `distinct_2`, `num_characters`; `num_tokens` where every row states it;
        with `nll` also `nll` and, where lengths are known, `nll_per_token`; and those of `also`.

    Raises:
        UserError: a name of `also` is another measure's.
    """
    texts = decoded.responses
    columns = {
        "gold_reward": list(rewards),
        "distinct_1": [distinct(text, 1) for text in texts],
        "distinct_2": [distinct(text, 2) for text in texts],
        "num_characters": [float(len(text)) for text in texts],
    }
    lengths = num_tokens(decoded.rows)
    if lengths is not None:
        columns["num_tokens"] = lengths
    if nll is not None:
        columns["nll"] = list(nll)
    if nll is not None and lengths is not None:
        columns["nll_per_token"] = [
            total / length if length else math.nan for total, length in zip(nll, lengths, strict=True)
        ]
    for name, column in (also or {}).items():
        if name in columns or name in DISTANCES:
            raise UserError(f"also: {name!r} is the name of another measure; give the function another name")
        columns[name] = list(column)
    return {name: mean_by_prompt(decoded.ids, column) for name, column in columns.items()}


def num_tokens(rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Return each response's length in tokens, or None where a row does not state it."""
    if not all("num_tokens" in row for row in rows):
        return None
    return [float(row["num_tokens"]) for row in rows]


def missing_reasons(decoded: Decoded, rewards: Sequence[float]) -> dict[str, int]:
    """Count the rows without a gold reward by reason."""
    reasons = Counter(
        "empty response" if not text.strip() else "the reward model gave no number"
        for text, reward in zip(decoded.responses, rewards, strict=True)
        if math.isnan(reward)
    )
    return dict(reasons)


def compare(
    methods: Mapping[str, Measures],
    *,
    base: str | None = None,
    reference: str | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Estimate every measure of every method, and compare methods on the same prompts.

    Args:
        methods: what `measure` returned, by method.
        base: the method that the distance is taken from; needs `nll` in every method.
        reference: the method that the others are subtracted from; the last one if unset.
        also: names of the further scores that `measure` was given, for tables to show.

    Returns:
        JSON data: `methods` (each measure's estimate, or null where no response has it), `reference`,
        `paired` (gold reward of the reference minus that of each other method) and `win_rates`; `also` as
        given, and `paired_also` likewise for each of these scores.

    Raises:
        UserError: an unknown base or reference, or a method without a single gold reward.
    """
    reference = reference or list(methods)[-1]
    for role, name in (("base", base), ("reference", reference)):
        if name is not None and name not in methods:
            raise UserError(
                f"{role} {name!r} is not among the methods {', '.join(methods)}; name one of them"
            )
    rewards = {name: _gold_rewards(name, measures) for name, measures in methods.items()}
    others = [name for name in methods if name != reference]
    return {
        "methods": {
            name: _estimates(measures, None if base is None else methods[base])
            for name, measures in methods.items()
        },
        "reference": reference,
        "paired": {
            other: paired_difference(rewards[reference], rewards[other]).as_dict() for other in others
        },
        "also": list(also),
        "paired_also": {
            name: {
                other: paired_difference(methods[reference][name], methods[other][name]).as_dict()
                for other in others
            }
            for name in also
        },
        "win_rates": {other: win_rate(rewards[reference], rewards[other]).as_dict() for other in others},
    }


def _gold_rewards(name: str, measures: Measures) -> Scores:
    rewards = measures["gold_reward"]
    odd = next((prompt for prompt, reward in rewards.items() if math.isinf(reward)), None)
    if odd is not None:
        raise UserError(f"{name}: the gold reward of prompt {odd!r:.60} is infinite; check the reward model")
    if all(math.isnan(reward) for reward in rewards.values()):
        raise UserError(
            f"{name}: none of its {len(rewards)} prompts has a gold reward; check the reward model"
        )
    return rewards


def _estimates(measures: Measures, base: Measures | None) -> dict[str, Any]:
    scores = {name: values for name, values in measures.items() if name not in DISTANCES.values()}
    result: dict[str, Any] = {name: estimate_scores(values) for name, values in scores.items()}
    if base is not None:
        for name, source in DISTANCES.items():
            if source in measures and source in base:
                result[name] = paired_difference(measures[source], base[source]).as_dict()
    return result


def estimate_scores(scores: Scores) -> dict[str, object] | None:
    """Estimate a measure's mean, or a rate of zeros and ones, as JSON data; None where no score is there."""
    if all(math.isnan(score) for score in scores.values()):
        return None
    values = list(scores.values())
    return (estimate_rate(values) if is_rate(values) else estimate(values)).as_dict()
