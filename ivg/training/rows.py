"""Training rows as they come: prompts told apart from responses, roles and fields checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from trl import extract_prompt

from ivg.errors import UserError
from ivg.models.prompts import ROLES, Record, is_text, join_text_parts, refuse_unread_fields
from ivg.training.tables import table_of

RESPONSES = ("completion", "chosen", "rejected")
_MAX_EXAMPLES = 3
_REMEDY = (
    "give `prompt` apart from the responses and each response as one assistant turn, or name an adapter that "
    "does (ultrafeedback_pairs for rows whose chosen and rejected are whole conversations)"
)


def refuse(name: str, what: str, is_bad: Sequence[bool], remedy: str = "remove or mend them") -> None:
    """Raise if any row is bad, with the count and the first row numbers (counted from 1)."""
    bad = [number for number, flag in enumerate(is_bad, start=1) if flag]
    if bad:
        first = ", ".join(map(str, bad[:_MAX_EXAMPLES]))
        raise UserError(
            f"{name}: {len(bad)} of {len(is_bad)} rows have {what} (first: row {first}); {remedy}"
        )


def text_of(content: Any) -> str:
    """Return a plain or conversational field's text."""
    if isinstance(content, str):
        return content
    return "\n".join(str(message["content"]) for message in content or [])


def as_prompt_row(prompt: Any) -> Record:
    """Turn a training row's prompt (text or messages) into a prompt row of `ivg.models.prompts`."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}


def separate_prompts(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Tell prompts apart from responses, so that nothing of a prompt is trained as the answer.

    Without a column `prompt`, what `chosen` and `rejected` share becomes the prompt, as with TRL, though
    never a part of a word. Responses that repeat the prompt lose it: conversations whose earlier turns are
    the prompt, and texts where every row's responses begin with its prompt. Fields that are missing or of
    another type are left for `checks.check_rows`.

    Args:
        rows: in TRL's columns.
        name: what to call them in an error message.

    Raises:
        UserError: no prompt can be told apart, a response is more than one assistant turn, a role is unknown,
            or a field that would change what the prompt means is not read.
    """
    keys = [key for key in RESPONSES if key in rows.column_names]
    has_prompt = "prompt" in rows.column_names
    if not keys or not (has_prompt or {"chosen", "rejected"} <= set(keys)):
        return rows
    plain = [_with_plain_content(row, ("prompt", *keys)) for row in rows]
    refuse(name, f"a role other than {', '.join(ROLES)}", [_has_unknown_role(row, keys) for row in plain])
    for number, row in enumerate(plain, start=1):
        refuse_unread_fields(row, "prompt", f"{name} row {number}")
    if not has_prompt:
        plain = [_extract(row) for row in plain]
    elif all(_repeats_text(row, keys) for row in plain):
        plain = [{**row, **{key: row[key][len(row["prompt"]) :] for key in keys}} for row in plain]
    separated = [_without_turns(row, keys) for row in plain]
    refuse(name, "responses whose earlier turns are not the prompt", [r is None for r in separated], _REMEDY)
    known = [row for row in separated if row is not None]
    refuse(name, "a prompt that ends with the assistant's turn", [_is_answered(row) for row in known])
    bad = [any(_is_other_turn(row[key]) for key in keys) for row in known]
    refuse(name, "a response that is not one turn of the assistant", bad, _REMEDY)
    return table_of(known, name)


def _with_plain_content(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Join text parts, so that every template can write them."""
    return {**row, **{key: _plain_turns(row[key]) for key in keys if _are_turns(row.get(key))}}


def _plain_turns(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return turns without the fields that tables add to some where others have them."""
    return [
        {key: join_text_parts(value) if key == "content" else value for key, value in turn.items()}
        for turn in ({k: v for k, v in turn.items() if v is not None} for turn in turns)
    ]


def _are_turns(content: object) -> bool:
    return (
        isinstance(content, list)
        and len(content) > 0
        and all(isinstance(m, Mapping) and "role" in m and is_text(m.get("content")) for m in content)
    )


def _has_unknown_role(row: Mapping[str, Any], keys: Sequence[str]) -> bool:
    turns = [turn for key in ("prompt", *keys) if _are_turns(row.get(key)) for turn in row[key]]
    return any(turn["role"] not in ROLES for turn in turns)


def _extract(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make what chosen and rejected share the prompt; a row of another form is left as it is."""
    chosen, rejected = row["chosen"], row["rejected"]
    if _are_turns(chosen) and _are_turns(rejected):
        # The last turn is the answer even where both are equal, which another check refuses.
        return {**row, "prompt": chosen[:-1] if chosen[:-1] == rejected[:-1] else None}
    if not (isinstance(chosen, str) and isinstance(rejected, str) and chosen and rejected):
        return {**row, "prompt": None}
    shared = str(extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"])
    if shared[-1:].isalnum() and (chosen[len(shared)].isalnum() or rejected[len(shared)].isalnum()):
        shared = shared[: max(shared.rfind(space) for space in " \t\n") + 1].removesuffix(" ")
    return {
        **row,
        "prompt": shared or None,
        "chosen": chosen[len(shared) :],
        "rejected": rejected[len(shared) :],
    }


def _repeats_text(row: Mapping[str, Any], keys: Sequence[str]) -> bool:
    prompt = row["prompt"]
    return (
        isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(row[key], str) and row[key].startswith(prompt) for key in keys)
    )


def _without_turns(row: dict[str, Any], keys: Sequence[str]) -> dict[str, Any] | None:
    """Take earlier turns off the responses where they are the prompt; None where they are something else."""
    earlier = [row[key][:-1] for key in keys if _are_turns(row[key])]
    if not any(earlier):
        return row
    prompt, first = row["prompt"], earlier[0]
    if len(earlier) < len(keys) or any(turns != first for turns in earlier):
        return None
    is_same_text = isinstance(prompt, str) and str(first[-1]["content"]).strip() == prompt.strip()
    if prompt != first and not (is_same_text and first[-1]["role"] == "user"):
        return None
    return {**row, "prompt": first, **{key: row[key][-1:] for key in keys}}


def _is_answered(row: Mapping[str, Any]) -> bool:
    return _are_turns(row["prompt"]) and row["prompt"][-1]["role"] == "assistant"


def _is_other_turn(response: object) -> bool:
    return _are_turns(response) and (len(response) != 1 or response[0]["role"] != "assistant")  # type: ignore[arg-type, index]
