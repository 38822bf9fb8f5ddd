"""Means that never travel without n, standard error and interval; comparisons on the same prompts.

Scores are mappings from prompt id to number, so that two methods meet on the prompts they share by name
and not by position. A missing score is NaN: it is left out and counted, never taken for zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ivg.errors import UserError

Scores = Mapping[str, float]

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        mean: over the scores that are there.
        stderr: sample standard deviation / sqrt(n); NaN for a single score.
        ci95: 95% interval by Student's t, NaN for a single score; of a rate, Wilson's, within [0, 1].
        bootstrap95: 95% percentile bootstrap interval, with a fixed seed.
        n: scores that went in: distinct prompts, where scores were averaged by prompt.
        missing: scores that were NaN and did not.
    """

    mean: float
    stderr: float
    ci95: tuple[float, float]
    bootstrap95: tuple[float, float]
    n: int
    missing: int = 0

    def as_dict(self) -> dict[str, object]:
        """Return plain JSON data; what is not defined becomes null."""
        return {
            "mean": self.mean,
            "stderr": _or_none(self.stderr),
            "ci95": [_or_none(bound) for bound in self.ci95],
            "bootstrap95": [_or_none(bound) for bound in self.bootstrap95],
            "n": self.n,
            "missing": self.missing,
        }


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def estimate(values: Iterable[float]) -> Estimate:
    """Estimate a mean; NaN counts as missing.

    Raises:
        ValueError: no value, or none that is a number.
    """
    given = np.fromiter(values, dtype=np.float64)
    present = given[~np.isnan(given)]
    n, missing = len(present), len(given) - len(present)
    if n == 0:
        raise ValueError(f"no scores to average ({missing} missing): a mean over nothing is undefined")
    mean = float(present.mean())
    if n == 1:
        return Estimate(mean, math.nan, (math.nan, math.nan), (math.nan, math.nan), n, missing)
    stderr = float(stats.sem(present))
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 1)) * stderr
    interval = (mean - half_width, mean + half_width)
    return Estimate(mean, stderr, interval, _bootstrap_interval(present), n, missing)


def estimate_rate(values: Iterable[float]) -> Estimate:
    """Estimate a rate from shares in [0, 1], such as 1 for a win, 0 for a loss and 1/2 for a tie.

    Near 0 and 1 Student's t and the bootstrap cover far less than 95% (83% at a rate of 0.99 with n = 200).
    Wilson's interval is exact enough there; where shares lie between 0 and 1 it is wider than it need be.

    Raises:
        ValueError: as `estimate` does, or a share outside [0, 1].
    """
    found = estimate(values)
    return dataclasses.replace(found, ci95=wilson_interval(found.mean, found.n))


def wilson_interval(rate: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% score interval of a rate observed over n trials.

    Raises:
        ValueError: a rate outside [0, 1], or no trial.
    """
    if not 0 <= rate <= 1 or n < 1:
        raise ValueError(f"a rate of {rate} over {n} trials; expected one in [0, 1] over at least 1")
    z2 = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half_width = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, center - half_width), min(1.0, center + half_width)


def is_rate(values: Iterable[float]) -> bool:
    """Tell whether scores are zeros and ones alone; NaN counts as missing."""
    present = {value for value in values if not math.isnan(value)}
    return bool(present) and present <= {0.0, 1.0}


def _bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    # The percentile interval, not BCa, which is undefined when all values are equal.
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, 1_000_000 // len(values)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_by_prompt(ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Average several samples of one prompt, so that n counts prompts.

    Args:
        ids: prompt id of each row; may repeat.
        values: one per row; a prompt's NaNs are left out unless it has nothing else.

    Returns:
        One number for each distinct id, in order of first appearance.
    """
    by_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for name, value in zip(ids, values, strict=True):
        by_prompt[name].append(value)
    return {name: _mean_or_nan(samples) for name, samples in by_prompt.items()}


def _mean_or_nan(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def paired_difference(scores: Scores, other: Scores) -> Estimate:
    """Estimate the mean of `scores - other` over the same prompts.

    Raises:
        UserError: the two were not scored on the same prompts.
    """
    return estimate(scores[name] - other[name] for name in _same_prompts(scores, other))


def win_rate(scores: Scores, other: Scores) -> Estimate:
    """Estimate the share of prompts on which `scores` is above `other`, a rate; a tie counts one half.

    Raises:
        UserError: the two were not scored on the same prompts.
    """
    return estimate_rate(_win(scores[name] - other[name]) for name in _same_prompts(scores, other))


def _win(difference: float) -> float:
    return float((1 + np.sign(difference)) / 2)  # NaN stays NaN


def _same_prompts(scores: Scores, other: Scores) -> list[str]:
    odd = next((name for name in [*scores, *other] if (name in scores) != (name in other)), None)
    if odd is not None:
        raise UserError(
            f"a paired comparison needs the same prompts, but {odd!r} is in one of the two only "
            f"({len(scores)} and {len(other)} prompts); decode both from the same input"
        )
    return list(scores)
