import math

from ivg.evaluation.measures.text import distinct, words


def test_words_keep_apostrophes_and_drop_punctuation():
    assert words("It's a GOOD film -- really, good!") == ["it's", "a", "good", "film", "really", "good"]


def test_distinct_counts_repetition_inside_a_text():
    # good good good bad: bigrams (good good), (good good), (good bad).
    assert distinct("Good, good good bad.", 1) == 2 / 4
    assert distinct("Good, good good bad.", 2) == 2 / 3


def test_a_text_without_an_ngram_has_no_score():
    assert math.isnan(distinct("", 1))
    assert math.isnan(distinct("one", 2))
