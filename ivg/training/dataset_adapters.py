"""Data adapters: each turns one public dataset's own columns into TRL's.

The schemas were written down from the datasets' names and descriptions and have not been run against the
Hub: every adapter is unverified until someone has loaded the real dataset with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import datasets

from ivg.config.yaml_file import nearest
from ivg.errors import UserError
from ivg.run.console import note
from ivg.training.tables import table_of


class LeftOut(NamedTuple):
    """Stands for a row that an adapter does not give, and says why."""

    reason: str


Rows = Iterable[dict[str, Any] | LeftOut]
_EQUAL, _EMPTY = LeftOut("equal responses"), LeftOut("an empty response")
_UNSCORED = LeftOut("no score")
_OTHER_PROMPT = LeftOut("responses to different prompts")
_TLDR = re.compile(r"^\s*TL;DR:\s*")


def imdb_preference(row: Mapping[str, Any]) -> Rows:
    """`ZHZisZZ/imdb_preference` (unverified): prompt, responses, chosen = index of the better one."""
    better, responses = row["chosen"], row["responses"]
    if better not in (0, 1) or len(responses) != 2:
        raise UserError(
            f"chosen is {better!r} and there are {len(responses)} responses; expected 0 or 1, and two"
        )
    better = int(better)
    yield {"prompt": row["prompt"], "chosen": responses[better], "rejected": responses[1 - better]}


def summarize_comparisons(row: Mapping[str, Any]) -> Rows:
    """`CarperAI/openai_summarize_comparisons` (unverified): prompt, chosen, rejected.

    Responses may open with "TL;DR:", which here belongs to the template. Equal summaries are left out.
    """
    chosen, rejected = (_TLDR.sub("", row[key]) for key in ("chosen", "rejected"))
    is_pair = chosen != rejected
    yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected} if is_pair else _EQUAL


def summarize_sft(row: Mapping[str, Any]) -> Rows:
    """`CarperAI/openai_summarize_comparisons` (unverified): the chosen summaries, for fine-tuning."""
    row["rejected"]  # asked for so that another dataset is noticed
    yield {"prompt": row["prompt"], "completion": _TLDR.sub("", row["chosen"])}


def ultrafeedback_pairs(row: Mapping[str, Any]) -> Rows:
    """`HuggingFaceH4/ultrafeedback_binarized`, *_prefs splits (unverified): chosen, rejected as messages.

    Rows whose two answers are equal, one of them empty, or to different prompts, are left out.
    """
    *prompt, chosen = row["chosen"]
    *other_prompt, rejected = row["rejected"]
    if prompt != other_prompt:
        yield _OTHER_PROMPT
    elif not (chosen["content"].strip() and rejected["content"].strip()):
        yield _EMPTY
    elif chosen == rejected:
        yield _EQUAL
    else:
        yield {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def ultrafeedback_sft(row: Mapping[str, Any]) -> Rows:
    """`HuggingFaceH4/ultrafeedback_binarized` (unverified): the chosen answers, for fine-tuning."""
    *prompt, chosen = row["chosen"]
    yield {"prompt": prompt, "completion": [chosen]} if chosen["content"].strip() else _EMPTY


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
        else:
            yield _EMPTY


def ultrafeedback_scores(row: Mapping[str, Any]) -> Rows:
    """`openbmb/UltraFeedback` (unverified): instruction, completions = list of response and overall_score.

    Empty answers are left out, and so are those without a score.
    """
    for completion in row["completions"]:
        text, score = completion["response"], completion["overall_score"]
        if not text.strip():
            yield _EMPTY
        elif score is None:
            yield _UNSCORED
        else:
            yield {"prompt": row["instruction"], "completion": text, "reward": float(score)}


def adapt(rows: datasets.Dataset, name: str | None, source: str = "the dataset") -> datasets.Dataset:
    """Turn a dataset into TRL's columns; a line on stderr counts the rows that are left out, by reason.

    Args:
        rows: the dataset.
        name: of the adapter; None leaves the dataset as it is.
        source: what to call the dataset in messages.

    Raises:
        UserError: no such adapter, the dataset lacks a column that it reads, or a row holds something else
            there (with its number).
    """
    if name is None:
        return rows
    if name not in ADAPTERS:
        raise UserError(f"unknown adapter {name!r}; {nearest(name, ADAPTERS)}")
    adapted: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        for new in _adapted(name, row, number):
            if isinstance(new, LeftOut):
                left_out[new.reason] += 1
            else:
                adapted.append(new)
    if not adapted:
        raise UserError(f"adapter {name} left none of the dataset's {len(rows)} rows; check the dataset")
    if left_out:
        total = len(adapted) + left_out.total()
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        note(f"{source}: adapter {name} left out {left_out.total()} of {total} rows: {reasons}")
    return table_of(adapted, f"{source} by adapter {name}")


def _adapted(name: str, row: Mapping[str, Any], number: int) -> list[dict[str, Any] | LeftOut]:
    try:
        return list(ADAPTERS[name](row))
    except UserError as error:
        raise UserError(f"adapter {name}, row {number}: {error}") from error
    except KeyError as error:
        raise UserError(f"adapter {name} expects column {error}; the dataset has {', '.join(row)}") from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        expected = (ADAPTERS[name].__doc__ or "").splitlines()[0].partition(": ")[2]
        raise UserError(
            f"adapter {name} cannot read row {number} ({error}); it expects {expected}"
        ) from error


ADAPTERS: dict[str, Callable[[Mapping[str, Any]], Rows]] = {
    function.__name__: function
    for function in (
        imdb_preference,
        summarize_comparisons,
        summarize_sft,
        ultrafeedback_pairs,
        ultrafeedback_prompts,
        ultrafeedback_rewards,
        ultrafeedback_scores,
        ultrafeedback_sft,
    )
}
