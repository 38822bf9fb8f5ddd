import math

import pytest
import torch

from ivg.evaluation.distance import EncodedResponse
from ivg.evaluation.divergence import best_of_n_bound, sampled_kl
from tests.evaluation import tiny

ROWS = [EncodedResponse([3], [4, 5, 0]), EncodedResponse([6, 7], [8])]


def test_the_bound_by_hand():
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="best-of-0 is not defined"):
        best_of_n_bound(0)


@torch.no_grad()
def slow_kl(models, row, beta, temperature):
    """Follow a response token by token, one vocabulary entry at a time."""
    total, ids = 0.0, list(row.prompt_ids)
    for token in row.response_ids:
        base, tuned, untuned = (m(input_ids=torch.tensor([ids])).logits[0, -1].double() for m in models)
        ratio = tuned.log_softmax(-1) - untuned.log_softmax(-1)
        p, q = ((base + b * ratio).div(temperature).softmax(-1).tolist() for b in (beta, 0.0))
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        ids.append(token)
    return total


def test_the_divergence_agrees_with_a_slow_one():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    found = sampled_kl(models, [ROWS] * 3, beta=0.5, temperature=0.7)
    expected = [slow_kl(models, row, 0.5, 0.7) for row in ROWS]
    assert found == pytest.approx(expected, abs=1e-3)
    assert min(expected) > 0.1


def test_no_weight_or_equal_twins_is_no_divergence():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    assert sampled_kl(models, [ROWS] * 3, beta=0.0, temperature=1.0) == pytest.approx([0, 0], abs=1e-6)
    twins = [models[0], models[1], models[1]]
    assert sampled_kl(twins, [ROWS] * 3, beta=2.0, temperature=1.0) == pytest.approx([0, 0], abs=1e-6)
