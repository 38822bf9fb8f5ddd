"""One task's search over vLLM requests: a request for each candidate, at the task's own pace.

The prefix cache does what reordering rows does in lockstep: a successor's request finds its parent's blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.beam_search import BeamSearch, Extension
from ivg.decoding.draws import request_seed
from ivg.decoding.engine import NumericalError, PrefixScorer, Watcher
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.gathering import gather
from ivg.engines.vllm.description import Description
from ivg.engines.vllm.row_settings import RowSettings
from ivg.models.rendering import Renderer

Scores = dict[tuple[int, ...], tuple[float, ...]]  # by prefix, what vLLM reported of its tokens
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
        renderer: closes responses as the guides that rank were trained; None where none ranks.
        max_length: the shortest context of the models, in tokens.
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
    renderer: Renderer | None = None
    max_length: int | None = None
    average: bool = False
    keep_trace: bool = False


class PromptSearch:
    """Decodes single tasks, as many side by side as its caller likes.

    Args:
        generate: continues ids (prompt and prefix) as its parameters say, under a request's name.
        settings: what is decoded, and how.
        names: of the requests; shared by all searches of one vLLM.
    """

    def __init__(
        self, generate: Generate, settings: SearchSettings, names: Iterator[str] | None = None
    ) -> None:
        self._generate = generate
        self._settings = settings
        self._piece = MAX_TOKENS_BETWEEN_LOOKS if settings.sampling.stop else settings.search.chunk_length
        self._names = names or map(str, itertools.count())
        weights = settings.rows.chunk_weights or (0.0,) * len(settings.description.guides)
        ranking = [g for g, weight in zip(settings.description.guides, weights, strict=True) if weight]
        self._has_values = any(guide.is_scalar for guide in ranking)
        self._is_cumulative = any(guide.is_pair for guide in ranking)
        self._has_token_scores = any(not guide.is_scalar for guide in ranking)

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task; cancelling the wait ends its requests.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
        """
        settings = self._settings
        search = BeamSearch(task, settings.search, self._seed(task), keep_trace=settings.keep_trace)
        scores: Scores = {(): ()}
        while not search.is_done:
            extended = await gather([self._extend(task, e, scores) for e in search.extensions()])
            search.take(extended)
            is_ranked = search.is_at_boundary
            if is_ranked and settings.scorer is not None:
                candidates = search.candidates()
                search.add_values(settings.scorer([task] * len(candidates), candidates))
            search.advance()
            if is_ranked and watcher is not None:
                watcher(task, search.beams, search.is_done)
        return search.finished()

    async def _extend(self, task: Task, extension: Extension, scores: Scores) -> Hypothesis:
        """Continue one prefix by one request; what ended otherwise than by the guides' end is read again."""
        prefix = extension.prefix.ids
        num_tokens = min(extension.max_tokens, self._piece)
        params = self._params(task, extension, num_tokens)
        output = await self._generate([*_prompt_ids(task), *prefix], params, next(self._names))
        chunk = np.array(output.token_ids[:num_tokens], dtype=np.int64)
        ending = self._settings.stop_checker.find(prefix, chunk, task)
        grown = (*prefix, *chunk[: ending.num_tokens].tolist())
        scores[grown] = (*scores[prefix], *_own_scores(task, output, ending.num_tokens))
        # Where a trace is kept, guidance added nothing to any token.
        ratios = (0.0,) * len(grown) if self._settings.keep_trace else ()
        hypothesis = Hypothesis(grown, 0.0, ending.reason, ratios)
        if self._settings.renderer is not None and self._must_read(hypothesis, self._settings.renderer):
            value = await self._read_ending(task, hypothesis, self._settings.renderer, scores[grown])
        else:
            value = self._value(task, output, ending.num_tokens, scores[grown])
        return dataclasses.replace(hypothesis, value=value)

    def _seed(self, task: Task) -> int:
        return self._settings.sampling.seed if task.seed is None else task.seed

    def _must_read(self, hypothesis: Hypothesis, renderer: Renderer) -> bool:
        """Tell whether a hypothesis ended otherwise than the guides that rank were trained."""
        reason = hypothesis.finish_reason
        return reason == "stop" or (reason == "eos" and hypothesis.ids[-1] != renderer.end_id)

    async def _read_ending(
        self, task: Task, hypothesis: Hypothesis, renderer: Renderer, own: tuple[float, ...]
    ) -> float:
        """Return the chunk score of a response without what ended it, closed by the guides' own end.

        Args:
            task: whose response it is.
            hypothesis: the response.
            renderer: closes it.
            own: what vLLM reported of the hypothesis' tokens.
        """
        checker, prompt = self._settings.stop_checker, _prompt_ids(task)
        content = checker.content_ids(hypothesis)
        if content is None:
            ids = renderer.response_ids(checker.text(hypothesis), is_ended=True)
        else:
            ids = [*content, *renderer.response_ids("", is_ended=True)]
        if self._settings.max_length is not None:
            ids = ids[: self._settings.max_length - len(prompt)]
        value = 0.0
        if self._is_cumulative:
            num_known = _num_common(ids, hypothesis.ids)
            asked = [self._score(task, ids[:i], ids[i]) for i in range(num_known, len(ids))]
            total = sum(own[:num_known]) + sum(await gather(asked))
            value += total / len(ids) if self._settings.average else total
        elif self._has_token_scores:
            value += await self._score(task, ids[:-1], ids[-1])
        if self._has_values:
            value += await self._score(task, ids, self._settings.description.value_id)
        return value

    async def _score(self, task: Task, prefix: Sequence[int], token: int) -> float:
        """Return what vLLM reports of one token after a prefix, or of the prefix under the value id."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            logprob_token_ids=[token],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=self._settings.rows.to_extra_args(),
        )
        output = await self._generate([*_prompt_ids(task), *prefix], params, next(self._names))
        reported = output.logprobs
        assert reported is not None
        score: float = reported[0][token].logprob
        if not math.isfinite(score):
            raise NumericalError(f"a guide returned NaN or infinite numbers on prompt {task.prompt_id}")
        return score

    def _params(self, task: Task, extension: Extension, num_tokens: int) -> SamplingParams:
        sampling = self._settings.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=_seed_of(self._seed(task), task, extension) if sampling.temperature else None,
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

    def _value(self, task: Task, output: CompletionOutput, num_tokens: int, own: tuple[float, ...]) -> float:
        """Return the chunk score of a grown prefix, from what vLLM reported of all its tokens."""
        reported = output.logprobs
        assert reported is not None
        value = 0.0
        if self._is_cumulative:
            value = sum(own) / len(own) if self._settings.average else sum(own)
        elif self._has_token_scores:
            value = own[-1]
        if self._has_values:
            last = reported[num_tokens][self._settings.description.value_id].logprob
            if not math.isfinite(last):
                raise NumericalError(f"a value model returned NaN or infinity on prompt {task.prompt_id}")
            value += last
        return value


def _prompt_ids(task: Task) -> Sequence[int]:
    return next(iter(task.prompt_ids.values()))  # all models read the same


def _own_scores(task: Task, output: CompletionOutput, num_tokens: int) -> list[float]:
    """Return what vLLM reported of the sampled tokens: log-probs, or what they add to the chunk score."""
    reported = output.logprobs
    assert reported is not None
    own: list[float] = [reported[i][output.token_ids[i]].logprob for i in range(num_tokens)]
    if not all(map(math.isfinite, own)):
        raise NumericalError(f"the guided model returned NaN or infinite numbers on prompt {task.prompt_id}")
    return own


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _seed_of(seed: int, task: Task, extension: Extension) -> int:
    row = task.sample + extension.row  # samples of one prompt are its rows
    return request_seed(seed, task.prompt_id, row, len(extension.prefix.ids))
