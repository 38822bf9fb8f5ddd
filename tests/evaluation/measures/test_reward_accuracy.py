"""Accuracy of scorers, worked out by hand and with scorers that are known."""

import math

import numpy as np
import pytest

from ivg.evaluation.measures.candidates import Candidates
from ivg.evaluation.measures.reward_accuracy import measure_scorers


def make(form, groups, rewards):
    n = len(groups)
    return Candidates(
        form, [{"prompt": "q"}] * n, ["a"] * n, np.array(groups), np.array(rewards, dtype=float)
    )


def test_preferences_by_hand():
    candidates = make("preferences", [0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 1, 0])
    table = np.full((6, 4), np.nan)
    table[:, 2] = [2, 0, 1, 1, 0, 3]  # right by 2, a tie, wrong by 3
    (first, _, third, _) = measure_scorers({"x": table}, candidates)["scorers"]["x"]
    assert third["percent"] == 75
    assert third["pairwise_accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert third["pairwise_accuracy"]["n"] == 3
    assert third["best_of_n"] is None
    bins = [(part["value"], part["reward"], part["count"]) for part in third["calibration"]]
    expected = [(1 / (1 + math.exp(-m)), right, 1) for m, right in ((0, 0.5), (2, 1), (3, 0))]
    assert bins == [pytest.approx(entry) for entry in expected]
    assert first["pairwise_accuracy"] is None
    assert first["num_missing"] == 6


def test_best_of_four_by_hand():
    candidates = make("best-of-N", [0] * 4 + [1] * 4, [1, 0, 0, 0, 1, 1, 0, 0])
    scores = np.repeat([[5.0, 1, 2, 3, 4, 9, 9, 0]], 4, axis=0).T
    last = measure_scorers({"x": scores}, candidates)["scorers"]["x"][-1]
    # The second prompt: 4 beats 0 and loses to 9; 9 beats 0 and ties with 9.
    assert last["pairwise_accuracy"]["mean"] == pytest.approx((1 + (1 + 0 + 1 + 0.5) / 4) / 2)
    assert last["best_of_n"]["mean"] == pytest.approx((1 + 0.5) / 2)  # one of the two that tie is chosen


def test_a_scorer_that_is_right_in_three_of_four_pairs():
    """Its interval holds that rate, and its chances, σ of the margin log 3, are calibrated."""
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.75
    scores = np.stack([np.where(right, math.log(3), 0), np.where(right, 0, math.log(3))], axis=1).reshape(-1)
    candidates = make("preferences", np.repeat(np.arange(2000), 2), [1, 0] * 2000)
    last = measure_scorers({"x": np.repeat(scores[:, None], 4, axis=1)}, candidates)["scorers"]["x"][-1]
    low, high = last["pairwise_accuracy"]["ci95"]
    assert low <= 0.75 <= high
    assert high - low < 0.05
    for part in last["calibration"]:
        assert part["value"] == pytest.approx(0.75)
        assert part["reward"] == pytest.approx(0.75, abs=4 * part["stderr"])


def test_rewards_are_compared_with_scores_themselves():
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=400)
    noisy = rewards + rng.normal(size=400)
    candidates = make("rewards", np.repeat(np.arange(100), 4), rewards)
    found = measure_scorers({"x": np.stack([noisy, noisy, rewards, -rewards], axis=1)}, candidates)
    first, _, third, last = found["scorers"]["x"]
    assert (third["rank_correlation"]["mean"], last["rank_correlation"]["mean"]) == pytest.approx((1, -1))
    assert (third["pairwise_accuracy"]["mean"], last["pairwise_accuracy"]["mean"]) == (1, 0)
    low, high = first["rank_correlation"]["ci95"]
    assert low <= 6 / math.pi * math.asin(math.sqrt(0.5) / 2) <= high  # Spearman's of a normal pair
    assert [part["value"] for part in third["calibration"]] == [
        part["reward"] for part in third["calibration"]
    ]
    assert (found["form"], found["num_prompts"], found["num_responses"]) == ("rewards", 100, 400)
