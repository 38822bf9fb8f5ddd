"""The checker against reviews labelled by hand, and against the generator."""

import random
from pathlib import Path

import checker
import corpus
import pytest
import yaml

LABELLED = yaml.safe_load((Path(__file__).parent / "labelled_reviews.yaml").read_text(encoding="utf-8"))
VALID, INVALID = LABELLED["valid"], LABELLED["invalid"]


@pytest.mark.parametrize("review", VALID)
def test_reviews_labelled_valid(review: str) -> None:
    assert checker.is_valid(review)
    assert checker.is_valid(f" {review}")  # as a response begins


@pytest.mark.parametrize("fault", INVALID)
def test_planted_faults_are_found(fault: str) -> None:
    assert not checker.is_valid(INVALID[fault])


def test_enough_reviews_are_labelled() -> None:
    assert len(set(VALID)) >= 20
    assert len(set(INVALID.values())) >= 20


def test_the_kinds_of_sentences() -> None:
    text = "It is about a nurse and two brothers. The plot was good! Oh. The director also wrote the book."
    assert checker.parse(text) == "SO?F"


def test_everything_that_the_generator_writes_is_valid() -> None:
    rng = random.Random(0)
    assert all(checker.is_valid(corpus.write_review(rng)) for _ in range(2000))


def test_a_changed_letter_makes_a_written_review_invalid() -> None:
    rng = random.Random(1)
    for _ in range(500):
        review = corpus.write_review(rng)
        place = rng.randrange(len(review))
        assert not checker.is_valid(review[:place] + "#" + review[place + 1 :])
