"""Caches kept up to the longest common prefix equal reading everything from the start."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import GPT2ForTokenClassification, GPT2LMHeadModel, PreTrainedModel

from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.engines.lockstep.rescoring import LogpRescorer, TokenSequence, ValueRescorer
from tests.models import tiny
from tests.tiny import llama, mistral

VOCAB = 12


def _causal(kind: str) -> PreTrainedModel:
    if kind == "gpt2":
        return tiny.scaled(GPT2LMHeadModel(tiny.gpt2_config(VOCAB)), 1)
    return mistral(1, VOCAB) if kind == "mistral" else llama(1, VOCAB)


def _lane(module: torch.nn.Module, *, has_logits: bool = True) -> ModelRunner:
    return ModelRunner(module, name="guide", has_logits=has_logits, num_ids=VOCAB, max_length=64)


def _growing(rng: random.Random, num_calls: int) -> list[list[TokenSequence]]:
    """Groups come and go; sequences continue any member of their group, losing up to two tokens first."""
    calls: list[list[TokenSequence]] = []
    live: dict[int, list[TokenSequence]] = {}
    for call in range(num_calls):
        prompt = tuple(rng.choices(range(VOCAB), k=rng.randint(1, 5)))
        live[call] = [TokenSequence(call, len(prompt), prompt)]
        if len(live) > 3:
            del live[min(live)]
        for group, members in live.items():
            grown = []
            for _ in range(rng.randint(1, 3)):
                parent = rng.choice(members)
                lost = rng.randint(0, min(2, len(parent.ids) - parent.num_prompt))
                ids = parent.ids[: len(parent.ids) - lost]
                more = tuple(rng.choices(range(VOCAB), k=rng.randint(0, 4)))
                grown.append(TokenSequence(group, parent.num_prompt, ids + more))
            live[group] = grown
        calls.append([r for members in live.values() for r in members])
    return calls


def _slow_logp(model: PreTrainedModel, reading: TokenSequence, num_ids: int) -> float:
    logits = model(torch.tensor([reading.ids])).logits[0, :, :num_ids]
    logps = logits.log_softmax(-1)
    return sum(float(logps[i - 1, reading.ids[i]]) for i in range(reading.num_prompt, len(reading.ids)))


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "llama"])
def test_response_logps_equal_recomputation(kind: str) -> None:
    model = _causal(kind)
    reader = LogpRescorer(_lane(model), num_ids=VOCAB - 1)
    for call in _growing(random.Random(0), 12):
        call = [r._replace(ids=tuple(min(i, VOCAB - 2) for i in r.ids)) for r in call]
        expected = [_slow_logp(model, r, VOCAB - 1) for r in call]
        assert reader.read(call) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "llama"])
def test_pieces_of_columns_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivg.engines.lockstep.rescoring.MAX_SCORES", 1)
    model = _causal(kind)
    reader = LogpRescorer(_lane(model), num_ids=VOCAB)
    for call in _growing(random.Random(1), 6):
        assert reader.read(call) == pytest.approx([_slow_logp(model, r, VOCAB) for r in call], abs=1e-9)


@pytest.mark.parametrize("num_labels", [1, VOCAB])
def test_values_equal_recomputation(num_labels: int) -> None:
    model = tiny.scaled(GPT2ForTokenClassification(tiny.gpt2_config(VOCAB, num_labels=num_labels)), 2)
    is_vocabulary = num_labels > 1
    reader = ValueRescorer(
        _lane(model.transformer, has_logits=False), model.classifier, is_vocabulary=is_vocabulary
    )
    for call in _growing(random.Random(2), 12):
        expected = []
        for reading in call:
            scores = model(torch.tensor([reading.ids])).logits[0]
            if not is_vocabulary:
                expected.append(float(scores[-1, 0]))
            else:
                expected.append(float(scores[-2, reading.ids[-1]]) if len(reading.ids) > 1 else 0.0)
        assert reader.read(call) == pytest.approx(expected, abs=1e-9)


def test_only_new_tokens_are_fed() -> None:
    runner = _lane(_causal("gpt2"))
    reader = LogpRescorer(runner, num_ids=VOCAB)
    prompt = tuple(range(10))
    reader.read([TokenSequence(0, 10, (*prompt, 1, 2)), TokenSequence(0, 10, (*prompt, 3, 4))])
    assert (
        runner.tokens_fed == 10 + 2 * 3
    )  # the prompt once; each row its prompt's last token and its own two
    reader.read([TokenSequence(0, 10, (*prompt, 3, 4, 5)), TokenSequence(0, 10, (*prompt, 3, 4, 6))])
    assert runner.tokens_fed == 16 + 2 * 2


def test_a_cache_of_another_row_would_show() -> None:
    """The property above is not vacuous: continuing a wrong row is far off."""
    model = _causal("gpt2")
    reader = LogpRescorer(_lane(model), num_ids=VOCAB)
    first = [TokenSequence(0, 3, (1, 2, 3, 4, 5, 6)), TokenSequence(0, 3, (1, 2, 3, 7, 8, 9))]
    reader.read(first)
    reader.reader._cached = [first[1], first[0]]
    reader._logps.reverse()
    grown = [r._replace(ids=(*r.ids, 10)) for r in first]
    wrong = reader.read(grown)
    expected = [_slow_logp(model, r, VOCAB) for r in grown]
    assert max(abs(a - b) for a, b in zip(wrong, expected, strict=True)) > 1e-2


@pytest.mark.parametrize("failing_forward", [1, 2])
def test_a_call_that_fails_halfway_leaves_no_trace(failing_forward: int) -> None:
    """The engine decodes a block again after running out of memory; a half-written cache must not survive."""
    model = _causal("gpt2")
    reader = LogpRescorer(_lane(model), num_ids=VOCAB)
    first = [TokenSequence(0, 3, (1, 2, 3, 4, 5, 6)), TokenSequence(0, 3, (1, 2, 3, 7, 8, 9))]
    reader.read(first)
    grown = [*(r._replace(ids=(*r.ids, 10, 11)) for r in first), TokenSequence(1, 2, (5, 6, 7))]
    num_forwards = 0

    def fail(*args: object) -> None:
        nonlocal num_forwards
        num_forwards += 1
        if num_forwards == failing_forward:  # the prefill of the new prompt, or the feed
            raise torch.OutOfMemoryError

    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        reader.read(grown)
    hook.remove()
    again = [r._replace(ids=r.ids[:5]) for r in first]
    for call in (again, grown):
        assert reader.read(call) == pytest.approx([_slow_logp(model, r, VOCAB) for r in call], abs=1e-9)
