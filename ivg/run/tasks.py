"""From prompts to tasks: every prompt in every model's ids, checked against every context."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ivg.config import SamplingConfig
from ivg.decoding.sequences import Task
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.prompts import Record, identities


@dataclasses.dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be decoded, and why."""

    index: int
    reason: str


def make_tasks(
    rows: Sequence[Record],
    infos: Sequence[ModelInfo],
    sampling: SamplingConfig,
    *,
    on_overflow: str = "error",
) -> tuple[list[Task], list[BadRecord]]:
    """Encode every prompt for every model, before any weights are loaded.

    Args:
        rows: checked prompt rows.
        infos: what `reading_models` returned.
        sampling: lengths and number of samples.
        on_overflow: `error`, or `stop` to end a response where a context ends.

    Returns:
        Tasks (`num_samples` for each prompt), and the rows that fit no context or template.
    """
    tasks: list[Task] = []
    bad: list[BadRecord] = []
    renderers = [info.renderer() for info in infos]
    for index, (row, name) in enumerate(zip(rows, identities(rows), strict=True)):
        try:
            prompt_ids = {
                info.name: tuple(renderer.prompt_ids(row))
                for info, renderer in zip(infos, renderers, strict=True)
            }
            room = room_for(infos, prompt_ids, sampling.max_new_tokens, on_overflow)
        except UserError as error:
            bad.append(BadRecord(index, str(error)))
            continue
        for sample in range(sampling.num_samples):
            tasks.append(
                Task(
                    index=index * sampling.num_samples + sample,
                    prompt_id=name,
                    prompt_ids=prompt_ids,
                    max_tokens=min(room, sampling.max_new_tokens),
                    sample=sample,
                    limited_by="length" if room >= sampling.max_new_tokens else "context",
                    record=row,
                )
            )
    return tasks, bad


def room_for(
    infos: Sequence[ModelInfo],
    prompt_ids: Mapping[str, Sequence[int]],
    max_new_tokens: int,
    on_overflow: str = "error",
    *,
    what: str = "prompt",
    remedy: str = "shorten it, lower max_new_tokens, or set on_overflow: stop",
) -> int:
    """Return the response tokens that fit every model's context.

    Args:
        infos: the models that read the prompt.
        prompt_ids: by model name, the prompt in its ids.
        max_new_tokens: how many are wanted.
        on_overflow: `error`, or `stop` to make do with fewer.
        what: how the message calls the prompt.
        remedy: what the message says to do.

    Raises:
        UserError: an empty prompt, or one that leaves too few.
    """
    room = max_new_tokens
    for info in infos:
        ids = prompt_ids[info.name]
        if not ids:
            raise UserError(f"{info.name}: the {what} has no tokens in its template {info.template!r}")
        if info.max_length is None:
            continue
        left = info.max_length - len(ids)
        if left < 1 or (left < max_new_tokens and on_overflow == "error"):
            raise UserError(
                f"{info.name}: {what} of {len(ids)} tokens + max_new_tokens {max_new_tokens} exceeds its "
                f"context of {info.max_length}; {remedy}"
            )
        room = min(room, left)
    return room
