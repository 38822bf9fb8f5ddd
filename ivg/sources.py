"""Prompt rows from JSONL, JSON, text files, standard input and Hugging Face datasets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivg.config import DatasetConfig
from ivg.errors import UserError
from ivg.prompts import check_row

_MAX_REPORTED = 5


class SourceRow(NamedTuple):
    """One row of the input.

    Attributes:
        where: its line or row number, for messages.
        row: its fields; those of a bad row as far as they could be read.
        error: why it cannot be used, or None.
    """

    where: str
    row: dict[str, Any]
    error: str | None = None


def read_input(path: str | None, dataset: DatasetConfig | None, limit: int | None = None) -> list[SourceRow]:
    """Read all rows and say which are bad.

    Args:
        path: `.txt` (a prompt a line), `.json` (a list) or JSONL; `-` is standard input (JSONL).
        dataset: a Hugging Face dataset instead.
        limit: only the first rows.

    Raises:
        UserError: no input, a file that cannot be read, or one without any row.
    """
    if path is None and dataset is None:
        raise UserError("no input: give a file of prompts, '-' for standard input, or a dataset")
    name = path if path is not None else str(dataset.name if dataset else "")
    entries = _read_file(path) if path is not None else _read_dataset(dataset)
    rows = [_checked(where, entry) for where, entry in entries][:limit]
    if not rows:
        raise UserError(f"{name}: holds no prompts; give at least one")
    return rows


def refuse_bad_rows(rows: Sequence[SourceRow], name: str) -> None:
    """Raise one `UserError` that names the bad rows of the input `name`, as far as fits a line."""
    bad = [row for row in rows if row.error is not None]
    if bad:
        shown = "; ".join(str(row.error) for row in bad[:_MAX_REPORTED])
        more = f"; and {len(bad) - _MAX_REPORTED} more" if len(bad) > _MAX_REPORTED else ""
        raise UserError(
            f"input {name}: {len(bad)} of {len(rows)} rows cannot be used: {shown}{more} "
            "(skip_bad_rows passes over them)"
        )


def _checked(where: str, entry: object) -> SourceRow:
    if isinstance(entry, UserError):
        return SourceRow(where, {}, str(entry))
    try:
        return SourceRow(where, check_row(entry, where))
    except UserError as error:
        return SourceRow(where, dict(entry) if isinstance(entry, dict) else {}, str(error))


def _read_file(path: str) -> Iterator[tuple[str, object]]:
    name = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"input {name}: {error.strerror}; give a readable file of prompts") from error
    except UnicodeDecodeError as error:
        raise UserError(f"input {name}: not UTF-8 text (byte {error.start}); give JSONL or .txt") from error
    if path.endswith(".json"):
        yield from _read_list(name, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {number}"
            yield where, {"prompt": line} if path.endswith(".txt") else _parsed(where, line)


def _read_list(name: str, text: str) -> Iterator[tuple[str, object]]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"input {name}: not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"input {name}: expected a JSON list of rows, got a {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        yield f"row {number}", entry


def _parsed(where: str, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        return UserError(f"{where}: not valid JSON: {error}")


def _read_dataset(dataset: DatasetConfig | None) -> Iterator[tuple[str, object]]:
    # datasets takes seconds to import, and few runs need it.
    from datasets import load_dataset

    assert dataset is not None
    try:
        table = load_dataset(dataset.name, dataset.config, split=dataset.split, revision=dataset.revision)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"dataset {dataset.name}: cannot be loaded: {first}") from error
    for number, row in enumerate(table):
        yield f"row {number}", row
