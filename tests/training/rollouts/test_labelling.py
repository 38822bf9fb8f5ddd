import math
from typing import Any

from ivg.models.rendering import Renderer
from ivg.training.encoding import encode_pair
from ivg.training.rollouts import labelling
from tests import tiny


def _sample(prompt: int, reward: float, text: str | None = None) -> dict[str, Any]:
    return {
        "id": str(prompt),
        "prompt": f"p{prompt}",
        "completion": f" r{reward}" if text is None else text,
        "reward": reward,
        "num_tokens": 3,
        "finish_reason": "eos",
    }


SAMPLES = [
    *(_sample(0, r) for r in (1.0, 3.0, 2.0)),
    *(_sample(1, r) for r in (5.0, 5.0)),  # a tie
    *(_sample(2, r) for r in (1.0, 1.5)),  # below a margin of 1
    _sample(3, 1.0),  # alone
]


def test_best_against_worst_drops_and_counts_ties_and_small_margins() -> None:
    pairs = labelling.preference_pairs(SAMPLES, strategy="best-worst", margin=1.0)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs.rows] == [
        ("p0", " r3.0", " r1.0")
    ]
    assert (pairs.num_ties, pairs.num_below_margin, pairs.num_single) == (1, 1, 1)


def test_all_pairs_above_the_margin() -> None:
    pairs = labelling.preference_pairs(SAMPLES, strategy="all", margin=0.5)
    chosen = [(row["chosen_reward"], row["rejected_reward"]) for row in pairs.rows]
    # Differences 1, 2, 1 of prompt 0; 0.5 of prompt 2 is not above 0.5.
    assert chosen == [(3.0, 2.0), (3.0, 1.0), (2.0, 1.0)]
    assert (pairs.num_ties, pairs.num_below_margin) == (1, 1)


def test_a_bradley_terry_judge_prefers_the_better_as_often_as_the_sigmoid_says() -> None:
    samples = [
        {**_sample(prompt, reward), "prompt": f"p{prompt}"} for prompt in range(4000) for reward in (0.0, 1.5)
    ]
    rows = labelling.preference_pairs(samples, strategy="bradley-terry", seed=3).rows
    better = sum(row["chosen_reward"] > row["rejected_reward"] for row in rows) / len(rows)
    rate = 1 / (1 + math.exp(-1.5))
    assert len(rows) == 4000
    assert abs(better - rate) < 3.5 * math.sqrt(rate * (1 - rate) / 4000)
    assert rows == labelling.preference_pairs(samples, strategy="bradley-terry", seed=3).rows
    assert rows != labelling.preference_pairs(samples, strategy="bradley-terry", seed=4).rows


def test_a_bradley_terry_judge_sees_samples_two_by_two() -> None:
    samples = [_sample(0, reward) for reward in (100.0, 0.0, 7.0, 7.0, 3.0)]
    pairs = labelling.preference_pairs(samples, strategy="bradley-terry")
    # 100 against 0 is no question; 7 against 7 is a tie; the fifth has no partner.
    assert [(row["chosen_reward"], row["rejected_reward"]) for row in pairs.rows] == [(100.0, 0.0)]
    assert pairs.num_ties == 1


def test_empty_and_unscored_samples_are_left_out_and_counted() -> None:
    samples = [*SAMPLES, _sample(4, 1.0, "  "), _sample(4, math.nan)]
    usable = labelling.usable(samples)
    assert usable == SAMPLES
    facts = labelling.describe(samples, labelling.preference_pairs(usable, strategy="best-worst"))
    assert (facts["num_prompts"], facts["num_samples"], facts["num_completions"]) == (5, 10, 8)
    assert (facts["num_empty"], facts["num_without_reward"]) == (1, 1)
    assert (facts["num_pairs"], facts["num_ties_dropped"]) == (2, 1)
    assert facts["mean_pair_margin"] == 1.25
    assert facts["reward_mean"] == (1 + 3 + 2 + 5 + 5 + 1 + 1.5 + 1) / 8


def test_pairs_say_how_their_responses_ended() -> None:
    """A rollout that was cut at the length limit must not be taught to end in the middle of a sentence."""
    samples = [{**_sample(0, 2.0), "finish_reason": "length"}, {**_sample(0, 1.0), "finish_reason": "stop"}]
    (pair,) = labelling.preference_pairs(samples, strategy="best-worst").rows
    renderer = Renderer(tiny.tokenizer(), None)
    ids = encode_pair({**pair, "chosen": "ab", "rejected": "c"}, renderer)
    letters = tiny.tokenizer().get_vocab()
    assert ids["chosen_ids"] == [letters["a"], letters["b"]]
    assert ids["rejected_ids"] == [letters["c"], letters[tiny.EOS]]
    nothing = labelling.preference_pairs([], strategy="all")
    described = labelling.describe(samples, nothing)
    assert described["share_ended"] == 0.5
    assert labelling.warn_of_cut(described, 32) is None
    cut = labelling.describe([{**sample, "finish_reason": "length"} for sample in samples], nothing)
    warning = labelling.warn_of_cut(cut, 32)
    assert warning is not None
    assert warning.startswith(f"100% of {len(samples)} samples were cut at 32 tokens before they ended")
