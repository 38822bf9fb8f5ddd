"""Worlds small enough to enumerate: every distribution and value is a table that a test can read."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import chisquare

Ids = tuple[int, ...]
State = tuple[tuple[Ids, float], ...]  # kept beams: ids and value
NextProbs = Callable[[Ids], np.ndarray]
LENGTH = 3  # tokens of a response at most


@dataclass(frozen=True)
class World:
    """A base, a pair and a value; a prompt is the token 0.

    Attributes:
        base: (LENGTH, V, V) logits by (length of the response so far, token before, next token).
        tuned: likewise.
        untuned: likewise.
        values: (LENGTH + 1, V) value of a prefix by its length and last token.
        beta: weight of the pair.
    """

    base: np.ndarray
    tuned: np.ndarray
    untuned: np.ndarray
    values: np.ndarray
    beta: float = 1.0

    @property
    def size(self) -> int:
        return self.base.shape[-1]

    def ratio(self, prefix: Ids, token: int) -> float:
        """Return log pi_tuned - log pi_untuned of a token."""
        at = len(prefix), (0, *prefix)[-1]
        return float(np.log(softmax(self.tuned[at]))[token] - np.log(softmax(self.untuned[at]))[token])

    def value(self, ids: Ids, kind: str) -> float:
        """Return the chunk score of a prefix."""
        if kind == "explicit":
            return float(self.values[len(ids), ids[-1]])
        return sum(self.ratio(ids[:t], token) for t, token in enumerate(ids))


def build_world(seed: int, size: int, *, scale: float = 1.0, beta: float = 1.0) -> World:
    """Return a world of random tables."""
    rng = np.random.default_rng(seed)
    tables = [rng.normal(0, scale, (LENGTH, size, size)) for _ in range(3)]
    return World(*tables, rng.normal(0, 1, (LENGTH + 1, size)), beta)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def next_probs(
    base: np.ndarray,
    tuned: np.ndarray,
    untuned: np.ndarray,
    *,
    beta: float,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> NextProbs:
    """The method's formula, written as products of probabilities for one prefix at a time."""

    def probs(prefix: Ids) -> np.ndarray:
        at = len(prefix), (0, *prefix)[-1]
        p = (softmax(base[at]) * (softmax(tuned[at]) / softmax(untuned[at])) ** beta) ** (1 / temperature)
        p /= p.sum()
        order = np.argsort(-p)
        if top_k:
            p[order[top_k:]] = 0
            p /= p.sum()
        if top_p < 1:
            num_kept = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
            p[order[num_kept:]] = 0
        return p / p.sum()

    return probs


def enumerate_sequences(probs: NextProbs, eos: int | None) -> dict[Ids, float]:
    """Return every sequence that ends at EOS or at LENGTH, with its probability."""
    open_, ended = {(): 1.0}, dict[Ids, float]()
    for _ in range(LENGTH):
        grown = {(*s, t): p * q for s, p in open_.items() for t, q in enumerate(probs(s))}
        ended |= {s: p for s, p in grown.items() if s[-1] == eos}
        open_ = {s: p for s, p in grown.items() if s[-1] != eos}
    everything = ended | open_
    assert math.isclose(sum(everything.values()), 1)
    return everything


def enumerate_search(
    probs: NextProbs, value: Callable[[Ids], float], *, eos: int, early: bool
) -> dict[Ids, float]:
    """W=K=2, L=1: follow every draw of the four rows through every boundary.

    Returns:
        The probability of each answer.
    """

    def ended(ids: Ids) -> bool:
        return len(ids) == LENGTH or ids[-1:] == (eos,)

    def successors(state: State) -> Iterator[tuple[float, State, bool]]:
        """Yield (probability, kept beams, whether the search ends)."""
        slots: list[list[tuple[float, int, Ids, float, bool]]] = []
        for w, (ids, old) in enumerate(state):
            if ended(ids):
                slots.append([(1.0, 2 * w, ids, old, True)])
                continue
            for row in (2 * w, 2 * w + 1) if ids else (0, 1, 2, 3):
                drawn = [(p, row, (*ids, t), value((*ids, t)), False) for t, p in enumerate(probs(ids))]
                slots.append(drawn)
        for candidates in itertools.product(*slots):
            best = sorted(candidates, key=lambda c: (-c[3], c[1]))[:2]
            is_over = all(ended(c[2]) for c in best) or (early and best[0][4])
            yield math.prod(c[0] for c in candidates), tuple((c[2], c[3]) for c in best), is_over

    running: Counter[State] = Counter({(((), 0.0),): 1.0})
    answers: Counter[Ids] = Counter()
    while running:
        grown: Counter[State] = Counter()
        for state, weight in running.items():
            for p, kept, is_over in successors(state):
                if is_over:
                    answers[kept[0][0]] += weight * p
                else:
                    grown[kept] += weight * p
        running = grown
    assert math.isclose(sum(answers.values()), 1)
    return dict(answers)


def p_value(counts: Counter[Ids], expected: dict[Ids, float]) -> float:
    """Chi-square of the counts, cells below 5 expected pooled; an impossible sequence fails outright."""
    total = sum(counts.values())
    for sequence in counts:
        assert expected.get(sequence, 0) > 0, f"{sequence} is impossible"
    cells = [(counts[s], p * total) for s, p in expected.items() if p > 0]
    large = [cell for cell in cells if cell[1] >= 5]
    pooled = [sum(column) for column in zip(*(c for c in cells if c[1] < 5), strict=True)] or [0, 0]
    if pooled[1] < 5:  # too little for a cell of its own: with the smallest of the others
        smallest = min(large, key=lambda cell: cell[1])
        large.remove(smallest)
        pooled = [a + b for a, b in zip(pooled, smallest, strict=True)]
    large.append((pooled[0], pooled[1]))
    observed, wanted = (np.array(column, dtype=float) for column in zip(*large, strict=True))
    assert len(large) >= 10
    return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)  # sums to the last bit
