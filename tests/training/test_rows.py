"""Prompts are told apart from responses: nothing of the user's is trained as the answer."""

from __future__ import annotations

from typing import Any

import pytest

from ivg.errors import UserError
from ivg.training import checks
from ivg.training.rows import separate_prompts
from ivg.training.tables import table_of


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _separate(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(separate_prompts(table_of(rows, "rows"), "rows"))


RAW = [  # the raw form of UltraFeedback binarized
    {
        "prompt": f"Name a colour, number {i}.",
        "chosen": [_user(f"Name a colour, number {i}."), _answer("Blue.")],
        "rejected": [_user(f"Name a colour, number {i}."), _answer("No.")],
        "messages": [_user(f"Name a colour, number {i}."), _answer("Blue.")],
    }
    for i in range(3)
]


def test_a_prompt_that_both_answers_repeat_is_no_part_of_them() -> None:
    for i, row in enumerate(_separate(*RAW)):
        assert row["prompt"] == [_user(f"Name a colour, number {i}.")]
        assert (row["chosen"], row["rejected"]) == ([_answer("Blue.")], [_answer("No.")])
    system = {"role": "system", "content": "Be brief."}
    longer = {key: [system, *RAW[0][key]] for key in ("chosen", "rejected")}
    (row,) = _separate({"prompt": RAW[0]["prompt"], **longer})
    assert row["prompt"] == [system, _user(RAW[0]["prompt"])]
    (row,) = _separate({"prompt": [_user("q")], "completion": [_user("q"), _answer("a")], "reward": 1.0})
    assert (row["prompt"], row["completion"]) == ([_user("q")], [_answer("a")])


def test_what_two_conversations_share_becomes_the_prompt() -> None:
    rows = [{key: row[key] for key in ("chosen", "rejected")} for row in RAW]
    assert [row["prompt"] for row in _separate(*rows)] == [[row["chosen"][0]] for row in RAW]
    assert [row["chosen"] for row in _separate(*rows)] == [[_answer("Blue.")]] * 3


def test_what_two_texts_share_becomes_the_prompt() -> None:
    """HH-RLHF's form; as with TRL, the space before the answers is theirs."""
    before = "\n\nHuman: Name a colour.\n\nAssistant:"
    (row,) = _separate({"chosen": f"{before} Blue.", "rejected": f"{before} No."})
    assert (row["prompt"], row["chosen"], row["rejected"]) == (before, " Blue.", " No.")
    # Never in the middle of a word.
    (row,) = _separate({"chosen": f"{before} Blue.", "rejected": f"{before} Black."})
    assert (row["prompt"], row["chosen"], row["rejected"]) == (before, " Blue.", " Black.")


def test_texts_lose_the_prompt_where_every_row_repeats_it() -> None:
    rows = [{"prompt": p, "completion": f"{p} answer", "reward": 1.0} for p in ("First?", "Second?")]
    assert [row["completion"] for row in _separate(*rows)] == [" answer"] * 2
    echo = {"prompt": "Why", "completion": "Because.", "reward": 0.0}
    assert _separate(rows[0], echo)[0]["completion"] == "First? answer"  # one echo is an answer of its own


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "something else", **{key: RAW[0][key] for key in ("chosen", "rejected")}},
            r"1 of 1 rows have responses whose earlier turns are not the prompt .*ultrafeedback_pairs",
        ),
        (
            {**RAW[0], "rejected": [_user("another question"), _answer("No.")]},
            "responses whose earlier turns are not the prompt",
        ),
        (
            {"chosen": RAW[0]["chosen"], "rejected": [_user("another"), _answer("No.")]},
            "responses whose earlier turns are not the prompt",
        ),
        (
            {"prompt": "q", "chosen": [_user("a")], "rejected": [_user("b")]},
            "a response that is not one turn of the assistant",
        ),
        (
            {"prompt": [_user("q"), _answer("a")], "completion": "b"},
            "a prompt that ends with the assistant's turn",
        ),
        (
            {"prompt": [{"role": "human", "content": "q"}], "completion": "b"},
            "a role other than system, developer, user, assistant, tool",
        ),
        (
            {"prompt": "q", "completion": "b", "system_prompt": "Be brief."},
            "rows row 1: field 'system_prompt' beside 'prompt' would not reach the model",
        ),
    ],
)
def test_what_cannot_be_told_apart_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check_rows(separate_prompts(table_of([row], "rows"), "rows"), "rows")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]
    (row,) = _separate({"prompt": [{"role": "user", "content": parts}], "completion": "Blue."})
    assert row["prompt"] == [_user("Name a colour.")]
