import math
import random

import pytest
from scipy import stats

from ivg.errors import UserError
from ivg.evaluation.measures.statistics import (
    estimate,
    is_rate,
    mean_by_prompt,
    paired_difference,
    wilson_interval,
    win_rate,
)


def test_an_estimate_matches_numbers_worked_out_by_hand():
    # 1, 2, 3, 4, 5: variance 10/4, stderr sqrt(2.5/5); t(0.975, 4 degrees of freedom) = 2.776445.
    result = estimate([1, 2, 3, 4, 5])
    assert result.mean == 3
    assert result.stderr == pytest.approx(math.sqrt(0.5))
    assert result.ci95 == pytest.approx(
        (3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), abs=1e-5
    )
    assert (result.n, result.missing) == (5, 0)


def test_the_bootstrap_interval_agrees_with_a_slow_one():
    rng = random.Random(3)
    values = [rng.gauss(0.4, 1) ** 2 for _ in range(60)]
    means = sorted(sum(rng.choices(values, k=60)) / 60 for _ in range(20_000))
    low, high = estimate(values).bootstrap95
    # Two resamplings differ by noise only: a twentieth of the interval's width.
    tolerance = (means[19_500] - means[500]) / 20
    assert low == pytest.approx(means[500], abs=tolerance)
    assert high == pytest.approx(means[19_500], abs=tolerance)


def test_missing_scores_are_left_out_and_counted():
    result = estimate([1.0, math.nan, 3.0])
    assert (result.mean, result.n, result.missing) == (2.0, 2, 1)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_a_mean_over_nothing_raises(values):
    with pytest.raises(ValueError, match="a mean over nothing is undefined"):
        estimate(values)


def test_one_score_has_no_interval():
    data = estimate([2.0]).as_dict()
    assert data["mean"] == 2.0
    assert data["stderr"] is None
    assert data["ci95"] == [None, None]
    assert data["bootstrap95"] == [None, None]


def test_equal_scores_have_an_interval_of_no_width():
    result = estimate([0.5] * 10)
    assert result.ci95 == (0.5, 0.5)
    assert result.bootstrap95 == (0.5, 0.5)


def test_samples_of_a_prompt_are_averaged_so_that_n_counts_prompts():
    scores = mean_by_prompt(["a", "b", "a", "b", "c"], [1.0, 5.0, 3.0, math.nan, math.nan])
    assert scores["a"] == 2.0
    assert scores["b"] == 5.0
    assert math.isnan(scores["c"])


def test_a_paired_difference_meets_by_prompt_and_not_by_position():
    difference = paired_difference({"a": 3.0, "b": 10.0, "c": 6.0}, {"c": 4.0, "a": 2.0, "b": 7.0})
    # Differences 1, 3, 2: mean 2, variance 1.
    assert difference.mean == 2
    assert difference.stderr == pytest.approx(1 / math.sqrt(3))


def test_a_paired_difference_counts_a_prompt_that_either_side_lacks():
    difference = paired_difference({"a": 3.0, "b": math.nan, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": math.nan})
    assert (difference.mean, difference.n, difference.missing) == (2.0, 1, 2)


def test_a_tie_is_half_a_win():
    rate = win_rate({"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.0}, {"a": 0.0, "b": 2.0, "c": 1.0, "d": 9.0})
    assert rate.mean == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert rate.ci95 == wilson_interval(0.625, 4)


def test_wilsons_interval_matches_numbers_worked_out_by_hand():
    # z^2 = 3.841459. 0 of 10: [0, z^2 / (10 + z^2)]. 1 of 2: 1/2 -+ z sqrt(1/8 + z^2/16) / (1 + z^2/2).
    assert wilson_interval(0.0, 10) == pytest.approx((0, 3.841459 / 13.841459), abs=1e-6)
    half = 1.959964 * math.sqrt(1 / 8 + 3.841459 / 16) / (1 + 3.841459 / 2)
    assert wilson_interval(0.5, 2) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    library = stats.binomtest(198, 200).proportion_ci(method="wilson")
    assert wilson_interval(0.99, 200) == pytest.approx((library.low, library.high))


@pytest.mark.parametrize(("rate", "n"), [(1.01, 5), (-0.01, 5), (0.5, 0), (math.nan, 5)])
def test_what_is_no_rate_has_no_interval(rate, n):
    with pytest.raises(ValueError, match="expected one in"):
        wilson_interval(rate, n)


def test_zeros_and_ones_are_a_rate():
    assert is_rate([0.0, 1.0, math.nan])
    assert not is_rate([0.0, 0.5])
    assert not is_rate([math.nan])


def test_a_missing_score_is_neither_won_nor_lost():
    rate = win_rate({"a": 1.0, "b": math.nan}, {"a": 0.0, "b": 2.0})
    assert (rate.mean, rate.n, rate.missing) == (1.0, 1, 1)


def test_different_prompts_are_refused():
    with pytest.raises(UserError, match="'b' is in one of the two only"):
        paired_difference({"a": 1.0, "b": 2.0}, {"a": 1.0})
    with pytest.raises(UserError, match="'c' is in one of the two only"):
        win_rate({"a": 1.0}, {"a": 1.0, "c": 2.0})
