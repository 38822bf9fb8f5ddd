"""What is sampled follows the formula: logit tables against the enumerated distribution."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.sequences import Task
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.batch import Lockstep, NewRequest
from ivg.engines.lockstep.guides import PairGuide, Weights
from ivg.engines.lockstep.loop import Decoder
from ivg.engines.lockstep.model_runner import ModelRunner
from tests.engines.lockstep.tiny import Table

LENGTH = 3
NUM_SAMPLES = 200_000
MIN_P = 0.001
Sequence_ = tuple[int, ...]
State = tuple[tuple[Sequence_, float], ...]  # kept beams: ids and value
NextProbs = Callable[[Sequence_], np.ndarray]


def table(seed: int, size: int, *, scale: float) -> np.ndarray:
    """Logits by (position, token before, next token); the prompt is token 0 at position 0."""
    return np.random.default_rng(seed).normal(0, scale, (LENGTH, size, size))


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

    def probs(prefix: Sequence_) -> np.ndarray:
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


def enumerate_sequences(probs: NextProbs, size: int, eos: int | None) -> dict[Sequence_, float]:
    """Return every sequence that ends at EOS or at LENGTH, with its probability."""
    open_, ended = {(): 1.0}, dict[Sequence_, float]()
    for _ in range(LENGTH):
        grown = {(*s, t): p * q for s, p in open_.items() for t, q in enumerate(probs(s))}
        ended |= {s: p for s, p in grown.items() if s[-1] == eos}
        open_ = {s: p for s, p in grown.items() if s[-1] != eos}
    everything = ended | open_
    assert math.isclose(sum(everything.values()), 1)
    return everything


def p_value(counts: Counter[Sequence_], expected: dict[Sequence_, float]) -> float:
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


def runner(logits: np.ndarray, name: str) -> ModelRunner:
    module = Table(torch.from_numpy(logits).float())
    return ModelRunner(module, name=name, has_logits=True, num_ids=logits.shape[-1], max_length=None)


def lockstep(tables: list[np.ndarray], sampling: SamplingConfig, weights: Weights) -> Lockstep:
    base, tuned, untuned = (runner(t, n) for t, n in zip(tables, ("base", "tuned", "untuned"), strict=True))
    size = tables[0].shape[-1]
    return Lockstep(base, [PairGuide((tuned, untuned), SharedIds(size, size), weights)], sampling)


def decode(
    rows: Lockstep, search: SearchConfig, sampling: SamplingConfig, eos: int, num_tasks: int
) -> Counter:
    """Run independent prompts through the decoder; count what comes out."""
    tasks = [
        Task(i, str(i), dict.fromkeys(("base", "tuned", "untuned"), (0,)), LENGTH) for i in range(num_tasks)
    ]
    stop_checker = StopChecker([eos], (), lambda ids: "")
    decoder = Decoder(rows, search, sampling, stop_checker)
    return Counter(finished.beams[0].ids for finished in decoder.run(tasks, max_rows=8_192))


TABLES = [table(0, 8, scale=1.2), table(1, 8, scale=1.0), table(2, 8, scale=1.0)]
IMPOSSIBLE = 5
TABLES[0][:, :, IMPOSSIBLE] = -np.inf  # never, whatever the pair says of it


@pytest.mark.slow
def test_decoder_samples_the_guided_distribution_until_eos() -> None:
    sampling = SamplingConfig(max_new_tokens=LENGTH, temperature=0.8, seed=11)
    search = SearchConfig(token_guidance="implicit", chunk_length=2)
    rows = lockstep(TABLES, sampling, Weights(guides_tokens=True, beta=1.0))
    counts = decode(rows, search, sampling, eos=7, num_tasks=40_000)
    assert sum(counts.values()) == 40_000
    probs = next_probs(*TABLES, beta=1.0, temperature=0.8)
    assert p_value(counts, enumerate_sequences(probs, 8, eos=7)) > MIN_P


def sample(beta: float, seed: int, **options: float) -> Counter[Sequence_]:
    """Draw sequences of full length through the models' side alone, uniforms from one generator."""
    rows = lockstep(TABLES, SamplingConfig(**options), Weights(guides_tokens=True, beta=beta))
    uniforms = torch.from_numpy(np.random.default_rng(seed).random((NUM_SAMPLES, LENGTH)))
    counts: Counter[Sequence_] = Counter()
    for part in uniforms.split(50_000):
        rows.clear()
        rows.update_batch(
            [], [], [NewRequest(dict.fromkeys(("base", "tuned", "untuned"), (0,)), len(part), LENGTH)]
        )
        counts.update(map(tuple, rows.sample_chunk(part).ids.tolist()))
    return counts


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.85, "temperature": 1.3}], ids=["all", "kp"])
def test_sampled_sequences_follow_the_enumerated_distribution(beta: float, options: dict[str, float]) -> None:
    expected = enumerate_sequences(next_probs(*TABLES, beta=beta, **options), 8, eos=None)
    counts = sample(beta, seed=5, **options)
    assert all(IMPOSSIBLE not in sequence for sequence in counts)
    assert p_value(counts, expected) > MIN_P


def test_a_beta_off_by_five_percent_is_rejected() -> None:
    counts = sample(1.05, seed=5)
    assert p_value(counts, enumerate_sequences(next_probs(*TABLES, beta=1.0), 8, eos=None)) < MIN_P
    assert p_value(counts, enumerate_sequences(next_probs(*TABLES, beta=1.05), 8, eos=None)) > MIN_P


SMALL = [table(seed, 3, scale=0.7) for seed in (78, 79, 80)]  # one where the two ending rules differ
END = 2


def search_distribution(tables: list[np.ndarray], *, beta: float, early: bool) -> dict[Sequence_, float]:
    """W=K=2, L=1: follow every draw of the four rows through every boundary."""
    probs = next_probs(*tables, beta=beta)
    ratios = [
        [np.log(softmax(t)) for t in rows]
        for rows in zip(*(x.reshape(-1, 3) for x in tables[1:]), strict=True)
    ]

    def ratio(prefix: Sequence_, token: int) -> float:
        tuned, untuned = ratios[len(prefix) * 3 + (0, *prefix)[-1]]
        return float(tuned[token] - untuned[token])

    def ended(ids: Sequence_) -> bool:
        return len(ids) == LENGTH or ids[-1:] == (END,)

    def successors(state: State) -> Iterator[tuple[float, State, bool]]:
        """Yield (probability, kept beams, whether the search ends)."""
        slots: list[list[tuple[float, int, Sequence_, float, bool]]] = []
        for w, (ids, value) in enumerate(state):
            if ended(ids):
                slots.append([(1.0, 2 * w, ids, value, True)])
                continue
            rows = (2 * w, 2 * w + 1) if ids else (0, 1, 2, 3)
            for row in rows:
                drawn = [(p, row, (*ids, t), value + ratio(ids, t), False) for t, p in enumerate(probs(ids))]
                slots.append(drawn)
        for candidates in itertools.product(*slots):
            best = sorted(candidates, key=lambda c: (-c[3], c[1]))[:2]
            is_over = all(ended(c[2]) for c in best) or (early and best[0][4])
            yield math.prod(c[0] for c in candidates), tuple((c[2], c[3]) for c in best), is_over

    running: Counter[State] = Counter({(((), 0.0),): 1.0})
    answers: Counter[Sequence_] = Counter()
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


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
def test_search_follows_the_enumeration_of_all_draws(early: bool) -> None:
    sampling = SamplingConfig(max_new_tokens=LENGTH, seed=1)
    search = SearchConfig(
        token_guidance="implicit",
        chunk_guidance="implicit",
        num_beams=2,
        num_successors=2,
        chunk_length=1,
        early_stopping=early,
    )
    rows = lockstep(SMALL, sampling, Weights(guides_tokens=True, beta=0.7, chunk=1.0))
    counts = decode(rows, search, sampling, eos=END, num_tasks=16_000)
    exact = search_distribution(SMALL, beta=0.7, early=early)
    other = search_distribution(SMALL, beta=0.7, early=not early)
    assert p_value(counts, exact) > MIN_P
    assert p_value(counts, other) < MIN_P  # the two rules differ, and the test sees it
