"""What is scored at boundaries: by guides that read text, and endings that no guide has followed by ids.

Guides with another vocabulary, and sequence classifiers, have the prompt in their own template and encode the
response's text themselves, so scores may differ at a chunk's edge from scores by ids. Caches are kept up to
the longest common prefix (`lockstep/rescoring.py`). A response that ended by a stop string, or by an EOS that
is not the guide's own, is read as the guide was trained (`models/rendering.py`), whatever the kind of guide.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from ivg.decoding.engine import NumericalError
from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.lora_pair import separate_runners
from ivg.engines.lockstep.model_runner import runner_of
from ivg.engines.lockstep.rescoring import LogpRescorer, ValueRescorer
from ivg.engines.response_encoding import Encoder, ResponseText, response_text
from ivg.models.inspection import ModelInfo, readable_length
from ivg.models.loading import LoadedModel, LoadedPair, LoadedValue


class _Scorer(Protocol):
    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> Sequence[float]: ...

    def clear(self) -> None: ...


class TextGuides:
    """Adds up what guides give a hypothesis at a boundary (see `ivg.decoding.engine.PrefixScorer`).

    Guides with another vocabulary, and sequence classifiers, read every hypothesis as text. Guides that score
    by ids read those alone that ended otherwise than they were trained: by a stop string, or by an EOS id
    that is not their own. A response is then read without what ended it, closed by the guide's own end.

    Args:
        base: whose ids the hypotheses are.
        text_guides: those that read text, each with its weight in the chunk score.
        id_guides: those that score by ids, likewise.
        stop_checker: says what ended a response.
    """

    def __init__(
        self,
        base: ModelInfo,
        text_guides: Sequence[tuple[LoadedPair | LoadedValue, float]],
        id_guides: Sequence[tuple[LoadedPair | LoadedValue, float]],
        stop_checker: StopChecker,
    ) -> None:
        self._base = base
        self._stop_checker = stop_checker
        self._text_guides = [_bind(guide, weight, shares_ids=False) for guide, weight in text_guides]
        self._id_guides = [_bind(guide, weight, shares_ids=True) for guide, weight in id_guides]
        ends = [info.renderer().end_id for guide, _ in id_guides for info in _infos(guide)]
        self._foreign_eos = {eos for eos in base.eos_ids if any(eos != end for end in ends)}

    @property
    def has_work(self) -> bool:
        """Whether any hypothesis of the run can need a score from here."""
        may_end_otherwise = bool(self._foreign_eos) or self._stop_checker.has_stops
        return bool(self._text_guides) or (bool(self._id_guides) and may_end_otherwise)

    def clear(self) -> None:
        """Give the memory of all caches back."""
        for _, _, scorer in (*self._text_guides, *self._id_guides):
            scorer.clear()

    def must_read(self, hypothesis: Hypothesis) -> bool:
        """Tell whether a hypothesis ended otherwise than the guides that score by ids were trained."""
        if not self._id_guides:
            return False
        is_foreign = hypothesis.finish_reason == "eos" and hypothesis.ids[-1] in self._foreign_eos
        return hypothesis.finish_reason == "stop" or is_foreign

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
        """Return the weighted score of each hypothesis.

        Raises:
            NumericalError: a guide returned NaN or infinity, naming it and the prompt.
        """
        responses = [response_text(self._base, h, self._stop_checker) for h in prefixes]
        totals = [0.0] * len(responses)
        self._add(totals, self._text_guides, tasks, responses, range(len(responses)))
        ended = [i for i, hypothesis in enumerate(prefixes) if self.must_read(hypothesis)]
        if ended:
            self._add(totals, self._id_guides, tasks, responses, ended)
            for _, _, scorer in self._id_guides:
                scorer.clear()  # an ending is read once
        return totals

    @staticmethod
    def _add(
        totals: list[float],
        guides: Sequence[tuple[str, float, _Scorer]],
        tasks: Sequence[Task],
        responses: Sequence[ResponseText],
        rows: Sequence[int],
    ) -> None:
        """Add the guides' weighted scores of some rows to the totals."""
        for name, weight, scorer in guides:
            scores = scorer([tasks[i] for i in rows], [responses[i] for i in rows])
            for i, score in zip(rows, scores, strict=True):
                if not math.isfinite(score):
                    raise NumericalError(
                        f"{name} returned NaN or infinite numbers on prompt {tasks[i].prompt_id}"
                    )
                totals[i] += weight * score


def _infos(guide: LoadedPair | LoadedValue) -> list[ModelInfo]:
    return [guide.tuned.info, guide.untuned.info] if isinstance(guide, LoadedPair) else [guide.model.info]


def _bind(guide: LoadedPair | LoadedValue, weight: float, *, shares_ids: bool) -> tuple[str, float, _Scorer]:
    if isinstance(guide, LoadedPair):
        return guide.tuned.info.name, weight, _PairScorer(guide, shares_ids=shares_ids)
    return guide.model.info.name, weight, _value_scorer(guide.model, shares_ids=shares_ids)


class _PairScorer:
    """Log-ratio of the response's text under tuned and untuned, each reading it in its own tokens."""

    def __init__(self, pair: LoadedPair, *, shares_ids: bool) -> None:
        self._average = pair.info.config.average
        # One set of weights reads one prompt, which is kept under the tuned half's name.
        names = [(pair.tuned if pair.is_shared else model).info.name for model in (pair.tuned, pair.untuned)]
        self._sides = [
            (
                Encoder(model.info, name, shares_ids=shares_ids),
                LogpRescorer(runner, _num_ids(model.info)),
            )
            for model, name, runner in zip(
                (pair.tuned, pair.untuned), names, separate_runners(pair), strict=True
            )
        ]

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        tuned, untuned = (self._side(*side, tasks, responses) for side in self._sides)
        return [t - u for t, u in zip(tuned, untuned, strict=True)]

    def clear(self) -> None:
        for _, rescorer in self._sides:
            rescorer.clear()

    def _side(
        self,
        encoder: Encoder,
        rescorer: LogpRescorer,
        tasks: Sequence[Task],
        responses: Sequence[ResponseText],
    ) -> list[float]:
        readings = encoder(tasks, responses)
        sums = rescorer.read(readings)
        if not self._average:
            return sums
        return [s / max(1, len(r.ids) - r.num_prompt) for s, r in zip(sums, readings, strict=True)]


class _ValueScorer:
    """A value head, or a classifier that reads from left to right, at the last token."""

    def __init__(self, encoder: Encoder, rescorer: ValueRescorer) -> None:
        self._encoder = encoder
        self._rescorer = rescorer

    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        return self._rescorer.read(self._encoder(tasks, responses))

    def clear(self) -> None:
        self._rescorer.clear()


class _WholeTextScorer:
    """A classifier that reads in both directions: encodes and runs the whole text each time."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._renderer = model.info.renderer()

    def clear(self) -> None:
        """Keep nothing: every text is read anew."""

    @torch.inference_mode()
    def __call__(self, tasks: Sequence[Task], responses: Sequence[ResponseText]) -> list[float]:
        ids = [
            self._cut(self._renderer.judged_ids(task.record, response.text, is_ended=response.is_ended))
            for task, response in zip(tasks, responses, strict=True)
        ]
        inputs = self._model.info.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        logits = self._model.module(**inputs.to(self._model.module.device)).logits  # (R, 1)
        return [float(score) for score in logits[:, 0].double().tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        """Shorten a text to the model's context, before its closing token."""
        limit = readable_length(self._model.info.config, self._model.info.tokenizer)
        return ids if limit is None or len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _value_scorer(model: LoadedModel, *, shares_ids: bool) -> _Scorer:
    if model.info.kind == "classifier" and not _reads_left_to_right(model):
        return _WholeTextScorer(model)
    rescorer = ValueRescorer(runner_of(model), model.head, is_vocabulary=model.info.kind == "vocabulary")
    return _ValueScorer(Encoder(model.info, shares_ids=shares_ids), rescorer)


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
