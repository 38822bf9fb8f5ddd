import json

import pytest

from ivg.errors import UserError
from ivg.evaluation.measures.decoded import check_same_prompts, read_decoded


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_samples_of_one_prompt_share_its_id(tmp_path):
    rows = [{"prompt": p, "response": "r", "sample": s} for p in ("x", "y", "x") for s in (0, 1)]
    ids = read_decoded("m", write(tmp_path / "m.jsonl", rows)).ids
    assert ids[0] == ids[1]
    assert ids[4] == ids[5]
    assert len(set(ids)) == 3  # the prompt that occurs twice is two prompts


def test_explicit_ids_name_the_rows(tmp_path):
    rows = [{"id": 7, "prompt": "x", "response": ""}, {"id": "b", "instruction": "y", "response": "r"}]
    decoded = read_decoded("m", write(tmp_path / "m.jsonl", rows))
    assert decoded.ids == ["7", "b"]
    assert decoded.responses == ["", "r"]


def test_order_does_not_matter_to_the_comparison(tmp_path):
    rows = [{"prompt": p, "response": "r"} for p in "xyz"]
    one = read_decoded("one", write(tmp_path / "1.jsonl", rows))
    two = read_decoded("two", write(tmp_path / "2.jsonl", rows[::-1]))
    check_same_prompts([one, two])
    assert one.ids == two.ids[::-1]


def test_files_with_different_prompts_are_refused(tmp_path):
    one = read_decoded("one", write(tmp_path / "1.jsonl", [{"id": "a", "prompt": "x", "response": "r"}]))
    rows = [{"id": i, "prompt": "x", "response": "r"} for i in ("a", "b")]
    two = read_decoded("two", write(tmp_path / "2.jsonl", rows))
    with pytest.raises(UserError, match="one and two hold different prompts: 1 are in one only, such as 'b'"):
        check_same_prompts([one, two])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ('{"prompt": "x", "response": "r"}\n{"prompt"', "line 2: not JSON"),
        ('{"prompt": "x"}\n', "line 1: expected a string 'response', found prompt"),
        ('{"response": "r"}\n', "line 1: expected one of prompt, messages, instruction; found response"),
        (
            '{"prompt": "x", "response": "r", "sample": "two"}\n',
            "line 1: sample is 'two'; expected an integer",
        ),
        ('{"prompt": "x", "response": "r", "num_tokens": null}\n', "line 1: num_tokens is None"),
        ('{"prompt": "x", "response": "r", "token_ids": ["a"]}\n', r"line 1: token_ids is \['a'\]"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_decoded("bad", path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; give a readable JSONL file"):
        read_decoded("m", tmp_path / "absent.jsonl")


def test_line_separators_inside_a_response_do_not_part_rows(tmp_path):
    rows = [{"prompt": "a", "response": "one\u2028two\x85three\x0bfour"}, {"prompt": "b", "response": "x"}]
    path = tmp_path / "decoded.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_decoded("mine", path).responses == [row["response"] for row in rows]
