"""Scores of the first part of a response against whole passes over it, one sequence at a time."""

import math

import numpy as np
import pytest
import torch

from ivg.config import ModelConfig, PairConfig
from ivg.errors import UserError
from ivg.evaluation.measures.candidates import Candidates
from ivg.evaluation.measures.prefix_scores import log_ratios, part_lengths, values
from ivg.models.inspection import inspect_model
from ivg.models.loading import load_model, load_pair
from ivg.models.plan import PairInfo
from tests import tiny

PROMPTS = ["what is it", "what is it", "why", "why", "a b c"]
RESPONSES = ["good and long enough", "bad", "ok.", "x", "yes, it is so"]
GROUPS = np.array([0, 0, 1, 1, 2])
EOS_ID = len(tiny.LETTERS)


@pytest.fixture
def candidates():
    records = [{"prompt": prompt} for prompt in PROMPTS]
    return Candidates("preferences", records, RESPONSES, GROUPS, np.array([1.0, 0, 1, 0, 1]))


def ids_of(text):
    return [tiny.LETTERS.index(letter) for letter in text]


def parts(response):
    """Yield the ids of a response's parts: letters, and the end behind them."""
    ids = [*ids_of(response), EOS_ID]
    return [ids[: math.ceil(len(ids) * percent / 100)] for percent in (25, 50, 75, 100)]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 32])
def test_log_ratios_are_those_of_whole_passes(tmp_path, candidates, batch_size):
    models = {name: tiny.causal(seed) for name, seed in (("tuned", 1), ("untuned", 2))}
    configs = {name: ModelConfig(path=tiny.save(tmp_path / name, models[name])) for name in models}
    info = PairInfo(PairConfig(**configs), *(inspect_model(configs[name], name) for name in models))
    sums, means = log_ratios(load_pair(info), candidates, batch_size=batch_size)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for column, part in enumerate(parts(response)):
            ids = [*ids_of(prompt), *part]
            logps = {}
            for name, model in models.items():
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                places = range(len(ids) - len(part) - 1, len(ids) - 1)
                logps[name] = sum(float(log_probs[place, ids[place + 1]]) for place in places)
            ratio = logps["tuned"] - logps["untuned"]
            assert sums[row, column] == pytest.approx(ratio, abs=1e-6)
            assert means[row, column] == pytest.approx(ratio / len(part), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("num_labels", [1, EOS_ID + 2])
def test_values_are_those_of_whole_passes(tmp_path, candidates, num_labels):
    model = tiny.value(3, num_labels=num_labels)
    info = inspect_model(ModelConfig(path=tiny.save(tmp_path / "value", model)), "value")
    found = values(load_model(info), candidates, batch_size=3)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for column, part in enumerate(parts(response)):
            ids = [*ids_of(prompt), *part]
            logits = model(torch.tensor([ids])).logits[0]
            expected = logits[-1, 0] if num_labels == 1 else logits[-2, ids[-1]]
            assert found[row, column] == pytest.approx(float(expected), abs=1e-6)


def test_parts_by_hand():
    assert part_lengths(1) == [1, 1, 1, 1]
    assert part_lengths(5) == [2, 3, 4, 5]
    assert part_lengths(8) == [2, 4, 6, 8]


def test_a_response_that_does_not_fit_is_refused(tmp_path):
    info = inspect_model(
        ModelConfig(path=tiny.save(tmp_path / "value", tiny.value(3, num_labels=1))), "value"
    )
    long = Candidates("rewards", [{"prompt": "a"}], ["b" * 64], np.array([0]), np.array([1.0]))
    with pytest.raises(UserError, match="are 66 tokens, more than its context of 64"):
        values(load_model(info), long, batch_size=1)
