"""Tiny models with two vocabularies over the same eight characters."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, processors
from tokenizers import decoders as token_decoders
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests import tiny

LETTERS = "abcdef ."
BASE_EOS = len(LETTERS)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def base_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(LETTERS)


def pair_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Characters in another order, and merges of pairs: a text's end is read anew when more follows."""
    bos, eos, pad = "<s>", "</s>", "<p>"
    vocab = {token: i for i, token in enumerate([bos, *LETTERS[::-1], eos, pad])}
    merges = [(a, b) for a, b in product("abcd", "bcde") if a != b]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    core = Tokenizer(models.BPE(vocab, merges))
    core.decoder = token_decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad)
    if chat:
        fast.chat_template = (
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
            "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}.{% endif %}"
        )
    return fast


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *LETTERS])}
    core = Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


def gpt2_config(vocab_size: int, **kwargs: object) -> GPT2Config:
    return tiny.gpt2_config(vocab_size, **{"eos_token_id": None, "pad_token_id": None, **kwargs})


def base(folder: Path, seed: int = 0, *, emits_pad: bool = True) -> str:
    config = gpt2_config(len(LETTERS) + 1 + emits_pad, eos_token_id=BASE_EOS)
    return tiny.save(folder, scaled(GPT2LMHeadModel(config), seed, factor=4), base_tokenizer())


def pair_config(**kwargs: object) -> GPT2Config:
    tok = pair_tokenizer()
    return gpt2_config(len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, **kwargs)


def guide(folder: Path, seed: int, *, chat: bool = False) -> str:
    model = scaled(GPT2LMHeadModel(pair_config()), seed)
    return tiny.save(folder, model, pair_tokenizer(chat=chat))


def value(folder: Path, seed: int, *, num_labels: int) -> str:
    model = scaled(GPT2ForTokenClassification(pair_config(num_labels=num_labels)), seed)
    return tiny.save(folder, model, pair_tokenizer())


def decoder_classifier(folder: Path, seed: int) -> str:
    model = scaled(GPT2ForSequenceClassification(pair_config(num_labels=1)), seed)
    return tiny.save(folder, model, pair_tokenizer(chat=True))


def encoder_classifier(folder: Path, seed: int, kind: str) -> str:
    tok = encoder_tokenizer()
    model: PreTrainedModel
    if kind == "bert":
        model = BertForSequenceClassification(
            BertConfig(vocab_size=len(tok), max_position_embeddings=64, num_labels=1, pad_token_id=0, **SIZES)
        )
    else:
        model = DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=len(tok),
                max_position_embeddings=64,
                dim=16,
                hidden_dim=24,
                n_layers=2,
                n_heads=2,
                num_labels=1,
                pad_token_id=0,
            )
        )
    return tiny.save(folder, scaled(model, seed), tok)


def scaled(model: PreTrainedModel, seed: int, factor: float = 12.0) -> PreTrainedModel:
    return tiny.scale_up(model, factor=factor, seed=seed).to(torch.float64).requires_grad_(False)
