"""Bad training rows, found before any weight is loaded: with counts, first examples and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
from jinja2 import TemplateError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ivg.errors import UserError
from ivg.models.inspection import context_length
from ivg.training.data import text_of

PREFERENCE = ("prompt", "chosen", "rejected")
COMPLETION = ("prompt", "completion")
REWARDED = ("prompt", "completion", "reward")
_RESPONSES = ("completion", "chosen", "rejected")
_MAX_EXAMPLES = 3


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
    for column in ("prompt", *_RESPONSES) if "prompt" in columns else (whole,):
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
    if column in _RESPONSES:
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
        rows: training rows, prompts in their template.
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
    prompts = [row["prompt"] for row in over if "prompt" in row]
    num_filled = sum(_length(prompt, tokenizer, is_prompt=True) >= max_length for prompt in prompts)
    return Overlong(len(over), num_filled)


def _lengths(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, text_field: str) -> list[int]:
    """Return the lengths in tokens of a row's sequences, closing token included."""
    if "prompt" not in row:
        return [_length(row["messages"] if "messages" in row else row[text_field], tokenizer)]
    responses = [row[key] for key in _RESPONSES if key in row]
    return [_length(row["prompt"] + response, tokenizer) for response in responses]


def _length(content: Any, tokenizer: PreTrainedTokenizerBase, *, is_prompt: bool = False) -> int:
    if isinstance(content, str):
        # TRL appends EOS to what is whole.
        return len(tokenizer(content)["input_ids"]) + (not is_prompt)
    try:
        text = tokenizer.apply_chat_template(list(content), tokenize=False, add_generation_prompt=is_prompt)
    except TemplateError as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses the messages of a row: {error}"
        ) from error
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
