"""What can be read off a text alone: repetition and length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """Split a text into lower-case words; punctuation is dropped, apostrophes inside words stay."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the sequence's n-grams in order, with repetitions."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(text: str, n: int) -> float:
    """Return the share of a text's word n-grams that differ from each other (1: nothing is repeated).

    Returns:
        A number in (0, 1], or NaN for a text of fewer than n words, which has no n-gram.
    """
    grams = ngrams(words(text), n)
    return len(set(grams)) / len(grams) if grams else math.nan
