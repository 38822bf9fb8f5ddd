"""From a response in the base's ids to another model's ids, by way of its text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ivg.hypotheses import Task
from ivg.inspection import ModelInfo
from ivg.lockstep.reader import Reading

_NO_LIMIT = 2**31  # tokenizers without a limit of their own say 1e30

logger = logging.getLogger(__name__)


class ResponseText(NamedTuple):
    """A response's whole characters, and whether it ended with an EOS."""

    text: str
    is_ended: bool


def response_text(base: ModelInfo, ids: Sequence[int]) -> ResponseText:
    """Decode a response; bytes of a character that is not complete yet are left out."""
    is_ended = len(ids) > 0 and ids[-1] in base.eos_ids
    text = base.tokenizer.decode(list(ids[:-1] if is_ended else ids), skip_special_tokens=True)
    return ResponseText(str(text).rstrip("\ufffd"), is_ended)


class Encoder:
    """Turns prompts and responses into one model's own ids."""

    def __init__(self, info: ModelInfo, slot: int) -> None:
        self._info = info
        self._slot = slot
        own = info.tokenizer.eos_token_id
        self._eos: tuple[int, ...] = (own,) if own is not None else info.eos_ids[:1]
        self._has_warned = False

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[Reading]:
        """Return what the model reads for each response: its own EOS stands where the response ended."""
        encoded = self._info.tokenizer([r.text for r in responses], add_special_tokens=False)["input_ids"]
        readings = []
        for task, response, own in zip(tasks, responses, encoded, strict=True):
            prompt = task.lane_ids[self._slot]
            ids = (*prompt, *own, *(self._eos if response.is_ended else ()))
            readings.append(Reading(task.index, len(prompt), self._cut(ids)))
        return readings

    def _cut(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        limit = context_of(self._info)
        if limit is None or len(ids) <= limit:
            return ids
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: a response is longer than its context of %d tokens; it is scored up to there",
                self._info.name,
                limit,
            )
        return ids[:limit]


def context_of(info: ModelInfo) -> int | None:
    """Return the tokens a model reads: position embeddings may hold more rows than are for use."""
    limits = [info.tokenizer.model_max_length, *([] if info.max_length is None else [info.max_length])]
    shortest = min(limits)
    return shortest if shortest < _NO_LIMIT else None
