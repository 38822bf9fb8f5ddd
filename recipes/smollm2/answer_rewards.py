"""The two rewards that guides are trained on, and a judge of tone that none of them saw.

All read the answer alone. An answer without a word scores 0 in each: no guide gains by saying nothing.
"""

import re
from collections.abc import Sequence

from ivg.errors import needs

with needs("smollm2"):
    from textblob import TextBlob

from ivg.evaluation.measures.text import words
from ivg.models.prompts import Record
from ivg.rewards import sentiment

BEST_WORDS, WORST_WORDS, FEWEST_WORDS = 8, 28, 4
_FINISHED = re.compile(r"[.!?][\"'”’)\]]*\s*$")


def tone(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score how positive an answer sounds: the mean VADER compound score of its sentences, from -1 to 1."""
    return [sentiment(response) if words(response) else 0.0 for response in responses]


def brevity(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score how short a finished answer is: 1 up to 8 words, falling evenly to 0 at 28.

    One that does not end with a sentence (cut at the length limit, say) scores 0, and so does one of fewer
    than 4 words.
    """
    return [_brevity(response) for response in responses]


def _brevity(response: str) -> float:
    number = len(words(response))
    if number < FEWEST_WORDS or not _FINISHED.search(response):
        return 0.0
    return min(1.0, max(0.0, (WORST_WORDS - number) / (WORST_WORDS - BEST_WORDS)))


def other_judge(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Score tone by a judge that nothing was trained on: TextBlob's polarity, from -1 to 1.

    Its lexicon (of the pattern library) was made by other people than VADER's, mostly of adjectives, and it
    takes the mean over the words that it knows: more of them, or a longer answer, do not raise it.
    """
    return [float(TextBlob(response).sentiment.polarity) for response in responses]


def finished(rows: Sequence[Record], responses: Sequence[str]) -> list[float]:
    """Say which answers end with a sentence: 1, else 0."""
    return [float(_FINISHED.search(response) is not None) for response in responses]
