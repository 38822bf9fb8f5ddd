"""Which candidate stands where, and which rows are no search."""

import pytest

from ivg.errors import UserError
from ivg.evaluation.view.search_tree import response_data
from tests.evaluation.view.traces import search_trace


def candidate(row, value, kept=None, parent=None, **more):
    return {
        "row": row,
        "parent": parent,
        "text": f"t{row}",
        "value": value,
        "kept": kept,
        "finished": False,
    } | more


def trace(*chunks, **more):
    row = {"id": "a", "sample": 0, "tokens": [], "token_logratios": []}
    return {**row, "chunks": [{"candidates": list(candidates)} for candidates in chunks], **more}


def test_candidates_stand_by_value_and_among_equals_by_row():
    first = [candidate(0, 1.0), candidate(1, 2.0, kept=1), candidate(2, 3.0, kept=0), candidate(3, 2.0)]
    data = response_data(trace(first), "here")
    assert [(c["row"], c["kept"]) for c in data["chunks"][0]] == [(2, 0), (1, 1), (3, None), (0, None)]


def test_every_search_is_taken_and_keeps_its_texts():
    row = search_trace("p", 1, num_beams=2, num_successors=3)
    data = response_data(row, "here")
    assert len(data["chunks"]) == len(row["chunks"]) > 2
    for shown, chunk in zip(data["chunks"], row["chunks"], strict=True):
        assert {c["row"]: c["text"] for c in shown} == {c["row"]: c["text"] for c in chunk["candidates"]}
        assert all("".join(c["tokens"]) == c["text"] for c in shown if "tokens" in c)
    assert data["prompt"] == "Say what you thought of the film."


def test_what_guidance_added_is_rounded_and_left_out_where_it_is_nothing():
    guided = candidate(0, 1.0, 0, tokens=["a", "b"], token_logratios=[0.123456, -2.0])
    row = trace([guided], tokens=["a"], token_logratios=[0.0])
    data = response_data(row, "here")
    assert data["chunks"][0][0]["ratios"] == [0.1235, -2.0]
    assert data["chunks"][0][0]["tokens"] == ["a", "b"]
    assert "ratios" not in data


def test_control_characters_and_half_surrogates_are_written_out():
    row = trace([candidate(0, 1.0, 0, text="a\x1b[2J\ud800\n\u202e")], id="\x07", prompt="\udfff")
    data = response_data(row, "here")
    assert data["chunks"][0][0]["text"] == "a\\x1b[2J\\ud800\n\\u202e"
    assert (data["id"], data["prompt"]) == ("\\x07", "\\udfff")
    assert response_data({"error": "no \x1b"}, "here") == {"error": "no \\x1b"}


KEPT = [candidate(0, 1.0, kept=0), candidate(1, 0.0)]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([[]], "chunk 1: no candidates"),
        ([[candidate(None, 1.0, 0)]], "chunk 1: no candidates, or candidates without a row"),
        ([[candidate(0, 1.0, 0, parent=0)]], "chunk 1: row 0 continues no beam"),
        ([KEPT, [candidate(0, 1.0, 0)]], "chunk 2: row 0 continues no beam"),
        ([KEPT, [candidate(1, 1.0, 0, parent=1)]], "chunk 2: row 1 continues no beam"),
        ([KEPT, [candidate(1, 1.0, 0, parent=-1)]], "chunk 2: row 1 continues no beam"),
        ([[candidate(0, 1.0), candidate(1, 0.0, 0)]], "chunk 1: the candidates kept are not the best"),
        ([[candidate(0, 1.0, 1), candidate(1, 0.0, 0)]], "chunk 1: the candidates kept are not the best"),
        ([[candidate(0, 1.0)]], "chunk 1: the candidates kept are not the best"),
    ],
)
def test_what_is_no_search_is_refused(chunks, expected):
    with pytest.raises(UserError, match=f"line 3: {expected}"):
        response_data(trace(*chunks), "t.jsonl, line 3")
