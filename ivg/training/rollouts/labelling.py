"""From scored samples to training data: reward-labelled completions and preference pairs, with counts."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

PairStrategy = Literal["best-worst", "all", "bradley-terry"]
Sample = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Preference pairs, and what became of the candidates.

    Attributes:
        rows: `prompt`, `chosen`, `rejected`, their rewards and how they ended.
        num_ties: candidate pairs with equal rewards, dropped.
        num_below_margin: candidate pairs whose rewards differ by no more than the margin, dropped.
        num_single: prompts with fewer than two usable samples.
    """

    rows: list[dict[str, Any]]
    num_ties: int
    num_below_margin: int
    num_single: int


def usable(samples: Iterable[Sample]) -> list[Sample]:
    """Keep samples with a response to learn from and a finite reward."""
    return [s for s in samples if s["completion"].strip() and _is_scored(s)]


def _is_scored(sample: Sample) -> bool:
    return sample["reward"] is not None and math.isfinite(sample["reward"])


def preference_pairs(
    samples: Sequence[Sample], *, strategy: PairStrategy, margin: float = 0.0, seed: int = 0
) -> Pairs:
    """Pair the samples of each prompt by reward.

    Args:
        samples: usable rows with `id` (of the prompt), `prompt`, `completion`, `reward` and `finish_reason`.
        strategy: `best-worst` gives at most one pair a prompt; `all` every pair above the margin;
            `bradley-terry` takes the samples two by two as they were drawn, and prefers the better of two
            with probability sigmoid(difference of rewards), as a noisy judge does.
        seed: of these preferences; each depends on it and on the prompt's id alone.
        margin: how far two rewards must differ, >= 0; equal ones never make a pair.
    """
    groups: dict[Hashable, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample["id"]].append(sample)
    rows: list[dict[str, Any]] = []
    num_ties = num_below = 0
    for name, group in groups.items():
        judge = random.Random(f"{seed} {name}")
        for better, worse in _candidates(group, strategy):
            difference = better["reward"] - worse["reward"]
            if difference == 0:
                num_ties += 1
            elif difference <= margin:
                num_below += 1
            elif strategy == "bradley-terry" and judge.random() > 1 / (1 + math.exp(-difference)):
                rows.append(_pair(worse, better))
            else:
                rows.append(_pair(better, worse))
    return Pairs(
        rows=rows,
        num_ties=num_ties,
        num_below_margin=num_below,
        num_single=sum(len(group) == 1 for group in groups.values()),
    )


def _candidates(group: Sequence[Sample], strategy: PairStrategy) -> Iterable[tuple[Sample, Sample]]:
    """Return the pairs of a prompt's samples that a strategy looks at, the better one first."""

    def ranked(samples: Sequence[Sample]) -> list[Sample]:
        # Stable: among equal rewards the earlier sample comes first.
        return sorted(samples, key=lambda sample: -sample["reward"])

    if strategy == "bradley-terry":
        twos = [ranked(group[start : start + 2]) for start in range(0, len(group) - 1, 2)]
        return [(better, worse) for better, worse in twos]
    best_first = ranked(group)
    if strategy == "all":
        return itertools.combinations(best_first, 2)
    return [(best_first[0], best_first[-1])] if len(group) > 1 else []


def _pair(better: Sample, worse: Sample) -> dict[str, Any]:
    return {
        "prompt": better["prompt"],
        "chosen": better["completion"],
        "rejected": worse["completion"],
        "chosen_reward": better["reward"],
        "rejected_reward": worse["reward"],
        # One that was cut at the length limit must not be taught to end there.
        "chosen_finish_reason": better["finish_reason"],
        "rejected_finish_reason": worse["finish_reason"],
    }


def describe(samples: Sequence[Sample], pairs: Pairs) -> dict[str, Any]:
    """Say what was made: samples, rewards, lengths, endings, pairs and what was dropped.

    Args:
        samples: all samples, usable or not, with `num_tokens` and `finish_reason` beside the rest.
        pairs: what `preference_pairs` made of the usable ones.
    """
    rewards = [sample["reward"] for sample in usable(samples)]
    margins = [row["chosen_reward"] - row["rejected_reward"] for row in pairs.rows]
    return {
        "num_prompts": len({sample["id"] for sample in samples}),
        "num_samples": len(samples),
        "num_empty": sum(not sample["completion"].strip() for sample in samples),
        "num_without_reward": sum(not _is_scored(sample) for sample in samples),
        "num_completions": len(rewards),
        "share_ended": _mean([float(sample["finish_reason"] in ("eos", "stop")) for sample in samples]),
        "mean_tokens": _mean([float(sample["num_tokens"]) for sample in samples]),
        "reward_mean": _mean(rewards),
        "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "reward_min": min(rewards, default=None),
        "reward_max": max(rewards, default=None),
        "num_pairs": len(pairs.rows),
        "mean_pair_margin": _mean(margins),
        "num_ties_dropped": pairs.num_ties,
        "num_below_margin_dropped": pairs.num_below_margin,
        "num_prompts_with_one_sample": pairs.num_single,
    }


def warn_of_cut(described: Mapping[str, Any], max_new_tokens: int) -> str | None:
    """Return a warning where most samples were cut at the length limit, else None.

    Args:
        described: what `describe` returned.
        max_new_tokens: the limit.
    """
    if described["share_ended"] is None or described["share_ended"] >= 0.5:
        return None
    return (
        f"{1 - described['share_ended']:.0%} of {described['num_samples']} samples were cut at "
        f"{max_new_tokens} tokens before they ended, so rewards judge unfinished texts and no model "
        "learns to end one; raise max_new_tokens, or ask for shorter answers"
    )


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None (null in JSON) where there is nothing to average."""
    return statistics.fmean(values) if values else None
