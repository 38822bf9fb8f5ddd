"""Which bytes tokens stand for, by hand, in both ways of spelling them."""

from __future__ import annotations

from ivg.models.token_bytes import encode_inside, token_bytes
from tests.models.tiny import encoder_tokenizer
from tests.models.vocabularies import bytewise, spaced


def test_sentencepiece_spells_spaces_and_lone_bytes() -> None:
    tokenizer = spaced()
    ids = tokenizer.get_vocab()
    found = token_bytes(tokenizer, len(ids) + 2)
    expected = {
        "▁the": b" the",
        "the": b"the",
        "▁": b" ",
        "é": b"\xc3\xa9",
        "<0x0A>": b"\n",
        "<0xE9>": b"\xe9",
        "<s>": None,
        "</s>": None,
    }
    assert {token: found[ids[token]] for token in expected} == expected
    assert found[len(ids) :] == [None, None]  # a padded tail


def test_byte_level_entries_are_bytes_and_added_tokens_are_text() -> None:
    tokenizer = bytewise()
    tokenizer.add_tokens(["é"])  # is there already, as the lone byte E9: an added one is the letter
    tokenizer.add_tokens(["<tool é>"])
    ids = tokenizer.get_vocab()
    found = token_bytes(tokenizer, len(ids))
    expected = {
        "Ġthe": b" the",
        "Ċ": b"\n",
        "Ã©": b"\xc3\xa9",
        "ĠÃ": b" \xc3",
        "<tool é>": "<tool é>".encode(),
    }
    assert {token: found[ids[token]] for token in expected} == expected
    assert found[ids["<|im_end|>"]] is None
    plain = bytewise()
    assert token_bytes(plain, len(plain))[plain.get_vocab()["é"]] == b"\xe9"


def test_word_pieces_are_read_as_they_decode() -> None:
    tokenizer = encoder_tokenizer()
    found = token_bytes(tokenizer, len(tokenizer))
    assert found[tokenizer.get_vocab()["c"]] == b"c" or found[tokenizer.get_vocab()["c"]] == b" c"
    assert found[tokenizer.cls_token_id] is None


def test_texts_inside_another_get_no_leading_space() -> None:
    tokenizer = spaced()
    ids = tokenizer.get_vocab()
    assert encode_inside(tokenizer, ["the", " the", "é"]) == [(ids["the"],), (ids["▁the"],), (ids["é"],)]
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [ids["▁the"]]
