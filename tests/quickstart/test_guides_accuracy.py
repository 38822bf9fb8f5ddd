"""What the guides know: read from a run's folder, and what is said of it."""

import json

import guides_accuracy
import pytest

from tests import tiny

ROWS = [
    {"prompt": "a b", "chosen": "good one", "rejected": "bad", "chosen_reward": 1.0, "rejected_reward": 0.0},
    {"prompt": "c d", "chosen": "good", "rejected": "bad too", "chosen_reward": 0.5, "rejected_reward": 0.0},
]


def test_the_guides_of_a_run_are_measured(tmp_path):
    for name, model in {
        "base": tiny.causal(0),
        "tuned": tiny.causal(1),
        "untuned": tiny.causal(1),
        "value": tiny.value(3, num_labels=1),
    }.items():
        tiny.save(tmp_path / name, model)
    (tmp_path / "rollouts_validation").mkdir()
    (tmp_path / guides_accuracy.PREFERENCES).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = guides_accuracy.measure_guides(tmp_path)
    assert (found["form"], found["num_prompts"]) == ("preferences", 2)
    assert set(found["scorers"]) == {"pair, summed", "pair, per token", "value"}
    for percent in (25, 50, 75, 100):
        # Tuned and untuned are the same: every log-ratio is 0, and ties are right by one half.
        pair = guides_accuracy.accuracy(found, guides_accuracy.PAIR, percent)
        assert (pair["mean"], pair["n"]) == (0.5, 2)
        assert guides_accuracy.accuracy(found, guides_accuracy.VALUE, percent)["mean"] in (0, 0.5, 1)


def measured(pair, value):
    def parts(mean):
        found = {"mean": mean, "n": 99, "ci95": [mean - 0.08, mean + 0.08]}
        return [{"percent": percent, "pairwise_accuracy": found} for percent in (25, 50)]

    return {"scorers": {guides_accuracy.PAIR: parts(pair), guides_accuracy.VALUE: parts(value)}}


@pytest.mark.parametrize(
    ("pair", "value", "by_pair", "by_value", "holds"),
    [
        (0.6, 0.7, 0.1, 0.2, True),
        (0.6, 0.7, 0.2, 0.1, False),
        (0.7, 0.6, 0.2, 0.1, True),
        (0.6, 0.65, 0.1, 0.2, None),  # either interval holds the other's mean
    ],
)
def test_what_accuracy_says_of_the_order_is_compared_with_the_rewards(pair, value, by_pair, by_value, holds):
    rewards = {"token_implicit": {"mean": by_pair}, "chunk_explicit": {"mean": by_value}}
    found = guides_accuracy.prediction(measured(pair, value), rewards)
    assert found["holds"] is holds
    assert f"the value model ranks {value:.0%} of 99 couples of responses rightly" in found["text"]
    assert ("does NOT tell" in found["text"]) == (holds is False)
    assert ("too much alike to tell" in found["text"]) == (holds is None)


def test_the_seeds_are_counted():
    said = guides_accuracy.describe_seeds([{"holds": holds} for holds in (True, None, False, True)])
    assert "in 2 of 4 training seeds, told it wrongly in 1, and was too much alike in 1." in said
