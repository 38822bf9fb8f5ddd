"""Padding that attends to nothing spoils no real token, in eager attention with float64 too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from ivg import SamplingConfig, generate
from ivg.config import ModelConfig
from ivg.engines.lockstep.model_runner import runner_of
from ivg.engines.lockstep.rescoring import LogpRescorer
from ivg.engines.response_encoding import TokenSequence
from ivg.models.loading import load_models
from tests import tiny

LONG, SHORT = (1, 2, 3, 4, 5, 6), (7,)


def _gemma2() -> PreTrainedModel:
    """Build what attends eagerly by default, with a window in every other layer."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    ends = {"eos_token_id": len(tiny.LETTERS), "pad_token_id": len(tiny.LETTERS) + 1, "bos_token_id": None}
    config = Gemma2Config(vocab_size=len(tiny.LETTERS) + 2, sliding_window=3, **shape, **heads, **ends)
    return tiny.scale_up(Gemma2ForCausalLM(config)).double()


MODELS = {"llama": lambda: tiny.llama(0), "mistral": lambda: tiny.mistral(0, window=3), "gemma2": _gemma2}


def _load(folder: Path, name: str) -> PreTrainedModel:
    path = tiny.save(folder / name, MODELS[name]())
    return load_models(ModelConfig(path=path, dtype="float64", attn_implementation="eager", device="cpu"))


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_unequal_length_get_what_each_gets_alone(tmp_path: Path, name: str) -> None:
    models = _load(tmp_path, name)
    runner = runner_of(models.base)
    with torch.inference_mode():
        together = runner.prefill([LONG, SHORT]).last
        alone = torch.cat([runner.prefill([prompt]).last for prompt in (LONG, SHORT)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)  # its softmax is in float32
    responses = generate(["hello there", "a"], models, sampling=SamplingConfig(max_new_tokens=6))
    assert all(response.num_tokens > 0 for response in responses)


@pytest.mark.parametrize("name", MODELS)
def test_responses_of_unequal_length_get_what_each_gets_alone(tmp_path: Path, name: str) -> None:
    """Padding on the right lies beyond the window of every real token of the shorter one."""
    base = _load(tmp_path, name).base
    readings = [TokenSequence(0, 2, (1, 2, *range(3, 20))), TokenSequence(0, 2, (1, 2, 3))]
    found = LogpRescorer(runner_of(base), num_ids=len(tiny.LETTERS)).read(readings)
    for reading, logp in zip(readings, found, strict=True):
        with torch.inference_mode():
            logits = base.module(torch.tensor([reading.ids])).logits[0, :, : len(tiny.LETTERS)]
        expected = sum(
            float(logits.log_softmax(-1)[i - 1, reading.ids[i]]) for i in range(2, len(reading.ids))
        )
        assert logp == pytest.approx(expected, abs=1e-4)
