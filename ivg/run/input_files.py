"""Prompts from JSONL, JSON, text files, standard input and Hugging Face datasets."""

from __future__ import annotations

import datetime
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ivg.config import DatasetConfig
from ivg.errors import UserError, readable
from ivg.models.prompts import check_row

_MAX_REPORTED = 5
# What a result adds to its record; a field of the same name would be lost.
RESULT_FIELDS = (
    "response",
    "value",
    "num_tokens",
    "finish_reason",
    "sample",
    "token_ids",
    "beams",
    "error",
)


class InputRecord(NamedTuple):
    """One prompt of the input.

    Attributes:
        where: its line or row number, for messages.
        fields: what it holds; of a bad record as far as it could be read.
        error: why it cannot be used, or None.
    """

    where: str
    fields: dict[str, Any]
    error: str | None = None


def read_input(
    path: str | None, dataset: DatasetConfig | None, limit: int | None = None
) -> list[InputRecord]:
    """Read all records and say which are bad.

    Args:
        path: `.txt` (a prompt a line), `.json` (a list) or JSONL; `-` is standard input (JSONL).
        dataset: a Hugging Face dataset instead.
        limit: only the first records.

    Raises:
        UserError: no input, a file that cannot be read, or one without any record.
    """
    if path is None and dataset is None:
        raise UserError("no input: give a file of prompts, '-' for standard input, or a dataset")
    name = source_name(path, dataset)
    entries = _read_file(path, name) if path is not None else _read_dataset(dataset)
    records = _mark_repeated_ids([_check(where, entry) for where, entry in islice(entries, limit)])
    if not records:
        raise UserError(f"{name}: holds no prompts; give at least one")
    return records


def source_name(path: str | None, dataset: DatasetConfig | None) -> str:
    """Say where prompts come from, for messages."""
    if path is None:
        return f"dataset {dataset.name if dataset else ''}"
    return "standard input" if path == "-" else f"input {path}"


def refuse_bad_records(records: Sequence[InputRecord], name: str) -> None:
    """Raise one `UserError` that names the bad records of what `source_name` calls it, as fits a line."""
    bad = [record for record in records if record.error is not None]
    if bad:
        shown = "; ".join(str(record.error) for record in bad[:_MAX_REPORTED])
        more = f"; and {len(bad) - _MAX_REPORTED} more" if len(bad) > _MAX_REPORTED else ""
        raise UserError(
            f"{name}: {len(bad)} of {len(records)} rows cannot be used: {shown}{more} "
            "(skip_bad_rows passes over them)"
        )


def _check(where: str, entry: object) -> InputRecord:
    if isinstance(entry, UserError):
        return InputRecord(where, {}, str(entry))
    try:
        fields = check_row(entry, where)
    except UserError as error:
        # What cannot be written again would spoil the output even as part of a bad record.
        is_sound = isinstance(entry, dict) and _find_flaw(entry) is None
        return InputRecord(where, dict(entry) if is_sound and isinstance(entry, dict) else {}, str(error))
    flaw = _find_flaw(fields) or _find_clash(fields)
    return InputRecord(where, fields) if flaw is None else InputRecord(where, {}, f"{where}: {flaw}")


def _find_flaw(fields: dict[str, Any]) -> str | None:
    """Say which field could not be written to the output as JSON, if one could not."""
    for key, value in fields.items():
        try:
            json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            return f"field {key!r} holds half a surrogate pair, which is no character"
        except (TypeError, ValueError, RecursionError) as error:
            return f"field {key!r} cannot be written as JSON: {error}"
    return None


def _find_clash(fields: dict[str, Any]) -> str | None:
    """Say which field has the name of one that the result adds, if one has; those of a result give way."""
    if "response" in fields:
        return None
    found = next((name for name in RESULT_FIELDS if name in fields), None)
    return None if found is None else f"field {found!r} has the name of a result's own field; rename it"


def _mark_repeated_ids(records: list[InputRecord]) -> list[InputRecord]:
    """Mark records whose explicit `id` stood in an earlier one."""
    first: dict[str, str] = {}
    for i, record in enumerate(records):
        if record.error is None and record.fields.get("id") is not None:
            name = str(record.fields["id"])
            if name in first:
                error = f"{record.where}: id {name!r} stands on {first[name]} already; ids must be unique"
                records[i] = record._replace(error=error)
            first.setdefault(name, record.where)
    return records


def _read_file(path: str, name: str) -> Iterator[tuple[str, object]]:
    try:
        if path != "-" and Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            raise UserError(f"{name}: is a pipe or a device; send what it holds to standard input, input '-'")
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        # Editors on Windows open files with a byte order mark.
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="").read()
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}); give JSONL or .txt") from error
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; give a readable file of prompts") from error
    except ValueError as error:  # a path that holds a null character
        raise UserError(f"{name}: {error}; give a readable file of prompts") from error
    if path.endswith(".json"):
        yield from _read_list(name, text)
        return
    parse = _text_line if path.endswith(".txt") else _parse
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", parse(f"line {number}", line.removesuffix("\r"))


def _text_line(where: str, line: str) -> object:
    if "\r" in line:
        return UserError(
            f"{where}: holds a carriage return, which ends a line in some programs and not in others; "
            "end lines with a newline, or give JSONL"
        )
    return {"prompt": line}


def _read_list(name: str, text: str) -> Iterator[tuple[str, object]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{name}: expected a JSON list of rows, got a {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        yield f"row {number}", entry


def _parse(where: str, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return UserError(f"{where}: not valid JSON: {error}")


def _read_dataset(dataset: DatasetConfig | None) -> Iterator[tuple[str, object]]:
    # datasets takes seconds to import, and few runs need it.
    from datasets import DatasetDict, load_dataset, load_from_disk

    assert dataset is not None
    if dataset.file is not None:
        yield from _read_file(_repository_file(dataset), source_name(None, dataset))
        return
    folder = Path(dataset.name)
    with readable(f"dataset {dataset.name}: cannot be loaded"):
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):  # `save_to_disk`
            table = load_from_disk(dataset.name)
        else:
            table = load_dataset(dataset.name, dataset.config, split=dataset.split, revision=dataset.revision)
    if isinstance(table, DatasetDict):
        if dataset.split not in table:
            raise UserError(
                f"dataset {dataset.name}: has no split {dataset.split!r}; it has {', '.join(table)}"
            )
        table = table[dataset.split]
    for number, row in enumerate(table):
        yield f"row {number}", {key: _as_json(value) for key, value in row.items()}


def _repository_file(dataset: DatasetConfig) -> str:
    """Return where a file of a dataset's repository lies, downloaded if need be."""
    from huggingface_hub import hf_hub_download

    assert dataset.file is not None
    inside = Path(dataset.name) / dataset.file
    if inside.is_file():
        return str(inside)
    with readable(f"dataset {dataset.name}: file {dataset.file} cannot be had"):
        return str(
            hf_hub_download(dataset.name, dataset.file, repo_type="dataset", revision=dataset.revision)
        )


def _as_json(value: object) -> object:
    """Write a dataset's dates and times as text; whatever else JSON cannot hold is refused later."""
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
