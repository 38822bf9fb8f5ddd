"""Rows as Arrow tables: built from plain rows, and kept in a file that all processes share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from accelerate import PartialState

from ivg.errors import UserError, is_main_process

# Not pushed to the Hub: transformers leaves out what opens with an underscore.
STORED = "_rows"
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def table_of(rows: Sequence[Mapping[str, Any]], name: str) -> datasets.Dataset:
    """Build a table with every column that any of the rows has; rows without it hold None there.

    Args:
        rows: plain rows.
        name: what to call them in an error message.

    Raises:
        UserError: a column of several types (saying which, and where), or what no table can hold.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in names}
    try:
        return datasets.Dataset.from_dict(columns)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {_mixed_column(columns) or error}") from error


def _mixed_column(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """Describe the first column whose values are of several types, if there is one."""
    for column, values in columns.items():
        counts: Counter[str] = Counter()
        first: dict[str, int] = {}
        for number, value in enumerate(values, start=1):
            if value is not None:
                kind = _KINDS.get(type(value), type(value).__name__)
                counts[kind] += 1
                first.setdefault(kind, number)
        if len(first) > 1:
            found = " and ".join(f"{kind} in {counts[kind]} (first: row {first[kind]})" for kind in first)
            return f"column {column} is of several types, {found} of {len(values)} rows; give all rows one"
    return None


def stored(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Keep rows in a file and return them as read from there, the same file on every process.

    What `datasets` computes from rows in memory goes to a folder of each process's own. TRL computes the
    reference's log-probabilities once, into a file from the main process that the others then look for: it
    must lie where all find it, beside the file of the rows. A restarted job finds it there too.

    Args:
        rows: the same on every process.
        folder: on storage that all processes share; gets a folder named after the rows' content.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    target = folder / digest.hexdigest()[:16]
    if is_main_process() and not target.exists():
        partial = folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        rows.save_to_disk(partial)
        partial.rename(target)
    PartialState().wait_for_everyone()
    return datasets.load_from_disk(target, keep_in_memory=False)
