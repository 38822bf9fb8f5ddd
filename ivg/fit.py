"""Whether a guide fits the base, and by which route: by ids, through text, or over shared strings."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ivg.errors import UserError
from ivg.inspection import ModelInfo
from ivg.vocab import VocabMatch, compare

Route = Literal["ids", "text", "strings"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one guide takes part.

    Attributes:
        route: the base's ids as they are, text at chunk boundaries, or shared strings at every token.
        match: how the vocabularies compare.
        num_shared: ids below this are scored by both.
        unguided: ids below it that stand for different special tokens.
        warnings: what the user should know.
    """

    route: Route
    match: VocabMatch
    num_shared: int
    unguided: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def fit_guide(base: ModelInfo, guide: ModelInfo, *, guides_tokens: bool, mapping: str = "refuse") -> Fit:
    """Decide a guide's route.

    Args:
        base: the frozen model.
        guide: a tuned, untuned or value model.
        guides_tokens: whether it must score every next token.
        mapping: `shared-strings` lets a different vocabulary guide tokens.

    Raises:
        UserError: token guidance across different vocabularies, or an EOS that means different things.
    """
    match = compare(base.tokenizer, guide.tokenizer)
    if guide.kind == "classifier":
        return Fit(route="text", match=match, num_shared=0)
    if not match.agrees:
        if not guides_tokens:
            return Fit(route="text", match=match, num_shared=0)
        if mapping == "shared-strings" and guide.kind == "causal":
            return Fit(route="strings", match=match, num_shared=0)
        raise UserError(
            f"{guide.name}: its vocabulary differs from the base's ({match.summary()}); token guidance needs "
            "equal token-to-id maps; use chunk guidance, or vocab_mapping: shared-strings for a pair"
        )
    return _fit_by_ids(base, guide, match, guides_tokens=guides_tokens)


def _fit_by_ids(base: ModelInfo, guide: ModelInfo, match: VocabMatch, *, guides_tokens: bool) -> Fit:
    ids = base.tokenizer.get_vocab()
    differing = {ids[token]: token for token in match.differing_special}
    for eos in base.eos_ids:
        if eos in differing and guides_tokens:
            raise UserError(
                f"{guide.name}: the base's EOS {differing[eos]!r} has another id or is missing there; "
                "token guidance would never end a response; use a guide with the base's special tokens"
            )
    num_shared = min(base.num_token_ids, base.num_outputs)
    if guide.kind != "scalar":
        num_shared = min(num_shared, guide.num_outputs)
    unguided = tuple(sorted(i for i in differing if i < num_shared))
    warnings = (
        (f"{guide.name}: {len(differing)} special tokens differ from the base's and get no guidance",)
        if differing
        else ()
    )
    return Fit(route="ids", match=match, num_shared=num_shared, unguided=unguided, warnings=warnings)


def check_value(info: ModelInfo, *, guides_tokens: bool) -> None:
    """Refuse a value model whose head does not fit its use.

    Raises:
        UserError: token guidance without a vocabulary head, or a head of the wrong size.
    """
    if guides_tokens and info.kind != "vocabulary":
        raise UserError(
            f"{info.name}: explicit token guidance needs a vocabulary head, this is a {info.kind} head; "
            "set token_guidance to none or implicit"
        )
    if info.kind == "vocabulary" and not info.num_token_ids <= info.num_outputs <= info.num_embeddings:
        raise UserError(
            f"{info.name}: its vocabulary head has {info.num_outputs} outputs, but its tokenizer has "
            f"{info.num_token_ids} ids and its embedding {info.num_embeddings}; expected one output per id"
        )
    if info.kind == "classifier" and info.config.num_labels != 1:
        raise UserError(
            f"{info.name}: a reward model needs one output, this classifier has {info.config.num_labels}"
        )
