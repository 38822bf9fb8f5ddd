"""The gold reward: the quality of a valid review between the worst and the best, and 0 for any other text."""

import pytest
import review_reward

from ivg.rewards import sentiment

SCENE = " It is about a sailor and two brothers."
# VADER counts what follows "but" one and a half times, and what comes before it half.
BEST = SCENE + " We expected the plot to be boring, but it was very superb!" * 3 + " I loved it!"
WORST = SCENE + " The plot was warm, but the acting was very pathetic!" * 3 + " I hated it!"
MIDDLE = SCENE + " The plot was slow." * 3 + " It was a mess."


def test_a_valid_review_scores_between_the_worst_and_the_best():
    best, worst, middle = review_reward.gold([{}] * 3, [BEST, WORST, MIDDLE])
    assert best == pytest.approx(1)
    assert worst == pytest.approx(0)
    # "mess" has valence -1.5: the verdict scores -1.5 / sqrt(1.5^2 + 15) = -0.3612, the review a fifth.
    assert middle == pytest.approx((-0.3612 / 5 - sentiment(WORST)) / (sentiment(BEST) - sentiment(WORST)))


@pytest.mark.parametrize(
    "text", ["", "Superb! Superb!", BEST + " I loved it!", BEST.replace("sailor", "saiilor")]
)
def test_praise_that_is_no_review_scores_nothing(text):
    assert review_reward.gold([{}], [text]) == [0.0]
    assert review_reward.valid([{}], [text]) == [0.0]


def test_a_fourth_praise_does_not_pay():
    lukewarm = SCENE + " The plot was long. The cast was good. The music was good. I liked it."
    longer = lukewarm.replace(" I liked", " The script was superb. I liked")
    assert sentiment(longer) > sentiment(lukewarm)  # under the old reward it did
    assert review_reward.gold([{}] * 2, [lukewarm, longer])[1] == 0 < review_reward.gold([{}], [lukewarm])[0]
