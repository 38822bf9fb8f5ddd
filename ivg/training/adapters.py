"""Data adapters: each turns one public dataset's own columns into TRL's.

The schemas were written down from the datasets' documentation and have not been run against the Hub: every
adapter is unverified until someone has loaded the real dataset with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets

from ivg.config_file import nearest
from ivg.errors import UserError

Rows = Iterable[dict[str, Any]]


def imdb_preference(row: Mapping[str, Any]) -> Rows:
    """`ZHZisZZ/imdb_preference` (unverified): prompt, responses, chosen = index of the better one."""
    better = int(row["chosen"])
    responses = row["responses"]
    yield {"prompt": row["prompt"], "chosen": responses[better], "rejected": responses[1 - better]}


def adapt(rows: datasets.Dataset, name: str | None) -> datasets.Dataset:
    """Turn a dataset into TRL's columns by the adapter of this name; None leaves it as it is.

    Raises:
        UserError: no such adapter, or the dataset lacks a column that it reads.
    """
    if name is None:
        return rows
    if name not in ADAPTERS:
        raise UserError(f"unknown adapter {name!r}; {nearest(name, ADAPTERS)}")
    adapter = ADAPTERS[name]
    try:
        return datasets.Dataset.from_list([new for row in rows for new in adapter(row)])
    except KeyError as error:
        raise UserError(
            f"adapter {name} expects column {error}; the dataset has {', '.join(rows.column_names)}"
        ) from error


ADAPTERS: dict[str, Callable[[Mapping[str, Any]], Rows]] = {"imdb_preference": imdb_preference}
