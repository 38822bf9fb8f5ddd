"""Each adapter on rows in its dataset's schema; the schemas themselves are unverified."""

import re
from typing import Any

import datasets
import pytest

from ivg.errors import UserError
from ivg.training.dataset_adapters import ADAPTERS, adapt


def _adapt(name: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(adapt(datasets.Dataset.from_list(list(rows)), name))


def _turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def test_imdb_preference_takes_the_better_index() -> None:
    rows = [{"prompt": "p", "responses": ["x", "y"], "chosen": i} for i in (0, 1)]
    assert _adapt("imdb_preference", *rows) == [
        {"prompt": "p", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "y", "rejected": "x"},
    ]


def test_summaries_lose_the_words_that_the_template_adds() -> None:
    row = {"prompt": "POST: p\n", "chosen": "TL;DR: good", "rejected": " TL;DR:  bad"}
    same = {"prompt": "POST: q\n", "chosen": "TL;DR: same", "rejected": "same"}
    pairs = _adapt("summarize_comparisons", row, same)
    assert pairs == [{"prompt": "POST: p\n", "chosen": "good", "rejected": "bad"}]
    assert _adapt("summarize_sft", row) == [{"prompt": "POST: p\n", "completion": "good"}]


def test_ultrafeedback_splits_the_last_answer_from_its_conversation() -> None:
    row = {"prompt": "q", "chosen": _turns("q", "good"), "rejected": _turns("q", "bad")}
    same = {"prompt": "q", "chosen": _turns("q", "good"), "rejected": _turns("q", "good")}
    empty = {"prompt": "q", "chosen": _turns("q", ""), "rejected": _turns("q", "bad")}
    question, good, bad = _turns("q"), _turns("q", "good")[1:], _turns("q", "bad")[1:]
    pairs = _adapt("ultrafeedback_pairs", row, same, empty)
    assert pairs == [{"prompt": question, "chosen": good, "rejected": bad}]
    assert _adapt("ultrafeedback_sft", row, empty) == [{"prompt": question, "completion": good}]
    assert _adapt("ultrafeedback_prompts", row) == [{"prompt": question}]


def test_ultrafeedback_rewards_gives_two_rows_each() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "", "chosen_reward": 2.0, "rejected_reward": -1.0}
    messages = {**row, "chosen": _turns("q", "fine"), "rejected": _turns("q", "bad")}
    assert _adapt("ultrafeedback_rewards", row) == [{"prompt": "q", "completion": "good", "reward": 2.0}]
    assert [r["completion"] for r in _adapt("ultrafeedback_rewards", messages)] == ["fine", "bad"]


def test_ultrafeedback_scores_gives_a_row_for_each_scored_answer() -> None:
    completions = [
        {"model": "a", "response": "good", "overall_score": 7.5},
        {"model": "b", "response": " ", "overall_score": 2.0},
        {"model": "c", "response": "bad", "overall_score": 1},
        {"model": "d", "response": "unread", "overall_score": None},
    ]
    assert _adapt("ultrafeedback_scores", {"instruction": "q", "completions": completions}) == [
        {"prompt": "q", "completion": "good", "reward": 7.5},
        {"prompt": "q", "completion": "bad", "reward": 1.0},
    ]


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_another_schema_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"adapter {name} expects column '\w+'; the dataset has text"):
        _adapt(name, {"text": "x"})


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "imdb_preference",
            {"prompt": "p", "responses": ["x", "y"], "chosen": 2},
            "row 2: chosen is 2 and there are 2 responses; expected 0 or 1, and two",
        ),
        (
            "imdb_preference",
            {"prompt": "p", "responses": ["x", "y", "z"], "chosen": 1},
            "row 2: chosen is 1 and there are 3 responses",
        ),
        (
            "imdb_preference",
            {"prompt": "p", "responses": None, "chosen": 1},
            r"cannot read row 2 \(.*\); it expects prompt, responses, chosen = index of the better one",
        ),
        ("summarize_comparisons", {"prompt": "p", "chosen": None, "rejected": "b"}, "cannot read row 2"),
        ("ultrafeedback_pairs", {"chosen": [], "rejected": _turns("q", "bad")}, "cannot read row 2"),
        (
            "ultrafeedback_rewards",
            {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_reward": None, "rejected_reward": 1.0},
            "cannot read row 2",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named(name: str, row: dict[str, Any], message: str) -> None:
    good = {
        "imdb_preference": {"prompt": "p", "responses": ["x", "y"], "chosen": 0},
        "summarize_comparisons": {"prompt": "p", "chosen": "a", "rejected": "b"},
        "ultrafeedback_pairs": {"chosen": _turns("q", "good"), "rejected": _turns("q", "bad")},
        "ultrafeedback_rewards": {**row, "chosen_reward": 1.0},
    }[name]
    with pytest.raises(UserError, match=f"adapter {name},? {message}"):
        _adapt(name, good, row)


def test_rows_left_out_are_counted_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [_turns("q", answer) for answer in ("good", "same", "", "same")]
    rejected = [_turns("q", answer) for answer in ("bad", "same", "bad", "same")]
    _adapt(
        "ultrafeedback_pairs", *({"chosen": c, "rejected": r} for c, r in zip(chosen, rejected, strict=True))
    )
    line = capsys.readouterr().err
    assert "adapter ultrafeedback_pairs left out 3 of 4 rows: 2 with equal responses" in line
    assert "1 with an empty response" in line
    _adapt("ultrafeedback_sft", {"chosen": chosen[0]})
    assert capsys.readouterr() == ("", "")


def test_a_dataset_of_which_nothing_is_left() -> None:
    row = {"prompt": "p", "chosen": "same", "rejected": "same"}
    with pytest.raises(UserError, match="summarize_comparisons left none of the dataset's 1 rows"):
        _adapt("summarize_comparisons", row)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_each_names_its_source_and_says_that_nobody_has_run_it(name: str) -> None:
    documentation = ADAPTERS[name].__doc__ or ""
    assert re.search(r"`\w+/\w+`.*\(unverified\)", documentation)
