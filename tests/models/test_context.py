"""The context length is found under every architecture's own name for it, and is one that rows can use."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.models.inspection import context_length
from tests import tiny

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [3.0, 5.0, 7.0, 9.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10.0, "factor": 4.0}


def phi3() -> Phi3Config:
    return Phi3Config(
        **SIZES,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={**LONGROPE, "original_max_position_embeddings": 16},
    )


def llama() -> LlamaConfig:
    return LlamaConfig(**SIZES, max_position_embeddings=16, rope_parameters=DYNAMIC)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(n_positions=23), 23),
        (LlamaConfig(max_position_embeddings=99), 99),
        (BloomConfig(), None),  # ALiBi: no limit
        (phi3(), 16),
        (llama(), 16),
    ],
)
def test_context_length(config: PreTrainedConfig, length: int | None) -> None:
    assert context_length(config) == length


@pytest.mark.parametrize(
    "build", [lambda: Phi3ForCausalLM(phi3()), lambda: LlamaForCausalLM(llama())], ids=["longrope", "dynamic"]
)
def test_within_it_rows_are_independent_and_beyond_it_they_would_not_be(build) -> None:
    """The rotary frequencies of these models depend on the longest row of a batch."""
    model: PreTrainedModel = tiny.scale_up(build(), factor=12, seed=3).double()
    short, other = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]

    def after(prompts: list[list[int]], *, limit: int | None) -> torch.Tensor:
        """Return the first row's logits (V,) after its prompt and 4 more tokens."""
        runner = ModelRunner(model, name="m", has_logits=True, num_ids=32, max_length=limit)
        state = runner.prefill(prompts)
        for token in (20, 21, 22, 23):
            runner.feed(state, torch.full((len(prompts), 1), token))
        return state.last[0].clone()

    limit = context_length(model.config)
    assert limit == 16
    alone = after([short], limit=limit)
    assert (after([short, other], limit=limit) - alone).abs().max() < 1e-9  # the other ends at 16
    assert (after([short, other * 2], limit=None) - alone).abs().max() > 1e-2
    assert (after([short], limit=limit) - alone).abs().max() < 1e-9  # and the model has recovered
