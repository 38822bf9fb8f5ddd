"""vLLM as a server's engine: one guided model for all presets, each request with weights of its own."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from ivg.config import SamplingConfig
from ivg.decoding.engine import Watcher, refuse
from ivg.decoding.sequences import Finished, Task, TokenLogProb
from ivg.engines.vllm.engine import AsyncVllmEngine, GuidedModel, start_llm
from ivg.engines.vllm.given_tokens import GivenTokens
from ivg.engines.vllm.prompt_search import SearchSettings
from ivg.engines.vllm.refusals import check_prompt, refuse_temperature
from ivg.models.plan import GuidePlan, ModelInfos, weigh_guides
from ivg.serve.engines import RequestSettings

_MAX_KEPT = 64  # settings that are kept for the next request that has them


class ServedVllm:
    """vLLM with the guided model, in processes of its own (see `ServedModels`).

    Args:
        infos: base and the guides of all presets, not loaded.
        plans: by preset, who guides and how.
        engine_args: vLLM's own arguments, which were examined.

    Raises:
        EngineError: vLLM could not start.
    """

    def __init__(
        self,
        infos: ModelInfos,
        plans: Mapping[str, Sequence[GuidePlan]],
        engine_args: Mapping[str, Any],
    ) -> None:
        every = {id(plan.info): plan for of_preset in plans.values() for plan in of_preset}
        self._plans = plans
        self._max_length = engine_args.get("max_model_len")
        self._model = GuidedModel(infos, list(every.values()), engine_args)
        # Requests may bring any temperature; what vLLM counts is shown under /metrics.
        args = self._model.engine_args(SamplingConfig(temperature=1.0)) | {"disable_log_stats": False}
        self._llm: AsyncLLM = start_llm(args)
        self._names = map(str, itertools.count())
        self._given_tokens = GivenTokens(self._llm, self._names)
        self._search_settings = functools.lru_cache(_MAX_KEPT)(self._make_settings)
        self._num_rows = 0

    @property
    def num_rows(self) -> int:
        """Rows that running requests may come to fill."""
        return self._num_rows

    @property
    def is_alive(self) -> bool:
        """Whether vLLM's processes are."""
        return not self._llm.errored

    def check(self, settings: RequestSettings, tasks: Sequence[Task]) -> None:
        """Refuse temperatures that vLLM would change, and prompts that it cannot feed to all models."""
        refuse("vllm", list(refuse_temperature(settings.sampling)))
        for task in tasks:
            check_prompt(task, self._max_length)

    async def decode(self, settings: RequestSettings, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows."""
        engine = AsyncVllmEngine(self._llm, self._search_settings(settings), self._names)
        num_rows = settings.search.rows_per_prompt
        self._num_rows += num_rows
        try:
            return await engine.decode(task, watcher)
        finally:
            self._num_rows -= num_rows

    async def score(
        self, settings: RequestSettings, sequences: Mapping[str, Sequence[int]], num_tokens: int, num_top: int
    ) -> list[TokenLogProb]:
        """Return the guided distribution's log-probs of the last tokens of a sequence."""
        ids = next(iter(sequences.values()))  # all models read the same
        rows = self._search_settings(settings).rows
        return await self._given_tokens.score(rows, ids, num_tokens, num_top)

    async def close(self) -> None:
        """Stop vLLM."""
        self._llm.shutdown()

    def _make_settings(self, settings: RequestSettings) -> SearchSettings:
        plans = weigh_guides(self._plans[settings.preset], settings.beta)
        return self._model.settings(plans, settings.search, settings.sampling)
