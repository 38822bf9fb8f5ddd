"""What a trace says; the text that tokens and chunks add, where neither ends with a whole character."""

import pytest
from transformers import AutoTokenizer

from ivg.decoding.sequences import Boundary, Finished, Hypothesis, Task
from ivg.run.trace import added_text, added_tokens, trace_line
from tests.shared_data import SHARED

VOCABULARIES = SHARED / "tokenizers"
TEXT = "The café is naïve 😀😀😀😀, not bad.\n\n日本語 ok"


def from_bytes(ids):
    """Decode a vocabulary of 256 bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_is_added_by_its_last_byte():
    ids = list("aé😀b".encode())
    pieces = [added_text(ids[: i + 1], i, from_bytes) for i in range(len(ids))]
    assert pieces == ["a", "", "é", "", "", "", "😀", "b"]
    # Chunks of three bytes: the second ends inside the emoji, the third finishes it.
    assert [added_text(ids[: i + 3], i, from_bytes) for i in (0, 3, 6)] == ["aé", "", "😀b"]


@pytest.mark.skipif(not VOCABULARIES.is_dir(), reason=f"no vocabularies at {VOCABULARIES}")
@pytest.mark.parametrize("name", ["llama-2", "mistral"])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_real_vocabularies_add_up_to_the_text(name, length):
    """Decoded one by one, their tokens would lose every blank before a word."""
    tokenizer = AutoTokenizer.from_pretrained(VOCABULARIES / name)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = [
        added_text(ids[: start + length], start, tokenizer.decode) for start in range(0, len(ids), length)
    ]
    assert "".join(pieces) == TEXT
    assert " is" in "".join(pieces[:5])
    one_by_one = [added_text(ids[: i + 1], i, tokenizer.decode) for i in range(len(ids))]
    for start in range(len(ids)):
        assert added_tokens(ids, start, tokenizer.decode) == one_by_one[start:]


def test_candidates_show_what_their_chunk_added():
    first = [Hypothesis(tuple(text.encode()), value) for text, value in (("ab", 1.0), ("cd", 2.0))]
    second = [Hypothesis(tuple(b"cd" + text), value) for text, value in ((b"ef", 3.0), (b"gh", 0.0))]
    trace = (Boundary(tuple(first), (0, 1), (1,)), Boundary(tuple(second), (0, 1), (0,)))
    row = trace_line(Finished(Task(0, "p", {"base": (1,)}, 9), (second[0],), trace), 2, from_bytes)
    shown = [[(c["text"], c["parent"], c["kept"]) for c in chunk["candidates"]] for chunk in row["chunks"]]
    assert shown == [[("ab", None, None), ("cd", None, 0)], [("ef", 0, 0), ("gh", 0, None)]]


def traced(*, ratios=(), record=None):
    """Trace two chunks of "cd" and "ef", with the log-ratios of their four tokens."""
    first = Hypothesis(tuple(b"cd"), 2.0, None, ratios[:2])
    second = Hypothesis(tuple(b"cdef"), 3.0, "length", ratios)
    trace = (Boundary((first,), (0,), (0,)), Boundary((second,), (0,), (0,)))
    return trace_line(
        Finished(Task(0, "p", {"base": (1,)}, 9, record=record or {}), (second,), trace), 1, from_bytes
    )


def test_under_token_guidance_candidates_have_the_tokens_of_their_chunk():
    row = traced(ratios=(0.5, 0.0, -1.0, 2.0))
    found = [chunk["candidates"][0] for chunk in row["chunks"]]
    assert [c["tokens"] for c in found] == [["c", "d"], ["e", "f"]]
    assert [c["token_logratios"] for c in found] == [[0.5, 0.0], [-1.0, 2.0]]
    assert (row["tokens"], row["token_logratios"]) == (["c", "d", "e", "f"], [0.5, 0.0, -1.0, 2.0])
    unguided = traced(ratios=(0.0,) * 4)
    assert not any("tokens" in chunk["candidates"][0] for chunk in unguided["chunks"])
    assert unguided["tokens"] == ["c", "d", "e", "f"]


def test_the_prompt_is_one_text():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert traced()["prompt"] is None
    assert traced(record={"prompt": "Say it."})["prompt"] == "Say it."
    assert traced(record={"messages": turns[1:]})["prompt"] == "Hi"
    assert traced(record={"messages": turns})["prompt"] == "system: Be brief.\n\nuser: Hi"
    assert traced(record={"instruction": "Sum up.", "input": "A text."})["prompt"] == "Sum up.\n\nA text."
