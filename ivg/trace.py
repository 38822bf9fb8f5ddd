"""What a trace records of one response: log-ratios per token, and the candidates at every chunk boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ivg.hypotheses import Boundary, Finished, Hypothesis

Decode = Callable[[Sequence[int]], str]


def trace_row(finished: Finished, num_successors: int, decode: Decode) -> dict[str, Any]:
    """Describe how a response came about.

    Args:
        finished: a task decoded with a trace.
        num_successors: K; says which beam a row continued.
        decode: turns ids into text.

    Returns:
        `id`, `sample`, the best beam's `tokens` with `token_logratios`, and `chunks`: per boundary the
        `candidates` with `row`, `parent` (place among the beams kept before, or null at the start), `text`
        (what the chunk added), `value`, `kept` (place among the beams kept now, or null) and `finished`.
    """
    best = finished.beams[0]
    chunks = []
    beams: list[Hypothesis] = []
    for boundary in finished.trace:
        chunks.append({"candidates": _candidates(boundary, beams, num_successors, decode)})
        by_row = dict(zip(boundary.rows, boundary.candidates, strict=True))
        beams = [by_row[row] for row in boundary.kept]
    return {
        "id": finished.task.prompt_id,
        "sample": finished.task.sample,
        "tokens": [decode([token]) for token in best.ids],
        "token_logratios": list(best.log_ratios),
        "chunks": chunks,
    }


def _candidates(
    boundary: Boundary, beams: Sequence[Hypothesis], num_successors: int, decode: Decode
) -> list[dict[str, Any]]:
    rows = []
    for row, hypothesis in zip(boundary.rows, boundary.candidates, strict=True):
        parent = row // num_successors if beams else None
        before = beams[parent].ids if parent is not None else ()
        rows.append(
            {
                "row": row,
                "parent": parent,
                "text": decode(hypothesis.ids)[len(decode(before)) :],
                "value": hypothesis.value,
                "kept": boundary.kept.index(row) if row in boundary.kept else None,
                "finished": hypothesis.finish_reason is not None,
            }
        )
    return rows
