"""Training rows: reading them, and putting prompts into the template that decoding will use.

Formats are TRL's: `{"prompt","completion"}`, `{"prompt","chosen","rejected"}`, `{"text"}` or `{"messages"}`,
and for value training `{"prompt","completion","reward"}`; each plain or conversational.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from ivg.errors import UserError, first_line
from ivg.models.prompts import Row, resolve_template
from ivg.training.adapters import adapt
from ivg.training.arguments import DataArguments
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
    train = _first(adapt(train, data.adapter, data.dataset_name), data.max_train_rows)
    if data.eval_dataset_name is None and data.dataset_test_split is None:
        return train, None
    name = data.eval_dataset_name or data.dataset_name
    evaluation = load_rows(name, data.dataset_config, data.dataset_test_split or "test")
    return train, _first(adapt(evaluation, data.adapter, name), data.max_eval_rows)


def _first(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))


def text_of(content: Any) -> str:
    """Return a plain or conversational field's text."""
    if isinstance(content, str):
        return content
    return "\n".join(str(message["content"]) for message in content or [])


def as_prompt_row(prompt: Any) -> Row:
    """Turn a training row's prompt (text or messages) into a prompt row of `ivg.models.prompts`."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}


def apply_template(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> datasets.Dataset:
    """Put prompts into the template that decoding will use, in the form that TRL's trainers read.

    With the chat template, plain rows become conversational; with a format string, prompts become text.
    Rows without a prompt column are left as they are.
    """
    if "prompt" not in rows.column_names:
        return rows
    resolved = resolve_template(tokenizer, template)
    transform = _to_chat if resolved == "chat" else _to_text(resolved)
    return table_of([transform(row) for row in rows], "rows in their template")


def _to_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {
        key: [{"role": roles[key], "content": value}] if key in roles and isinstance(value, str) else value
        for key, value in row.items()
    }


def _to_text(template: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def transform(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = row["prompt"]
        if not isinstance(prompt, str) and len(prompt) != 1:
            raise UserError(
                f"a prompt of {len(prompt)} messages needs a chat template, "
                f"but prompt_template is the format string {template!r}"
            )
        fields = {key: text_of(row[key]) for key in ("completion", "chosen", "rejected") if key in row}
        return {**row, **fields, "prompt": template.replace("{prompt}", text_of(prompt))}

    return transform
