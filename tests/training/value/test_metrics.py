"""The judgement of a value model, against slow independent definitions."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from ivg.evaluation.report.figures import lowest_shown, plot_evaluation
from ivg.training.value import metrics as vm


def test_values_at_counts_response_tokens_and_rounds_up() -> None:
    mask = np.array([[False, True, True, True, True, False], [False, False, True, False, False, False]])
    values = np.array([[9.0, 1.0, 2.0, 3.0, 4.0, 9.0], [9.0, 9.0, 7.0, 9.0, 9.0, 9.0]])
    # Four tokens: 10% and 25% are one token, 50% two, 75% three. One token: always that one.
    assert [vm.values_at(values, mask, p).tolist() for p in vm.POSITIONS] == [
        [1.0, 7.0],
        [1.0, 7.0],
        [2.0, 7.0],
        [3.0, 7.0],
        [4.0, 7.0],
    ]


def _ranks(sample: list[float]) -> list[float]:
    """Average ranks by definition: how many are smaller, plus half of the equal ones."""
    return [sum(y < x for y in sample) + (sum(y == x for y in sample) + 1) / 2 for x in sample]


def test_rank_correlation_is_pearson_of_average_ranks() -> None:
    values, rewards = [0.1, 0.4, 0.4, -2.0, 3.0, 1.0], [1.0, 0.0, 2.0, -1.0, 2.0, 2.0]
    a, b = _ranks(values), _ranks(rewards)
    mean_a, mean_b = sum(a) / 6, sum(b) / 6
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    norm = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    assert vm.rank_correlation(np.array(values), np.array(rewards)) == pytest.approx(covariance / norm)


def test_rank_correlation_of_a_constant_is_missing() -> None:
    assert math.isnan(vm.rank_correlation(np.ones(3), np.arange(3.0)))


def test_pairwise_accuracy_by_enumeration() -> None:
    rng = np.random.default_rng(0)
    values, rewards = rng.integers(0, 4, 30) / 2, rng.integers(0, 3, 30) / 1
    groups = rng.integers(0, 6, 30)
    right, total = 0.0, 0
    for i, j in itertools.combinations(range(30), 2):
        if groups[i] == groups[j] and rewards[i] != rewards[j]:
            total += 1
            if values[i] == values[j]:
                right += 0.5
            elif (values[i] > values[j]) == (rewards[i] > rewards[j]):
                right += 1
    result = vm.pairwise_accuracy(values, rewards, groups)
    assert result.num_pairs == total
    assert result.accuracy == pytest.approx(right / total)


def test_pairwise_accuracy_without_pairs_is_missing() -> None:
    result = vm.pairwise_accuracy(np.arange(2.0), np.arange(2.0), np.array([0, 1]))
    assert math.isnan(result.accuracy)
    assert result.num_pairs == 0


def test_calibration_bins_hold_equal_counts_lowest_first() -> None:
    values, rewards = np.arange(20.0)[::-1].copy(), np.arange(20.0)[::-1] * 2
    bins = vm.calibration(values, rewards)
    assert [b["count"] for b in bins] == [2] * 10
    assert [b["value"] for b in bins] == [0.5 + 2 * i for i in range(10)]
    assert [b["reward"] for b in bins] == [1 + 4 * i for i in range(10)]
    # Two rewards 2 apart: standard deviation √2, over √2.
    assert bins[0]["stderr"] == pytest.approx(1.0)


def test_pairs_are_judged_at_the_same_position_of_both() -> None:
    values = np.array(
        [[[0.0, 5.0], [1.0, 0.0], [2.0, 1.0]], [[0.0, 0.0], [1.0, 1.0], [0.0, 3.0]]]
    )  # (2, 3, 2)
    mask = np.array([[False, True, True], [False, True, True]])
    table = {row["percent"]: row["pairwise_accuracy"] for row in vm.pair_accuracy_by_position(values, mask)}
    # First response token: 1 > 0, and a tie; last one: 2 > 1, and 0 < 3.
    assert table[50] == 0.75
    assert table[100] == 0.5


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=40)
    values = rewards[:, None] + rng.normal(size=(40, 5))
    table = vm.evaluate_values(values, np.ones((40, 5), dtype=bool), rewards, np.arange(40) // 2)
    plot_evaluation(table, tmp_path / "value.png", "reward")
    assert (tmp_path / "value.png").read_bytes()[:4] == b"\x89PNG"
    pairs = vm.pair_accuracy_by_position(rng.normal(size=(40, 5, 2)), np.ones((40, 5), dtype=bool))
    plot_evaluation(pairs, tmp_path / "pairs.png", "preference logit")
    assert (tmp_path / "pairs.png").read_bytes()[:4] == b"\x89PNG"


def test_the_axis_reaches_down_to_negative_correlations() -> None:
    assert lowest_shown([0.2, 0.9]) == -0.05
    assert lowest_shown([0.2, -0.7, float("nan")]) == pytest.approx(-0.75)
    assert lowest_shown([float("nan")]) == -0.05


def test_a_missing_figure_comes_with_its_reason() -> None:
    rewards, mask = np.arange(4.0), np.ones((4, 2), dtype=bool)
    table = vm.evaluate_values(np.ones((4, 2)), mask, rewards, np.arange(4))
    assert math.isnan(table[0]["rank_correlation"])
    assert table[0]["missing"] == {
        "rank_correlation": "all values or all rewards are equal",
        "pairwise_accuracy": "no two responses to the same prompt have different rewards",
    }
    table = vm.evaluate_values(rewards[:, None] + np.zeros((4, 2)), mask, rewards, np.zeros(4))
    assert "missing" not in table[0]
