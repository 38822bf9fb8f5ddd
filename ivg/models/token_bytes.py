"""Which bytes of a text a token stands for, whatever spelling its vocabulary uses.

SentencePiece writes ` the` as `▁the` and a newline as `<0x0A>`; byte-level BPE writes them as `Ġthe` and `Ċ`,
and means by `é` a lone byte, where SentencePiece means the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ivg.models.vocab import special_tokens

# `Strip` drops a space before a whole text alone, which is not inside one.
_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip"}
_ANCHORS = ("\n", ".", "a")
_NO_CHARACTER = "\ufffd"  # what decoders return for bytes that are no character
_LONE_BYTE = re.compile("<0x([0-9A-F]{2})>")  # how tokenizers with byte fallback spell one


def token_bytes(tokenizer: PreTrainedTokenizerBase, num_ids: int) -> list[bytes | None]:
    """Return what each id stands for inside a text, where no leading space is added or dropped.

    Args:
        tokenizer: any; where it is not known how it spells bytes, its own decoding is asked.
        num_ids: how many ids to describe.

    Returns:
        Per id its bytes; None for special tokens, ids without a token, and tokens that are no text.
    """
    special = special_tokens(tokenizer)
    plain = {
        id_: token for token, id_ in tokenizer.get_vocab().items() if id_ < num_ids and token not in special
    }
    steps = _decoder_steps(tokenizer)
    if "ByteLevel" in steps:
        read = _read_byte_level(plain, tokenizer.added_tokens_decoder)
    elif "Replace" in steps and steps.keys() <= _SENTENCEPIECE_STEPS:
        read = _read_sentencepiece(plain, steps)
    else:
        texts = _texts_inside(tokenizer, list(plain))
        read = {id_: text.encode() for id_, text in texts.items() if _NO_CHARACTER not in text}
    return [read.get(id_) for id_ in range(num_ids)]


def lone_bytes(tokenizer: PreTrainedTokenizerBase, num_ids: int) -> frozenset[int]:
    """Return the ids that exist for bytes which are no character by themselves (byte fallback)."""
    if "ByteFallback" not in _decoder_steps(tokenizer):
        return frozenset()
    return frozenset(
        id_ for token, id_ in tokenizer.get_vocab().items() if id_ < num_ids and _LONE_BYTE.fullmatch(token)
    )


def encode_inside(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Encode each text as the tokenizer does in the middle of a text, where it adds no leading space."""
    if not texts:
        return []
    anchor = _anchor(tokenizer)
    before = [] if anchor is None else tokenizer(anchor, add_special_tokens=False)["input_ids"]
    after = tokenizer([(anchor or "") + text for text in texts], add_special_tokens=False)["input_ids"]
    is_split = [ids[: len(before)] == before for ids in after]
    # The others merge with the anchor, and are encoded alone.
    merged = [text for text, is_apart in zip(texts, is_split, strict=True) if not is_apart]
    alone = iter(tokenizer(merged, add_special_tokens=False)["input_ids"] if merged else [])
    return [
        tuple(ids[len(before) :] if is_apart else next(alone))
        for ids, is_apart in zip(after, is_split, strict=True)
    ]


def opens_like_inside(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a text's opening is encoded and decoded like its middle: no space comes or goes."""
    probes = ["a", " a"]
    inside = encode_inside(tokenizer, probes)
    opening = tokenizer(probes, add_special_tokens=False)["input_ids"]
    is_encoded_alike = [list(ids) for ids in inside] == opening
    return is_encoded_alike and bool(tokenizer.decode(list(inside[1])) == probes[1])


def _read_byte_level(plain: Mapping[int, str], added: Container[int]) -> dict[int, bytes]:
    """Read entries whose every character is a byte; added tokens stand as they do in a text."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return {
        id_: token.encode() if id_ in added else bytes(byte_of[character] for character in token)
        for id_, token in plain.items()
        if id_ in added or byte_of.keys() >= set(token)
    }


def _read_sentencepiece(plain: Mapping[int, str], steps: Mapping[str, dict[str, Any]]) -> dict[int, bytes]:
    """Read entries that are text but for the space's own letter, and lone bytes."""
    space = steps["Replace"]
    read = {
        id_: token.replace(space["pattern"]["String"], space["content"]).encode()
        for id_, token in plain.items()
    }
    if "ByteFallback" in steps:
        lone = {id_: _LONE_BYTE.fullmatch(token) for id_, token in plain.items()}
        read |= {id_: bytes([int(match[1], 16)]) for id_, match in lone.items() if match is not None}
    return read


def _texts_inside(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[int, str]:
    """Return each token's text in the middle of a text, as the tokenizer decodes it there."""
    anchor = _anchor(tokenizer)
    before = [] if anchor is None else tokenizer(anchor, add_special_tokens=False)["input_ids"]
    cut = len(anchor or "")
    texts = tokenizer.batch_decode([[*before, id_] for id_ in ids], clean_up_tokenization_spaces=False)
    return {id_: text[cut:] for id_, text in zip(ids, texts, strict=True)}


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a text after which others are read as they are, or None where the tokenizer knows none."""
    for anchor in _ANCHORS:
        if tokenizer.decode(tokenizer(anchor, add_special_tokens=False)["input_ids"]) == anchor:
            return anchor
    return None


def _decoder_steps(tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Any]]:
    """Return the steps by which a fast tokenizer turns tokens into text, by name; none for a slow one."""
    if not tokenizer.is_fast or tokenizer.backend_tokenizer.decoder is None:
        return {}
    described = json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())
    return {step["type"]: step for step in described.get("decoders", [described])}
