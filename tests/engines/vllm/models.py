"""Tiny models that vLLM's kernels for CPUs take (heads of 32), saved as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests import tiny

LETTERS = "".join(chr(0x100 + i) for i in range(150))
V = len(LETTERS) + 2
EOS = len(LETTERS)
CONTEXT = 160

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "gpt2": (GPT2LMHeadModel, GPT2Config),
    "llama-value": (LlamaForTokenClassification, LlamaConfig),
    "gpt2-value": (GPT2ForTokenClassification, GPT2Config),
}


def build(family: str, seed: int, *, layers: int = 2, heads: int = 2, **kwargs: object) -> PreTrainedModel:
    model, config = FAMILIES[family]
    sizes: dict[str, object] = {
        "n_embd": 32 * heads,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": CONTEXT,
    }
    if config is not GPT2Config:
        sizes = {
            "hidden_size": 32 * heads,
            "intermediate_size": 48 * heads,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": 32,
            "max_position_embeddings": CONTEXT,
        }
    options = {"vocab_size": V, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": EOS + 1}
    torch.manual_seed(seed)
    return tiny.scale_up(model(config(**options, **sizes, **kwargs)), factor=8.0, seed=seed).float()


def save(folder: Path, model: PreTrainedModel) -> str:
    return tiny.save(folder, model, tiny.tokenizer(LETTERS))


def table_gpt2(table: np.ndarray, *, is_value: bool = False) -> PreTrainedModel:
    """Return a GPT-2 whose outputs are a table by position and token.

    Its one attention layer adds nothing. A neuron for each (position, token) is switched on by both
    embeddings together; layer norms see the same mean and variance everywhere, and the head reads the table.

    Args:
        table: (positions, V, outputs).
    """
    positions, vocab, outputs = table.shape
    pairs = positions * vocab
    hidden = -(-(vocab + positions + pairs) // 32) * 32
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=hidden,
        n_head=hidden // 32,
        n_layer=1,
        n_positions=positions,
        n_inner=pairs,
        num_labels=outputs,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = GPT2ForTokenClassification(config) if is_value else GPT2LMHeadModel(config)
    body, (block,) = model.transformer, model.transformer.h
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        body.wte.weight[:, :vocab] = torch.eye(vocab)
        body.wpe.weight[:, vocab : vocab + positions] = torch.eye(positions)
        for norm in (block.ln_1, block.ln_2, body.ln_f):
            norm.weight.fill_(1)
        first = _normed(torch.tensor([1.0] * 2 + [0.0] * (hidden - 2)))
        high, low = float(first[0]), float(first[-1])
        on = 20.0  # of a neuron whose position and token both are there; with one of them it gets -20
        scale = 2 * on / (high - low)
        for position in range(positions):
            for token in range(vocab):
                neuron = position * vocab + token
                block.mlp.c_fc.weight[token, neuron] = scale
                block.mlp.c_fc.weight[vocab + position, neuron] = scale
                block.mlp.c_fc.bias[neuron] = on - 2 * scale * high
                block.mlp.c_proj.weight[neuron, vocab + positions + neuron] = 1 / on
        last = _normed(torch.tensor([1.0] * 3 + [0.0] * (hidden - 3)))
        high, low = float(last[0]), float(last[-1])
        rows = torch.from_numpy(table.reshape(pairs, outputs)).float()
        head = model.classifier if is_value else model.lm_head
        # All neurons together give every output the same lowest part, which is taken from each.
        pairs_at = slice(vocab + positions, vocab + positions + pairs)
        head.weight[:, pairs_at] = ((rows) / (high - low)).T
        _remove_background(head, rows, low / (high - low), hidden, vocab)
    return model.eval().requires_grad_(False)


def _normed(row: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(row, row.shape, eps=1e-5)


def _remove_background(
    head: torch.nn.Linear, rows: torch.Tensor, share: float, hidden: int, vocab: int
) -> None:
    """A neuron that is off still stands at the norm's lowest number; a head without bias undoes that here.

    Exactly one token's dimension is high, so the sum over the tokens' dimensions is a constant to lean on.
    """
    first = _normed(torch.tensor([1.0] * 3 + [0.0] * (hidden - 3)))
    constant = float(first[0]) + (vocab - 1) * float(first[-1])
    head.weight[:, :vocab] = (-share * rows.sum(dim=0) / constant)[:, None]
