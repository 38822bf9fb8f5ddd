"""Rows: reading, templates, and bad ones found before training, with counts and first examples."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from datasets.exceptions import DatasetGenerationError

from ivg.errors import UserError
from ivg.models.rendering import Renderer
from ivg.training import checks, data, dataset_adapters, encoding
from ivg.training.tables import table_of
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


# TRL sets the old key by default.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
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
        ([PAIR, {"chosen": "a", "rejected": "b"}], r"1 of 2 rows have no prompt \(first: row 2\)"),
        ([PAIR, {"prompt": "p", "rejected": "b"}], r"1 of 2 rows have no chosen \(first: row 2\)"),
        ([{"prompt": 3, "completion": "c"}], "1 of 1 rows have a prompt that is neither text nor messages"),
        ([{"prompt": "p", "completion": 3}], "1 of 1 rows have a completion that is neither text nor"),
        ([{"prompt": "p", "completion": []}], "1 of 1 rows have a completion that is neither text nor"),
        (
            [{"prompt": [{"role": "user", "content": c}], "completion": "c"} for c in ("a", None)],
            r"1 of 2 rows have a prompt that is neither text nor messages \(first: row 2\)",
        ),
        ([{"text": "t"}, {"text": None}], r"1 of 2 rows have no text \(first: row 2\)"),
        ([{"text": 3}], "1 of 1 rows have a text that is neither text nor messages"),
        (
            [{"messages": [{"role": "user", "content": "a"}]}, {"messages": None}],
            r"1 of 2 rows have no messages \(first: row 2\)",
        ),
        ([{"messages": []}], "1 of 1 rows have messages without role and content"),
        ([{"messages": [{"role": "user", "content": None}]}], "1 of 1 rows have messages without role"),
    ],
)
def test_bad_rows(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check_rows(table_of(rows, "rows"), "rows")


def test_columns_that_training_does_not_read_may_hold_anything() -> None:
    checks.check_rows(table_of([{**PAIR, "text": None, "messages": [], "id": 3}], "rows"), "rows")


def test_messages_that_call_a_tool_need_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    checks.check_rows(table_of([{"messages": [{"role": "user", "content": "a"}, call]}], "rows"), "rows")


def test_messages_need_a_chat_template() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = datasets.Dataset.from_list([{"messages": turns}])
    with pytest.raises(UserError, match=r"rows has messages, but the tokenizer .* has no chat template"):
        checks.check_chat(rows, "rows", tiny.tokenizer())
    checks.check_chat(rows, "rows", tiny.tokenizer(chat=True))


def test_a_chat_template_that_refuses_messages() -> None:
    tokenizer, config = tiny.tokenizer(chat=True), tiny.gpt2_config(33)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    rows = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(UserError, match=r"chat template of .* refuses the messages: roles must alternate"):
        checks.check_lengths(rows, "rows", tokenizer, config, None)


def test_a_saved_folder_that_is_damaged(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "c"}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"dataset .*saved: "):
        data.load_rows(str(tmp_path / "saved"), None, "train")


def test_hub_data_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DatasetGenerationError("An error occurred while generating the dataset")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="dataset some/name: An error occurred"):
        data.load_rows("some/name", None, "train")


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
    rows = datasets.Dataset.from_list([{"prompt": "q", "text": "a"}])
    with pytest.raises(UserError, match="has columns prompt, text; expected prompt, completion;"):
        checks.check_columns(rows, (checks.COMPLETION, ("text",)), "rows")


def test_sequences_beyond_the_context_are_refused_unless_cut() -> None:
    tokenizer, config = tiny.tokenizer(), tiny.gpt2_config(33, n_positions=8)
    # With the EOS that the trainer appends: 8 tokens and 9.
    rows = datasets.Dataset.from_list([{"prompt": "abc", "completion": "d" * n} for n in (4, 5)])
    rows = encoding.encode(rows, "rows", Renderer(tokenizer, None), trl.SFTConfig(report_to=[], bf16=False))
    with pytest.raises(UserError, match=r"1 of 2 rows have more than the model's 8 tokens \(first: row 2\)"):
        checks.check_lengths(rows, "rows", tokenizer, config, None)
    with pytest.raises(UserError, match=r"set max_length \(now 1024\) to at most 8"):
        checks.check_lengths(rows, "rows", tokenizer, config, 1024)
    assert checks.check_lengths(rows, "rows", tokenizer, config, 8) == (1, 0)
    # Of three tokens the prompt leaves nothing of the response.
    assert checks.check_lengths(rows, "rows", tokenizer, config, 3) == (2, 2)
    assert checks.check_lengths(rows, "rows", tokenizer, config, 4) == (2, 0)


def test_templates_turn_rows_into_what_decoding_will_feed() -> None:
    training, tokenizer = trl.DPOConfig(report_to=[], bf16=False), tiny.tokenizer()
    rows = datasets.Dataset.from_list([PAIR])
    text = encoding.encode(rows, "rows", Renderer(tokenizer, "q {prompt}!"), training)
    assert tokenizer.decode(text[0]["prompt_ids"]) == "q p!"
    assert tokenizer.decode(text[0]["chosen_ids"]) == "a<eos>"
    assert tokenizer.decode(text[0]["rejected_ids"]) == "b<eos>"
    # A tokenizer with a chat template uses it by default, as decoding does.
    chat = encoding.encode(rows, "rows", Renderer(tiny.tokenizer(chat=True), None), training)
    assert tokenizer.decode(chat[0]["prompt_ids"]) == "u.p a."
    turns = {"prompt": [{"role": "user", "content": "p"}], "chosen": [{"role": "assistant", "content": "a"}]}
    rows = datasets.Dataset.from_list([{**turns, "rejected": [{"role": "assistant", "content": "b"}]}])
    assert encoding.encode(rows, "rows", Renderer(tokenizer, "q {prompt}!"), training)[0] == text[0]


def test_several_turns_need_a_chat_template() -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    rows = datasets.Dataset.from_list([{"prompt": turns, "completion": "c"}])
    with pytest.raises(UserError, match="rows row 1: a conversation of 3 messages needs a chat template"):
        encoding.encode(
            rows, "rows", Renderer(tiny.tokenizer(), "{prompt}"), trl.SFTConfig(report_to=[], bf16=False)
        )


def test_adapters_name_what_they_miss() -> None:
    rows = datasets.Dataset.from_list([{"prompt": "p", "responses": ["a", "b"]}])
    with pytest.raises(
        UserError, match=r"adapter imdb_preference expects column 'chosen'; .* prompt, responses"
    ):
        dataset_adapters.adapt(rows, "imdb_preference")
    with pytest.raises(UserError, match="unknown adapter 'imdb_preferences'; did you mean 'imdb_preference'"):
        dataset_adapters.adapt(rows, "imdb_preferences")
