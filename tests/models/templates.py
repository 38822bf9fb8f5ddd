"""Six chat templates as TRL ships them, and what they must make of one exchange, written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trl
from transformers import AddedToken, PreTrainedTokenizerFast

from ivg.training.tokenizer import train_tokenizer

PROMPT, RESPONSE = "Hi there", "Blue sky."
_TEXTS = [f"{PROMPT}\n\n{RESPONSE}\n\nCutting Knowledge Date: December 2023\n", "user\nmodel\nassistant\n\n"]


class Family(NamedTuple):
    """A family's template, its special tokens, and the right texts.

    Attributes:
        template: file name in `trl/chat_templates`.
        bos: token, or None.
        eos: the tokenizer's own.
        others: further special tokens.
        prompt: what decoding feeds, the generation prompt included.
        end: what closes a response for models that follow it token by token.
        judged: what models read that judge the finished response.
    """

    template: str
    bos: str | None
    eos: str
    others: tuple[str, ...]
    prompt: str
    end: str
    judged: str


QWEN = ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")
FAMILIES = {
    "qwen3": Family(
        "qwen3",
        None,
        "<|im_end|>",
        QWEN,
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "<|im_start|>user\nHi there<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nBlue sky.<|im_end|>\n",
    ),
    "qwen3.5": Family(
        "qwen3_5_think",
        None,
        "<|im_end|>",
        QWEN,
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_end|>",
        "<|im_start|>user\nHi there<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nBlue sky.<|im_end|>\n",
    ),
    "gemma3": Family(
        "gemma3",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\nBlue sky.<end_of_turn>\n",
    ),
    "llama3.1": Family(
        "llama3_1",
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBlue sky.<|eot_id|>",
    ),
    "r1-distill": Family(
        "deepseek_r1_distill",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        "<｜begin▁of▁sentence｜><｜User｜>Hi there<｜Assistant｜><think>\n",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜><｜User｜>Hi there<｜Assistant｜>Blue sky.<｜end▁of▁sentence｜>",
    ),
    "phi3": Family(
        "phi3",
        "<s>",
        "<|endoftext|>",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|user|>\nHi there<|end|>\n<|assistant|>\n",
        "<|end|>",
        "<|user|>\nHi there<|end|>\n<|assistant|>\nBlue sky.<|end|>\n<|endoftext|>",
    ),
}


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which line breaks and words merge, with the family's tokens and template."""
    made = train_tokenizer(_TEXTS * 4, 330)
    added = {"eos_token": family.eos, **({"bos_token": family.bos} if family.bos else {})}
    made.add_special_tokens(added)
    thoughts = [token for token in family.others if "think>" in token]  # no special tokens, as with Qwen
    made.add_tokens([AddedToken(token, special=False) for token in thoughts])
    others = [token for token in family.others if token not in thoughts]
    made.add_tokens([AddedToken(token, special=True) for token in others], special_tokens=True)
    folder = Path(trl.__file__).parent / "chat_templates"
    made.chat_template = (folder / f"{family.template}.jinja").read_text(encoding="utf-8")
    return made


def ids(tok: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    """Encode pieces, each by itself: tokens never merge across their borders."""
    return [i for piece in pieces for i in tok(piece, add_special_tokens=False)["input_ids"]]
