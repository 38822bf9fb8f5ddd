"""One task's search over vLLM requests: a request for each candidate, at the task's own pace.

The prefix cache does what reordering rows does in lockstep: a successor's request finds its parent's blocks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.beam_search import BeamSearch, Extension
from ivg.decoding.draws import request_seed
from ivg.decoding.engine import NumericalError, PrefixScorer, Watcher
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.vllm.description import Description
from ivg.engines.vllm.row_settings import RowSettings

Generate = Callable[[Sequence[int], SamplingParams, str], Awaitable[CompletionOutput]]
# With stop strings, which are sought in text once a request has ended, no request goes on for longer.
MAX_TOKENS_BETWEEN_LOOKS = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What is decoded, and how.

    Attributes:
        description: the guided model.
        rows: the guides' weights, in tokens and in the chunk score.
        search: guidance and beam search.
        sampling: lengths, temperature, seed.
        stop_checker: finds where responses end.
        last_ids: ids that end a response; a request that meets one need not go on.
        scorer: adds to the values at boundaries.
        average: divide the implicit chunk score by the response's length.
        keep_trace: record boundaries.
    """

    description: Description
    rows: RowSettings
    search: SearchConfig
    sampling: SamplingConfig
    stop_checker: StopChecker
    last_ids: tuple[int, ...] = ()
    scorer: PrefixScorer | None = None
    average: bool = False
    keep_trace: bool = False


class PromptSearch:
    """Decodes single tasks, as many side by side as its caller likes.

    Args:
        generate: continues ids (prompt and prefix) as its parameters say, under a request's name.
        settings: what is decoded, and how.
    """

    def __init__(self, generate: Generate, settings: SearchSettings) -> None:
        self._generate = generate
        self._settings = settings
        self._piece = MAX_TOKENS_BETWEEN_LOOKS if settings.sampling.stop else settings.search.chunk_length
        self._names = map(str, itertools.count())
        weights = settings.rows.chunk_weights or (0.0,) * len(settings.description.guides)
        ranking = [g for g, weight in zip(settings.description.guides, weights, strict=True) if weight]
        self._has_values = any(guide.is_scalar for guide in ranking)
        self._is_cumulative = any(guide.is_pair for guide in ranking)

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task; cancelling the wait ends its requests.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
        """
        settings = self._settings
        search = BeamSearch(task, settings.search, settings.sampling.seed, keep_trace=settings.keep_trace)
        sums: dict[tuple[int, ...], float] = {(): 0.0}  # by prefix, its tokens' log-ratios
        while not search.is_done:
            extended = await _gather([self._extend(task, e, sums) for e in search.extensions()])
            search.take(extended)
            is_ranked = search.is_at_boundary
            if is_ranked and settings.scorer is not None:
                candidates = search.candidates()
                search.add_values(settings.scorer([task] * len(candidates), candidates))
            search.advance()
            if is_ranked and watcher is not None:
                watcher(task, search.beams, search.is_done)
        return search.finished()

    async def _extend(
        self, task: Task, extension: Extension, sums: dict[tuple[int, ...], float]
    ) -> Hypothesis:
        """Continue one prefix by one request."""
        prefix = extension.prefix.ids
        num_tokens = min(extension.max_tokens, self._piece)
        ids = [*next(iter(task.prompt_ids.values())), *prefix]
        output = await self._generate(ids, self._params(task, extension, num_tokens), next(self._names))
        chunk = np.array(output.token_ids[:num_tokens], dtype=np.int64)
        ending = self._settings.stop_checker.find(prefix, chunk, task)
        grown = (*prefix, *chunk[: ending.num_tokens].tolist())
        value = self._value(task, output, ending.num_tokens, prefix, grown, sums)
        return Hypothesis(grown, value, ending.reason)

    def _params(self, task: Task, extension: Extension, num_tokens: int) -> SamplingParams:
        sampling = self._settings.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=_seed_of(sampling.seed, task, extension) if sampling.temperature else None,
            # V(x, y<=t) stands in the row after y_t, so one more token is sampled, and none ends the request.
            max_tokens=num_tokens + self._has_values,
            ignore_eos=True,
            stop_token_ids=None if self._has_values else list(self._settings.last_ids),
            logprobs=None if self._has_values else 0,  # of the sampled token alone
            logprob_token_ids=[self._settings.description.value_id] if self._has_values else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=self._settings.rows.to_extra_args(),
        )

    def _value(
        self,
        task: Task,
        output: CompletionOutput,
        num_tokens: int,
        prefix: tuple[int, ...],
        grown: tuple[int, ...],
        sums: dict[tuple[int, ...], float],
    ) -> float:
        """Return the chunk score of a grown prefix, from what vLLM reported beside its tokens."""
        reported = output.logprobs
        assert reported is not None
        own = [reported[i][output.token_ids[i]].logprob for i in range(num_tokens)]
        value = 0.0
        if not all(map(math.isfinite, own)):
            raise NumericalError(
                f"the guided model returned NaN or infinite numbers on prompt {task.prompt_id}"
            )
        if self._is_cumulative:
            sums[grown] = sums[prefix] + sum(own)
            value = sums[grown] / len(grown) if self._settings.average else sums[grown]
        elif self._settings.rows.chunk_weights:
            value = own[-1]
        if self._has_values:
            last = reported[num_tokens][self._settings.description.value_id].logprob
            if not math.isfinite(last):
                raise NumericalError(f"a value model returned NaN or infinity on prompt {task.prompt_id}")
            value += last
        return value


async def _gather(extensions: Sequence[Coroutine[Any, Any, Hypothesis]]) -> list[Hypothesis]:
    """Wait for all; where one fails, or the wait is cancelled, the others are cancelled too."""
    running = [asyncio.create_task(extension) for extension in extensions]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


def _seed_of(seed: int, task: Task, extension: Extension) -> int:
    row = task.sample + extension.row  # samples of one prompt are its rows
    return request_seed(seed, task.prompt_id, row, len(extension.prefix.ids))
