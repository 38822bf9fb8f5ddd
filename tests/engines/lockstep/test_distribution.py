"""What is sampled follows the formula: logit tables against the enumerated distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.sequences import Task
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.batch import LockstepBatch, NewRequest
from ivg.engines.lockstep.guides import PairGuide, Weights
from ivg.engines.lockstep.loop import Loop
from ivg.engines.lockstep.model_runner import ModelRunner
from tests.engines.lockstep.tiny import Table
from tests.engines.worlds import (
    LENGTH,
    Ids,
    World,
    enumerate_search,
    enumerate_sequences,
    next_probs,
    p_value,
)

NUM_SAMPLES = 200_000
MIN_P = 0.001


def table(seed: int, size: int, *, scale: float) -> np.ndarray:
    """Logits by (position, token before, next token); the prompt is token 0 at position 0."""
    return np.random.default_rng(seed).normal(0, scale, (LENGTH, size, size))


def runner(logits: np.ndarray, name: str) -> ModelRunner:
    module = Table(torch.from_numpy(logits).float())
    return ModelRunner(module, name=name, has_logits=True, num_ids=logits.shape[-1], max_length=None)


def lockstep(tables: list[np.ndarray], sampling: SamplingConfig, weights: Weights) -> LockstepBatch:
    base, tuned, untuned = (runner(t, n) for t, n in zip(tables, ("base", "tuned", "untuned"), strict=True))
    size = tables[0].shape[-1]
    return LockstepBatch(base, [PairGuide((tuned, untuned), SharedIds(size, size), weights)], sampling)


def decode(
    rows: LockstepBatch, search: SearchConfig, sampling: SamplingConfig, eos: int, num_tasks: int
) -> Counter:
    """Run independent prompts through the decoder; count what comes out."""
    tasks = [
        Task(i, str(i), dict.fromkeys(("base", "tuned", "untuned"), (0,)), LENGTH) for i in range(num_tasks)
    ]
    stop_checker = StopChecker([eos], (), lambda ids: "")
    loop = Loop(rows, search, sampling, stop_checker, max_rows=8_192)
    return Counter(finished.beams[0].ids for finished in loop.run(tasks))


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
    assert p_value(counts, enumerate_sequences(probs, eos=7)) > MIN_P


def sample(beta: float, seed: int, **options: float) -> Counter[Ids]:
    """Draw sequences of full length through the models' side alone, uniforms from one generator."""
    rows = lockstep(TABLES, SamplingConfig(**options), Weights(guides_tokens=True, beta=beta))
    uniforms = torch.from_numpy(np.random.default_rng(seed).random((NUM_SAMPLES, LENGTH)))
    counts: Counter[Ids] = Counter()
    for part in uniforms.split(50_000):
        rows.clear()
        rows.update_batch([], [], [NewRequest(dict.fromkeys(("base", "tuned", "untuned"), (0,)), len(part))])
        counts.update(map(tuple, rows.sample_chunk(part).ids.tolist()))
    return counts


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.85, "temperature": 1.3}], ids=["all", "kp"])
def test_sampled_sequences_follow_the_enumerated_distribution(beta: float, options: dict[str, float]) -> None:
    expected = enumerate_sequences(next_probs(*TABLES, beta=beta, **options), eos=None)
    counts = sample(beta, seed=5, **options)
    assert all(IMPOSSIBLE not in sequence for sequence in counts)
    assert p_value(counts, expected) > MIN_P


def test_a_beta_off_by_five_percent_is_rejected() -> None:
    counts = sample(1.05, seed=5)
    assert p_value(counts, enumerate_sequences(next_probs(*TABLES, beta=1.0), eos=None)) < MIN_P
    assert p_value(counts, enumerate_sequences(next_probs(*TABLES, beta=1.05), eos=None)) > MIN_P


SMALL = [table(seed, 3, scale=0.7) for seed in (78, 79, 80)]  # one where the two ending rules differ
END = 2


def search_distribution(tables: list[np.ndarray], *, beta: float, early: bool) -> dict[Ids, float]:
    """Return the distribution of answers at W=K=2, L=1, ranked by the pair's log-ratio."""
    world = World(*tables, values=np.zeros((LENGTH + 1, 3)), beta=beta)
    probs = next_probs(*tables, beta=beta)
    return enumerate_search(probs, lambda ids: world.value(ids, "implicit"), eos=END, early=early)


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
