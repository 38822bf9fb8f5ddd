"""How good is a judge? Its answers beside those of another judge that were recorded.

Every comparison is asked in both orders, and once or more again. Intervals are over instructions, since one
instruction brings several answers: those of a rate are Wilson's, those of kappa and of the rank correlation
come from resampling instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivg.errors import UserError
from ivg.evaluation.alpaca.annotators import Annotator
from ivg.evaluation.measures.statistics import (
    estimate,
    estimate_rate,
    mean_by_prompt,
    paired_difference,
)
from ivg.evaluation.reading import read_json

Array = NDArray[np.float64]

NUM_RESAMPLES = 2000
NUM_KINDS = 3  # of an answer: the reference is better, a tie, the system is better
MIN_SYSTEMS = 3  # for a rank correlation


class Asked(NamedTuple):
    """What a judge answered about recorded comparisons, N of them.

    Shares are preferences for the system's answer, from 0 to 1; NaN where an answer holds none.

    Attributes:
        systems: of each comparison.
        instructions: of each comparison.
        recorded: shares of the recorded judge (N,).
        reference_first: shares where the reference's answer was shown first (N,).
        system_first: shares where the system's was (N,).
        again: shares of the same questions as `reference_first`, asked anew (N, repeats).
    """

    systems: Sequence[str]
    instructions: Sequence[str]
    recorded: Array
    reference_first: Array
    system_first: Array
    again: Array


def measure_judge(asked: Asked) -> dict[str, Any]:
    """Measure a judge.

    Returns:
        JSON data, each figure an estimate with its interval, or null where it is not defined:
        `agreement` with the recorded verdicts, Cohen's `kappa`; `position_bias`, by how much the first place
        is preferred (0.5: always), and `order_flips`, the share of verdicts that change with the order;
        `repeat_flips` and `repeat_variance` of the same question asked again; `null_rate`; `systems`: win
        rates in percent and their difference; `rank_correlation` of these (Kendall's tau-b); `verdict`.
    """
    both = np.stack([asked.reference_first, asked.system_first], axis=1)  # (N, 2)
    every = np.concatenate([both, asked.again], axis=1)  # (N, 2 + repeats)
    kinds, recorded = _kinds(both), _kinds(asked.recorded)
    agreement = np.where(np.isnan(kinds), np.nan, kinds == recorded[:, None])
    orders = np.where(np.isnan(kinds).any(axis=1), np.nan, kinds[:, 0] != kinds[:, 1])
    same = np.concatenate([asked.reference_first[:, None], asked.again], axis=1)  # (N, 1 + repeats)
    kappa = _kappa(asked, kinds, recorded)
    found: dict[str, Any] = {
        "agreement": _rate(asked, _mean(agreement)),
        "kappa": kappa,
        "position_bias": _mean_of(asked, (1 - asked.reference_first + asked.system_first) / 2 - 0.5),
        "order_flips": _rate(asked, orders),
        "repeat_flips": _rate(asked, _flips(same)),
        "repeat_variance": _mean_of(asked, _variances(same)),
        "null_rate": _rate(asked, np.isnan(every).mean(axis=1)),
        "systems": _systems(asked, _mean(both)),
        "rank_correlation": _rank_correlation(asked, _mean(both)),
        "num_comparisons": len(asked.systems),
        "num_instructions": len(set(asked.instructions)),
        "num_repeats": asked.again.shape[1],
    }
    return {**found, "verdict": verdict(kappa, num_null=int(np.isnan(every).sum()), num_answers=every.size)}


def read_quality(path: str | None, annotator: Annotator) -> dict[str, Any] | None:
    """Read what `ivg eval judge` wrote about a judge; None without a path.

    Raises:
        UserError: no such file, or it is about another judge.
    """
    if path is None:
        return None
    wanted = "judge.json of `ivg eval judge`"
    data = read_json(Path(path), wanted)
    judge = data.get("judge") if isinstance(data, dict) else None
    if not isinstance(judge, dict) or not isinstance(data.get("verdict"), str):
        raise UserError(f"{path}: holds no measures of a judge; give {wanted}")
    measured, asked = (judge.get("annotator"), judge.get("model")), (annotator.name, annotator.model)
    if measured != asked:
        raise UserError(
            f"{path}: is about annotator {measured[0]} with model {measured[1]}, but {asked[0]} with "
            f"{asked[1]} is asked here; measure that one"
        )
    measures: dict[str, Any] = data
    return measures


def verdict(kappa: Mapping[str, Any] | None, *, num_null: int, num_answers: int) -> str:
    """Say whether a judge tells more than chance does, which is all that a kappa can show."""
    if num_null == num_answers:
        return f"useless: none of its {num_answers} answers holds a preference"
    if kappa is None:
        return "cannot be told: all recorded verdicts are of one kind; give recordings of more systems"
    low, high = kappa["ci95"]
    shown = f"kappa {kappa['mean']:.2f} [{low:.2f}, {high:.2f}]"
    if low <= 0:
        return f"useless: it agrees with the recorded judge no better than chance does ({shown})"
    return f"agrees with the recorded judge beyond chance ({shown})"


def _kinds(shares: Array) -> Array:
    """Return 0 where the reference is better, 1 for a tie, 2 where the system is; NaN stays."""
    return 1 + np.sign(shares - 0.5)


def _mean(values: Array) -> Array:
    """Return the mean of each row over what is there (N,); NaN where nothing is."""
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0).sum(axis=1), there.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _by_instruction(asked: Asked, values: Array) -> list[float]:
    return list(mean_by_prompt(asked.instructions, values.tolist()).values())


def _rate(asked: Asked, values: Array) -> dict[str, Any] | None:
    return None if np.isnan(values).all() else estimate_rate(_by_instruction(asked, values)).as_dict()


def _mean_of(asked: Asked, values: Array) -> dict[str, Any] | None:
    return None if np.isnan(values).all() else estimate(_by_instruction(asked, values)).as_dict()


def _flips(same: Array) -> Array:
    """Return the share of repeats whose verdict is another than the first's (N,); NaN where none is there."""
    kinds = _kinds(same)
    first, again = kinds[:, :1], kinds[:, 1:]
    return _mean(np.where(np.isnan(first) | np.isnan(again), np.nan, first != again))


def _variances(same: Array) -> Array:
    """Return the sample variance of each comparison's answers (N,); NaN below two answers."""
    count = (~np.isnan(same)).sum(axis=1)
    squares = np.where(np.isnan(same), 0, (same - _mean(same)[:, None]) ** 2).sum(axis=1)
    return np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)


def _kappa(asked: Asked, kinds: Array, recorded: Array) -> dict[str, Any] | None:
    """Return Cohen's kappa of all answers in both orders with the recorded ones."""
    if len(np.unique(recorded)) == 1:  # then kappa is 0 whatever the judge says
        return None
    names = {name: i for i, name in enumerate(dict.fromkeys(asked.instructions))}
    counts = np.zeros((len(names), NUM_KINDS, NUM_KINDS))
    for name, theirs, ours in zip(asked.instructions, recorded, kinds, strict=True):
        for one in ours[~np.isnan(ours)]:
            counts[names[name], int(theirs), int(one)] += 1

    def kappas(weights: Array) -> Array:
        return kappa_of(np.tensordot(weights, counts, axes=1))

    return _with_interval(kappas, len(names))


def kappa_of(counts: Array) -> Array:
    """Return Cohen's kappa of tables of counts (..., kinds, kinds).

    NaN where both sides are constant, or nothing was counted.
    """
    total = counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / total[..., None, None]
        observed = np.trace(shares, axis1=-2, axis2=-1)
        by_chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
        return np.asarray(np.where(by_chance < 1 - 1e-12, (observed - by_chance) / (1 - by_chance), np.nan))


def _systems(asked: Asked, shares: Array) -> dict[str, Any]:
    """Return each system's win rate, in percent, by the judge and as recorded, on the same comparisons."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(asked.systems):
        rows = [i for i, system in enumerate(asked.systems) if system == name and not np.isnan(shares[i])]
        if not rows:
            found[name] = None
            continue
        judged = {asked.instructions[i]: 100 * float(shares[i]) for i in rows}
        recorded = {asked.instructions[i]: 100 * float(asked.recorded[i]) for i in rows}
        found[name] = {
            "judge": estimate(judged.values()).as_dict(),
            "recorded": estimate(recorded.values()).as_dict(),
            "difference": paired_difference(judged, recorded).as_dict(),
        }
    return found


def _rank_correlation(asked: Asked, shares: Array) -> dict[str, Any] | None:
    """Return Kendall's tau-b of the systems' win rates by the judge and as recorded."""
    systems = {name: i for i, name in enumerate(dict.fromkeys(asked.systems))}
    if len(systems) < MIN_SYSTEMS:
        return None
    names = {name: i for i, name in enumerate(dict.fromkeys(asked.instructions))}
    sums = np.zeros((3, len(names), len(systems)))  # of judged shares, of recorded ones, of comparisons
    for name, system, judged, recorded in zip(
        asked.instructions, asked.systems, shares, asked.recorded, strict=True
    ):
        if not np.isnan(judged):
            sums[:, names[name], systems[system]] += (judged, recorded, 1)

    def taus(weights: Array) -> Array:
        judged, recorded, counts = (weights @ part for part in sums)  # each (resamples, systems)
        with np.errstate(invalid="ignore", divide="ignore"):
            return kendall_tau(judged / counts, recorded / counts)

    return _with_interval(taus, len(names))


def kendall_tau(first: Array, second: Array) -> Array:
    """Return Kendall's tau-b of each pair of rows (R, systems) -> (R,); NaN where a side is constant."""
    left, right = np.triu_indices(first.shape[1], k=1)
    one, two = np.sign(first[:, left] - first[:, right]), np.sign(second[:, left] - second[:, right])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((one * two).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1)))


def _with_interval(statistic: Callable[[Array], Array], n: int) -> dict[str, Any] | None:
    """Return a statistic with its 95% percentile interval over resampled instructions.

    Args:
        statistic: of rows of weights (R, n), how often each instruction counts -> (R,).
        n: instructions.

    Returns:
        None where the statistic is not defined.
    """
    value = float(statistic(np.ones((1, n)))[0])
    if math.isnan(value):
        return None
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=NUM_RESAMPLES)
    resampled = statistic(weights.astype(float))
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {"mean": value, "ci95": [float(low), float(high)], "n": n}
