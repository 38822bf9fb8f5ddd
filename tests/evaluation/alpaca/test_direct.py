"""Two systems against each other: intervals that cover, a power that holds, equal lengths."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from ivg.evaluation.alpaca.direct import compare_directly, prompts_needed, win_rate_at_equal_length
from ivg.evaluation.measures import statistics

NUM_EXPERIMENTS = 1000


def logistic(x):
    return 1 / (1 + np.exp(-x))


def draw_wins(rng, a, b, size):
    """Draw experiments whose log-odds are a + b tanh(z), with longer answers on the whole: z about 0.8."""
    z = rng.normal(0.8, 1, size)
    return (rng.random(size) < logistic(a + b * np.tanh(z))).astype(float), z


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.0, 1.5), (0.5, 1.0), (1.5, -1.0)])
def test_the_interval_at_equal_length_covers_in_1000_experiments(a, b):
    # z / std(z) is z where std is 1: scaled so in each experiment, as the regression will see it.
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(NUM_EXPERIMENTS):
        z = rng.normal(0.8, 1, 200)
        x = np.tanh(z / z.std())
        wins = (rng.random(200) < logistic(a + b * x)).astype(float)
        low, high = win_rate_at_equal_length(wins, z)["ci95"]
        covered += low <= logistic(a) <= high
    assert 0.93 <= covered / NUM_EXPERIMENTS <= 0.97


@pytest.mark.parametrize("rate", [0.5, 0.6, 0.8])
def test_the_intervals_of_the_win_rate_cover_in_1000_experiments(rate, monkeypatch):
    """Two orders that agree in part, so that shares are 0, 1/2 and 1; Wilson's is wide there, t is right."""
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 9)
    rng = np.random.default_rng(2)
    orders = (rng.random((NUM_EXPERIMENTS, 200, 2)) < rate).astype(float)
    same = rng.random((NUM_EXPERIMENTS, 200)) < 0.6  # in which the second order repeats the first
    shares = (orders[..., 0] + np.where(same, orders[..., 0], orders[..., 1])) / 2
    t_covers = wilson_covers = 0
    for experiment in shares:
        names = dict(enumerate(experiment.tolist()))
        found = compare_directly(names, dict.fromkeys(names, 0.0))["win_rate"]
        t_covers += found["t95"][0] <= rate <= found["t95"][1]
        wilson_covers += found["ci95"][0] <= rate <= found["ci95"][1]
    assert 0.93 <= t_covers / NUM_EXPERIMENTS <= 0.97
    assert wilson_covers >= t_covers


@pytest.mark.parametrize("a", [1.05, 1.1, 1.2])
def test_so_many_prompts_show_the_difference_in_80_of_100_experiments(a):
    """Shares of a weighted judge: Beta(a, 2 - a), of mean a / 2 and variance a (2 - a) / 12."""
    rng = np.random.default_rng(3)
    expected = 7.8488797 * (a * (2 - a) / 12) / (a / 2 - 0.5) ** 2  # (1.959964 + 0.841621)² var / diff²
    n = round(expected)
    shares = rng.beta(a, 2 - a, (2 * NUM_EXPERIMENTS, n))
    p_values = stats.ttest_1samp(shares, 0.5, axis=1).pvalue
    assert 0.77 <= (p_values < 0.05).mean() <= 0.83
    spread, shift = math.sqrt(a * (2 - a) / 12), a / 2
    known = shift + spread * np.array([-1.0, 1.0] * 500)  # of exactly that mean and variance
    assert prompts_needed(known) == math.ceil(expected * 1000 / 999)


def test_the_fit_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(4)
    wins, lengths = draw_wins(rng, 0.3, 0.8, 100)
    shares = 0.9 * wins + 0.05

    def loss(coefficients):
        p = logistic(coefficients[0] + coefficients[1] * np.tanh(lengths / lengths.std()))
        return -(shares * np.log(p) + (1 - shares) * np.log(1 - p)).sum()

    best = optimize.minimize(loss, [0, 0], tol=1e-10).x
    found = win_rate_at_equal_length(shares, lengths)
    assert found["mean"] == pytest.approx(logistic(best[0]), abs=1e-5)
    assert found["slope"] == pytest.approx(best[1], abs=1e-4)


def test_length_alone_is_found_out():
    """The first system wins by its length: 50% at equal length, though it wins far more often."""
    rng = np.random.default_rng(5)
    wins, lengths = draw_wins(rng, 0.0, 2.0, 2000)
    names = dict(enumerate(wins.tolist()))
    found = compare_directly(names, dict(enumerate((100 * lengths).tolist())))
    assert found["win_rate"]["ci95"][0] > 0.6
    low, high = found["at_equal_length"]["ci95"]
    assert low <= 0.5 <= high
    assert found["at_equal_length"]["slope_ci95"][0] > 1


@pytest.mark.parametrize(
    ("shares", "lengths", "reason"),
    [
        ([1.0] * 9, range(9), "9 prompts are too few"),
        ([0.0, 1.0] * 10, [3] * 20, "differ by the same"),
        ([1.0] * 20, range(20), "one system wins whatever the length"),
        ([0.0] * 10 + [1.0] * 10, range(-10, 10), "length alone decides"),
    ],
)
def test_without_length_control_there_is_a_reason(shares, lengths, reason):
    found = compare_directly(dict(enumerate(shares)), dict(enumerate(map(float, lengths))))
    assert found["at_equal_length"] is None
    assert reason in found["no_length_control"]


def test_prompts_that_tell_nothing():
    assert prompts_needed(np.array([0.5, 0.5])) is None
    assert prompts_needed(np.array([1.0])) is None
    assert prompts_needed(np.array([1.0, 1.0, 1.0])) == 2
    with pytest.raises(ValueError, match="mean over nothing"):
        compare_directly({"a": math.nan}, {"a": 0.0})
