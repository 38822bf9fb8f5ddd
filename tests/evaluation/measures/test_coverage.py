"""Every interval that the reports print holds the truth in about 95 of 100 repetitions."""

import numpy as np
import pytest
from scipy import stats

from ivg.evaluation.measures import statistics
from ivg.evaluation.measures.statistics import estimate, paired_difference, wilson_interval, win_rate

NUM_REPETITIONS = 400
# Of 400 repetitions at 95%, 3.5 standard deviations (of 1.1 points) either way.
LOW, HIGH = 0.91, 0.99


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 399)


def coverage(intervals, truth):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def rewards(rng, size):
    """Gold rewards as the quickstart has them: 0 for an invalid review in a third of all, else around 0.6."""
    return np.where(rng.random(size) < 1 / 3, 0.0, rng.normal(0.6, 0.12, size))


def test_means_of_rewards_that_are_often_zero():
    rng = np.random.default_rng(0)
    found = [estimate(rewards(rng, 200)) for _ in range(NUM_REPETITIONS)]
    assert LOW < coverage([result.ci95 for result in found], 0.4) < HIGH
    assert LOW < coverage([result.bootstrap95 for result in found], 0.4) < HIGH


def test_paired_differences():
    rng = np.random.default_rng(1)
    intervals = []
    for _ in range(NUM_REPETITIONS):
        ours, theirs = rewards(rng, 200) + 0.1, rewards(rng, 200)
        intervals.append(paired_difference(dict(enumerate(ours)), dict(enumerate(theirs))).ci95)
    assert LOW < coverage(intervals, 0.1) < HIGH


def test_means_of_three_seeds():
    rng = np.random.default_rng(2)
    intervals = [estimate(rng.normal(0.5, 0.02, 3)).ci95 for _ in range(NUM_REPETITIONS)]
    assert LOW < coverage(intervals, 0.5) < HIGH


def test_win_rates_with_ties_are_covered_at_least():
    rng = np.random.default_rng(3)
    intervals = []
    for _ in range(NUM_REPETITIONS):
        # Won 0.6, tied 0.3, lost 0.1: a rate of 0.75.
        scores = rng.choice([1.0, 0.0, -1.0], size=200, p=[0.6, 0.3, 0.1])
        intervals.append(win_rate(dict(enumerate(scores)), dict.fromkeys(range(200), 0.0)).ci95)
    assert coverage(intervals, 0.75) > LOW


@pytest.mark.parametrize("n", [64, 200])
def test_rates_are_covered_up_to_the_ends(n):
    # Exact: the probability of each count, summed where its interval holds the true rate.
    counts = np.arange(n + 1)
    bounds = np.array([wilson_interval(count / n, n) for count in counts])
    rates = np.concatenate([[0.99, 0.01], np.linspace(0.02, 0.98, 97)])
    covered = [
        stats.binom.pmf(counts, n, rate)[(bounds[:, 0] <= rate) & (rate <= bounds[:, 1])].sum()
        for rate in rates
    ]
    assert min(covered) > 0.88
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_students_interval_and_the_bootstrap_fail_near_one():
    # Why rates have Wilson's interval: at 0.99, one sample of 200 in eight holds no failure at all.
    rng = np.random.default_rng(4)
    found = [estimate((rng.random(200) < 0.99).astype(float)) for _ in range(NUM_REPETITIONS)]
    assert coverage([result.ci95 for result in found], 0.99) < 0.9
    assert coverage([result.bootstrap95 for result in found], 0.99) < 0.9
