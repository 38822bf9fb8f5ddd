"""Values in engines of their own: a pooling vLLM for each, which scores prefixes at chunk boundaries.

A value model that is no part of the guided model may have its own template, vocabulary, attention window and
number type, and may be a sequence classifier. Its prefix cache holds what candidates have in common.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from vllm.outputs import PoolingRequestOutput
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.llm_engine import LLMEngine

from ivg.decoding.engine import NumericalError
from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.response_encoding import Encoder, response_text
from ivg.engines.vllm.description import loading_args
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan


class ValueEnginePlan(NamedTuple):
    """A value that stands alone, not loaded, and the arguments to start its vLLM with."""

    plan: GuidePlan
    engine_args: dict[str, Any]


def plan_value_engine(plan: GuidePlan, given: Mapping[str, Any]) -> ValueEnginePlan:
    """Say how vLLM is started for a value model."""
    (info,) = plan.models
    args = {**loading_args(info.source), "runner": "pooling"}
    if info.kind != "classifier":
        # A head over the backbone, read at the last token: what vLLM makes of a sequence classifier.
        language_model = MODEL_FOR_CAUSAL_LM_MAPPING[type(info.config)].__name__
        classifier = language_model.removesuffix("LMHeadModel").removesuffix("ForCausalLM")
        args["hf_overrides"] = {"architectures": [f"{classifier}ForSequenceClassification"]}
    return ValueEnginePlan(plan, args | dict(given))


class ValueEngine:
    """Scores hypotheses at boundaries (see `ivg.decoding.engine.PrefixScorer`).

    Args:
        plan: the value, and its weight.
        engine: vLLM with it.
        base: whose ids the hypotheses are.
        stop_checker: says what ended a response.
    """

    def __init__(
        self, plan: GuidePlan, engine: LLMEngine, base: ModelInfo, stop_checker: StopChecker
    ) -> None:
        (self._info,) = plan.models
        self._weight = plan.chunk_weight
        self._base = base
        self._stop_checker = stop_checker
        self._encode = Encoder(self._info, shares_ids=plan.fit.route == "ids")
        self._names = map(str, itertools.count())
        self._engine = engine

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
        """Return the weighted score of each hypothesis.

        Raises:
            NumericalError: the model returned NaN or infinity.
        """
        responses = [response_text(self._base, prefix, self._stop_checker) for prefix in prefixes]
        readings = [reading.ids for reading in self._encode(tasks, responses)]
        scores = self._score(readings)
        for task, score in zip(tasks, scores, strict=True):
            if not math.isfinite(score):
                raise NumericalError(
                    f"{self._info.name} returned NaN or infinite numbers on prompt {task.prompt_id}"
                )
        return [self._weight * score for score in scores]

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        self._engine.engine_core.shutdown()

    def _score(self, readings: Sequence[tuple[int, ...]]) -> list[float]:
        """Return the score of each sequence; a vocabulary head has none for a single token: 0."""
        is_vocabulary = self._info.kind == "vocabulary"
        waiting: dict[str, int] = {}
        for place, ids in enumerate(readings):
            fed = ids[:-1] if is_vocabulary else ids  # Q of a token stands in the state before it
            if fed:
                name = next(self._names)
                params = PoolingParams(task="classify", use_activation=False)
                self._engine.add_request(name, {"prompt_token_ids": list(fed)}, params)
                waiting[name] = place
        scores = [0.0] * len(readings)
        while waiting:
            for output in self._engine.step():
                if isinstance(output, PoolingRequestOutput) and output.finished:
                    place = waiting.pop(output.request_id)
                    at = readings[place][-1] if is_vocabulary else 0
                    scores[place] = float(output.outputs.data[at])
        return scores
