"""Guides that read responses as text: those with another vocabulary, and sequence classifiers.

Each has the prompt in its own template and encodes the response's text itself, so scores may differ at a
chunk's edge from scores by ids. Caches are kept up to the longest common prefix (`lockstep/reader.py`).
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from ivg.decoding.engine import NumericalError
from ivg.decoding.sequences import Hypothesis, Task
from ivg.engines.lockstep.model_runner import runner_of, separate_runners
from ivg.engines.lockstep.rescoring import LogpRescorer, TokenSequence, ValueRescorer
from ivg.models.inspection import ModelInfo
from ivg.models.loading import LoadedModel, LoadedPair, LoadedValue
from ivg.models.prompts import render_prompt


class _Scorer(Protocol):
    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> Sequence[float]: ...

    def clear(self) -> None: ...


class TextGuides:
    """Adds up what the text-reading guides give a prefix (see `ivg.decoding.engine.PrefixScorer`).

    Args:
        base: whose ids the prefixes are.
        guides: those that read text, each with its weight in the chunk score.
    """

    def __init__(self, base: ModelInfo, guides: Sequence[tuple[LoadedPair | LoadedValue, float]]) -> None:
        self._base = base
        self._guides: list[tuple[str, float, _Scorer]] = []
        for guide, weight in guides:
            if isinstance(guide, LoadedPair):
                self._guides.append((guide.tuned.info.name, weight, _PairScorer(guide)))
            else:
                self._guides.append((guide.model.info.name, weight, _value_scorer(guide.model)))

    def clear(self) -> None:
        """Give the memory of all caches back."""
        for _, _, scorer in self._guides:
            scorer.clear()

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
        """Return the weighted score of each prefix, whose ids are the base's.

        Raises:
            NumericalError: a guide returned NaN or infinity, naming it and the prompt.
        """
        responses = [response_text(self._base, prefix.ids) for prefix in prefixes]
        totals = [0.0] * len(prefixes)
        for name, weight, scorer in self._guides:
            scores = scorer(tasks, responses)
            for i, (task, score) in enumerate(zip(tasks, scores, strict=True)):
                if not math.isfinite(score):
                    raise NumericalError(
                        f"{name} returned NaN or infinite numbers on prompt {task.prompt_id}"
                    )
                totals[i] += weight * score
        return totals


class _PairScorer:
    """Log-ratio of the response's text under tuned and untuned, each reading it in its own tokens."""

    def __init__(self, pair: LoadedPair) -> None:
        self._average = pair.info.config.average
        self._sides = [
            (Encoder(model.info), LogpRescorer(runner, _num_ids(model.info)))
            for model, runner in zip((pair.tuned, pair.untuned), separate_runners(pair), strict=True)
        ]

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        tuned, untuned = (self._side(*side, tasks, responses) for side in self._sides)
        return [t - u for t, u in zip(tuned, untuned, strict=True)]

    def clear(self) -> None:
        for _, reader in self._sides:
            reader.clear()

    def _side(
        self, encoder: Encoder, reader: LogpRescorer, tasks: Sequence[Task], responses: Sequence[ResponseText]
    ) -> list[float]:
        readings = encoder(tasks, responses)
        sums = reader.read(readings)
        if not self._average:
            return sums
        return [s / max(1, len(r.ids) - r.num_prompt) for s, r in zip(sums, readings, strict=True)]


class _ValueScorer:
    """A value head, or a classifier that reads from left to right, at the last token."""

    def __init__(self, encoder: Encoder, reader: ValueRescorer) -> None:
        self._encoder = encoder
        self._reader = reader

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        return self._reader.read(self._encoder(tasks, responses))

    def clear(self) -> None:
        self._reader.clear()


class _WholeTextScorer:
    """A classifier that reads in both directions: encodes and runs the whole text each time."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def clear(self) -> None:
        """Keep nothing: every text is read anew."""

    @torch.inference_mode()
    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        info = self._model.info
        prompts: dict[int, str] = {}
        for task in tasks:
            if task.index not in prompts:
                prompts[task.index] = render_prompt(info.tokenizer, task.row, info.template)
        texts = [prompts[t.index] + r.text for t, r in zip(tasks, responses, strict=True)]
        inputs = info.tokenizer(
            texts,
            truncation=context_of(info) is not None,
            max_length=context_of(info),
            padding=True,
            # A chat template writes the special tokens itself.
            add_special_tokens=info.template != "chat",
            return_tensors="pt",
        )
        logits = self._model.module(**inputs.to(self._model.module.device)).logits  # (R, 1)
        return [float(score) for score in logits[:, 0].double().tolist()]


def _value_scorer(model: LoadedModel) -> _Scorer:
    if model.info.kind == "classifier" and not _reads_left_to_right(model):
        return _WholeTextScorer(model)
    reader = ValueRescorer(runner_of(model), model.head, is_vocabulary=model.info.kind == "vocabulary")
    return _ValueScorer(Encoder(model.info), reader)


def _reads_left_to_right(model: LoadedModel) -> bool:
    """Tell decoders, whose linear `score` head reads the last token, from encoders with a pooled head."""
    children = dict(model.module.named_children())
    backbone = children.get(model.module.base_model_prefix)
    if backbone is None or not isinstance(children.get("score"), torch.nn.Linear):
        return False
    if model.module._is_stateful:  # recurrent layers keep no cache that rows could share
        return False
    return "past_key_values" in inspect.signature(backbone.forward).parameters


def _num_ids(info: ModelInfo) -> int:
    return min(info.num_token_ids, info.num_outputs)


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

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        own = info.tokenizer.eos_token_id
        self._eos: tuple[int, ...] = (own,) if own is not None else info.eos_ids[:1]
        self._has_warned = False

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[TokenSequence]:
        """Return what the model reads for each response: its own EOS stands where the response ended."""
        encoded = self._info.tokenizer([r.text for r in responses], add_special_tokens=False)["input_ids"]
        readings = []
        for task, response, own in zip(tasks, responses, encoded, strict=True):
            prompt = task.prompt_ids[self._info.name]
            ids = (*prompt, *own, *(self._eos if response.is_ended else ()))
            readings.append(TokenSequence(task.index, len(prompt), self._cut(ids)))
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
