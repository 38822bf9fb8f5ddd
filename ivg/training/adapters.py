"""Data adapters: each turns one public dataset's own columns into TRL's.

The schemas were written down from the datasets' names and descriptions and have not been run against the
Hub: every adapter is unverified until someone has loaded the real dataset with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets

from ivg.config_file import nearest
from ivg.errors import UserError

Rows = Iterable[dict[str, Any]]
_TLDR = re.compile(r"^\s*TL;DR:\s*")


def imdb_preference(row: Mapping[str, Any]) -> Rows:
    """`ZHZisZZ/imdb_preference` (unverified): prompt, responses, chosen = index of the better one."""
    better = int(row["chosen"])
    responses = row["responses"]
    yield {"prompt": row["prompt"], "chosen": responses[better], "rejected": responses[1 - better]}


def summarize_comparisons(row: Mapping[str, Any]) -> Rows:
    """`CarperAI/openai_summarize_comparisons` (unverified): prompt, chosen, rejected.

    Responses may open with "TL;DR:", which here belongs to the template. Equal summaries are left out.
    """
    chosen, rejected = (_TLDR.sub("", row[key]) for key in ("chosen", "rejected"))
    if chosen != rejected:
        yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def summarize_sft(row: Mapping[str, Any]) -> Rows:
    """`CarperAI/openai_summarize_comparisons` (unverified): the chosen summaries, for fine-tuning."""
    row["rejected"]  # asked for so that another dataset is noticed
    yield {"prompt": row["prompt"], "completion": _TLDR.sub("", row["chosen"])}


def ultrafeedback_pairs(row: Mapping[str, Any]) -> Rows:
    """`HuggingFaceH4/ultrafeedback_binarized`, *_prefs splits (unverified): chosen, rejected as messages.

    Rows whose two answers are equal are left out.
    """
    *prompt, chosen = row["chosen"]
    rejected = row["rejected"][-1]
    if chosen["content"].strip() and rejected["content"].strip() and chosen != rejected:
        yield {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def ultrafeedback_sft(row: Mapping[str, Any]) -> Rows:
    """`HuggingFaceH4/ultrafeedback_binarized` (unverified): the chosen answers, for fine-tuning."""
    *prompt, chosen = row["chosen"]
    if chosen["content"].strip():
        yield {"prompt": prompt, "completion": [chosen]}


def ultrafeedback_prompts(row: Mapping[str, Any]) -> Rows:
    """`HuggingFaceH4/ultrafeedback_binarized` (unverified): the prompts alone, for rollouts."""
    yield {"prompt": row["chosen"][:-1]}


def ultrafeedback_rewards(row: Mapping[str, Any]) -> Rows:
    """`chadlzx/ultrafeedback_with_rewards` (unverified): prompt, chosen, rejected and their two rewards.

    Answers may be texts or messages; empty ones are left out.
    """
    for key in ("chosen", "rejected"):
        answer = row[key]
        text = answer if isinstance(answer, str) else answer[-1]["content"]
        if text.strip():
            yield {"prompt": row["prompt"], "completion": text, "reward": float(row[f"{key}_reward"])}


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
        adapted = [new for row in rows for new in adapter(row)]
    except KeyError as error:
        raise UserError(
            f"adapter {name} expects column {error}; the dataset has {', '.join(rows.column_names)}"
        ) from error
    if not adapted:
        raise UserError(f"adapter {name} left none of the dataset's {len(rows)} rows; check the dataset")
    return datasets.Dataset.from_list(adapted)


ADAPTERS: dict[str, Callable[[Mapping[str, Any]], Rows]] = {
    function.__name__: function
    for function in (
        imdb_preference,
        summarize_comparisons,
        summarize_sft,
        ultrafeedback_pairs,
        ultrafeedback_prompts,
        ultrafeedback_rewards,
        ultrafeedback_sft,
    )
}
