import math

import pytest

from ivg.evaluation.measures.text import corpus_distinct, distinct, words


def test_words_keep_apostrophes_and_drop_punctuation():
    assert words("It's a GOOD film -- really, good!") == ["it's", "a", "good", "film", "really", "good"]


def test_distinct_counts_repetition_inside_a_text():
    # good good good bad: bigrams (good good), (good good), (good bad).
    assert distinct("Good, good good bad.", 1) == 2 / 4
    assert distinct("Good, good good bad.", 2) == 2 / 3


def test_a_text_without_an_ngram_has_no_score():
    assert math.isnan(distinct("", 1))
    assert math.isnan(distinct("one", 2))


def test_corpus_distinct_sees_texts_that_repeat_each_other():
    assert corpus_distinct(["a b c", "a b c"], 2) == 2 / 4
    assert corpus_distinct(["a b c", "d e f"], 2) == 1


def test_corpus_distinct_over_nothing_raises():
    with pytest.raises(ValueError, match="no text has 2 words"):
        corpus_distinct(["one", ""], 2)
