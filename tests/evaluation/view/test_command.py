"""`ivg view`: what it writes, what it refuses, and that nothing of a trace gets out of its place."""

import json
import re

import pytest

from ivg.__main__ import main
from ivg.evaluation.view.page import FOLDER, PAGE_OPENING, embed
from tests.evaluation.view.traces import search_trace, write_trace

RESULT = {"id": "a", "prompt": "x", "response": "y", "value": 1.0, "num_tokens": 1, "finish_reason": "eos"}
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script> & \u2028"


@pytest.fixture
def trace(tmp_path):
    return write_trace(tmp_path / "t.trace.jsonl", [search_trace(name, max_tokens=10) for name in "abc"])


def refused(capsys, *arguments):
    """Return the one line that a command ends with."""
    with pytest.raises(SystemExit) as left:
        main(["view", *map(str, arguments)])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    return said.err


def blocks(page):
    return [
        json.loads(found) for found in re.findall(r'<script type="application/json"[^>]*>(.*)</script>', page)
    ]


def test_the_page_stands_beside_the_trace_and_may_be_written_again(trace, capsys):
    page = trace.with_name("t.trace.html")
    for expected in (3, 2):
        assert main(["view", str(trace), *(["--limit", "2"] if expected == 2 else [])]) == 0
        assert re.fullmatch(rf"{page}: {expected} responses, \d\.\d\d MB\n", capsys.readouterr().out)
        assert [data["id"] for data in blocks(page.read_text())] == [*"abc"][:expected]
    assert page.read_text().startswith(PAGE_OPENING)


def test_the_page_goes_to_standard_output_or_elsewhere(trace, tmp_path, capsys):
    main(["view", str(trace), "--output", "-"])
    written = capsys.readouterr().out
    main(["view", str(trace), "--output", str(tmp_path / "other.html")])
    assert (tmp_path / "other.html").read_text() == written
    assert not trace.with_name("t.trace.html").exists()


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(trace, capsys):
    main(["view", str(trace), "--output", "-"])
    page = capsys.readouterr().out
    assert set(re.findall(r"\w+://[^\s\"']+", page)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address
    assert "default-src 'none'" in page
    assert not re.findall(r"""<(?:link|img|iframe|base|object)\b|\bsrc=|\bon\w+=["']""", page)
    assert "style=" not in page


def test_no_text_ends_its_block(tmp_path, capsys):
    hostile = search_trace("a", max_tokens=5, prompt=HOSTILE)
    hostile["id"] = HOSTILE
    hostile["chunks"][0]["candidates"][0]["text"] = HOSTILE
    path = write_trace(tmp_path / "<img src=x>.jsonl", [hostile, {"error": HOSTILE}])
    main(["view", str(path), "--output", "-"])
    page = capsys.readouterr().out
    response, error = blocks(page)
    assert response["prompt"] == response["id"] == error["error"] == HOSTILE
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert "\u2028" not in page


def test_embedded_json_is_plain_ascii():
    text = embed({"a": "</script>&\u2028\ud800é"})
    assert text == '{"a":"\\u003c/script\\u003e\\u0026\\u2028\\ud800\\u00e9"}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty; give a trace of ivg-decode with at least one response"),
        (json.dumps(RESULT), "line 1: a result of ivg-decode, not its trace; decode with --trace FILE"),
        ('{"prompt": "x"}', "line 1: not a row of ivg-decode --trace"),
        ("GOOD\n{", "line 2: not JSON"),
        ("GOOD\n\nGOOD", "line 2: not JSON"),
        ("GOOD\n[1]", "line 2: not a row of ivg-decode --trace"),
        ('{"id": "a", "chunks": [{"candidates": []}]}', "line 1: chunk 1: no candidates"),
        (
            f'{{"id": "a", "chunks": [{{"candidates": [{{"row": 0, "value": 1{"0" * 400}}}]}}]}}',
            "line 1: not",
        ),
        ('{"id": "a", "chunks": NaN}', "line 1: not JSON (NaN is no number of JSON)"),
        ("[" * 100_000, "line 1: nested too deep"),
        ("<!DOCTYPE html>", "line 1: not JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path, capsys, content, expected):
    path = tmp_path / "t.jsonl"
    good = json.dumps(search_trace("a", max_tokens=5))
    data = content if isinstance(content, bytes) else content.replace("GOOD", good).encode()
    path.write_bytes(data)
    assert expected in refused(capsys, path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_missing_file_and_a_folder_are_one_line(tmp_path, capsys):
    assert "none: No such file" in refused(capsys, tmp_path / "none")
    assert "no regular file" in refused(capsys, tmp_path)
    assert "no regular file" in refused(capsys, ".")


def test_bad_flags_are_one_line(trace, capsys):
    assert "required: TRACE" in refused(capsys)
    assert "limit is 0; give an integer >= 1" in refused(capsys, trace, "--limit", "0")
    assert "invalid int value" in refused(capsys, trace, "--limit", "x")
    assert "unrecognized arguments: --outptu" in refused(capsys, trace, "--outptu", "x")
    assert "null" in refused(capsys, "a\0b")


def test_a_file_that_is_not_ours_stays(trace, tmp_path, capsys):
    notes = tmp_path / "notes.html"
    notes.write_text("<!DOCTYPE html>mine")
    before = trace.read_bytes()
    assert "ivg view did not write it" in refused(capsys, trace, "--output", notes)
    assert "ivg view did not write it" in refused(capsys, trace, "--output", trace)
    assert "is no regular file" in refused(capsys, trace, "--output", tmp_path)
    assert "its folder does not exist" in refused(capsys, trace, "--output", tmp_path / "no" / "t.html")
    assert notes.read_text() == "<!DOCTYPE html>mine"
    assert trace.read_bytes() == before


def test_the_wheel_holds_what_the_page_is_made_of():
    import tomllib

    with (FOLDER.parents[2] / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["ivg"]
    packed = {path for pattern in patterns for path in FOLDER.parents[1].glob(pattern)}
    assert {path for path in FOLDER.iterdir() if path.suffix in (".jinja", ".css", ".js")} <= packed
