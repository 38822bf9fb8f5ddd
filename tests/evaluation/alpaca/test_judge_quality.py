"""Measures of a judge: values worked out by hand, and judges whose agreement and bias are known."""

import math

import numpy as np
import pytest
from scipy import stats

from ivg.evaluation.alpaca import judge_quality
from ivg.evaluation.alpaca.judge_quality import Asked, kappa_of, kendall_tau, measure_judge
from ivg.evaluation.alpaca.recordings import read_recordings
from ivg.evaluation.measures import statistics
from tests.shared_data import SHARED

DATA = SHARED / "alpaca_eval" / "alpaca-7b"

RATES = {"weak": 0.1, "middling": 0.3, "good": 0.5, "strong": 0.8}  # of verdicts for the system

NUM_JUDGES = 200
# How many of their intervals hold the truth, in 998 of 1,000 such tests, if 95% of intervals do: 179 to 198.
FEWEST, MOST = stats.binom.interval(0.998, NUM_JUDGES, 0.95)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The bootstrap of means is not what is looked at here, and takes most of the time."""
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 9)
    monkeypatch.setattr(judge_quality, "NUM_RESAMPLES", 400)  # ends of an interval that are good to 1%


def recorded_verdicts(rng, num_instructions=200):
    systems = [name for name in RATES for _ in range(num_instructions)]
    instructions = [f"instruction {i}" for _ in RATES for i in range(num_instructions)]
    recorded = (rng.random(len(systems)) < [RATES[name] for name in systems]).astype(float)
    return systems, instructions, recorded


def judged(rng, recorded, *, truth, first):
    """Answer in both orders and once again: as recorded, for the first place, or by a coin."""

    def answer(first_share):
        draw, coin = rng.random(len(recorded)), rng.integers(0, 2, len(recorded))
        return np.where(draw < truth, recorded, np.where(draw < truth + first, first_share, coin)).astype(
            float
        )

    return answer(0), answer(1), answer(0)[:, None]


def true_kappa(share, truth):
    """Of a judge whose other answers are a coin's, where the recorded one prefers the system so often."""
    judges_share = truth * share + (1 - truth) / 2
    by_chance = share * judges_share + (1 - share) * (1 - judges_share)
    return (truth + (1 - truth) / 2 - by_chance) / (1 - by_chance)


def inside(value, estimate):
    low, high = estimate["ci95"]
    return low <= value <= high


def count_hits(rng, draw_recordings, share):
    """Count how many judges' figures lie inside their intervals.

    Args:
        rng: draws the answers.
        draw_recordings: returns systems, instructions and recorded verdicts, of other instructions each time.
        share: of verdicts for the system where they are drawn from.
    """
    hits = dict.fromkeys(("agreement", "kappa", "bias", "flips"), 0)
    for _ in range(NUM_JUDGES):
        systems, instructions, recorded = draw_recordings()
        found = measure_judge(
            Asked(systems, instructions, recorded, *judged(rng, recorded, truth=0.8, first=0))
        )
        hits["agreement"] += inside(0.9, found["agreement"])
        hits["kappa"] += inside(true_kappa(share, 0.8), found["kappa"])
        hits["bias"] += inside(0, found["position_bias"])
        # Two askings differ where one is wrong: 2 * 0.1 * 0.9.
        hits["flips"] += inside(0.18, found["repeat_flips"])
        assert found["verdict"].startswith("agrees with the recorded judge beyond chance")
    return hits


@pytest.mark.slow
def test_a_judge_that_is_the_recorded_one_in_four_of_five_answers():
    rng = np.random.default_rng(1)
    share = sum(RATES.values()) / len(RATES)
    hits = count_hits(rng, lambda: recorded_verdicts(rng, num_instructions=100), share)
    assert FEWEST <= hits["kappa"] <= MOST, hits
    assert FEWEST <= hits["bias"] <= MOST, hits
    # Wilson's interval takes an instruction for one answer; here it is the mean of four or more.
    assert min(hits["agreement"], hits["flips"]) >= FEWEST, hits


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded AlpacaEval data at {DATA}")
def test_the_same_on_the_real_judges_recordings():
    """Of alpaca-7b's 802 comparisons with another answer, the real judge gave it 17."""
    (recording,) = read_recordings([str(DATA)])
    assert (len(recording.shares), recording.num_left_out) == (802, 3)
    assert 100 * (sum(recording.shares) + 3 / 2) / 805 == pytest.approx(2.5915, abs=5e-5)
    recorded = np.array(recording.shares).round()
    assert recorded.sum() == 17
    instructions = [row["instruction"] for row in recording.answers]
    rng = np.random.default_rng(6)

    def draw():
        drawn = rng.integers(0, 802, 802)
        return ["alpaca-7b"] * 802, [f"{i}: {instructions[j]}" for i, j in enumerate(drawn)], recorded[drawn]

    hits = count_hits(rng, draw, 17 / 802)
    assert FEWEST <= hits["kappa"] <= MOST, hits
    assert FEWEST <= hits["bias"] <= MOST, hits
    assert min(hits["agreement"], hits["flips"]) >= FEWEST, hits


def test_a_liking_for_the_first_place_is_found():
    rng = np.random.default_rng(2)
    systems, instructions, recorded = recorded_verdicts(rng)
    found = measure_judge(
        Asked(systems, instructions, recorded, *judged(rng, recorded, truth=0.6, first=0.4))
    )
    assert inside(0.2, found["position_bias"])  # 0.4 of the answers, each 0.5 too much
    assert not inside(0, found["position_bias"])
    assert inside(0.4, found["order_flips"])


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_a_constant_judge_is_useless(first, second):
    """It names one answer, one place, or a tie, whatever it is shown."""
    systems, instructions, recorded = recorded_verdicts(np.random.default_rng(3))
    answers = (
        np.full_like(recorded, first),
        np.full_like(recorded, second),
        np.full((len(recorded), 1), first),
    )
    found = measure_judge(Asked(systems, instructions, recorded, *answers))
    assert found["verdict"].startswith("useless")
    assert found["kappa"]["mean"] == pytest.approx(0, abs=1e-9)
    assert found["position_bias"]["mean"] == pytest.approx((second - first) / 2)
    assert found["repeat_variance"]["mean"] == 0
    assert found["rank_correlation"] is None  # all systems win alike


def test_four_comparisons_by_hand():
    nothing = math.nan
    found = measure_judge(
        Asked(
            ["one"] * 4,
            list("abcd"),
            np.array([1.0, 0.0, 0.0, 1.0]),
            np.array([0.9, 0.2, 0.7, nothing]),
            np.array([0.8, 0.1, 0.4, 0.6]),
            np.array([[0.7, nothing], [0.2, 0.2], [0.3, 0.7], [nothing, nothing]]),
        )
    )
    # Verdicts: a right twice, b right twice, c wrong then right, d right in the one order that holds any.
    assert found["agreement"]["mean"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # Of seven answers: recorded 1 and judged 1: 3; recorded 0: three judged 0, one judged 1.
    observed, by_chance = 6 / 7, (3 * 4 + 4 * 3) / 49
    assert found["kappa"]["mean"] == pytest.approx((observed - by_chance) / (1 - by_chance))
    bias = [(0.1 + 0.8) / 2 - 0.5, (0.8 + 0.1) / 2 - 0.5, (0.3 + 0.4) / 2 - 0.5]
    assert found["position_bias"]["mean"] == pytest.approx(sum(bias) / 3)
    assert found["position_bias"]["missing"] == 1
    assert found["order_flips"]["mean"] == pytest.approx(1 / 3)
    assert found["repeat_flips"]["mean"] == pytest.approx((0 + 0 + 1 / 2) / 3)
    variances = [0.2**2 / 2, 0, np.var([0.7, 0.3, 0.7], ddof=1)]
    assert found["repeat_variance"]["mean"] == pytest.approx(sum(variances) / 3)
    assert found["null_rate"]["mean"] == pytest.approx((1 / 4 + 0 + 0 + 3 / 4) / 4)
    judged_rate = 100 * np.mean([0.85, 0.15, 0.55, 0.6])
    assert found["systems"]["one"]["judge"]["mean"] == pytest.approx(judged_rate)
    assert found["systems"]["one"]["difference"]["mean"] == pytest.approx(judged_rate - 50)
    assert found["rank_correlation"] is None


def test_nothing_but_nulls_is_useless_and_verdicts_of_one_kind_tell_nothing():
    nulls, ones = np.full(3, math.nan), np.ones(3)
    empty = measure_judge(Asked(["s"] * 3, list("abc"), np.array([0.0, 1, 1]), nulls, nulls, nulls[:, None]))
    assert empty["verdict"] == "useless: none of its 9 answers holds a preference"
    assert empty["systems"] == {"s": None}
    alike = measure_judge(Asked(["s"] * 3, list("abc"), ones, np.array([0.0, 1, 1]), ones, ones[:, None]))
    assert alike["verdict"].startswith("cannot be told")


def test_cohens_own_table():
    # The worked example of Cohen's 1960 paper, in proportions of 200: kappa = 0.492.
    counts = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]], dtype=float)
    observed, by_chance = 0.70, 0.6 * 0.5 + 0.3 * 0.3 + 0.1 * 0.2
    assert kappa_of(counts) == pytest.approx((observed - by_chance) / (1 - by_chance))
    assert round(float(kappa_of(counts)), 3) == 0.492


def test_kendall_as_scipy_has_it():
    rng = np.random.default_rng(4)
    first, second = rng.integers(0, 4, (50, 6)).astype(float), rng.integers(0, 4, (50, 6)).astype(float)
    expected = [stats.kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert kendall_tau(first, second) == pytest.approx(expected, nan_ok=True)


def test_the_order_of_systems_is_recovered():
    rng = np.random.default_rng(5)
    systems, instructions, recorded = recorded_verdicts(rng)
    found = measure_judge(Asked(systems, instructions, recorded, *judged(rng, recorded, truth=0.8, first=0)))
    assert found["rank_correlation"]["mean"] == 1
    assert found["rank_correlation"]["n"] == 200
    # A judge that is a coin for a fifth of its answers draws every rate towards one half.
    for name, system in found["systems"].items():
        ours = 100 * recorded[[other == name for other in systems]].mean()
        assert system["recorded"]["mean"] == pytest.approx(ours)
        assert inside(0.8 * ours + 10 - ours, system["difference"])
