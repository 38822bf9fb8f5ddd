"""Two systems against each other: intervals that cover, a power that holds, equal lengths."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from ivg.evaluation.alpaca import direct
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


@pytest.mark.parametrize(("rate", "agree"), [(0.5, 0.6), (0.6, 0.6), (0.8, 0.6), (0.7, 1.0)])
def test_the_intervals_of_the_win_rate_cover_in_1000_experiments(rate, agree, monkeypatch):
    """Two orders that agree in part, so that shares are 0, 1/2 and 1; Wilson's is wide there, t is right.

    Where they always agree, shares are wins and losses.
    """
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 9)
    monkeypatch.setattr(direct, "prompts_needed", lambda shares: None)  # not looked at here, and slow
    rng = np.random.default_rng(2)
    orders = (rng.random((NUM_EXPERIMENTS, 200, 2)) < rate).astype(float)
    same = rng.random((NUM_EXPERIMENTS, 200)) < agree  # in which the second order repeats the first
    shares = (orders[..., 0] + np.where(same, orders[..., 0], orders[..., 1])) / 2
    t_covers = wilson_covers = 0
    for experiment in shares:
        names = dict(enumerate(experiment.tolist()))
        found = compare_directly(names, dict.fromkeys(names, 0.0))["win_rate"]
        t_covers += found["t95"][0] <= rate <= found["t95"][1]
        wilson_covers += found["ci95"][0] <= rate <= found["ci95"][1]
    assert 0.93 <= t_covers / NUM_EXPERIMENTS <= 0.97
    assert wilson_covers >= t_covers - 20  # of wins and losses both are exact, and differ by chance


@pytest.mark.parametrize("a", [1.05, 1.1, 1.2])
def test_so_many_prompts_show_the_difference_in_80_of_100_experiments(a):
    """Shares of a weighted judge: Beta(a, 2 - a), of mean a / 2 and variance a (2 - a) / 12."""
    known = stats.beta.ppf((np.arange(1000) + 0.5) / 1000, a, 2 - a)
    n = prompts_needed(known)
    expected = 7.8488797 * (a * (2 - a) / 12) / (a / 2 - 0.5) ** 2  # (1.959964 + 0.841621)² var / diff²
    # A standard error of 0.0063 in the power is one of 1.6% in n: 0.0063 / (phi(0.84) · 2.8 / 2).
    assert n == pytest.approx(expected + 1.92, rel=0.05)
    shares = np.random.default_rng(3).beta(a, 2 - a, (4 * NUM_EXPERIMENTS, n))
    power = (stats.ttest_1samp(shares, 0.5, axis=1).pvalue < 0.05).mean()
    # Both simulations have a standard error of 0.0063: three of the difference's are 0.027.
    assert 0.773 <= power <= 0.827


def test_few_prompts_of_skewed_shares_reach_that_power_too():
    """Beta(1.5, 0.5), most of it near 1: normal means would need 10 prompts, and 10 are not enough."""
    n = prompts_needed(stats.beta.ppf((np.arange(1000) + 0.5) / 1000, 1.5, 0.5))
    shares = np.random.default_rng(3).beta(1.5, 0.5, (20 * NUM_EXPERIMENTS, n))
    few, enough = (
        (stats.ttest_1samp(shares[:, :size], 0.5, axis=1).pvalue < 0.05).mean() for size in (10, n)
    )
    assert few < 0.773
    assert 0.78 <= enough <= 0.83  # a prompt more is worth 0.03


def sees_it(wins, n):
    """Tell whether so many wins of n are told from one half, by Student's t of scipy, or all being alike."""
    if wins in (0, n):
        low, high = statistics.wilson_interval(wins / n, n)
        return not low <= 0.5 <= high
    return stats.ttest_1samp([1.0] * wins + [0.0] * (n - wins), 0.5).pvalue < 0.05


def exact_power(rate, n):
    return sum(stats.binom.pmf(wins, n, rate) for wins in range(n + 1) if sees_it(wins, n))


@pytest.mark.parametrize("rate", [0.6, 0.7, 0.8, 0.9, 0.25])
def test_the_power_of_wins_and_losses_is_reached_too(rate):
    """Where verdicts are wins and losses, power jumps: the formula of normal means reached 0.74 at 0.7."""
    wins = round(1000 * rate)
    n = prompts_needed(np.array([1.0] * wins + [0.0] * (1000 - wins)))
    error = 0.013  # two standard errors of the simulation behind it
    assert exact_power(rate, n - 1) < 0.8 + error
    assert all(exact_power(rate, later) >= 0.8 - error for later in (n, n + 1, n + 2, n + 5))


def test_the_formula_takes_over_where_it_is_exact_enough():
    """600 wins of 1,100: 778 prompts by the formula of normal means, and 1.92 more for Student's t."""
    known = np.array([1.0] * 600 + [0.0] * 500)
    p = 600 / 1100
    expected = math.ceil(7.8488797 * p * (1 - p) * 1100 / 1099 / (p - 0.5) ** 2 + 1.9207)
    assert prompts_needed(known) == expected
    assert 0.78 <= exact_power(p, expected) <= 0.82


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
    # All alike: Wilson's interval of n wins in n is above n / (n + 3.84), and so above 1/2 from 4 on.
    assert prompts_needed(np.array([1.0, 1.0, 1.0])) == 4
    unanimous = compare_directly(dict.fromkeys("abc", 1.0), dict.fromkeys("abc", 0.0))["win_rate"]
    assert unanimous["t95"] == pytest.approx([3 / (3 + 3.841459), 1], abs=1e-5)
    with pytest.raises(ValueError, match="mean over nothing"):
        compare_directly({"a": math.nan}, {"a": 0.0})
