"""VADER sentiment as a reward: the mean compound score over sentences."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from ivg.errors import UserError
from ivg.models.prompts import Record, prompt_text

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@functools.cache
def _vader_analyzer() -> Any:
    # Optional dependency: only runs that use this reward need it.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentences(text: str) -> list[str]:
    """Split a text at sentence ends and line breaks; parts without a letter or digit are dropped."""
    return [part for part in _SENTENCE_END.split(text) if any(char.isalnum() for char in part)]


def sentiment(text: str) -> float:
    """Return the mean VADER compound score over a text's sentences, in [-1, 1].

    The mean neither saturates nor grows with length as the score of a whole text does. A text without a
    sentence has no score: NaN.
    """
    scores = [_vader_analyzer().polarity_scores(part)["compound"] for part in sentences(text)]
    return sum(scores) / len(scores) if scores else float("nan")


def vader(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score the whole text, prompt and response, with `sentiment`."""
    return [sentiment(plain_prompt(row) + text) for row, text in zip(rows, responses, strict=True)]


def vader_completion(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score the response alone with `sentiment`."""
    return [sentiment(text) for _, text in zip(rows, responses, strict=True)]


def plain_prompt(row: Record) -> str:
    """Return the row's prompt as plain text.

    Raises:
        UserError: the prompt is a conversation of several turns.
    """
    text = prompt_text(row)
    if text is None:
        raise UserError("this reward reads plain prompts, but a prompt is a conversation of several turns")
    return text
