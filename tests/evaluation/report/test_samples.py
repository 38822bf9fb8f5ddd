import json

import pytest

from ivg.errors import UserError
from ivg.evaluation.report.page import html, markdown
from ivg.evaluation.report.samples import read_samples
from ivg.evaluation.report.sections import Section


def candidate(text, value, kept):
    return {"text": text, "value": value, "kept": kept, "finished": False}


@pytest.fixture
def folder(tmp_path):
    rows = {
        "ivg": [{"id": "a", "prompt": "Say <b>", "response": "good & new", "value": 1.5, "num_tokens": 2}],
        "base": [{"id": i, "prompt": "Say <b>", "response": f"from {i}"} for i in ("z", "a")],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    chunks = [
        [
            candidate("bad", -1.0, None), candidate("good", 1.5, 1), candidate("fine", 1.0, None),
            candidate("best", 1.5, 0),
        ]
    ]  # fmt: skip
    trace = {
        "id": "a", "sample": 0, "tokens": ["good", " new"], "token_logratios": [2.0, -1.0],
        "chunks": [{"candidates": c} for c in chunks],
    }  # fmt: skip
    (tmp_path / "ivg.trace.jsonl").write_text(json.dumps(trace) + "\n")
    return tmp_path


def test_samples_meet_by_prompt_and_put_the_base_first(folder):
    (sample,) = read_samples(folder, 5)  # one prompt is in both files
    assert sample.prompt == "Say <b>"
    assert [(a.method, a.text) for a in sample.answers] == [("base", "from a"), ("ivg", "good & new")]
    base, ivg = sample.answers
    assert base.boundaries == base.tokens == []
    ((kept, dropped),) = ivg.boundaries
    assert [c["text"] for c in kept] == ["best", "good"]  # in the order in which they were kept
    assert [c["text"] for c in dropped] == ["fine", "bad"]  # by value
    assert [t["strength"] for t in ivg.tokens] == [1.0, -0.5]
    assert ivg.largest_ratio == 2.0
    assert sample.traced == [ivg]


def test_what_an_alpacaeval_run_keeps_is_no_method(tmp_path):
    (tmp_path / "judge_answers.jsonl").write_text('{"key": "k", "answer": {}}\n')
    (tmp_path / "instructions.jsonl").write_text('{"instruction": "Say it."}\n')
    assert read_samples(tmp_path, 5) == []


def test_the_page_strikes_out_what_was_dropped_and_escapes_text(folder):
    page = html("t", [Section("Samples", samples=read_samples(folder, 5))])
    assert "Say &lt;b&gt;" in page
    assert "good &amp; new" in page
    assert page.count('class="candidate kept"') == 2
    assert page.count('class="candidate dropped"') == 2
    assert "rgba(0, 114, 178, 0.60)" in page  # the tuned model's favourite, in blue
    assert "rgba(213, 94, 0, 0.30)" in page


def test_markdown_names_the_best_that_was_dropped(folder):
    text = markdown("t", [Section("Samples", samples=read_samples(folder, 5))], folder)
    assert "boundary 1: kept +1.500 `best`, dropped 2, the best +1.000 `fine`" in text


def test_a_broken_trace_is_refused_with_its_line(folder):
    (folder / "ivg.trace.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1: not a row of ivg-decode --trace"):
        read_samples(folder, 5)


def test_the_trace_of_a_bad_record_is_passed_over(folder):
    """`ivg-decode --skip_bad_rows` writes such a line where it could not decode."""
    path = folder / "ivg.trace.jsonl"
    path.write_text('{"error": "row 1: too long"}\n' + path.read_text())
    (sample,) = read_samples(folder, 5)
    assert [answer.trace is None for answer in sample.answers] == [True, False]


def test_an_empty_folder_has_no_samples(tmp_path):
    assert read_samples(tmp_path, 3) == []


def test_what_models_wrote_is_shown_and_does_nothing(tmp_path):
    """No HTML in Markdown, no terminal escapes in either page."""
    text = "<script>x</script> ![x](http://a) \x1b[2J"
    rows = [{"id": "a", "prompt": f"{text} [/b]", "response": text, "value": 1}]
    (tmp_path / "<b>$x^{$.jsonl").write_text(json.dumps(rows[0]) + "\n")
    sections = [Section("Samples <i>", samples=read_samples(tmp_path, 5))]
    page, plain = html("<title>", sections), markdown("<title>", sections, tmp_path)
    assert r"\<script>x\</script> ![x]\(http://a) \x1b[2J" in plain
    assert r"**\<b>$x^{$**" in plain
    assert "&lt;script&gt;" in page
    for written in (page, plain):
        assert r"\x1b[2J" in written
        assert "\x1b" not in written
        assert "<script" not in written.replace(r"\<script", "")


@pytest.mark.parametrize(
    "change",
    [
        {"token_logratios": ["x", 1.0]},
        {"tokens": ["one"]},
        {"tokens": [1, 2]},
        {"chunks": 5},
        {"chunks": [{"candidates": [{"text": "x", "value": "high", "kept": 0, "finished": False}]}]},
        {"chunks": [{"candidates": [{"text": "x", "value": 1.0, "kept": "first", "finished": False}]}]},
        {"id": None},
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(folder, change):
    path = folder / "ivg.trace.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    with pytest.raises(UserError, match="line 1: not a row of ivg-decode --trace"):
        read_samples(folder, 5)
