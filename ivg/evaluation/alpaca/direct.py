"""Two systems against each other: how often one wins, also at equal length, and how many prompts show it.

Each prompt brings one share: how far the judge preferred the first system's answer over the second's, from 0
to 1, averaged over both orders of showing them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ivg.errors import UserError
from ivg.evaluation.alpaca.both_orders import BothOrders
from ivg.evaluation.alpaca.files import Output
from ivg.evaluation.measures.statistics import CONFIDENCE, estimate, estimate_rate

Array = NDArray[np.float64]

POWER = 0.8  # chance to see a difference that is there
MOST_SIMULATED = 400  # prompts; beyond, the power of wins and losses jumps by less than 0.03 from n to n + 1
NUM_EXPERIMENTS = 4000  # so that the standard error of a power of 0.8 is 0.006
MIN_PROMPTS = 10  # for a regression with two coefficients
MAX_STEPS = 50
STEP_ENDS = 1e-9
STEEPEST = 20.0  # log-odds: beyond it one side wins whatever the length, and the fit runs away


def compare_directly(shares: Mapping[str, float], length_differences: Mapping[str, float]) -> dict[str, Any]:
    """Compare two systems on the same prompts.

    Args:
        shares: by prompt, how far the first system's answer was preferred; NaN where there is no preference.
        length_differences: by prompt, length of the first system's answer minus the second's, in characters.

    Returns:
        JSON data: `win_rate`, an estimate of a rate; `prompts_needed` (see `prompts_needed`); and
        `at_equal_length` (see `win_rate_at_equal_length`), or null and `no_length_control`, the reason.

    Raises:
        ValueError: no prompt has a preference.
    """
    present = [name for name, share in shares.items() if not math.isnan(share)]
    given = np.array([shares[name] for name in present])
    differences = np.array([length_differences[name] for name in present], dtype=float)
    rate = estimate_rate(shares.values()).as_dict()
    # Student's t, which knows how far averaged shares vary; Wilson's interval is wider than it need be. Of
    # shares that are all alike, such as three wins in three, it would say that nothing can be otherwise.
    is_told = len(set(given.tolist())) > 1
    rate["t95"] = estimate(shares.values()).as_dict()["ci95"] if is_told else rate["ci95"]
    found = {"win_rate": rate, "prompts_needed": prompts_needed(given)}
    try:
        return {**found, "at_equal_length": win_rate_at_equal_length(given, differences)}
    except ValueError as error:
        return {**found, "at_equal_length": None, "no_length_control": str(error)}


def compare_outputs(
    outputs: Sequence[Output], others: Sequence[Output], judged: BothOrders
) -> dict[str, Any]:
    """Compare two systems' outputs, judged in both orders (see `compare_directly`).

    Args:
        outputs: the first system's.
        others: the second's, in the same order.
        judged: the preferences for the first's.

    Returns:
        That comparison, with the names of both: `system` and `other`.

    Raises:
        UserError: no pair has a preference in both orders.
    """
    names = [row["instruction"] for row in outputs]
    shares = dict(zip(names, judged.averaged(), strict=True))
    differences = {
        row["instruction"]: float(len(row["output"]) - len(other["output"]))
        for row, other in zip(outputs, others, strict=True)
    }
    if all(map(math.isnan, shares.values())):
        raise UserError(f"none of the {len(shares)} direct comparisons holds a preference in both orders")
    compared = {"system": outputs[0]["generator"], "other": others[0]["generator"]}
    return {**compared, **compare_directly(shares, differences)}


def prompts_needed(shares: Array) -> int | None:
    """Return from how many prompts on a difference like the one found is seen in 80 of 100 experiments.

    It is seen where the interval shown (`compare_directly`'s `t95`) leaves out one half. For normal means
    that takes n = (z_0.975 + z_0.8)² · variance / (win rate − 1/2)² + z_0.975² / 2. Up to `MOST_SIMULATED`
    prompts this is not exact enough: means of few are not normal, and of wins and losses the power jumps
    with n. There experiments are drawn from the shares found.

    Args:
        shares: one per prompt (N,).

    Returns:
        None where fewer than two prompts, or a win rate of exactly one half, tell nothing of a difference.
    """
    difference = float(np.mean(shares)) - 0.5
    if len(shares) < 2 or difference == 0:
        return None
    tail, power = stats.norm.ppf((1 + CONFIDENCE) / 2), stats.norm.ppf(POWER)
    normal = float((tail + power) ** 2 * np.var(shares, ddof=1) / difference**2 + tail**2 / 2)
    if normal > MOST_SIMULATED:
        return math.ceil(normal)
    found = simulated_power(shares, 2 * math.ceil(normal) + 2 * MIN_PROMPTS)
    return int(np.flatnonzero(found < POWER)[-1]) + 2


def simulated_power(shares: Array, most: int) -> Array:
    """Return how often experiments of 1, 2, ... prompts, drawn from shares, see their difference from 1/2.

    Args:
        shares: one per prompt (N,).
        most: the largest number of prompts.

    Returns:
        A power for each number of prompts (most,); 0 for a single prompt.
    """
    drawn = np.random.default_rng(0).choice(shares, (NUM_EXPERIMENTS, most))
    n = np.arange(2, most + 1)
    means = drawn.cumsum(axis=1)[:, 1:] / n  # (experiments, most - 1), as all below
    variances = np.maximum((drawn**2).cumsum(axis=1)[:, 1:] / n - means**2, 0) * n / (n - 1)
    student = stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 1) * np.sqrt(variances / n)
    wilson = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(0.25 / n)  # its test against 1/2
    are_alike = (drawn[:, 1:] == drawn[:, :1]).cumprod(axis=1, dtype=bool)
    seen = np.abs(means - 0.5) > np.where(are_alike, wilson, student)
    return np.concatenate([[0.0], seen.mean(axis=0)])


def win_rate_at_equal_length(shares: Array, length_differences: Array) -> dict[str, Any]:
    """Estimate the win rate of pairs of equal length, by a logistic regression on the difference of lengths.

    log-odds of the share = a + b · tanh(difference / its standard deviation); the win rate at equal length is
    σ(a). The squashing is that of AlpacaEval's length control (arXiv 2404.04475), whose regression also knows
    how hard each instruction is, from other systems' answers. Shares between 0 and 1 are taken as they are
    (quasi-likelihood), and the interval comes from the sandwich estimate of the variance.

    Args:
        shares: one per prompt (N,).
        length_differences: of the two answers (N,).

    Returns:
        JSON data: `mean` and `ci95` in [0, 1], `n`; `slope` of the log-odds with its `slope_ci95`: how much
        a much longer answer gains.

    Raises:
        ValueError: too few prompts, lengths that do not differ, or one system wins whatever the length.
    """
    n = len(shares)
    if n < MIN_PROMPTS:
        raise ValueError(f"{n} prompts are too few, it needs {MIN_PROMPTS}")
    spread = float(np.std(length_differences))
    if spread == 0:
        raise ValueError("the lengths differ by the same in every pair")
    x = np.stack([np.ones(n), np.tanh(length_differences / spread)], axis=1)  # (N, 2)
    coefficients = _fit_logistic(x, shares)
    fitted = _logistic(x @ coefficients)  # (N,)
    bread = np.linalg.inv((x * (fitted * (1 - fitted))[:, None]).T @ x)
    scores = x * (shares - fitted)[:, None]
    # n / (n − 2) as for a regression's own variance: two coefficients were fitted.
    covariance = bread @ (scores.T @ scores) @ bread * n / (n - 2)
    half_widths = stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 2) * np.sqrt(np.diag(covariance))
    (low, low_slope), (high, high_slope) = coefficients - half_widths, coefficients + half_widths
    return {
        "mean": float(_logistic(coefficients[0])),
        "ci95": [float(_logistic(low)), float(_logistic(high))],
        "n": n,
        "slope": float(coefficients[1]),
        "slope_ci95": [float(low_slope), float(high_slope)],
    }


def _fit_logistic(x: Array, shares: Array) -> Array:
    """Return the coefficients (2,) by Newton's method, from zero."""
    coefficients = np.zeros(x.shape[1])
    for _ in range(MAX_STEPS):
        fitted = _logistic(x @ coefficients)
        curvature = (x * (fitted * (1 - fitted))[:, None]).T @ x
        try:
            step = np.linalg.solve(curvature, x.T @ (shares - fitted))
        except np.linalg.LinAlgError:
            break
        coefficients = coefficients + step
        if np.abs(coefficients).max() > STEEPEST:
            break
        if np.abs(step).max() < STEP_ENDS:
            return np.asarray(coefficients)
    raise ValueError("one system wins whatever the length, or length alone decides")


def _logistic(log_odds: Any) -> Any:
    return 1 / (1 + np.exp(-log_odds))
