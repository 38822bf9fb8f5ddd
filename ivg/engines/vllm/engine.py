"""vLLM as an engine: guided decoding with paged, shared KV memory, continuous batching and many GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from ivg.config import ModelConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import EngineError, PrefixScorer, Watcher, refuse
from ivg.decoding.sequences import Finished, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.chunk_guidance import add_scorers, build_function_scorers
from ivg.engines.stop_checker import build_stop_checker
from ivg.engines.vllm.description import Description, describe, loading_args
from ivg.engines.vllm.plugin import ARCHITECTURE, register
from ivg.engines.vllm.prompt_search import PromptSearch, SearchSettings
from ivg.engines.vllm.refusals import (
    VALUE_ENGINE,
    draft_model_path,
    find_refusals,
    shortest_context,
    split_values,
)
from ivg.engines.vllm.refusals_here import find_refusals_here
from ivg.engines.vllm.row_settings import RowSettings
from ivg.engines.vllm.value_engines import ValueEngine, ValueEnginePlan, plan_value_engine
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan, ModelInfos, PairInfo, plan_functions, plan_guides
from ivg.models.vocab import stop_token_ids

_CPU_CACHE_BYTES = 4 * 2**30  # vLLM would take most of a machine's memory, and fail where it is not free


class Prepared(NamedTuple):
    """A run that vLLM can do.

    Attributes:
        settings: what is decoded and how.
        engine_args: to start vLLM with.
        base: the frozen model.
        values: those that get engines of their own.
    """

    settings: SearchSettings
    engine_args: dict[str, Any]
    base: ModelInfo
    values: tuple[ValueEnginePlan, ...] = ()


def prepare(
    infos: ModelInfos,
    search: SearchConfig,
    sampling: SamplingConfig,
    *,
    engine_args: Mapping[str, Any] | None = None,
    scorer: PrefixScorer | None = None,
    keep_trace: bool = False,
) -> Prepared:
    """Settle everything before vLLM starts.

    Args:
        infos: base and guides, not loaded.
        search: guidance and beam search.
        sampling: lengths, temperature, seed.
        engine_args: vLLM's own arguments (`tensor_parallel_size`, `gpu_memory_utilization`, ...).
        scorer: adds to the values at boundaries, beside the value functions of `infos`.
        keep_trace: record boundaries.

    Raises:
        UserError: something that vLLM cannot do.
    """
    plans = plan_guides(infos, search)
    given = dict(engine_args or {})
    refusals = find_refusals(infos.base, plans, sampling, engine_args=given, keep_trace=keep_trace)
    refuse("vllm", [*refusals, *find_refusals_here(infos.base, plans, sampling, given)])
    split = split_values(plans, given)
    given_values = given.pop(VALUE_ENGINE, {})
    if current_platform.is_cpu():
        given_values = _defaults_on_cpus(given_values, whole_prompts=False) | given_values
    values = tuple(plan_value_engine(plan, given_values) for plan in split.alone)
    for value in values:
        _try_config(value.engine_args)
    model = GuidedModel(infos, split.inside, given)
    settings = model.settings(split.inside, search, sampling, scorer=scorer, keep_trace=keep_trace)
    return Prepared(settings, model.engine_args(sampling), infos.base, values)


class GuidedModel:
    """The one model that vLLM loads, and what can be decoded with it.

    Args:
        infos: base and guides, not loaded.
        plans: of every guide inside it.
        given: vLLM's own arguments, which were examined.
    """

    def __init__(self, infos: ModelInfos, plans: Sequence[GuidePlan], given: Mapping[str, Any]) -> None:
        self._infos = infos
        self._plans = plans
        self._given = dict(given)
        self._context = shortest_context((infos.base, *(info for plan in plans for info in plan.models)))
        self._description = describe(infos.base, plans)

    def settings(
        self,
        plans: Sequence[GuidePlan],
        search: SearchConfig,
        sampling: SamplingConfig,
        *,
        scorer: PrefixScorer | None = None,
        keep_trace: bool = False,
    ) -> SearchSettings:
        """Return what one way of decoding needs.

        Args:
            plans: who of the guides takes part in it, and with which weights.
            search: guidance and beam search.
            sampling: lengths, temperature, seed.
            scorer: adds to the values at boundaries, beside the value functions.
            keep_trace: record boundaries.
        """
        base, ranking = self._infos.base, [plan for plan in plans if plan.chunk_weight]
        stop_checker = build_stop_checker(base, sampling)
        scorers = build_function_scorers(plan_functions(self._infos, search), stop_checker)
        return SearchSettings(
            description=self._description,
            rows=self._row_settings(plans),
            search=search,
            sampling=sampling,
            stop_checker=stop_checker,
            last_ids=(*base.eos_ids, *stop_token_ids(base.tokenizer, sampling.stop)),
            scorer=add_scorers([*scorers, *([] if scorer is None else [scorer])]),
            renderer=ranking[0].models[-1].renderer() if ranking else None,
            max_length=self._given.get("max_model_len", self._context),
            average=any(isinstance(plan.info, PairInfo) and plan.info.config.average for plan in ranking),
            keep_trace=keep_trace,
        )

    def engine_args(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Return the arguments to start vLLM with.

        Args:
            sampling: temperature 0 lets prompts be read in pieces on CPUs.

        Raises:
            UserError: what vLLM says against them.
        """
        given = self._given
        args = guided_model_args(self._infos.base.source, self._description, self._context) | given
        if "speculative_config" in given:
            args["speculative_config"] = _draft_model(given["speculative_config"], self._plans)
        if "max_model_len" in given:  # of prompt and response; one token more is sampled
            args["max_model_len"] = given["max_model_len"] + 1
        if current_platform.is_cpu():
            args = _defaults_on_cpus(given, whole_prompts=sampling.temperature > 0) | args
        _try_config(args)
        return args

    def _row_settings(self, plans: Sequence[GuidePlan]) -> RowSettings:
        """Return the guides' weights; chunk scores are asked for where any guide ranks."""
        weights = {id(plan.info): (plan.beta, plan.chunk_weight) for plan in plans}
        of_guides = [weights.get(id(plan.info), (0.0, 0.0)) for plan in self._plans]
        chunk_weights = tuple(weight for _, weight in of_guides)
        return RowSettings(
            tuple(beta for beta, _ in of_guides), chunk_weights if any(chunk_weights) else None
        )


def _draft_model(given: Mapping[str, Any], plans: Sequence[GuidePlan]) -> dict[str, Any]:
    return {**given, "method": "draft_model", "model": draft_model_path(given["model"], plans)}


def _defaults_on_cpus(given: Mapping[str, Any], *, whole_prompts: bool) -> dict[str, Any]:
    """Return what serves better on CPUs than vLLM's own defaults."""
    defaults: dict[str, Any] = {
        "enforce_eager": True,  # compiling takes longer than most runs
        "block_size": 32,  # the least its kernels take: what beams have in common is found sooner
    }
    if "gpu_memory_utilization" not in given:
        defaults["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    if whole_prompts:  # vLLM turns back the draws of a prompt that is read in pieces; on a CPU it cannot
        defaults["enable_chunked_prefill"] = False
    return defaults


def _try_config(engine_args: Mapping[str, Any]) -> VllmConfig:
    """Let vLLM judge its arguments; nothing is loaded.

    Raises:
        UserError: what it says against them.
    """
    register()
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # V2 was not run on a GPU yet
    try:
        return EngineArgs(**engine_args).create_engine_config()
    except Exception as error:  # pydantic's, vLLM's and torch's own
        raise UserError(f"engine vllm: vLLM refuses this run: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def start(prepared: Prepared, watcher: Watcher | None = None) -> VllmEngine:
    """Load the models and return the engine.

    vLLM runs in this process: its synchronous client would wait for ever for a process of its own that was
    killed. Its workers (on CPUs, and the ranks of tensor parallelism) are processes, which vLLM watches.

    Args:
        prepared: what `prepare` returned.
        watcher: is told of every chunk boundary.

    Raises:
        EngineError: vLLM could not start.
    """
    settings = prepared.settings
    engine = _start_here(prepared.engine_args)
    values = [
        ValueEngine(value.plan, _start_here(value.engine_args), prepared.base, settings.stop_checker)
        for value in prepared.values
    ]
    scorers = [*values, *([] if settings.scorer is None else [settings.scorer])]
    settings = dataclasses.replace(settings, scorer=add_scorers(scorers))
    return VllmEngine(engine, settings, watcher, values)


def _start_here(engine_args: Mapping[str, Any]) -> LLMEngine:
    """Start a vLLM in this process."""
    config = _try_config(engine_args)
    with _one_line("could not start"):
        return LLMEngine(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            multiprocess_mode=False,
        )


def start_llm(engine_args: Mapping[str, Any]) -> AsyncLLM:
    """Load the models into vLLM's asynchronous engine.

    Args:
        engine_args: what `GuidedModel.engine_args` returned.

    Raises:
        EngineError: vLLM could not start.
    """
    with _one_line("could not start"):
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args))


def guided_model_args(source: ModelConfig, description: Description, context: int | None) -> dict[str, Any]:
    """Return vLLM's arguments for a guided model, which reads the base where it lies."""
    overrides: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "ivg": description.to_dict(),
        "vocab_size": description.vocab_size,
    }
    length = {}
    if context is not None:
        # One token more than is ever fed is sampled at most: the one after the last, for its row's value.
        overrides["max_position_embeddings"] = context + 1
        length["max_model_len"] = context + 1
    return {
        **loading_args(source),
        "hf_overrides": overrides,
        "logprobs_mode": "raw_logits",
        **length,
    }


@contextlib.contextmanager
def _one_line(what: str = "has ended") -> Iterator[None]:
    """Say in one line what became of vLLM.

    Raises:
        EngineError: in place of vLLM's error.
    """
    try:
        yield
    except Exception as error:  # of whatever lies below vLLM too, such as a worker's that was killed
        raise EngineError(f"vLLM {what}: {_in_one_line(error)}") from error


@dataclasses.dataclass(slots=True)
class CacheUse:
    """What requests brought, and what of it the prefix cache held.

    Attributes:
        requests: that are finished.
        tokens: of their prompts and prefixes.
        cached: tokens of these that were not computed again.
    """

    requests: int = 0
    tokens: int = 0
    cached: int = 0

    def add(self, output: RequestOutput) -> None:
        """Count a finished request."""
        self.requests += 1
        self.tokens += len(output.prompt_token_ids or ())
        self.cached += output.num_cached_tokens or 0


class VllmEngine:
    """Decodes tasks by vLLM (see `ivg.decoding.engine.Engine`).

    Args:
        engine: vLLM with the guided model.
        settings: what is decoded, and how.
        watcher: is told of every chunk boundary.
        values: those of the settings' scorer, to be closed with this engine.

    Attributes:
        stop_checker: turns responses' ids into text.
        cache_use: of all requests so far.
    """

    def __init__(
        self,
        engine: LLMEngine,
        settings: SearchSettings,
        watcher: Watcher | None = None,
        values: Sequence[ValueEngine] = (),
    ) -> None:
        self._engine = engine
        self._watcher = watcher
        self._values = values
        self.stop_checker: StopChecker = settings.stop_checker
        self.cache_use = CacheUse()
        self._waiting: dict[str, asyncio.Future[CompletionOutput]] = {}
        self._search = PromptSearch(self._generate, settings)
        # As many prompts as fill the batch, and as many again whose requests wait at its door.
        rows: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        self._max_prompts = max(1, 2 * rows // settings.search.rows_per_prompt)

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Decode tasks; yields each as it finishes.

        Args:
            tasks: whose prompts all models read in the same ids (see `refusals.check_prompt`).

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
            EngineError: vLLM, or one of its processes, died.
        """
        loop = asyncio.new_event_loop()
        running = set[asyncio.Task[Finished]]()
        waiting = iter(tasks)
        try:
            while True:
                for task in waiting:
                    running.add(loop.create_task(self._search.decode(task, self._watcher)))
                    if len(running) >= self._max_prompts:
                        break
                if not running:
                    return
                done, running = loop.run_until_complete(self._step_until_one_ends(running))
                for finished in done:
                    yield finished.result()
        finally:
            for unfinished in running:
                unfinished.cancel()
            if running:
                loop.run_until_complete(asyncio.wait(running))
            loop.close()

    @property
    def num_requests(self) -> int:
        """How many requests vLLM is working on."""
        num_requests: int = self._engine.get_num_unfinished_requests()
        return num_requests

    @property
    def tokens_fed(self) -> dict[str, int]:
        """Nothing: vLLM schedules tokens by itself, and counts requests."""
        return {}

    @property
    def flops(self) -> float:
        """Nothing, likewise."""
        return 0.0

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        for value in self._values:
            value.close()
        self._engine.engine_core.shutdown()

    async def _step_until_one_ends(
        self, running: set[asyncio.Task[Finished]]
    ) -> tuple[set[asyncio.Task[Finished]], set[asyncio.Task[Finished]]]:
        """Return the tasks that are done, and the others."""
        while True:
            done = {task for task in running if task.done()}
            if done:
                return done, running - done
            if self._waiting:
                with _one_line():
                    outputs = self._engine.step()
                for output in outputs:
                    if isinstance(output, RequestOutput) and output.finished:
                        self.cache_use.add(output)
                        self._waiting.pop(output.request_id).set_result(output.outputs[0])
            await asyncio.sleep(0)

    def _generate(self, ids: Sequence[int], params: SamplingParams, name: str) -> Awaitable[CompletionOutput]:
        future = asyncio.get_running_loop().create_future()
        self._engine.add_request(name, {"prompt_token_ids": list(ids)}, params)
        self._waiting[name] = future
        future.add_done_callback(lambda done: self._forget(name) if done.cancelled() else None)
        return future

    def _forget(self, name: str) -> None:
        """Free the rows of a request whose answer is no longer awaited."""
        if self._waiting.pop(name, None) is not None:
            self._engine.abort_request([name])


class AsyncVllmEngine:
    """The asynchronous twin, for servers (see `ivg.decoding.engine.AsyncEngine`).

    Args:
        engine: vLLM with the guided model.
        settings: what is decoded, and how.
        names: of the requests; shared by all that send requests to one vLLM.
    """

    def __init__(
        self, engine: AsyncLLM, settings: SearchSettings, names: Iterator[str] | None = None
    ) -> None:
        self._engine = engine
        self._search = PromptSearch(self._generate, settings, names)

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows."""
        return await self._search.decode(task, watcher)

    async def close(self) -> None:
        """Stop vLLM."""
        self._engine.shutdown()

    async def _generate(self, ids: Sequence[int], params: SamplingParams, name: str) -> CompletionOutput:
        return (await request(self._engine, ids, params, name)).outputs[0]


async def request(engine: AsyncLLM, ids: Sequence[int], params: SamplingParams, name: str) -> RequestOutput:
    """Send one request; cancelling the wait ends it.

    Raises:
        EngineError: vLLM died.
    """
    with _one_line():
        # One output, as only the final one was asked for.
        async for output in engine.generate({"prompt_token_ids": list(ids)}, params, name):
            if output.finished:
                return output
    raise RuntimeError(f"vLLM ended request {name} without an answer")
