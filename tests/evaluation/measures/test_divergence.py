import math

import pytest

from ivg.evaluation.measures.distance import EncodedResponse
from ivg.evaluation.measures.divergence import best_of_n_bound, sampled_kl
from tests.evaluation import tiny
from tests.evaluation.measures import slow

ROWS = [EncodedResponse([3], [4, 5, 0]), EncodedResponse([6, 7], [8])]


def test_the_bound_by_hand():
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="best-of-0 is not defined"):
        best_of_n_bound(0)


def test_the_divergence_agrees_with_a_slow_one():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    found = sampled_kl(models, [ROWS] * 3, beta=0.5, temperature=0.7)
    expected = [slow.kl(models, row, 0.5, 0.7) for row in ROWS]
    assert found == pytest.approx(expected, abs=1e-3)
    assert min(expected) > 0.1


def test_no_weight_or_equal_twins_is_no_divergence():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    assert sampled_kl(models, [ROWS] * 3, beta=0.0, temperature=1.0) == pytest.approx([0, 0], abs=1e-6)
    twins = [models[0], models[1], models[1]]
    assert sampled_kl(twins, [ROWS] * 3, beta=2.0, temperature=1.0) == pytest.approx([0, 0], abs=1e-6)


def test_ids_that_the_guides_lack_are_not_guided():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    no_ids = {"num_shared": 24, "unguided": range(24)}
    assert sampled_kl(models, [ROWS] * 3, beta=1.0, temperature=1.0, **no_ids) == pytest.approx(
        [0, 0], abs=1e-6
    )
    all_ids = {"num_shared": 24, "unguided": ()}
    default = sampled_kl(models, [ROWS] * 3, beta=1.0, temperature=1.0)
    assert sampled_kl(models, [ROWS] * 3, beta=1.0, temperature=1.0, **all_ids) == default
