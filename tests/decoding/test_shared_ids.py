"""Ids that the base has and a guide lacks, or means otherwise, get no guidance."""

from __future__ import annotations

import torch

from ivg.decoding.shared_ids import SharedIds
from ivg.engines.lockstep.guides import VocabularyValueGuide, Weights
from ivg.engines.lockstep.model_runner import ModelRunner
from tests import tiny

NUM_GUIDE = 6  # ids of the guide; the base has two more


def guide(unguided: tuple[int, ...] = ()) -> VocabularyValueGuide:
    model = tiny.value(3, num_labels=NUM_GUIDE)
    runner = ModelRunner(
        model.transformer, name="value", has_logits=False, num_ids=NUM_GUIDE, max_length=None
    )
    return VocabularyValueGuide(
        runner, model.classifier, SharedIds(NUM_GUIDE + 2, NUM_GUIDE, unguided), Weights(chunk=1.0)
    )


def test_a_vocabulary_head_gives_nothing_to_ids_that_it_lacks() -> None:
    ids = torch.tensor([[1, 6, 2, 7], [4, 3, 7, 5]])
    values = guide()
    scores = values.chunk_scores([values.runners[0].prefill([[1, 2], [3]])], ids)
    lacking = ids >= NUM_GUIDE
    assert (scores[lacking] == 0).all()
    assert (scores[~lacking].abs() > 1e-3).all()
    tokens = values.token_scores([values.runners[0].prefill([[1, 2], [3]])])
    assert tokens.shape == (2, NUM_GUIDE + 2)
    assert (tokens[:, NUM_GUIDE:] == 0).all()
    assert (tokens[:, :NUM_GUIDE].abs() > 1e-3).all()


def test_special_tokens_that_mean_something_else_are_not_guided() -> None:
    values = guide(unguided=(0, 4))
    scores = values.chunk_scores([values.runners[0].prefill([[1, 2]])], torch.tensor([[4, 1, 0]]))
    assert scores[0, 0] == 0
    assert scores[0, 2] == 0
    assert abs(scores[0, 1]) > 1e-3
    tokens = values.token_scores([values.runners[0].prefill([[1, 2]])])
    assert tokens[0, [0, 4, 6, 7]].tolist() == [0, 0, 0, 0]
