"""How a guide with another vocabulary reads the base's tokens one by one (`vocab_mapping: shared-strings`).

A base token whose string the guide has is that token; any other is the guide's own encoding of its text. The
guide's guidance exists for tokens that it has itself; the others are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ivg.models.vocab import special_tokens

_ANCHORS = ("\n", ".", "a")
_NO_CHARACTER = "\ufffd"  # what decoders return for bytes that are no character


@dataclasses.dataclass(frozen=True, slots=True)
class TokenReadings:
    """Per base id: the guide's ids for it, and its counterpart in the guide's vocabulary, if it has one."""

    pieces: tuple[tuple[int, ...], ...]
    counterparts: tuple[int | None, ...]

    @property
    def max_pieces(self) -> int:
        """The most ids that one base token becomes."""
        return max(map(len, self.pieces))


def read_tokens(
    base: PreTrainedTokenizerBase, guide: PreTrainedTokenizerBase, num_ids: int, eos_ids: Sequence[int]
) -> TokenReadings:
    """Work out how the guide reads each of the base's tokens.

    Args:
        base: tokenizer of the frozen base.
        guide: tokenizer of the pair.
        num_ids: V, size of the base's output; ids without a token are read as nothing.
        eos_ids: the base's EOS; one whose string the guide lacks stands for the guide's own EOS.
    """
    theirs = guide.get_vocab()
    special = special_tokens(base)
    counterparts: list[int | None] = [None] * num_ids
    to_encode: list[int] = []
    for token, id_ in base.get_vocab().items():
        if id_ >= num_ids:
            continue
        counterparts[id_] = theirs.get(token)
        if counterparts[id_] is None and token not in special:
            to_encode.append(id_)
    for eos in eos_ids:
        if counterparts[eos] is None:
            counterparts[eos] = guide.eos_token_id
    pieces: list[tuple[int, ...]] = [() if own is None else (own,) for own in counterparts]
    texts = _token_texts(base, to_encode)
    for id_, encoded in zip(to_encode, _encode_inside(guide, texts), strict=True):
        pieces[id_] = encoded
    return TokenReadings(tuple(pieces), tuple(counterparts))


def _token_texts(base: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return each token's text in the middle of a text; bytes that are no character have none."""
    anchor = _anchor(base)
    before = [] if anchor is None else base(anchor, add_special_tokens=False)["input_ids"]
    cut = len(anchor or "")
    texts = [str(base.decode([*before, id_]))[cut:] for id_ in ids]
    return ["" if _NO_CHARACTER in text else text for text in texts]


def _encode_inside(guide: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Encode each text as the guide does in the middle of a text, where it adds no leading space."""
    anchor = _anchor(guide)
    before = [] if anchor is None else guide(anchor, add_special_tokens=False)["input_ids"]
    if not texts:
        return []
    after = guide([(anchor or "") + text for text in texts], add_special_tokens=False)["input_ids"]
    alone = guide(list(texts), add_special_tokens=False)["input_ids"]
    return [
        tuple(long[len(before) :] if long[: len(before)] == before else short)
        for long, short in zip(after, alone, strict=True)
    ]


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a text after which others are read as they are, or None where the tokenizer knows none."""
    for anchor in _ANCHORS:
        if tokenizer.decode(tokenizer(anchor, add_special_tokens=False)["input_ids"]) == anchor:
            return anchor
    return None
