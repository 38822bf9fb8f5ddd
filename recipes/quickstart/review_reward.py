"""The quickstart's gold reward: the quality of a valid review, and 0 for any other text."""

import functools
from collections.abc import Sequence

import checker
import corpus

from ivg.models.prompts import Record
from ivg.rewards import sentiment


def gold(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score how positive a valid review is, from 0 to 1.

    0 is the worst review that the grammar can write, 1 the best, by the mean VADER compound score of the
    sentences. A text that the grammar cannot write (`checker`) scores 0, as the worst review does.
    """
    lowest, highest = quality_range()
    return [
        (sentiment(response) - lowest) / (highest - lowest) if checker.is_valid(response) else 0.0
        for response in responses
    ]


def valid(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Say which responses are valid reviews: 1, else 0."""
    return [float(checker.is_valid(response)) for response in responses]


@functools.cache
def quality_range() -> tuple[float, float]:
    """Return the lowest and the highest mean VADER compound score of a valid review."""
    return corpus.attainable_range(sentiment)
