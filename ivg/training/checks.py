"""Bad training rows, found before any weight is loaded: with counts, first examples and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ivg.errors import UserError
from ivg.models.chat_template import write_conversation
from ivg.models.inspection import context_length
from ivg.training.encoding import IGNORED
from ivg.training.rows import RESPONSES, refuse, text_of

PREFERENCE = ("prompt", "chosen", "rejected")
COMPLETION = ("prompt", "completion")
REWARDED = ("prompt", "completion", "reward")


def check_columns(rows: datasets.Dataset, alternatives: Sequence[Sequence[str]], name: str) -> None:
    """Check that a dataset has the columns that a stage needs.

    Args:
        rows: the dataset.
        alternatives: sets of columns, one of which must be there in full; beside a prompt, one with it.
        name: what to call the dataset in an error message.

    Raises:
        UserError: naming what it has and what was expected.
    """
    if "prompt" in rows.column_names:
        alternatives = [columns for columns in alternatives if "prompt" in columns]
    if not any(set(columns) <= set(rows.column_names) for columns in alternatives):
        expected = " or ".join(", ".join(columns) for columns in alternatives)
        raise UserError(
            f"{name} has columns {', '.join(rows.column_names)}; expected {expected}; "
            "rename them or name an adapter"
        )


def check_rows(rows: datasets.Dataset, name: str, text_field: str = "text") -> None:
    """Look for rows that would spoil training, and refuse the dataset with counts and examples.

    Args:
        rows: the dataset, its columns checked.
        name: what to call it in an error message.
        text_field: the column of whole texts, in rows without a prompt or messages.

    Raises:
        UserError: fields that are missing or neither text nor messages, empty responses, chosen equal to
            rejected, or rewards that are not finite numbers.
    """
    columns = rows.column_names
    whole = "messages" if "messages" in columns else text_field
    for column in ("prompt", *RESPONSES) if "prompt" in columns else (whole,):
        if column in columns:
            _check_content(list(rows[column]), column, name)
    if {"chosen", "rejected"} <= set(columns):
        same = [text_of(a) == text_of(b) for a, b in zip(rows["chosen"], rows["rejected"], strict=True)]
        refuse(name, "chosen equal to rejected", same)
    if "reward" in columns:
        refuse(name, "a reward that is not a finite number", [not _is_finite(r) for r in rows["reward"]])


def _check_content(values: Sequence[Any], column: str, name: str) -> None:
    refuse(name, f"no {column}", [value is None for value in values])
    if column == "messages":
        is_bad = [not _are_messages(value, with_calls=True) for value in values]
        refuse(name, "messages without role and content", is_bad)
        return
    is_bad = [not isinstance(value, str) and not _are_messages(value) for value in values]
    refuse(name, f"a {column} that is neither text nor messages", is_bad)
    if column in RESPONSES:
        refuse(name, f"an empty {column}", [not text_of(value).strip() for value in values])


def _are_messages(value: object, *, with_calls: bool = False) -> bool:
    """Tell a list of role and content; one that calls a tool, where that is allowed, has no content."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and (isinstance(message.get("content"), str) or (with_calls and message.get("tool_calls")))
            for message in value
        )
    )


def check_chat(rows: datasets.Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse whole conversations where the tokenizer has no chat template to write them in."""
    columns = rows.column_names
    if "messages" in columns and "prompt" not in columns and not tokenizer.chat_template:
        raise UserError(
            f"{name} has messages, but the tokenizer {tokenizer.name_or_path} has no chat template; "
            "give rows of prompt and completion or whole texts, or another tokenizer_path"
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Overlong(NamedTuple):
    """How many rows have a sequence beyond a limit, and how many of them already a prompt that fills it."""

    num_rows: int
    num_filled: int


def check_lengths(
    rows: datasets.Dataset,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    max_length: int | None,
    text_field: str = "text",
) -> Overlong:
    """Refuse sequences that the model cannot see whole, unless `max_length` makes the trainer deal with them.

    TRL's trainers cut sequences at `max_length`, and leave out rows of which no response would remain; the
    reward trainer leaves out every pair with a longer sequence.

    Args:
        rows: training rows, from `encoding.encode`.
        name: what to call the rows in an error message.
        tokenizer: the model's.
        config: the model's, for its context length.
        max_length: what the trainer takes of a sequence at most, in tokens; None for all.
        text_field: the column of whole texts, in rows without a prompt.

    Returns:
        The rows with a sequence longer than `max_length`.

    Raises:
        UserError: rows are longer than the context, and `max_length` is not at most that.
    """
    context = context_length(config)
    lengths = [max(_lengths(row, tokenizer, text_field)) for row in rows]  # closing token included
    if context is not None and (max_length is None or max_length > context):
        too_long = [length > context for length in lengths]
        remedy = f"remove them, or set max_length (now {max_length}) to at most {context} for shorter ones"
        refuse(name, f"more than the model's {context} tokens", too_long, remedy)
    if max_length is None:
        return Overlong(0, 0)
    over = [row for row, length in zip(rows, lengths, strict=True) if length > max_length]
    return Overlong(len(over), sum(_num_prompt_tokens(row) >= max_length for row in over))


def _lengths(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, text_field: str) -> list[int]:
    """Return the lengths in tokens of a row's sequences, closing token included."""
    if "prompt_ids" in row:
        return [len(row["prompt_ids"]) + len(row[key]) for key in ("chosen_ids", "rejected_ids")]
    encoded = [row[key] for key in ("input_ids", "chosen_ids", "rejected_ids") if key in row]
    if encoded:
        return list(map(len, encoded))
    if "messages" not in row:
        return [len(tokenizer(row[text_field])["input_ids"]) + 1]  # TRL appends EOS to what is whole
    text = write_conversation(
        tokenizer,
        row["messages"],
        add_generation_prompt=False,
        chat_template_kwargs=row.get("chat_template_kwargs"),
    )
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"])]


def _num_prompt_tokens(row: Mapping[str, Any]) -> int:
    """Return how many tokens come before the first that is learnt; 0 where all are."""
    if "prompt_ids" in row:
        return len(row["prompt_ids"])
    return next((i for i, label in enumerate(row.get("labels", [])) if label != IGNORED), 0)
