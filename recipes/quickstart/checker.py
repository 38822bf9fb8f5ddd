"""Is a text a review that the grammar of `corpus.py` can write? Nothing here is trained.

A review is a scene, three opinions and a verdict, in this order, with at most one filler between them. That
is the length which is asked for: a fourth opinion, a missing verdict or a word that the grammar lacks makes a
review invalid, and so does an opinion that it cannot write ("was good, but ... was superb").
"""

import re
from collections.abc import Iterable, Mapping

import corpus

SCENE, OPINION, FILLER, VERDICT, UNKNOWN = "SOFV?"


def parse(review: str) -> str:
    """Return the kinds of a text's sentences, one letter each: S, O, F, V, and ? for one of no kind."""
    return "".join(_kind_of(sentence) for sentence in re.split(r"(?<=[.!]) ", review.strip()))


def is_valid(review: str) -> bool:
    """Tell whether the grammar can write a text; blanks around it do not count."""
    kinds = parse(review)
    # A filler stands anywhere between the scene and the verdict.
    return kinds[0] == SCENE and kinds[-1] == VERDICT and kinds.replace(FILLER, "", 1) == "SOOOV"


def _kind_of(sentence: str) -> str:
    return next((kind for kind, pattern in _SENTENCES.items() if pattern.fullmatch(sentence)), UNKNOWN)


def _one_of(words: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, words)) + ")"


def _sentence(template: str, slots: Mapping[str, str]) -> str:
    """Return a template as a regular expression, with one for each of its slots."""
    return re.sub(r"\\{(\w+)\\}", lambda slot: slots[slot[1]], re.escape(template))


def _opinion(opinion: corpus.Opinion, number: int) -> str:
    """Return the expression of an opinion; the two aspects that it names differ."""
    first = f"(?P<aspect{number}>{_one_of(corpus.ASPECTS)})"
    slots = {
        "aspect": first,
        "other": rf"(?!(?P=aspect{number})\b){_one_of(corpus.ASPECTS)}",
        "relative": _one_of(corpus.RELATIVES),
        "first": _one_of(corpus.adjectives(opinion.first)),
        "second": _one_of(corpus.adjectives(opinion.second)),
    }
    return _sentence(opinion.pattern, slots)


def _kinds() -> dict[str, re.Pattern[str]]:
    names = {
        "hero": _one_of(corpus.HEROES),
        "minutes": _one_of(corpus.MINUTES),
        "season": _one_of(corpus.SEASONS),
        "day": _one_of(corpus.DAYS),
    }
    ends = _one_of(end for end, _ in corpus.ENDINGS)
    written = {
        SCENE: ([_sentence(scene, names) for scene in corpus.SCENES], re.escape(".")),
        FILLER: ([_sentence(filler, names) for filler in corpus.FILLERS], re.escape(".")),
        OPINION: ([_opinion(opinion, i) for i, opinion in enumerate(corpus.OPINIONS)], ends),
        VERDICT: ([_sentence(verdict, names) for verdict, _ in corpus.VERDICTS], ends),
    }
    return {kind: re.compile(f"(?:{'|'.join(forms)}){end}") for kind, (forms, end) in written.items()}


_SENTENCES = _kinds()
