"""Responses whose order is known: preference files, best-of-N files, and responses with rewards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ivg.errors import UserError
from ivg.evaluation.reading import read_json, read_json_lines
from ivg.models.prompts import PROMPT_FIELDS, Record, check_row

Form = Literal["preferences", "best-of-N", "rewards"]
WANTED = (
    "rows with prompt, chosen and rejected (texts, messages, or lists of texts), or with prompt, response "
    "and reward"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidates:
    """Responses, those to one prompt side by side.

    Attributes:
        form: of the file.
        records: the prompt of each response.
        responses: their texts.
        groups: which prompt each response belongs to (N,).
        rewards: 1 for a chosen and 0 for a rejected response, or the file's own (N,).
    """

    form: Form
    records: list[Record]
    responses: list[str]
    groups: NDArray[np.int64]
    rewards: NDArray[np.float64]

    def first_prompts(self, num: int) -> Candidates:
        """Keep the responses to the first prompts."""
        kept = np.flatnonzero(self.groups < num)
        return Candidates(
            self.form,
            [self.records[i] for i in kept],
            [self.responses[i] for i in kept],
            self.groups[kept],
            self.rewards[kept],
        )


def read_candidates(path: str | Path) -> Candidates:
    """Read a JSONL file, or a JSON array.

    A preference row has `prompt`, `chosen` and `rejected` in any of TRL's forms, or lists of texts as
    RewardBench 2 has them (one or more chosen, several rejected). A row with `response` (or `completion`) and
    `reward` is one response; those to the same prompt belong together, wherever they stand.

    Raises:
        UserError: not such a file, forms that are mixed, or no two responses that can be compared.
    """
    path = Path(path)
    if path.suffix == ".json":
        data = read_json(path, WANTED)
        if not isinstance(data, list):
            raise UserError(f"{path}: expected a JSON array; give {WANTED}")
        rows = [(f"{path}, row {number}", row) for number, row in enumerate(data, start=1)]
    else:
        rows = read_json_lines(path, WANTED)
    forms: set[Form] = set()
    groups: dict[str, int] = {}
    found: list[tuple[int, Record, str, float]] = []
    for number, (where, row) in enumerate(rows):
        form, record, scored = _read_row(row, where)
        forms.add(form)
        # Two preferences about one prompt are two comparisons; rewards of one prompt are compared.
        name = json.dumps(record, sort_keys=True) if form == "rewards" else str(number)
        group = groups.setdefault(name, len(groups))
        found += [(group, record, text, reward) for text, reward in scored]
    if len(forms) > 1 and "rewards" in forms:
        raise UserError(f"{path}: rows with rewards and rows with preferences; give a file of one kind")
    if not found:
        raise UserError(f"{path}: no rows; give {WANTED}")
    found.sort(key=lambda entry: entry[0])  # stable
    candidates = Candidates(
        "best-of-N" if "best-of-N" in forms else next(iter(forms)),
        [record for _, record, _, _ in found],
        [text for _, _, text, _ in found],
        np.array([group for group, *_ in found]),
        np.array([reward for *_, reward in found]),
    )
    if not any(np.ptp(candidates.rewards[candidates.groups == g]) > 0 for g in range(len(groups))):
        raise UserError(f"{path}: no prompt has two responses of different rewards; there is nothing to rank")
    return candidates


def _read_row(row: Any, where: str) -> tuple[Form, Record, list[tuple[str, float]]]:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected a JSON object, got a {type(row).__name__}; give {WANTED}")
    if "chosen" in row and "rejected" in row:
        chosen, rejected = row["chosen"], row["rejected"]
        if _is_texts(chosen) and _is_texts(rejected):
            scored = [*((text, 1.0) for text in chosen), *((text, 0.0) for text in rejected)]
            return "best-of-N", _record(row, where), scored
        before, better = _split(chosen, f"{where}: chosen")
        other, worse = _split(rejected, f"{where}: rejected")
        if before != other:
            raise UserError(f"{where}: chosen and rejected answer different conversations; give the same")
        prompt = {"messages": _conversation(row, before)} if before else row
        return "preferences", _record(prompt, where), [(better, 1.0), (worse, 0.0)]
    response = row.get("response", row.get("completion"))
    reward = row.get("reward")
    is_number = isinstance(reward, int | float) and not isinstance(reward, bool)
    if response is None or not is_number:
        raise UserError(f"{where}: found {', '.join(map(str, row)) or 'no fields'}; give {WANTED}")
    before, text = _split(response, f"{where}: response")
    if before:
        raise UserError(f"{where}: the response has {len(before) + 1} turns; give one")
    assert reward is not None
    return "rewards", _record(row, where), [(text, float(reward))]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _split(response: Any, where: str) -> tuple[list[Any], str]:
    """Return what comes before the answer, and its text."""
    if isinstance(response, str):
        return [], response
    is_turns = isinstance(response, list) and bool(response)
    if not is_turns or not isinstance(response[-1], Mapping) or response[-1].get("role") != "assistant":
        raise UserError(
            f"{where} is {response!r:.60}; give a text, or messages that end with the assistant's"
        )
    text = response[-1].get("content")
    if not isinstance(text, str):
        raise UserError(f"{where}: the last message has no text; give its content")
    return response[:-1], text


def _conversation(row: Mapping[str, Any], before: list[Any]) -> list[Any]:
    """Return the whole conversation before an answer; many files repeat the prompt in front of it."""
    prompt = row.get("messages", row.get("prompt"))
    if prompt is None:
        return before
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return before if before[: len(turns)] == turns else [*turns, *before]


def _record(row: Mapping[str, Any], where: str) -> Record:
    """Return the prompt alone, as `ivg.models.prompts` takes it."""
    fields = {name: row[name] for name in (*PROMPT_FIELDS, "input") if row.get(name) is not None}
    if isinstance(fields.get("prompt"), list):
        fields["messages"] = fields.pop("prompt")
    return check_row(fields, where)
