"""Bad training rows, found before any weight is loaded: with counts, first examples and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ivg.errors import UserError
from ivg.training.data import text_of
from ivg.training.models import context_length

PREFERENCE = ("prompt", "chosen", "rejected")
COMPLETION = ("prompt", "completion")
REWARDED = ("prompt", "completion", "reward")
_MAX_EXAMPLES = 3


def check_columns(rows: datasets.Dataset, alternatives: Sequence[Sequence[str]], name: str) -> None:
    """Check that a dataset has the columns that a stage needs.

    Args:
        rows: the dataset.
        alternatives: sets of columns, one of which must be there in full.
        name: what to call the dataset in an error message.

    Raises:
        UserError: naming what it has and what was expected.
    """
    if not any(set(columns) <= set(rows.column_names) for columns in alternatives):
        expected = " or ".join(", ".join(columns) for columns in alternatives)
        raise UserError(
            f"{name} has columns {', '.join(rows.column_names)}; expected {expected}; "
            "rename them or name an adapter"
        )


def check_rows(rows: datasets.Dataset, name: str) -> None:
    """Look for rows that would spoil training, and refuse the dataset with counts and examples.

    Raises:
        UserError: empty completions, chosen equal to rejected, or rewards that are not finite numbers.
    """
    columns = rows.column_names
    for column in {"completion", "chosen", "rejected"} & set(columns):
        refuse(name, f"an empty {column}", [not text_of(value).strip() for value in rows[column]])
    if {"chosen", "rejected"} <= set(columns):
        same = [text_of(a) == text_of(b) for a, b in zip(rows["chosen"], rows["rejected"], strict=True)]
        refuse(name, "chosen equal to rejected", same)
    if "reward" in columns:
        refuse(name, "a reward that is not a finite number", [not _is_finite(r) for r in rows["reward"]])


def refuse(name: str, what: str, is_bad: Sequence[bool], remedy: str = "remove or mend them") -> None:
    """Raise if any row is bad, with the count and the first row numbers (counted from 1)."""
    bad = [number for number, flag in enumerate(is_bad, start=1) if flag]
    if bad:
        first = ", ".join(map(str, bad[:_MAX_EXAMPLES]))
        raise UserError(
            f"{name}: {len(bad)} of {len(is_bad)} rows have {what} (first: row {first}); {remedy}"
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def check_lengths(
    rows: datasets.Dataset,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    max_length: int | None,
    text_field: str = "text",
) -> int:
    """Refuse sequences that the model cannot see whole, unless `max_length` says to cut them.

    Args:
        rows: training rows, prompts in their template.
        name: what to call the rows in an error message.
        tokenizer: the model's.
        config: the model's, for its context length.
        max_length: where the trainer cuts sequences, in tokens; None for nowhere.
        text_field: the column of whole texts, in rows without a prompt.

    Returns:
        How many rows the trainer will cut.

    Raises:
        UserError: rows are longer than the context, and `max_length` does not cut them before it.
    """
    context = context_length(config)
    lengths = [max(_lengths(row, tokenizer, text_field)) for row in rows]
    if context is not None and (max_length is None or max_length > context):
        too_long = [length > context for length in lengths]
        remedy = f"remove them, or set max_length (now {max_length}) to at most {context} to cut them"
        refuse(name, f"more than the model's {context} tokens", too_long, remedy)
    return 0 if max_length is None else sum(length > max_length for length in lengths)


def _lengths(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, text_field: str) -> list[int]:
    """Return the lengths in tokens of a row's sequences, closing token included."""
    if "prompt" not in row:
        return [_length(row["messages"] if "messages" in row else row[text_field], tokenizer)]
    responses = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
    return [_length(row["prompt"] + response, tokenizer) for response in responses]


def _length(content: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    if isinstance(content, str):
        return len(tokenizer(content)["input_ids"]) + 1  # TRL appends EOS
    text = tokenizer.apply_chat_template(list(content), tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
