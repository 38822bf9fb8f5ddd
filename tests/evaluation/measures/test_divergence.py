import math

import pytest
import torch

from ivg.evaluation.measures.distance import EncodedResponse
from ivg.evaluation.measures.divergence import best_of_n_bound, sampled_kl, sampled_log_ratio, search_bound
from tests.engines.worlds import build_world, enumerate_search, enumerate_sequences, next_probs
from tests.evaluation import tiny
from tests.evaluation.measures import slow

ROWS = [EncodedResponse([3], [4, 5, 0]), EncodedResponse([6, 7], [8])]


def test_the_bound_by_hand():
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="best-of-0 is not defined"):
        best_of_n_bound(0)


def test_the_bound_of_a_search_by_hand():
    # log 4 for the first chunk of 4 x 4 candidates beyond what the four continuations give: log 4 + 3 log 4.
    assert search_bound(4, 4, 3) == pytest.approx(4 * math.log(4))
    assert search_bound(1, 16, 1) == pytest.approx(math.log(16))
    with pytest.raises(ValueError, match="give numbers >= 1"):
        search_bound(4, 4, 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_search_is_further_from_its_sampler_than_the_bound(seed):
    # W = K = 2, L = 1, all draws enumerated: an answer of n tokens has n chunks.
    world = build_world(seed, 3, scale=0.7)
    probs = next_probs(world.base, world.tuned, world.untuned, beta=0.0)
    found = enumerate_search(probs, lambda ids: world.value(ids, "implicit"), eos=2, early=True)
    sampler = enumerate_sequences(probs, eos=2)
    ratios = {ids: math.log(p / sampler[ids]) for ids, p in found.items() if p > 0}
    assert all(ratio <= search_bound(2, 2, len(ids)) for ids, ratio in ratios.items())
    divergence = sum(found[ids] * ratio for ids, ratio in ratios.items())
    assert 0.1 < divergence < search_bound(2, 2, sum(p * len(ids) for ids, p in found.items()))


def test_the_divergence_agrees_with_a_slow_one():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    found = sampled_kl(models, [ROWS] * 3, beta=0.5, temperature=0.7)
    expected = [slow.kl(models, row, 0.5, 0.7) for row in ROWS]
    assert found == pytest.approx(expected, abs=1e-3)
    assert min(expected) > 0.1


def test_the_log_ratio_of_responses_by_hand():
    models = [tiny.model(seed) for seed in (0, 1, 2)]
    found = sampled_log_ratio(models, [ROWS] * 3, beta=0.5, temperature=0.7)
    for row, ratio in zip(ROWS, found, strict=True):
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        with torch.no_grad():
            base, tuned, untuned = (model(ids).logits[0].double().log_softmax(-1) for model in models)
        guided = ((base + 0.5 * (tuned - untuned)) / 0.7).log_softmax(-1)
        plain = (base / 0.7).log_softmax(-1)
        places = range(len(row.prompt_ids) - 1, ids.shape[1] - 1)
        expected = sum(float(guided[t, ids[0, t + 1]] - plain[t, ids[0, t + 1]]) for t in places)
        assert ratio == pytest.approx(expected, abs=1e-4)


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
