"""Traces of `ivg-decode --trace`: how responses came about, read from the file and checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.reading import read_json_lines

Trace = dict[str, Any]


def read_trace_lines(path: Path, *, half_surrogates: bool = False) -> list[tuple[str, Trace]]:
    """Read a trace file; each line comes with its place, for messages.

    A record that could not be decoded has a line `{"error": ...}`; every other one says what
    `ivg.run.trace.trace_line` says.

    Args:
        path: the file.
        half_surrogates: let texts hold half a surrogate pair, which only `safe_text.visible` can write again.

    Raises:
        UserError: a file that cannot be read, a line that is not a trace row, or another file of a run.
    """
    lines = read_json_lines(path, "a trace of ivg-decode", half_surrogates=half_surrogates)
    for where, row in lines:
        if is_refused(row) or _is_trace(row):
            continue
        if isinstance(row, Mapping) and "response" in row:
            raise UserError(
                f"{where}: a result of ivg-decode, not its trace; decode with --trace FILE and give FILE"
            )
        raise UserError(f"{where}: not a row of ivg-decode --trace; trace again")
    return lines


def is_refused(row: object) -> bool:
    """Tell whether a row stands for a record that could not be decoded."""
    return isinstance(row, Mapping) and set(row) == {"error"} and isinstance(row["error"], str)


def _is_trace(row: object) -> bool:
    """Tell whether a row has all that is shown of it."""
    if not isinstance(row, Mapping) or not isinstance(row.get("id"), str | int):
        return False
    chunks = row.get("chunks")
    return (
        _has_tokens(row)
        and isinstance(chunks, list)
        and all(isinstance(chunk, Mapping) and isinstance(chunk.get("candidates"), list) for chunk in chunks)
        and all(_is_candidate(candidate) for chunk in chunks for candidate in chunk["candidates"])
    )


def _has_tokens(row: Mapping[str, Any]) -> bool:
    """Tell whether a row's tokens and log-ratios, if it has any, belong together."""
    ratios = row.get("token_logratios", [])
    tokens = row.get("tokens") or [""] * len(ratios if isinstance(ratios, list) else [])
    return (
        isinstance(ratios, list)
        and all(map(_is_number, ratios))
        and isinstance(tokens, list)
        and all(isinstance(token, str) for token in tokens)
        and (len(tokens) == len(ratios) or not any(ratios))
    )


def _is_candidate(candidate: object) -> bool:
    return (
        isinstance(candidate, Mapping)
        and isinstance(candidate.get("text"), str)
        and _is_number(candidate.get("value"))
        and _has_tokens(candidate)
        and {"kept", "finished"} <= set(candidate)
        and all(
            place is None or (isinstance(place, int) and not isinstance(place, bool))
            for place in (candidate["kept"], candidate.get("parent"))
        )
    )


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that a float can hold: an integer of 400 digits is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
