"""Files as editors, other programs and accidents make them: each row is read, or named with its line."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from ivg.config import DatasetConfig
from ivg.errors import UserError
from ivg.models.prompts import check_row, identities, prompt_text
from ivg.run import cli
from ivg.run.input_files import InputRecord, read_input, refuse_bad_records
from tests import tiny
from tests.run.conftest import Folders


def read(tmp_path: Path, content: str | bytes, name: str = "p.jsonl") -> list[InputRecord]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_input(str(path), None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b'\xef\xbb\xbf{"prompt": "ab"}\n{"prompt": "c"}\n'),
        ("p.jsonl", b'{"prompt": "ab"}\r\n\r\n{"prompt": "c"}'),
        ("p.json", b'\xef\xbb\xbf[{"prompt": "ab"}, {"prompt": "c"}]'),
        ("p.txt", b"\xef\xbb\xbfab\r\nc\r\n"),
    ],
)
def test_byte_order_marks_and_carriage_returns_are_no_text(tmp_path: Path, name: str, content: bytes) -> None:
    assert [source.fields for source in read(tmp_path, content, name)] == [{"prompt": "ab"}, {"prompt": "c"}]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"prompt": "\\ud800"}', "field 'prompt' holds half a surrogate pair, which is no character"),
        ('{"prompt": "a", "note": "\\udfff"}', "field 'note' holds half a surrogate pair"),
        ('{"prompt": "a", "score": NaN}', "field 'score' cannot be written as JSON: Out of range float"),
        ('{"prompt": "a", "scores": [1, -Infinity]}', "field 'scores' cannot be written as JSON"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth"),
        ('{"prompt": "a", "n": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"prompt": "a", "id": true}', "id must be a string or an integer, got True"),
        ('{"prompt": "a", "id": 0.5}', "id must be a string or an integer, got 0.5"),
    ],
)
def test_rows_that_could_not_be_written_again(tmp_path: Path, line: str, error: str) -> None:
    rows = read(tmp_path, f'{{"prompt": "fine"}}\n{line}\n')
    assert rows[0].error is None
    assert rows[1].error is not None
    assert rows[1].error.startswith(f"line 2: {error}")
    json.dumps(rows[1].fields, allow_nan=False).encode()  # what is kept of it can be written


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    rows = read(tmp_path, '{"prompt": "a", "id": null}\n{"prompt": "b", "id": null}\n')
    assert [row.error for row in rows] == [None, None]


def test_the_second_of_two_equal_ids_is_bad(tmp_path: Path) -> None:
    rows = read(tmp_path, '{"prompt": "a", "id": 7}\n{"prompt": "b"}\n{"prompt": "c", "id": "7"}\n')
    assert [row.error for row in rows] == [
        None,
        None,
        "line 3: id '7' stands on line 1 already; ids must be unique",
    ]


def test_no_more_than_the_first_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\nbroken\n')
    assert len(read_input(str(path), None, limit=2)) == 2


def test_a_dataset_on_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = {
        "prompt": ["ab", "c"],
        "made": [datetime.datetime(2026, 1, 2, 3), datetime.datetime(2026, 1, 3)],
        "raw": [None, b"\x00"],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert read_input(None, DatasetConfig(name=str(tmp_path / "saved"))) == read_input(
        None, DatasetConfig(name=str(tmp_path))
    )
    DatasetDict(test=Dataset.from_dict(rows)).save_to_disk(tmp_path / "several")
    with pytest.raises(UserError, match="several: has no split 'train'; it has test"):
        read_input(None, DatasetConfig(name=str(tmp_path / "several"), split="train"))
    good, bad = read_input(None, DatasetConfig(name=str(tmp_path / "several")))
    assert good.fields == {"prompt": "ab", "made": "2026-01-02T03:00:00", "raw": None}
    assert (
        bad.error
        == "row 1: field 'raw' cannot be written as JSON: Object of type bytes is not JSON serializable"
    )
    with pytest.raises(UserError, match="dataset d: 1 of 2 rows cannot be used: row 1: field 'raw'"):
        refuse_bad_records([good, bad], "dataset d")


def test_a_template_that_refuses_a_conversation_is_a_bad_row(folders: Folders, tmp_path: Path) -> None:
    """A chat template raises; a format string has no place for turns: neither stops the other rows."""
    tok = tiny.tokenizer(chat=True)
    assert isinstance(tok.chat_template, str)
    tok.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tok.chat_template
    )
    base = tiny.save(tmp_path / "base", tiny.causal(0), tok)
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": text} for role, text in zip(roles, "abc", strict=True)]
    rows = [
        {"prompt": "ab"},
        {"messages": [{"role": "system", "content": "a"}, *turns]},
        {"messages": turns},
    ]
    path, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--max_new_tokens", "3", "--input", str(path), "--output", str(output), "--skip_bad_rows"]
    for model, errors in (
        (base, {1: "refuses the messages: no system role"}),
        (folders.base, {1: "a conversation of 4 messages needs", 2: "a conversation of 3 messages needs"}),
    ):
        assert cli.main(["--base", model, *common, "--overwrite"]) == 0
        written = [json.loads(line) for line in output.read_text().splitlines()]
        assert [i for i, row in enumerate(written) if row["response"] is None] == list(errors)
        for i, error in errors.items():
            assert written[i]["error"].startswith(f"line {i + 1}: ")
            assert error in written[i]["error"]
            assert written[i]["messages"] == rows[i]["messages"]


def test_the_inputs_own_error_does_not_pass_for_ours(folders: Folders, tmp_path: Path) -> None:
    path, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    path.write_text('{"prompt": "a", "error": "of an earlier run", "response": null, "topic": 1}\n')
    assert (
        cli.main(
            ["--base", folders.base, "--max_new_tokens", "3", "--input", str(path), "--output", str(output)]
        )
        == 0
    )
    row = json.loads(output.read_text())
    assert row["response"] is not None
    assert "error" not in row
    assert row["topic"] == 1


def test_alpacas_input_reaches_the_model() -> None:
    rows = [{"instruction": "Translate.", "input": text, "output": ""} for text in ("The cat.", "My bike.")]
    checked = [check_row(row, "row") for row in rows]
    assert [prompt_text(row) for row in checked] == ["Translate.\n\nThe cat.", "Translate.\n\nMy bike."]
    assert len({name.partition("-")[0] for name in identities(checked)}) == 2
    assert prompt_text({"instruction": "Sing.", "input": ""}) == "Sing."


def test_text_parts_are_read() -> None:
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]
    row = check_row({"messages": [{"role": "user", "content": parts}]}, "row")
    assert prompt_text(row) == "Name a colour."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages end with the assistant's turn, so there is nothing to answer",
        ),
        ({"messages": [{"role": "human", "content": "a"}]}, "role 'human' is none of system, developer"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content as a list of text parts"),
        ({"prompt": ["Name a colour.", "Now another."]}, "a list of turns goes into 'messages'"),
        (
            {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
            "expected one of .*; found prompt and messages",
        ),
        (
            {"prompt": "a", "system_prompt": "Be brief."},
            "field 'system_prompt' beside 'prompt' would not reach",
        ),
        (
            {"instruction": "a", "context": "b"},
            "field 'context' beside 'instruction' would not reach the model",
        ),
        ({"instruction": "a", "input": ["b"]}, "input must be a string"),
        (
            {"prompt": "a", "tools": [{"name": "f"}]},
            "field 'tools' beside 'prompt' would not reach the model",
        ),
    ],
)
def test_fields_that_change_the_meaning_are_used_or_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_row(row, "row")


@pytest.mark.parametrize("name", ["sample", "beams", "token_ids", "error", "value"])
def test_a_field_named_like_a_results_own_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", name: 1}) + "\n")
    (row,) = read_input(str(tmp_path / "p.jsonl"), None)
    assert row.error == f"line 1: field {name!r} has the name of a result's own field; rename it"


def test_a_lone_carriage_return_makes_no_second_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"one\r\ntwo\rthree\nfour\n")
    one, two, four = read_input(str(tmp_path / "p.txt"), None)
    assert (one.fields["prompt"], four.fields["prompt"]) == ("one", "four")
    assert str(two.error).startswith("line 2: holds a carriage return")


def test_a_file_of_a_repository_is_read_as_it_is(tmp_path, monkeypatch):
    """As the JSON of repositories whose loading script `datasets` refuses."""
    rows = [{"instruction": "one", "dataset": "selfinstruct"}, {"instruction": "two"}]
    (tmp_path / "eval.json").write_text(json.dumps(rows))
    config = DatasetConfig(name=str(tmp_path), file="eval.json")
    assert [record.fields for record in read_input(None, config)] == rows
    asked = []

    def download(*names, **options):
        asked.append((names, options))
        return str(tmp_path / "eval.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    hub = DatasetConfig(name="somebody/evaluation", file="eval.json", revision="abc")
    assert [record.fields for record in read_input(None, hub, 1)] == rows[:1]
    assert asked == [(("somebody/evaluation", "eval.json"), {"repo_type": "dataset", "revision": "abc"})]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file": "rows.parquet"}, "give a .json or .jsonl file"),
        ({"file": "rows.json", "config": "c"}, "give one of file and config"),
    ],
)
def test_a_file_that_cannot_be_read_as_it_is(fields, message):
    with pytest.raises(UserError, match=message):
        DatasetConfig(name="d", **fields)


def test_a_file_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = DatasetConfig(name="no-such/data", file="x.json")
    with pytest.raises(UserError, match=r"dataset no-such/data: file x\.json cannot be had"):
        read_input(None, config)
