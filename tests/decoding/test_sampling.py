"""Hand-derived values for temperature, top-k, top-p and inverse-CDF draws; what the draws depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ivg.decoding.draws import Draws
from ivg.decoding.sampling import draw, filter_logits, next_tokens

INF = math.inf


def log(*probs: float) -> Tensor:
    """One row of logits with these probabilities."""
    return torch.tensor([[math.log(p) if p else -INF for p in probs]], dtype=torch.float64)


def kept(logits: Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


def drawn(logits: Tensor, uniform: float) -> int:
    return int(draw(logits, torch.tensor([uniform], dtype=torch.float64)))


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[2.0, 0.0, -4.0]])
    assert filter_logits(logits, temperature=0.5).tolist() == [[4.0, 0.0, -8.0]]


def test_top_k_keeps_the_k_largest_as_they_are() -> None:
    filtered = filter_logits(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), temperature=1, top_k=2)
    assert filtered.tolist() == [[3.0, -INF, 2.0, -INF]]


def test_top_k_keeps_ties_with_the_last_one() -> None:
    assert kept(filter_logits(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), temperature=1, top_k=2)) == [0, 1, 2]


@pytest.mark.parametrize("top_k", [0, 3, 50])
def test_top_k_of_zero_or_at_least_the_vocabulary_keeps_all(top_k: int) -> None:
    assert kept(filter_logits(torch.tensor([[3.0, 1.0, 2.0]]), temperature=1, top_k=top_k)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.49, [1]),  # 0.5 alone reaches it
        (0.51, [1, 3]),  # 0.5 does not, 0.5 + 0.3 does
        (0.79, [1, 3]),
        (0.81, [1, 2, 3]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
        (1e-9, [1]),  # never empty
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, expected: list[int]) -> None:
    assert kept(filter_logits(log(0.05, 0.5, 0.15, 0.3), temperature=1, top_p=top_p)) == expected


def test_top_p_of_equal_tokens_keeps_the_lowest_ids() -> None:
    assert kept(filter_logits(torch.zeros(1, 4), temperature=1, top_p=0.45)) == [0, 1]


def test_top_p_acts_on_what_top_k_left_after_temperature() -> None:
    # Temperature 0.5 squares: 16, 9, 4, 1 (x 1/30). Top-k 2 leaves 16/25 = 0.64 and 9/25.
    logits = log(0.4, 0.3, 0.2, 0.1)
    assert kept(filter_logits(logits, temperature=0.5, top_k=2, top_p=0.63)) == [0]
    assert kept(filter_logits(logits, temperature=0.5, top_k=2, top_p=0.65)) == [0, 1]
    assert kept(filter_logits(logits, temperature=1, top_k=0, top_p=0.63)) == [0, 1]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.24, 0), (0.25, 2), (0.5, 2), (0.74, 2), (0.76, 3), (0.999, 3)]
)
def test_draw_inverts_the_cumulative_distribution(uniform: float, token: int) -> None:
    # 0.25 belongs to the next interval: intervals are closed on the left.
    assert drawn(log(0.25, 0.0, 0.5, 0.25), uniform) == token


def test_draw_of_zero_skips_impossible_tokens_at_the_start() -> None:
    assert drawn(log(0.0, 0.0, 1.0), 0.0) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [1 - 2**-53, 1 - 2**-25, 1 - 1e-6])
def test_a_uniform_just_below_one_stays_inside_the_vocabulary(dtype: torch.dtype, uniform: float) -> None:
    # As float32 the first two are 1.0; the last token has probability zero and must not be drawn.
    assert drawn(log(0.5, 0.5, 0.0).to(dtype), uniform) == 1


def test_draw_scales_by_the_float32_total() -> None:
    logits = torch.randn(64, 32_000, generator=torch.Generator().manual_seed(0))
    totals = logits.softmax(-1).cumsum(-1)[:, -1]
    assert (totals < 1).any()  # where an unscaled uniform would run past the vocabulary's end
    tokens = draw(logits, torch.full((64,), 1 - 2**-53, dtype=torch.float64))
    assert (tokens < 32_000).all()
    probs = logits.double().softmax(-1).gather(1, tokens[:, None])
    assert (probs > 0).all()


def test_draws_at_a_large_vocabulary_are_where_exact_sums_put_them() -> None:
    logits = torch.zeros(1, 32_000).expand(2000, -1)
    uniforms = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    tokens = draw(logits, uniforms)
    assert (tokens - (uniforms * 32_000).long()).abs().max() <= 1


def test_rows_are_drawn_independently() -> None:
    logits = torch.cat([log(0.5, 0.5), log(0.9, 0.1), log(0.1, 0.9)])
    assert draw(logits, torch.tensor([0.6, 0.6, 0.05], dtype=torch.float64)).tolist() == [1, 0, 0]


def test_greedy_takes_the_first_of_the_largest_and_no_draw() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 3.0, 3.0]])
    assert next_tokens(logits, torch.tensor([0.99, 0.99]), temperature=0).tolist() == [1, 0]


def test_next_tokens_draws_from_the_filtered_distribution() -> None:
    # Top-k 2 leaves .3 / .8 = .375 for token 0 and .625 for token 2.
    uniforms = torch.tensor([0.37, 0.38], dtype=torch.float64)
    logits = log(0.3, 0.2, 0.5).expand(2, -1)
    assert next_tokens(logits, uniforms, temperature=1, top_k=2).tolist() == [0, 2]


def test_draws_do_not_depend_on_chunk_length() -> None:
    whole = Draws(3, "a", 2).next(12)
    parts = Draws(3, "a", 2)
    assert np.array_equal(np.concatenate([parts.next(n) for n in (1, 4, 2, 5)], axis=1), whole)


def test_draws_do_not_depend_on_the_number_of_rows() -> None:
    assert np.array_equal(Draws(3, "a", 5).next(7)[:2], Draws(3, "a", 2).next(7))
    assert np.array_equal(Draws(3, "a", 5).next(7)[3:], Draws(3, "a", 2, first_row=3).next(7))


def test_draws_of_other_prompts_seeds_and_rows_differ() -> None:
    streams = [
        Draws(0, "a", 1).next(1000),
        Draws(0, "a", 1, first_row=1).next(1000),
        Draws(0, "b", 1).next(1000),
        Draws(1, "a", 1).next(1000),
        Draws(1, "1\x1fa", 1).next(1000),
    ]
    correlations = np.corrcoef(np.concatenate(streams))
    off_diagonal = correlations[~np.eye(len(streams), dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.13  # 4 standard deviations of 1000 independent pairs


def test_draws_are_uniform_doubles() -> None:
    draws = Draws(0, "a", 4).next(50_000)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    # chi-square with 99 degrees of freedom: mean 99, standard deviation 14
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * 14
    assert np.unique(draws).size == draws.size
