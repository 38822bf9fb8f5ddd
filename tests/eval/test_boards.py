"""Other boards' files, read back as the boards' own scripts read them."""

import json

import pandas as pd
import pytest

from tests.eval import scripts

boards = scripts.load("boards")

TEXT = "# One\n## Two\n* a\n- b\n1. c\n**bold** and __bold__\n```\n# no header\n* no item\n```\n"
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorten it."]},
    {"question_id": 82, "category": "math", "turns": ["1+1?", "And 2+2?"]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_arena_hard(tmp_path):
    rows = [
        {"uid": "a1", "category": "hard_prompt", "prompt": "Why?", "response": TEXT, "num_tokens": 40},
        {
            "uid": "b2",
            "category": "creative_writing",
            "prompt": "A tale.",
            "response": "Once.",
            "num_tokens": 2,
        },
    ]
    argv = ["--board", "arena-hard", "--first", write(tmp_path / "decoded.jsonl", rows), "--name", "mine"]
    boards.main([*argv, "--own_token_counts", "--output", str(tmp_path / "out")])
    first, second = read(tmp_path / "out" / "model_answer" / "mine.jsonl")
    assert (first["uid"], first["model"], second["uid"]) == ("a1", "mine", "b2")
    # As the board's add_markdown_info.py and its judgment script take it.
    assert first["messages"][-1]["content"]["answer"] == TEXT
    assert first["messages"][0] == {"role": "user", "content": "Why?"}
    assert first["metadata"] == {
        "token_len": 40,
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 1, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }


def test_mt_bench_turn_by_turn(tmp_path):
    out = tmp_path / "out"
    argv = [
        "--board",
        "mt-bench",
        "--questions",
        write(tmp_path / "q.jsonl", QUESTIONS),
        "--output",
        str(out),
    ]
    boards.main(argv)
    prompts = read(out / "turn_1_prompts.jsonl")
    assert [p["messages"] for p in prompts] == [
        [{"role": "user", "content": question["turns"][0]}] for question in QUESTIONS
    ]
    first = [{**p, "response": f"first {p['id']}"} for p in prompts]
    argv += ["--first", write(tmp_path / "turn_1.jsonl", first[::-1])]  # in any order
    boards.main(argv)
    prompts = read(out / "turn_2_prompts.jsonl")
    assert [message["content"] for message in prompts[1]["messages"]] == ["1+1?", "first 82", "And 2+2?"]
    second = [{**p, "response": f"second {p['id']}"} for p in prompts]
    boards.main([*argv, "--second", write(tmp_path / "turn_2.jsonl", second), "--name", "mine"])
    answers = {row["question_id"]: row for row in read(out / "model_answer" / "mine.jsonl")}
    assert answers[82]["choices"][0]["turns"] == ["first 82", "second 82"]
    assert answers[81]["model_id"] == "mine"


INSTRUCTIONS = [
    {"instruction_index": 10, "instruction": 'Say "hi",\nthen stop.'},
    {"instruction_index": 9, "instruction": "null"},
    {"instruction_index": 2, "instruction": "Write nothing."},
]


def judge_arena(tmp_path, instructions=INSTRUCTIONS):
    table = pd.DataFrame(instructions)
    table.to_csv(tmp_path / "alpaca-eval.csv", index=False)  # as JudgeArena writes its own
    return ["--board", "judgearena", "--questions", str(tmp_path / "alpaca-eval.csv")]


def read_as_judge_arena(path):
    """Do what its `evaluate_completions` does with a path."""
    assert path.name.endswith(".parquet")
    table = pd.read_parquet(path).set_index("instruction_index").sort_index()
    table.loc[:, "output"] = table.loc[:, "output"].fillna("")
    return table.loc[:, "output"]


@pytest.mark.parametrize("names", [(10, 9, 2), ("c", "b", "a")])
def test_judge_arena(tmp_path, names):
    rows = [{**row, "instruction_index": name} for row, name in zip(INSTRUCTIONS, names, strict=True)]
    out = tmp_path / "out"
    argv = [*judge_arena(tmp_path, rows), "--output", str(out)]
    boards.main(argv)
    prompts = read(out / "judgearena_prompts.jsonl")
    assert prompts == [{"id": str(row["instruction_index"]), **row} for row in rows]
    texts = dict(zip(names, ["hi\r\n", "None", ""], strict=True))
    answered = [{**row, "response": texts[row["instruction_index"]]} for row in prompts[::-1]]
    boards.main([*argv, "--first", write(tmp_path / "answers.jsonl", answered), "--name", "mine"])
    found = read_as_judge_arena(out / "judgearena" / "mine.parquet")
    # The same index as that of its own instructions, or it refuses the comparison.
    own = pd.read_csv(tmp_path / "alpaca-eval.csv").set_index("instruction_index").sort_index()
    assert found.index.tolist() == own.index.tolist()
    assert found.to_dict() == texts


def test_bad_files_for_judge_arena_are_one_line(tmp_path, capsys):
    argv = [*judge_arena(tmp_path), "--output", str(tmp_path / "out")]
    good = [{**row, "response": "r"} for row in INSTRUCTIONS]
    answers = {
        "twice": [good[0], *good],
        "half": good[:2],
        "odd": [*good, {**good[0], "instruction_index": 77}],
        "other": [{**good[0], "instruction": "Say nothing."}, *good[1:]],
        "none": [{"prompt": "p", "response": "r"}],
    }
    for name, message in {
        "twice": "instruction_index 10 occurs 2 times",
        "half": "1 of 3 instructions are missing, such as 2; decode them all",
        "odd": "instruction 77 is not among the board's",
        "other": "instruction 10 has another text than the board's",
        "none": "row 1: no instruction_index; decode the prompts that were written",
    }.items():
        first = write(tmp_path / f"{name}.jsonl", answers[name])
        assert message in scripts.refused(capsys, boards.main, [*argv, "--first", first, "--name", "m"])
    tables = {
        "instruction_index,instruction\n1,a\n1,b\n": "instruction_index 1 occurs 2 times",
        "instruction_index,instruction\n1,a\n,b\n": "row 2: an empty cell, or no text",
        "instruction_index,instruction\n1.5,a\n": "row 1: an empty cell, or no text",
        "instruction_index,instruction\n1,2\n": "row 1: an empty cell, or no text",
        "instruction_index,instruction\n": "no rows; give JudgeArena's",
        "index,instruction\n1,a\n": "no column 'instruction_index'",
        '"': "not a CSV table; give JudgeArena's",
        "": "not a CSV table; give JudgeArena's",
    }
    for text, message in tables.items():
        (tmp_path / "alpaca-eval.csv").write_text(text)
        assert message in scripts.refused(capsys, boards.main, argv)
    for flags, message in {
        (
            "--second",
            "x.jsonl",
            "--first",
            "x.jsonl",
        ): "judgearena takes one decoded file; leave out --second",
        ("--own_token_counts",): "judgearena counts no tokens; leave out --own_token_counts",
        ("--first", "x.jsonl", "--name", ".."): "name '..' cannot name a file",
    }.items():
        assert message in scripts.refused(capsys, boards.main, [*argv, *flags])
    assert "judgearena needs --questions" in scripts.refused(
        capsys, boards.main, ["--board", "judgearena", "--output", str(tmp_path / "out")]
    )


def test_bad_files_are_one_line(tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    row = {"uid": "a", "prompt": "p", "response": "r", "num_tokens": 1}
    one = {"question_id": 81, "messages": [{"role": "user", "content": "Write."}], "response": "x"}
    two = {**one, "question_id": 82}
    other = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": "else"}]
    other.append({"role": "user", "content": "Shorten it."})
    lines = {
        "twice": [row, row],
        "no_uid": [{"prompt": "p", "response": "r", "num_tokens": 1}],
        "half": [one],
        "both": [one, two],
        "other": [{**one, "messages": other}, two],
    }
    files = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in lines.items()}
    bench, arena = ["--board", "mt-bench", "--questions", questions], ["--board", "arena-hard", "--name", "m"]
    arena.append("--own_token_counts")
    for argv, message in [
        (["--board", "chess"], "board is 'chess'; give one of arena-hard, judgearena, mt-bench"),
        ([*arena, "--first", files["twice"]], "uid 'a' occurs 2 times"),
        ([*arena, "--first", files["no_uid"]], "row 1: no text 'uid'"),
        (arena, "arena-hard takes one decoded file"),
        ([*arena, "--first", files["half"], "--name", "../m"], "name '../m' cannot name a file"),
        (["--board", "mt-bench"], "mt-bench needs --questions"),
        ([*bench, "--first", files["half"]], "1 of 2 questions are missing, such as 82"),
        (
            [*bench, "--first", files["both"], "--second", files["other"], "--name", "m"],
            "question 81 does not go on from the answer",
        ),
        ([*bench, "--first", files["twice"]], "a row has no question_id"),
        (["--board", "mt-bench", "--questions", files["half"]], "line 1: expected question_id and 2 turns"),
    ]:
        assert message in scripts.refused(capsys, boards.main, [*argv, *out])
