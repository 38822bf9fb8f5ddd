"""Tiny models and tokenizers, built in-process; weights are scaled so that logits differ clearly."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import (
    GPT2Config,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"
EOS = "<eos>"
PAD = "<pad>"


def tokenizer(letters: str = LETTERS, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character; EOS and PAD last."""
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab[EOS], vocab[PAD] = len(letters), len(letters) + 1
    core = Tokenizer(models.WordLevel(vocab, unk_token=EOS))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = token_decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD)
    if chat:
        fast.chat_template = (
            "{% for m in messages %}{{ m['role'][0] }}.{{ m['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}a.{% endif %}"
        )
    return fast


def gpt2_config(vocab_size: int, **kwargs: object) -> GPT2Config:
    defaults = {
        "n_positions": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": None,
        "eos_token_id": len(LETTERS),
        "pad_token_id": len(LETTERS) + 1,
    }
    return GPT2Config(vocab_size=vocab_size, **{**defaults, **kwargs})


def llama(seed: int, vocab_size: int = len(LETTERS) + 2, **kwargs: object) -> LlamaForCausalLM:
    return _grouped(LlamaForCausalLM, LlamaConfig, seed, vocab_size, **kwargs)


def mistral(
    seed: int, vocab_size: int = len(LETTERS) + 2, *, window: int = 5, **kwargs: object
) -> MistralForCausalLM:
    return _grouped(MistralForCausalLM, MistralConfig, seed, vocab_size, sliding_window=window, **kwargs)


def hybrid(seed: int, vocab_size: int = len(LETTERS) + 2) -> PreTrainedModel:
    """Build a model whose first layer keeps a convolutional state, and its second keys and values."""
    kinds = ["conv", "full_attention"]
    tokens = {"bos_token_id": None, "eos_token_id": len(LETTERS), "pad_token_id": len(LETTERS) + 1}
    return _grouped(Lfm2ForCausalLM, Lfm2Config, seed, vocab_size, layer_types=kinds, **tokens)


def _grouped(model: type, config: type, seed: int, vocab_size: int, **kwargs: object) -> PreTrainedModel:
    """Build a model with rotary positions whose heads share one head of keys."""
    defaults = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    built = model(config(vocab_size=vocab_size, **{**defaults, **kwargs}))
    return scale_up(built, factor=12.0, seed=seed).double().requires_grad_(False)


def scale_up(model: PreTrainedModel, *, factor: float = 8.0, seed: int = 0) -> PreTrainedModel:
    """Re-draw the weights so large that a wrong row, position or mask shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02 * factor)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def causal(
    seed: int, *, vocab_size: int = len(LETTERS) + 2, dtype: torch.dtype = torch.float64
) -> GPT2LMHeadModel:
    return scale_up(GPT2LMHeadModel(gpt2_config(vocab_size)), seed=seed).to(dtype)


def value(seed: int, *, num_labels: int, dtype: torch.dtype = torch.float64) -> GPT2ForTokenClassification:
    config = gpt2_config(len(LETTERS) + 2, num_labels=num_labels)
    return scale_up(GPT2ForTokenClassification(config), seed=seed).to(dtype)


def save(folder: Path, model: PreTrainedModel, tok: PreTrainedTokenizerFast | None = None) -> str:
    model.save_pretrained(folder)
    (tok or tokenizer()).save_pretrained(folder)
    return str(folder)
