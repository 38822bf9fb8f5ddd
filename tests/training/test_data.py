"""Rows: reading, templates, and bad ones found before training, with counts and first examples."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from ivg.errors import UserError
from ivg.training import adapters, checks, data
from tests import tiny


def _write(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no rows"),
        (['{"a": 1}', "", "{"], "line 3: not valid JSON"),
        (['{"a": 1}', "[1]"], "line 2: expected a JSON object, got list"),
    ],
)
def test_bad_files(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.read_jsonl(_write(tmp_path / "rows.jsonl", *lines))


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        data.read_jsonl(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        data.read_jsonl(tmp_path / "latin.jsonl")


def test_rows_from_a_file_and_from_a_saved_dataset(tmp_path: Path) -> None:
    name = _write(tmp_path / "rows.jsonl", json.dumps({"text": "a"}), json.dumps({"text": "b"}))
    assert data.load_rows(name, None, "train")["text"] == ["a", "b"]
    splits = {"train": datasets.Dataset.from_list([{"text": "c"}])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert data.load_rows(str(tmp_path / "saved"), None, "train")["text"] == ["c"]
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        data.load_rows(str(tmp_path / "saved"), None, "test")


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [PAIR, {**PAIR, "rejected": "a"}],
            r"rows: 1 of 2 rows have chosen equal to rejected \(first: row 2\)",
        ),
        (
            [{**PAIR, "chosen": " "}, PAIR, {**PAIR, "chosen": ""}],
            "2 of 3 rows have an empty chosen .first: row 1, 3",
        ),
        ([{"prompt": "p", "completion": "\n"}], "1 of 1 rows have an empty completion"),
        (
            [
                {"prompt": "p", "completion": "c", "reward": r}
                for r in (1.0, float("nan"), float("inf"), None)
            ],
            r"3 of 4 rows have a reward that is not a finite number \(first: row 2, 3, 4\)",
        ),
    ],
)
def test_bad_rows(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check_rows(datasets.Dataset.from_list(rows), "rows")


def test_conversational_chosen_equal_to_rejected() -> None:
    answer = [{"role": "assistant", "content": "same"}]
    rows = datasets.Dataset.from_list([{"prompt": "p", "chosen": answer, "rejected": answer}])
    with pytest.raises(UserError, match="chosen equal to rejected"):
        checks.check_rows(rows, "rows")


def test_columns_that_are_missing_are_named_beside_those_that_are_there() -> None:
    rows = datasets.Dataset.from_list([{"question": "q", "answer": "a"}])
    with pytest.raises(UserError, match="has columns question, answer; expected prompt, completion or text"):
        checks.check_columns(rows, (checks.COMPLETION, ("text",)), "rows")
    checks.check_columns(rows, (checks.COMPLETION, ("answer",)), "rows")


def test_sequences_beyond_the_context_are_refused_unless_cut() -> None:
    tokenizer, config = tiny.tokenizer(), tiny.gpt2_config(33, n_positions=8)
    # With the EOS that the trainer appends: 8 tokens and 9.
    rows = datasets.Dataset.from_list([{"prompt": "abc", "completion": "d" * n} for n in (4, 5)])
    with pytest.raises(UserError, match=r"1 of 2 rows have more than the model's 8 tokens \(first: row 2\)"):
        checks.check_lengths(rows, "rows", tokenizer, config, None)
    with pytest.raises(UserError, match=r"set max_length \(now 1024\) to at most 8"):
        checks.check_lengths(rows, "rows", tokenizer, config, 1024)
    assert checks.check_lengths(rows, "rows", tokenizer, config, 8) == 1


def test_templates_turn_rows_into_what_decoding_will_feed() -> None:
    rows = datasets.Dataset.from_list([PAIR])
    text = data.apply_template(rows, tiny.tokenizer(), "Q {prompt}!")
    assert text[0] == {"prompt": "Q p!", "chosen": "a", "rejected": "b"}
    # A tokenizer with a chat template uses it by default, as decoding does.
    chat = data.apply_template(rows, tiny.tokenizer(chat=True), None)
    assert chat[0]["prompt"] == [{"role": "user", "content": "p"}]
    assert chat[0]["chosen"] == [{"role": "assistant", "content": "a"}]
    assert data.apply_template(chat, tiny.tokenizer(), "Q {prompt}!")[0] == text[0]


def test_several_turns_need_a_chat_template() -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    rows = datasets.Dataset.from_list([{"prompt": turns, "completion": "c"}])
    with pytest.raises(UserError, match="a prompt of 3 messages needs a chat template"):
        data.apply_template(rows, tiny.tokenizer(), "{prompt}")


def test_adapters_name_what_they_miss() -> None:
    rows = datasets.Dataset.from_list([{"prompt": "p", "responses": ["a", "b"]}])
    with pytest.raises(
        UserError, match=r"adapter imdb_preference expects column 'chosen'; .* prompt, responses"
    ):
        adapters.adapt(rows, "imdb_preference")
    with pytest.raises(UserError, match="unknown adapter 'imdb_preferences'; did you mean 'imdb_preference'"):
        adapters.adapt(rows, "imdb_preferences")
