"""Guides that read responses as text: those with another vocabulary, and sequence classifiers.

Each has the prompt in its own template and encodes the response's text itself, so scores may differ at a
chunk's edge from scores by ids. Caches are kept up to the longest common prefix (`lockstep/reader.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from ivg.decoding import NumericalError
from ivg.hypotheses import Task
from ivg.inspection import ModelInfo
from ivg.loading import LoadedModel, LoadedPair, LoadedValue
from ivg.lockstep.reader import LogpReader, ValueReader
from ivg.plan import GuidePlan, PairInfo
from ivg.prompts import render_prompt
from ivg.response_text import Encoder, ResponseText, context_of, response_text


class _Scorer(Protocol):
    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> Sequence[float]: ...

    def clear(self) -> None: ...


def text_infos(plans: Sequence[GuidePlan]) -> list[ModelInfo]:
    """Return the models that read text, in the order in which `TextGuides` finds their prompts."""
    infos: list[ModelInfo] = []
    for plan in plans:
        if plan.reads_text:
            info = plan.info
            infos += [info.tuned, info.untuned] if isinstance(info, PairInfo) else [info.model]
    return infos


class TextGuides:
    """Adds up what the text-reading guides give a prefix (see `decoding.TextScorer`).

    Args:
        base: whose ids the prefixes are.
        guides: those that read text, each with its weight in the chunk score.
        first: where their prompts start in `Task.lane_ids`.
    """

    def __init__(
        self, base: ModelInfo, guides: Sequence[tuple[LoadedPair | LoadedValue, float]], first: int
    ) -> None:
        self._base = base
        self._guides: list[tuple[str, float, _Scorer]] = []
        for guide, weight in guides:
            if isinstance(guide, LoadedPair):
                self._guides.append((guide.tuned.info.name, weight, _PairScorer(guide, first)))
                first += 2
            else:
                self._guides.append((guide.model.info.name, weight, _value_scorer(guide.model, first)))
                first += 1

    def clear(self) -> None:
        """Give the memory of all caches back."""
        for _, _, scorer in self._guides:
            scorer.clear()

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Sequence[int]]) -> list[float]:
        """Return the weighted score of each prefix, given in the base's ids.

        Raises:
            NumericalError: a guide returned NaN or infinity, naming it and the prompt.
        """
        responses = [response_text(self._base, prefix) for prefix in prefixes]
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

    def __init__(self, pair: LoadedPair, slot: int) -> None:
        self._average = pair.info.config.average
        self._sides = [
            (Encoder(model.info, slot + i), LogpReader(lane, _num_ids(model.info)))
            for i, (model, lane) in enumerate(zip((pair.tuned, pair.untuned), pair.own_lanes(), strict=True))
        ]

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        tuned, untuned = (self._side(*side, tasks, responses) for side in self._sides)
        return [t - u for t, u in zip(tuned, untuned, strict=True)]

    def clear(self) -> None:
        for _, reader in self._sides:
            reader.clear()

    def _side(
        self, encoder: Encoder, reader: LogpReader, tasks: Sequence[Task], responses: Sequence[ResponseText]
    ) -> list[float]:
        readings = encoder(tasks, responses)
        sums = reader.read(readings)
        if not self._average:
            return sums
        return [s / max(1, len(r.ids) - r.num_prompt) for s, r in zip(sums, readings, strict=True)]


class _ValueScorer:
    """A value head, or a classifier that reads from left to right, at the last token."""

    def __init__(self, encoder: Encoder, reader: ValueReader) -> None:
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


def _value_scorer(model: LoadedModel, slot: int) -> _Scorer:
    if model.info.kind == "classifier" and not _reads_left_to_right(model):
        return _WholeTextScorer(model)
    reader = ValueReader(model.lane(), model.head, is_vocabulary=model.info.kind == "vocabulary")
    return _ValueScorer(Encoder(model.info, slot), reader)


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
