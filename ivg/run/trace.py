"""What a trace records of one response: log-ratios per token, and the candidates at every chunk boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ivg.decoding.sequences import Boundary, Finished, Hypothesis
from ivg.decoding.stopping import INCOMPLETE
from ivg.models.prompts import Record, messages_of, prompt_text

Decode = Callable[[Sequence[int]], str]
_CONTEXT = 8  # tokens, at the least: what one adds depends on the bytes before it, and on a blank


def trace_line(finished: Finished, num_successors: int, decode: Decode) -> dict[str, Any]:
    """Describe how a response came about.

    Args:
        finished: a task decoded with a trace.
        num_successors: K; says which beam a row continued.
        decode: turns ids into text.

    Returns:
        `id`, `sample`, `prompt`, the best beam's `tokens` with `token_logratios`, and `chunks`: per boundary
        the `candidates` with `row`, `parent` (place among the beams kept before, or null at the start),
        `text` (what the chunk added), `value`, `kept` (place among the beams kept now, or null) and
        `finished`; under token guidance also `tokens` and `token_logratios` of the chunk.
    """
    best = finished.beams[0]
    is_guided = any(
        any(candidate.log_ratios) for boundary in finished.trace for candidate in boundary.candidates
    )
    chunks = []
    beams: list[Hypothesis] = []
    for boundary in finished.trace:
        candidates = _candidates(boundary, beams, num_successors, decode, with_tokens=is_guided)
        chunks.append({"candidates": candidates})
        by_row = dict(zip(boundary.rows, boundary.candidates, strict=True))
        beams = [by_row[row] for row in boundary.kept]
    return {
        "id": finished.task.prompt_id,
        "sample": finished.task.sample,
        "prompt": _prompt(finished.task.record),
        **_tokens(best, 0, decode),
        "chunks": chunks,
    }


def _prompt(record: Record) -> str | None:
    """Return the prompt as one text for a reader's eye; of a conversation all turns with their roles."""
    if not record:
        return None
    plain = prompt_text(record)
    turns = [f"{turn['role']}: {turn['content']}" for turn in messages_of(record)]
    return "\n\n".join(turns) if plain is None else plain


def _candidates(
    boundary: Boundary,
    beams: Sequence[Hypothesis],
    num_successors: int,
    decode: Decode,
    *,
    with_tokens: bool,
) -> list[dict[str, Any]]:
    rows = []
    for row, hypothesis in zip(boundary.rows, boundary.candidates, strict=True):
        parent = row // num_successors if beams else None
        num_before = 0 if parent is None else len(beams[parent].ids)
        rows.append(
            {
                "row": row,
                "parent": parent,
                "text": added_text(hypothesis.ids, num_before, decode),
                "value": hypothesis.value,
                "kept": boundary.kept.index(row) if row in boundary.kept else None,
                "finished": hypothesis.finish_reason is not None,
                **(_tokens(hypothesis, num_before, decode) if with_tokens else {}),
            }
        )
    return rows


def _tokens(hypothesis: Hypothesis, num_before: int, decode: Decode) -> dict[str, Any]:
    """Return the texts and log-ratios of the tokens from `num_before` on."""
    return {
        "tokens": added_tokens(hypothesis.ids, num_before, decode),
        "token_logratios": list(hypothesis.log_ratios[num_before:]),
    }


def added_text(ids: Sequence[int], num_before: int, decode: Decode) -> str:
    """Return what the tokens from `num_before` on add to the text.

    Both are decoded from the start, since a token's text depends on those before it: a blank in front of a
    word, the bytes of one character. A character that several tokens share is added by the last of them.
    """
    return _whole_characters(ids, decode)[len(_whole_characters(ids[:num_before], decode)) :]


def added_tokens(ids: Sequence[int], num_before: int, decode: Decode) -> list[str]:
    """Return what each token from `num_before` on adds to the text (see `added_text`).

    Of the tokens before these only the last few are decoded: a trace asks this of every candidate, and
    decoding all from the start would take seconds a prompt at 400 tokens.
    """
    start = _context_start(ids, num_before, decode)
    texts = [_whole_characters(ids[start:end], decode) for end in range(num_before, len(ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]


def _context_start(ids: Sequence[int], num_before: int, decode: Decode) -> int:
    """Return a place some tokens before `num_before` that lies between two characters."""
    length = _CONTEXT
    while length < num_before:
        if not decode(ids[num_before - length : num_before]).startswith(INCOMPLETE):
            return num_before - length
        length *= 2
    return 0


def _whole_characters(ids: Sequence[int], decode: Decode) -> str:
    for cut in range(4):  # a character has at most 4 bytes
        text = decode(ids[: len(ids) - cut])
        if not text.endswith(INCOMPLETE):
            return text
    return decode(ids)  # not bytes that wait for more: it reads so
