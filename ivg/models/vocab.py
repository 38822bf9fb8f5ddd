"""Compare vocabularies by their token-to-id maps; equal sizes prove nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set

from transformers import PreTrainedTokenizerBase

from ivg.errors import UserError

_MAX_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VocabMatch:
    """How a guide's token-to-id map relates to the base's.

    Attributes:
        num_base: tokens of the base.
        num_shared: strings that both have.
        num_same_id: strings that both have under the same id.
        differing: non-special tokens of the base that the guide lacks or has under another id.
        differing_special: special tokens of the base for which that holds.
    """

    num_base: int
    num_shared: int
    num_same_id: int
    differing: tuple[str, ...]
    differing_special: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether ids can be passed from the base to the guide as they are."""
        return not self.differing

    def summary(self) -> str:
        """Say in one clause how far the two maps agree."""
        return (
            f"{self.num_shared:,} of the base's {self.num_base:,} token strings are shared, "
            f"{self.num_same_id:,} under the same id"
        )


def compare(base: PreTrainedTokenizerBase, guide: PreTrainedTokenizerBase) -> VocabMatch:
    """Compare two tokenizers' token-to-id maps.

    Args:
        base: tokenizer of the frozen base.
        guide: tokenizer of a tuned, untuned or value model.
    """
    ours, theirs = base.get_vocab(), guide.get_vocab()
    special = special_tokens(base)
    differing = {token for token, id_ in ours.items() if theirs.get(token) != id_}
    return VocabMatch(
        num_base=len(ours),
        num_shared=len(ours.keys() & theirs.keys()),
        num_same_id=len(ours) - len(differing),
        differing=tuple(sorted(differing - special)),
        differing_special=tuple(sorted(differing & special)),
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> Set[str]:
    """Return every token that the tokenizer never makes from plain text."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of stop strings that are special tokens: a response's text leaves those out.

    Raises:
        UserError: a stop string that holds a special token beside other text, which could never match.
    """
    special = special_tokens(tokenizer) - {""}
    for text in stop:
        held = sorted(token for token in special if token in text and token != text)
        if held and text not in special:
            raise UserError(
                f"stop {text!r} holds the special token {held[0]!r}, which a response's text leaves out; "
                f"give {held[0]!r} alone"
            )
    return tuple(sorted(tokenizer.convert_tokens_to_ids(text) for text in stop if text in special))
