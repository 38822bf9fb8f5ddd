"""The recipe's rewards on answers whose scores can be worked out by hand."""

import answer_rewards
import pytest

# VADER: "good" has valence 1.9, and 1.9 / sqrt(1.9^2 + 15) = 0.4404.
GOOD = 0.4404


def score(function, *texts):
    return function([{}] * len(texts), list(texts))


def test_tone_is_the_mean_over_sentences():
    found = score(answer_rewards.tone, "It is good.", "It is good. It is here.", "It is here.")
    assert found == pytest.approx([GOOD, GOOD / 2, 0.0], abs=1e-4)


def test_the_other_judge_is_textblob():
    # Its lexicon has good at 0.7 and bad at -0.7; it averages over the words that it knows.
    found = score(
        answer_rewards.other_judge, "It is good.", "It is good. It is here.", "A bad one, a good one."
    )
    assert found == pytest.approx([0.7, 0.7, 0.0], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four.", 1.0),
        ("one two three four five six seven eight!", 1.0),
        (" ".join(["word"] * 18) + "?", 0.5),  # halfway from 8 to 28
        (" ".join(["word"] * 28) + ".", 0.0),
        (" ".join(["word"] * 40) + ".", 0.0),
        ("one two three.", 0.0),  # fewer than 4 words
        ("one two three four", 0.0),  # no end
        ("one two three four,", 0.0),
        ('He said: "one two three four."', 1.0),
        ("one two three four. \n", 1.0),
    ],
)
def test_brevity_pays_for_short_answers_that_are_whole(text, expected):
    assert score(answer_rewards.brevity, text) == [pytest.approx(expected)]


def test_finished_answers_end_with_a_sentence():
    assert score(answer_rewards.finished, "Yes.", "Yes", "(Yes!)", "Yes. No") == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["tone", "brevity", "other_judge", "finished"])
def test_nothing_said_scores_nothing(name):
    assert score(getattr(answer_rewards, name), "", "  ", "...")[:2] == [0.0, 0.0]
