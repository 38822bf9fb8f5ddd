"""What the page shows of a response: candidates in their order of rank, checked to be one search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.safe_text import visible
from ivg.evaluation.traces import Trace, is_refused

Candidate = Mapping[str, Any]


def response_data(row: Trace, where: str) -> dict[str, Any]:
    """Return what the page needs of a trace row, as plain data.

    Args:
        row: a row of `read_trace_lines`.
        where: its place, for messages.

    Returns:
        `error` for a record that was refused. Else `id`, `sample`, `prompt`, `tokens` with `ratios` of the
        answer, and `chunks`: for each boundary its candidates, best first. Control characters of texts are
        written out; what guidance added is rounded to four digits.

    Raises:
        UserError: candidates that continue no beam, or of which others than the best were kept.
    """
    if is_refused(row):
        return {"error": visible(row["error"])}
    prompt = row.get("prompt")
    chunks = [chunk["candidates"] for chunk in row["chunks"]]
    _check(chunks, where)
    return {
        "id": visible(str(row["id"])),
        "sample": row.get("sample") if isinstance(row.get("sample"), int) else 0,
        "prompt": visible(prompt) if isinstance(prompt, str) else None,
        **_tokens(row),
        "chunks": [[_candidate(candidate) for candidate in _ranked(candidates)] for candidates in chunks],
    }


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order candidates as the search does: value descending, row ascending."""
    return sorted(candidates, key=lambda candidate: (-candidate["value"], candidate["row"]))


def _check(chunks: Sequence[Sequence[Candidate]], where: str) -> None:
    num_beams = 0
    for number, candidates in enumerate(chunks, start=1):
        place = f"{where}: chunk {number}"
        if not candidates or not all(isinstance(candidate.get("row"), int) for candidate in candidates):
            raise UserError(f"{place}: no candidates, or candidates without a row; trace again")
        for candidate in candidates:
            parent = candidate.get("parent")
            if (parent is None) != (number == 1) or not (parent is None or 0 <= parent < num_beams):
                raise UserError(f"{place}: row {candidate['row']} continues no beam kept before; trace again")
        kept = [candidate["kept"] for candidate in _ranked(candidates)]
        num_beams = sum(place is not None for place in kept)
        if num_beams == 0 or kept[:num_beams] != list(range(num_beams)):
            raise UserError(f"{place}: the candidates kept are not the best; trace again")


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "row": candidate["row"],
        "parent": candidate.get("parent"),
        "text": visible(candidate["text"]),
        "value": candidate["value"],
        "kept": candidate["kept"],
        "finished": bool(candidate["finished"]),
        **_tokens(candidate),
    }


def _tokens(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokens and what guidance added to each, or nothing where it added nothing."""
    ratios, tokens = row.get("token_logratios", []), row.get("tokens")
    if not any(ratios) or not tokens:
        return {}
    return {
        "tokens": [visible(token) for token in tokens],
        "ratios": [float(f"{ratio:.4g}") for ratio in ratios],
    }
