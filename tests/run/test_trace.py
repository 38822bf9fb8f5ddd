"""The text that tokens and chunks add, where neither begins or ends with a whole character."""

import pytest
from transformers import AutoTokenizer

from ivg.decoding.sequences import Boundary, Finished, Hypothesis, Task
from ivg.run.trace import added_text, trace_line
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


def test_candidates_show_what_their_chunk_added():
    first = [Hypothesis(tuple(text.encode()), value) for text, value in (("ab", 1.0), ("cd", 2.0))]
    second = [Hypothesis(tuple(b"cd" + text), value) for text, value in ((b"ef", 3.0), (b"gh", 0.0))]
    trace = (Boundary(tuple(first), (0, 1), (1,)), Boundary(tuple(second), (0, 1), (0,)))
    row = trace_line(Finished(Task(0, "p", {"base": (1,)}, 9), (second[0],), trace), 2, from_bytes)
    shown = [[(c["text"], c["parent"], c["kept"]) for c in chunk["candidates"]] for chunk in row["chunks"]]
    assert shown == [[("ab", None, None), ("cd", None, 0)], [("ef", 0, 0), ("gh", 0, None)]]
