"""Training rows: reading them, in TRL's columns, with prompts told apart from responses.

Formats are TRL's: `{"prompt","completion"}`, `{"prompt","chosen","rejected"}`, `{"text"}` or `{"messages"}`,
and for value training `{"prompt","completion","reward"}`; each plain or conversational.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from ivg.errors import UserError, first_line
from ivg.training.arguments import DataArguments
from ivg.training.dataset_adapters import adapt
from ivg.training.rows import separate_prompts
from ivg.training.tables import table_of


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSONL file of objects.

    Raises:
        UserError: unreadable, empty, or a line that is not a JSON object (with its number).
    """
    rows = []
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"{path}: not a regular file, which a pipe or a device is not; give a JSONL file")
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path} line {number}: expected a JSON object, got {type(row).__name__}")
                rows.append(row)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a readable file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number}: not valid JSON ({error.msg}); one object a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UserError(f"{path} line {number}: cannot be read ({first_line(error)})") from error
    if not rows:
        raise UserError(f"{path} holds no rows; expected one JSON object a line")
    return rows


def load_rows(name: str, config: str | None, split: str) -> datasets.Dataset:
    """Load rows from a JSONL file, a folder saved by `datasets`, or the Hub.

    Raises:
        UserError: it cannot be read, a column is of several types, or it has no such split.
    """
    path = Path(name)
    if path.suffix in (".jsonl", ".json") or path.is_file():
        return table_of(read_jsonl(path), name)
    try:
        loaded = datasets.load_from_disk(name) if path.is_dir() else datasets.load_dataset(name, config)
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        raise UserError(
            f"dataset {name}: {error}; give a JSONL file, a saved folder or a Hub name"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise UserError(f"dataset {name} has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


def load_training_data(data: DataArguments) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Load the training rows and, where one is named, the evaluation rows, in TRL's columns."""
    train = load_rows(data.dataset_name, data.dataset_config, data.dataset_train_split)
    train = _prepared(train, data, data.dataset_name, data.max_train_rows)
    if data.eval_dataset_name is None and data.dataset_test_split is None:
        return train, None
    name = data.eval_dataset_name or data.dataset_name
    evaluation = load_rows(name, data.dataset_config, data.dataset_test_split or "test")
    return train, _prepared(evaluation, data, name, data.max_eval_rows)


def _prepared(
    rows: datasets.Dataset, data: DataArguments, name: str, max_rows: int | None
) -> datasets.Dataset:
    rows = adapt(rows, data.adapter, name)
    return separate_prompts(rows if max_rows is None else rows.select(range(min(max_rows, len(rows)))), name)
