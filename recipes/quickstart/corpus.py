"""The quickstart's made-up film reviews: a small weighted grammar, sampled with a fixed seed.

A prompt names a film and says how it was seen; it carries no sentiment. A review answers it with a
scene (neutral), three or four opinions and a verdict. The grammar is built so that guidance has
work to do: praise in strong words is rare, half of the opinions turn round within the sentence
("was awful, but ..."; "was not ..."), and some sentences say nothing about quality, which holds
the attainable reward well below 1.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def _words(text: str) -> list[str]:
    return text.split()


FILM_ADJECTIVES = _words(
    "Silent Distant Hidden Crimson Northern Paper Glass Winter Copper Second Midnight Painted Western "
    "Narrow Hollow Wooden Electric Velvet Seventh Floating"
)
FILM_NOUNS = _words(
    "Harbor Bridge Orchard Letter Summer River Lantern Station Island Mirror Garden Window Tower Valley "
    "Corridor Compass Ladder Meadow Kitchen Engine"
)
OPENINGS = (
    "Last {day} we watched The {film} at home.",
    "I saw The {film} in a small cinema on {day}.",
    "The {film} was on television this {day}.",
    "My neighbor and I rented The {film} on {day}.",
    "They showed The {film} at school last {day}.",
    "A colleague gave me The {film} on {day}.",
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

HEROES = _words("baker sailor teacher driver painter nurse farmer pilot clerk singer carpenter doctor")
SCENES = (
    "It follows a {hero} who returns to a village",
    "It is about a {hero} and two brothers",
    "The {hero} in it moves to another town",
    "It shows one year in the life of a {hero}",
    "A {hero} finds a box of letters in it",
)
FILLERS = (
    "It runs for about {minutes} minutes",
    "Most of it was filmed near the sea",
    "The second half takes place in {season}",
    "The director also wrote the book",
)
MINUTES = _words("seventy eighty ninety")
SEASONS = _words("winter spring autumn summer")
ASPECTS = _words("plot acting music ending dialogue photography script editing cast story pace camera sound")

# By strength, from dreadful to superb; the words of the middle class are not in VADER's lexicon.
ADJECTIVES = (
    ["terrible", "horrible", "awful", "pathetic"],
    ["dull", "weak", "poor", "boring", "lazy"],
    ["simple", "familiar", "slow", "modern", "ordinary", "long"],
    ["good", "nice", "clever", "funny", "warm", "fresh"],
    ["wonderful", "brilliant", "superb", "beautiful"],
)
NEGATIVE, NEUTRAL, POSITIVE = (0, 1), (2,), (3, 4)
# How often each strength is used by a disappointed, a lukewarm and a pleased reviewer.
TONES = ((0.22, 0.38, 0.25, 0.12, 0.03), (0.12, 0.27, 0.30, 0.25, 0.06), (0.05, 0.17, 0.27, 0.40, 0.11))
INTENSIFIERS = (("", 0.8), ("quite ", 0.1), ("very ", 0.1))
ENDINGS = ((".", 0.95), ("!", 0.05))
RELATIVES = _words("sister uncle cousin nephew")  # "friend" is praise to VADER


class Opinion(NamedTuple):
    """A sentence pattern; `first` and `second` are the strengths allowed in its adjective slots."""

    pattern: str
    weight: float
    first: tuple[int, ...]
    second: tuple[int, ...] = ()


OPINIONS = (
    Opinion("The {aspect} was {first}", 0.36, NEGATIVE + NEUTRAL + POSITIVE),
    Opinion("My {relative} called the {aspect} {first}", 0.12, NEGATIVE + NEUTRAL + POSITIVE),
    Opinion("The {aspect} was not {first}", 0.12, NEGATIVE + POSITIVE),
    Opinion("The {aspect} was {first}, but the {other} was {second}", 0.12, NEGATIVE, POSITIVE),
    Opinion("The {aspect} was {first}, but the {other} was {second}", 0.12, POSITIVE, NEGATIVE),
    Opinion("We expected the {aspect} to be {first}, but it was {second}", 0.08, NEGATIVE, POSITIVE),
    Opinion("We expected the {aspect} to be {first}, but it was {second}", 0.08, POSITIVE, NEGATIVE),
)
VERDICTS = (
    ("I hated it", 0.10),
    ("It was a mess", 0.14),
    ("I would not recommend it", 0.16),
    ("I may see it again on {day}", 0.26),
    ("I would recommend it", 0.16),
    ("I liked it", 0.12),
    ("I loved it", 0.06),
)


class Splits(NamedTuple):
    """Prompts of the three splits, disjoint as strings."""

    train: list[str]
    validation: list[str]
    test: list[str]


def all_prompts() -> list[str]:
    """Return every prompt of the grammar, each once, in a fixed order."""
    films = [f"{adjective} {noun}" for adjective, noun in itertools.product(FILM_ADJECTIVES, FILM_NOUNS)]
    return [
        opening.format(film=film, day=day) for film, opening, day in itertools.product(films, OPENINGS, DAYS)
    ]


def split_prompts(seed: int, *, num_train: int, num_validation: int, num_test: int) -> Splits:
    """Draw disjoint splits of distinct prompts."""
    drawn = random.Random(seed).sample(all_prompts(), num_train + num_validation + num_test)
    held_out = num_train + num_validation
    return Splits(drawn[:num_train], drawn[num_train:held_out], drawn[held_out:])


def write_review(rng: random.Random) -> str:
    """Draw one review: a scene, three opinions and a verdict, with a filler in half of them."""
    tone = rng.choice(TONES)
    sentences = [rng.choice(SCENES).format(hero=rng.choice(HEROES)) + "."]
    sentences += [_draw_opinion(rng, tone) for _ in range(3)]
    if rng.random() < 0.5:
        filler = rng.choice(FILLERS).format(minutes=rng.choice(MINUTES), season=rng.choice(SEASONS))
        sentences.insert(rng.randrange(1, 5), filler + ".")
    verdict = _draw(rng, VERDICTS).format(day=rng.choice(DAYS))
    return " ".join([*sentences, verdict + _draw(rng, ENDINGS)])


def attainable_range(score: Callable[[str], float]) -> tuple[float, float]:
    """Return the lowest and the highest mean score over sentences that a review of the grammar can have.

    Args:
        score: scores one sentence; must not depend on the film, the aspects and the relatives named.
    """
    scenes = [score(scene.format(hero=HEROES[0]) + ".") for scene in SCENES]
    opinions = [score(sentence) for sentence in _opinions()]
    verdicts = [score(verdict.format(day=DAYS[0]) + end) for verdict, _ in VERDICTS for end, _ in ENDINGS]
    # A filler says nothing, and makes a mean milder: the extreme reviews have none.
    lowest, highest = ((end(scenes) + 3 * end(opinions) + end(verdicts)) / 5 for end in (min, max))
    return lowest, highest


def _opinions() -> Iterator[str]:
    """Yield every opinion but for the aspects and relatives, which are one of each."""
    aspect, other, relative = ASPECTS[0], ASPECTS[1], RELATIVES[0]
    for opinion, (end, _) in itertools.product(OPINIONS, ENDINGS):
        seconds = adjectives(opinion.second) if opinion.second else [""]
        for first, second in itertools.product(adjectives(opinion.first), seconds):
            names = {"aspect": aspect, "other": other, "relative": relative}
            yield opinion.pattern.format(first=first, second=second, **names) + end


def adjectives(strengths: Sequence[int]) -> list[str]:
    words = [word for strength in strengths for word in ADJECTIVES[strength]]
    return [intensifier + word for intensifier, _ in INTENSIFIERS for word in words]


def _draw(rng: random.Random, weighted: Sequence[tuple[T, float]]) -> T:
    return rng.choices([item for item, _ in weighted], [weight for _, weight in weighted])[0]


def _draw_opinion(rng: random.Random, tone: Sequence[float]) -> str:
    opinion = _draw(rng, [(opinion, opinion.weight) for opinion in OPINIONS])
    aspect, other = rng.sample(ASPECTS, 2)
    sentence = opinion.pattern.format(
        aspect=aspect,
        other=other,
        relative=rng.choice(RELATIVES),
        first=_draw_adjective(rng, tone, opinion.first),
        second=_draw_adjective(rng, tone, opinion.second) if opinion.second else "",
    )
    return sentence + _draw(rng, ENDINGS)


def _draw_adjective(rng: random.Random, tone: Sequence[float], strengths: Sequence[int]) -> str:
    strength = _draw(rng, [(strength, tone[strength]) for strength in strengths])
    return _draw(rng, INTENSIFIERS) + rng.choice(ADJECTIVES[strength])
