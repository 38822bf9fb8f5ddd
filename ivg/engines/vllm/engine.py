"""vLLM as an engine: guided decoding with paged, shared KV memory, continuous batching and many GPUs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from vllm import ModelRegistry
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from ivg.config import ModelConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import PrefixScorer, Refusal, Watcher, refuse
from ivg.decoding.sequences import Finished, Task
from ivg.engines.stop_checker import build_stop_checker
from ivg.engines.vllm.description import Description, describe
from ivg.engines.vllm.plugin import ARCHITECTURE, register
from ivg.engines.vllm.prompt_search import PromptSearch, SearchSettings
from ivg.engines.vllm.refusals import LOCKSTEP, find_refusals
from ivg.engines.vllm.row_settings import RowSettings, RowSettingsProcessor
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan, ModelInfos, PairInfo, plan_guides
from ivg.models.vocab import stop_token_ids


class Prepared(NamedTuple):
    """A run that vLLM can do: what is decoded and how, and the arguments to start vLLM with."""

    settings: SearchSettings
    engine_args: dict[str, Any]


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
        scorer: adds to the values at boundaries.
        keep_trace: record boundaries.

    Raises:
        UserError: something that vLLM cannot do.
    """
    plans = plan_guides(infos, search)
    given = dict(engine_args or {})
    size = int(given.get("tensor_parallel_size", 1))
    refusals = find_refusals(infos.base, plans, sampling, keep_trace=keep_trace, tensor_parallel_size=size)
    models = (infos.base, *(info for plan in plans for info in plan.models))
    refuse("vllm", [*refusals, *_refuse_architectures(models), *_refuse_pieces(sampling, given)])
    description = describe(infos.base, plans)
    settings = SearchSettings(
        description=description,
        rows=_row_settings(plans),
        search=search,
        sampling=sampling,
        stop_checker=build_stop_checker(infos.base, sampling),
        last_ids=(*infos.base.eos_ids, *stop_token_ids(infos.base.tokenizer, sampling.stop)),
        scorer=scorer,
        average=any(
            isinstance(plan.info, PairInfo) and plan.info.config.average and plan.chunk_weight != 0
            for plan in plans
        ),
        keep_trace=keep_trace,
    )
    defaults = guided_model_args(infos.base.source, description, _context(models))
    if _must_prefill_whole(sampling):
        defaults["enable_chunked_prefill"] = False
    return Prepared(settings, defaults | given)


def _row_settings(plans: Sequence[GuidePlan]) -> RowSettings:
    """Return the guides' weights; chunk scores are asked for where any guide ranks."""
    weights = tuple(plan.chunk_weight for plan in plans)
    betas = tuple(plan.info.config.beta if plan.guides_tokens else 0.0 for plan in plans)
    return RowSettings(betas, weights if any(weights) else None)


def start(prepared: Prepared) -> VllmEngine:
    """Load the models and return the engine.

    vLLM runs in this process: its synchronous client would wait for ever for a process of its own that was
    killed. Ranks of tensor parallelism are processes, which vLLM watches.
    """
    register()
    config = EngineArgs(**prepared.engine_args).create_engine_config()
    engine = LLMEngine(
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=False,
        multiprocess_mode=False,
    )
    return VllmEngine(engine, prepared.settings)


def start_async(prepared: Prepared) -> AsyncVllmEngine:
    """Load the models and return the asynchronous twin."""
    register()
    return AsyncVllmEngine(
        AsyncLLM.from_engine_args(AsyncEngineArgs(**prepared.engine_args)), prepared.settings
    )


def check_prompt(task: Task) -> None:
    """Refuse a prompt that the models read in different ids.

    Raises:
        UserError: naming the model.
    """
    (first, ids), *others = task.prompt_ids.items()
    for name, other in others:
        if other != ids:
            raise UserError(
                f"prompt {task.prompt_id}: {name} reads it in other ids than {first}, and vLLM feeds all "
                f"models the same; give it the base's template and special tokens, or {LOCKSTEP}"
            )


def guided_model_args(source: ModelConfig, description: Description, context: int | None) -> dict[str, Any]:
    """Return vLLM's arguments for a guided model, which reads the base where it lies."""
    overrides: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "ivg": description.to_dict(),
        "vocab_size": description.num_base + 1,  # the value id
    }
    length = {}
    if context is not None:
        # One token more than is ever fed is sampled at most: the one after the last, for its row's value.
        overrides["max_position_embeddings"] = context + 1
        length["max_model_len"] = context + 1
    return {
        "model": source.path,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "dtype": source.dtype,
        "skip_tokenizer_init": True,
        "hf_overrides": overrides,
        "logits_processors": [RowSettingsProcessor],
        "logprobs_mode": "raw_logits",
        "disable_log_stats": True,
        **length,
    }


def _context(models: Sequence[ModelInfo]) -> int | None:
    """Return the shortest context, in tokens."""
    return min((info.max_length for info in models if info.max_length is not None), default=None)


def _must_prefill_whole(sampling: SamplingConfig) -> bool:
    """Whether prompts cannot be read in pieces: vLLM then turns draws back, which it cannot on a CPU."""
    return current_platform.is_cpu() and sampling.temperature > 0


def _refuse_pieces(sampling: SamplingConfig, engine_args: Mapping[str, Any]) -> Iterator[Refusal]:
    if engine_args.get("enable_chunked_prefill") and _must_prefill_whole(sampling):
        reason = "on a CPU vLLM cannot turn back the draws of a prompt that is read in pieces"
        yield Refusal("enable_chunked_prefill", reason, "leave it out, or set temperature 0")


def _refuse_architectures(models: Sequence[ModelInfo]) -> Iterator[Refusal]:
    supported = ModelRegistry.get_supported_archs()
    for info in models:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(info.config), None)
        name = info.config.model_type if model_class is None else model_class.__name__
        if name not in supported:
            yield Refusal(info.name, f"vLLM has no {name}", LOCKSTEP)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Say in one line that vLLM's own process has ended.

    Raises:
        ConnectionError: in place of vLLM's error.
    """
    try:
        yield
    except EngineDeadError as error:
        raise ConnectionError("vLLM's process has died; what it said last stands above") from error


class VllmEngine:
    """Decodes tasks by vLLM (see `ivg.decoding.engine.Engine`).

    Args:
        engine: vLLM with the guided model.
        settings: what is decoded, and how.
    """

    def __init__(self, engine: LLMEngine, settings: SearchSettings) -> None:
        self._engine = engine
        self._waiting: dict[str, asyncio.Future[CompletionOutput]] = {}
        self._search = PromptSearch(self._generate, settings)
        # As many prompts as fill the batch, and as many again whose requests wait at its door.
        rows: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        self._max_prompts = max(1, 2 * rows // settings.search.rows_per_prompt)

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Decode tasks; yields each as it finishes.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
            ConnectionError: vLLM's process died.
            UserError: a prompt that the models read in different ids.
        """
        for task in tasks:
            check_prompt(task)
        loop = asyncio.new_event_loop()
        running = set[asyncio.Task[Finished]]()
        waiting = iter(tasks)
        try:
            while True:
                for task in waiting:
                    running.add(loop.create_task(self._search.decode(task)))
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

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
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
    """

    def __init__(self, engine: AsyncLLM, settings: SearchSettings) -> None:
        self._engine = engine
        self._search = PromptSearch(self._generate, settings)

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows."""
        check_prompt(task)
        return await self._search.decode(task, watcher)

    async def close(self) -> None:
        """Stop vLLM."""
        self._engine.shutdown()

    async def _generate(self, ids: Sequence[int], params: SamplingParams, name: str) -> CompletionOutput:
        outputs = self._engine.generate({"prompt_token_ids": list(ids)}, params, name)
        with _one_line():
            async for output in outputs:  # one, as only the final one was asked for
                if output.finished:
                    return output.outputs[0]
        raise RuntimeError(f"vLLM ended request {name} without an answer")
