"""Files that `ivg-decode` wrote, read back for judging."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.reading import read_json_lines
from ivg.models.prompts import Record, check_row, identities

LARGEST_COUNT = 2**31  # far beyond any response, and what every tensor of ids can hold


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """One method's responses.

    Attributes:
        name: what the method is called in tables.
        rows: output rows, each a prompt row with its `response`.
        ids: prompt id of each row; several samples of a prompt share one.
        path: the file, beside which the run's record stands.
    """

    name: str
    rows: list[dict[str, Any]]
    ids: list[str]
    path: Path | None = None

    @property
    def responses(self) -> list[str]:
        """The texts, one per row."""
        return [str(row["response"]) for row in self.rows]


def read_decoded(name: str, path: str | Path) -> Decoded:
    """Read a decoded JSONL file.

    Raises:
        UserError: missing, unreadable or empty file, a line that is not JSON or not an output row.
    """
    rows = [
        _check_output_row(row, where) for where, row in read_json_lines(Path(path), "a readable JSONL file")
    ]
    if not rows:
        raise UserError(f"{path}: no rows; expected the output of ivg-decode")
    return Decoded(name, rows, row_ids(rows), Path(path))


def read_named(arguments: Sequence[str]) -> list[Decoded]:
    """Read NAME=FILE arguments, and make sure that the files can be compared.

    Raises:
        UserError: no or malformed arguments, a name given twice, a bad file, or different prompts.
    """
    if not arguments:
        raise UserError("no files; give --files NAME=FILE.jsonl ...")
    files = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UserError(f"got {argument!r}; expected NAME=FILE.jsonl, such as ivg=runs/ivg.jsonl")
        files.append(read_decoded(name, path))
    if len({file.name for file in files}) < len(files):
        raise UserError(f"two files have the same name in {' '.join(arguments)}; give each its own")
    check_same_prompts(files)
    return files


def _check_output_row(row: object, where: str) -> dict[str, Any]:
    checked = check_row(row, where)
    if not isinstance(checked.get("response"), str):
        raise UserError(f"{where}: expected a string 'response', found {', '.join(checked)}; decode it first")
    for name in ("sample", "num_tokens"):
        if name in checked and not _is_count(checked[name]):
            raise UserError(f"{where}: {name} is {checked[name]!r:.60}; expected an integer >= 0")
    value = checked.get("value")
    if not (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        raise UserError(f"{where}: value is {value!r:.60}; expected a number or null")
    ids = checked.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(map(_is_count, ids))):
        raise UserError(f"{where}: token_ids is {ids!r:.60}; expected a list of integers >= 0")
    return checked


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def row_ids(rows: Sequence[Record]) -> list[str]:
    """Give each output row the id of its prompt; rows that differ in `sample` may share one.

    Raises:
        UserError: two rows of the same sample carry the same explicit id.
    """
    by_sample: defaultdict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_sample[int(row.get("sample", 0))].append(i)
    ids = [""] * len(rows)
    for indices in by_sample.values():
        for i, name in zip(indices, identities([rows[i] for i in indices]), strict=True):
            ids[i] = name
    return ids


def check_same_prompts(files: Sequence[Decoded]) -> None:
    """Refuse files that cannot be compared prompt by prompt.

    Raises:
        UserError: a prompt is in one file and not in another.
    """
    for other in files[1:]:
        odd = set(files[0].ids) ^ set(other.ids)
        if odd:
            name = min(odd)
            holder = files[0] if name in files[0].ids else other
            raise UserError(
                f"{files[0].name} and {other.name} hold different prompts: {len(odd)} are in one only, "
                f"such as {name!r} in {holder.name}; decode both from the same input"
            )
