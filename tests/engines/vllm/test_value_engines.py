"""Values in engines of their own: equal to those of the value channel, and to what transformers says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from transformers import LlamaConfig, LlamaForSequenceClassification

from ivg.config import ModelConfig, ValueConfig
from ivg.decoding.engine import in_order
from ivg.decoding.sequences import Finished
from ivg.engines.vllm.engine import prepare, start
from ivg.errors import UserError
from ivg.models.plan import inspect_models, plan_guides, reading_models
from ivg.run.tasks import make_tasks
from tests import tiny
from tests.engines.vllm.models import CONTEXT, EOS, LETTERS, V
from tests.engines.vllm.test_values import (
    NUM_LETTERS,
    SAMPLING,
    SEARCH,
    TOKENS,
    Ids,
    World,
    as_trained,
    prompt_of,
    world,
)

__all__ = ["world"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
PROMPTS = ["".join(LETTERS[(3 * i + 5 * k) % NUM_LETTERS] for i in range(40 + 9 * k)) for k in range(6)]


def decode(world: World, values: Sequence[ValueConfig], args: dict) -> list[Finished]:
    infos = inspect_models(world.source("base"), [], values)
    readers = reading_models(infos.base, plan_guides(infos, SEARCH))
    tasks, _ = make_tasks([{"prompt": text} for text in PROMPTS], readers, SAMPLING)
    options = {"enforce_eager": True, "max_num_seqs": 16, "block_size": 32}
    prepared = prepare(infos, SEARCH, SAMPLING, engine_args=options | args)
    settings = dataclasses.replace(prepared.settings, keep_trace=True)
    engine = start(prepared._replace(settings=settings))
    found = list(in_order(tasks, engine.run(tasks)))
    engine.close()
    return found


@pytest.mark.parametrize("kind", ["scalar", "vocabulary"])
def test_they_are_those_of_the_value_channel(world: World, kind: str) -> None:
    value = ValueConfig(model=world.source(kind), weight=0.5)
    channel, alone = (decode(world, [value], args) for args in ({}, {"value_engine": {}}))
    num_seen, reasons = 0, set()
    for ours, theirs in zip(channel, alone, strict=True):
        assert [beam.ids for beam in ours.beams] == [beam.ids for beam in theirs.beams]
        for one, other in zip(ours.trace, theirs.trace, strict=True):
            assert one.kept == other.kept
            for first, second in zip(one.candidates, other.candidates, strict=True):
                assert (first.ids, first.finish_reason) == (second.ids, second.finish_reason)
                assert second.value == pytest.approx(first.value, abs=1e-4)
                num_seen += 1
                reasons.add(first.finish_reason)
    assert num_seen > 30
    assert {"stop", "eos", None} <= reasons


def test_its_own_template_is_used_and_classifiers_are_read(world: World) -> None:
    """A scalar head under another template, and a sequence classifier, are what transformers says of both."""
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        num_labels=1,
        pad_token_id=EOS + 1,
        eos_token_id=EOS,
    )
    judge = tiny.scale_up(LlamaForSequenceClassification(config), factor=8.0, seed=9).float()
    tiny.save(world.folder / "judge", judge, tiny.tokenizer(TOKENS))
    before, after = LETTERS[2] + LETTERS[4], LETTERS[6]
    scalar = ModelConfig(
        path=str(world.folder / "scalar"), dtype="float32", template=f"{before}{{prompt}}{after}"
    )
    values = [
        ValueConfig(model=scalar, weight=0.7),
        ValueConfig(model=world.source("judge"), weight=2.0),
    ]
    with pytest.raises(UserError, match=r"a template of its own|sequence classifier"):
        decode(world, values, {})

    def judged(ids: Ids) -> float:
        with torch.inference_mode():
            return float(judge(input_ids=torch.tensor([ids])).logits[0, 0])

    worst, num_seen = 0.0, 0
    for finished in decode(world, values, {"value_engine": {"max_num_seqs": 8}}):
        prompt = prompt_of(finished.task)
        own_prompt = (*map(LETTERS.index, before), *prompt, LETTERS.index(after))
        for boundary in finished.trace:
            for candidate in boundary.candidates:
                read = as_trained(candidate.ids, candidate.finish_reason)
                expected = 0.7 * world.scalar(own_prompt, read)
                # A classifier reads text, in which the letters of a token are tokens of their own.
                letters = [i for i in read if i < EOS]
                if all(i < NUM_LETTERS for i in letters):
                    end = (EOS,) if candidate.finish_reason in ("eos", "stop") else ()
                    expected += 2.0 * judged((*prompt, *letters, *end))
                    worst, num_seen = max(worst, abs(candidate.value - expected)), num_seen + 1
    print(f"{num_seen} candidates, worst error {worst:.1e}")
    assert worst < 1e-4
    assert num_seen > 20
