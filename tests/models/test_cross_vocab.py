"""How a guide reads the tokens of a base that spells text in another way, by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ivg.config import ModelConfig, PairConfig, SearchConfig
from ivg.errors import UserError
from ivg.models.cross_vocab import TokenReadings, guided_share, read_tokens
from ivg.models.plan import inspect_models, plan_guides
from tests import tiny
from tests.models.vocabularies import bytewise, spaced


@cache
def _tokenizers(*, chat: bool = False) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return spaced(chat=chat), bytewise(chat=chat)


def _read(
    base: PreTrainedTokenizerFast, guide: PreTrainedTokenizerFast, *, opens_turn: bool = False
) -> TokenReadings:
    return read_tokens(
        base,
        guide,
        num_ids=len(base) + 1,
        eos_ids=(base.eos_token_id,),
        end_id=guide.eos_token_id,
        opens_turn=opens_turn,
    )


def test_tokens_meet_by_their_bytes() -> None:
    base, guide = _tokenizers()
    ours, theirs = base.get_vocab(), guide.get_vocab()
    found = _read(base, guide).inside
    counterparts = {
        "▁the": "Ġthe",
        "the": "the",
        "▁": "Ġ",
        "é": "Ã©",  # not the entry `é`, which is the lone byte E9
        "<0xE9>": "é",
        "<0x0A>": "Ċ",
        "<0x61>": "a",
        "a": "a",
        "</s>": "<|im_end|>",
    }
    for token, own in counterparts.items():
        assert found.counterparts[ours[token]] == theirs[own], token
        assert found.pieces[ours[token]] == (theirs[own],), token
    assert found.counterparts[ours["▁a"]] is None
    assert found.pieces[ours["▁a"]] == (theirs["Ġ"], theirs["a"])
    assert found.pieces[ours["<s>"]] == found.pieces[len(base)] == ()  # a special token; a padded tail


def test_part_of_a_character_is_read_byte_by_byte() -> None:
    guide, base = _tokenizers()
    ours, theirs = base.get_vocab(), guide.get_vocab()
    found = _read(base, guide).inside
    assert found.counterparts[ours["ĠÃ"]] is None  # a space and half of a letter
    assert found.pieces[ours["ĠÃ"]] == (theirs["▁"], theirs["<0xC3>"])
    assert found.counterparts[ours["Ã©"]] == theirs["é"]
    assert found.counterparts[ours["a"]] == theirs["a"]  # the letter comes before the lone byte 61
    assert found.counterparts[ours["b"]] == theirs["<0x62>"]  # which is all there is


def test_a_turn_opens_without_the_space_that_sentencepiece_writes() -> None:
    base, guide = _tokenizers()
    ours, theirs = base.get_vocab(), guide.get_vocab()
    found = _read(base, guide, opens_turn=True)
    assert found.inside.counterparts[ours["▁the"]] == theirs["Ġthe"]
    assert found.opening.counterparts[ours["▁the"]] == theirs["the"]
    assert found.opening.counterparts[ours["▁"]] is None
    assert found.opening.pieces[ours["▁"]] == ()  # no text yet: the token after it opens the turn
    assert found.opening.counterparts[ours["</s>"]] == theirs["<|im_end|>"]
    turned = _read(guide, base, opens_turn=True)
    assert turned.opening.counterparts[theirs["the"]] == ours["▁the"]
    assert turned.inside.counterparts[theirs["the"]] == ours["the"]


def test_a_guide_that_opens_as_it_goes_on_needs_one_reading() -> None:
    _, guide = _tokenizers()
    found = _read(guide, guide, opens_turn=True)
    assert found.opening is found.inside


def test_the_share_of_running_text_counts_tokens() -> None:
    base, guide = _tokenizers()
    # ▁the ▁a é: one of three, ▁a, has no counterpart.
    assert guided_share(base, _read(base, guide), ["the aé"]) == pytest.approx(2 / 3)
    assert guided_share(base, _read(base, guide), []) is None


def _saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    config = tiny.gpt2_config(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    return tiny.save(folder, GPT2LMHeadModel(config), tokenizer)


def test_a_pair_with_states_is_refused(tmp_path: Path) -> None:
    base = _saved(tmp_path / "base", spaced())
    guide = tiny.save(tmp_path / "guide", tiny.hybrid(1))
    pair = PairConfig(
        tuned=ModelConfig(path=guide), untuned=ModelConfig(path=guide), vocab_mapping="shared-strings"
    )
    with pytest.raises(UserError, match=r"lfm2 keeps recurrent states, whose rows must grow alike"):
        plan_guides(inspect_models(ModelConfig(path=base), [pair]), SearchConfig(token_guidance="implicit"))


def test_a_pair_that_could_guide_little_is_refused(tmp_path: Path) -> None:
    base = _saved(tmp_path / "base", spaced())
    guide = _saved(tmp_path / "guide", tiny.tokenizer("λ"))  # no letter of the text on which it is measured
    pair = PairConfig(
        tuned=ModelConfig(path=guide), untuned=ModelConfig(path=guide), vocab_mapping="shared-strings"
    )
    with pytest.raises(
        UserError, match=r"counterpart for 0% of the base's tokens in running text, and token"
    ):
        plan_guides(inspect_models(ModelConfig(path=base), [pair]), SearchConfig(token_guidance="implicit"))
