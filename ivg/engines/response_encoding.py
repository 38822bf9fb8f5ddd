"""Hypotheses as the responses that a guide was trained on, in its own ids.

A response is read without what ended it (stop string, EOS), and closed by the guide's own end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import INCOMPLETE, StopChecker
from ivg.models.inspection import ModelInfo, readable_length

logger = logging.getLogger(__name__)


class TokenSequence(NamedTuple):
    """One sequence to read: which others it may continue, its prompt's length, its ids."""

    group: int
    num_prompt: int
    ids: tuple[int, ...]


class ResponseText(NamedTuple):
    """A response's whole characters, and how it stands.

    Attributes:
        text: without special tokens and stop string; a character that is not complete yet is left out.
        ids: the base's ids that spell it; None where a stop string began inside one.
        is_ended: it came to an end, by EOS or stop string; one that was cut at a length did not.
    """

    text: str
    ids: tuple[int, ...] | None
    is_ended: bool


def response_text(base: ModelInfo, hypothesis: Hypothesis, stop_checker: StopChecker) -> ResponseText:
    """Read a hypothesis as a response: without what ended it."""
    ids = stop_checker.content_ids(hypothesis)
    if ids is None:
        text = stop_checker.text(hypothesis)
    else:
        text = str(base.tokenizer.decode(list(ids), skip_special_tokens=True)).rstrip(INCOMPLETE)
    return ResponseText(text, ids, hypothesis.finish_reason in ("eos", "stop"))


class Encoder:
    """Turns prompts and responses into one model's own ids.

    Args:
        info: the model.
        prompt_name: under which name tasks keep its prompt, where not its own.
        shares_ids: it has the base's vocabulary, so that responses stand in its ids already.
    """

    def __init__(self, info: ModelInfo, prompt_name: str | None = None, *, shares_ids: bool = False) -> None:
        self._info = info
        self._renderer = info.renderer()
        self._prompt_name = prompt_name or info.name
        self._shares_ids = shares_ids
        self._has_warned = False

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[TokenSequence]:
        """Return what the model reads for each response, closed by its own end where the response ended."""
        sequences = []
        for task, response in zip(tasks, responses, strict=True):
            prompt = task.prompt_ids.get(self._prompt_name, ())
            if self._info.kind == "classifier":
                ids = self._renderer.judged_ids(task.record, response.text, is_ended=response.is_ended)
                num_prompt = max(1, num_common(prompt, ids))
            else:
                ids = [*prompt, *self._own_ids(response)]
                num_prompt = len(prompt)
            sequences.append(TokenSequence(task.index, num_prompt, self._cut(tuple(ids))))
        return sequences

    def _own_ids(self, response: ResponseText) -> list[int]:
        if not self._shares_ids or response.ids is None:
            return self._renderer.response_ids(response.text, is_ended=response.is_ended)
        return [*response.ids, *self._renderer.response_ids("", is_ended=response.is_ended)]

    def _cut(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        limit = readable_length(self._info.config, self._info.tokenizer)
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


def num_common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    length = min(len(ours), len(theirs))
    if ours[:length] == theirs[:length]:
        return length
    return int((np.array(ours[:length]) != np.array(theirs[:length])).argmax())
