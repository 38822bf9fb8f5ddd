"""The context length is found under every architecture's own name for it."""

from __future__ import annotations

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from ivg.inspection import context_length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(n_positions=23), 23),
        (LlamaConfig(max_position_embeddings=99), 99),
        (BloomConfig(), None),  # ALiBi: no limit
    ],
)
def test_context_length(config: PreTrainedConfig, length: int | None) -> None:
    assert context_length(config) == length
