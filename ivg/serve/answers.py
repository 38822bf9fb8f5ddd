"""From a checked request to its responses: tasks, decoding side by side, streamed text, log-probs."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence

from ivg.decoding.sequences import Finished, FinishReason, Task, TokenLogProb
from ivg.decoding.stopping import StopChecker
from ivg.decoding.streaming import AgreedText, NewText
from ivg.engines.gathering import gather
from ivg.engines.stop_checker import build_stop_checker
from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan
from ivg.run.tasks import room_for
from ivg.serve.asking import Ask
from ivg.serve.engines import ServedModels
from ivg.serve.prompts import EncodedPrompt, PromptReader
from ivg.serve.protocol import ApiError

_MAX_ENCODING = 2  # requests whose prompts are encoded at the same time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response.

    Attributes:
        text: without special tokens and stop string.
        prompt_text: where it is echoed, else empty.
        num_prompt_tokens: of the base's.
        num_tokens: of the response, EOS included.
        finish_reason: why it ended.
        log_probs: of the echoed prompt's tokens, if it is echoed, and of the response's; None where nothing
            stands before a token. None altogether where they were not asked for.
    """

    text: str
    prompt_text: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    log_probs: Sequence[tuple[int, TokenLogProb | None]] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose prompts are encoded and fit every context.

    Attributes:
        ask: the request.
        prompts: its prompts.
        tasks: `ask.n` for each prompt; none where only the prompt is wanted.
        stop_checker: says what responses' ids mean.
    """

    ask: Ask
    prompts: Sequence[EncodedPrompt]
    tasks: Sequence[Task]
    stop_checker: StopChecker


class Answers:
    """Answers requests with the models.

    Args:
        base: the frozen model, not loaded.
        plans: by preset, who guides and how.
        models: in memory.
    """

    def __init__(
        self, base: ModelInfo, plans: Mapping[str, Sequence[GuidePlan]], models: ServedModels
    ) -> None:
        self._base = base
        self._models = models
        self._readers = {name: PromptReader(base, of_preset) for name, of_preset in plans.items()}
        self._scorable = {
            name: all(plan.fit.route == "ids" for plan in of_preset) for name, of_preset in plans.items()
        }
        self._numbers = itertools.count()
        self._encoding = asyncio.Semaphore(_MAX_ENCODING)

    async def prepare(self, ask: Ask) -> Prepared:
        """Encode the prompts and check that they fit.

        Raises:
            ApiError: 400.
        """
        if ask.num_top is not None and not self._scorable[ask.settings.preset]:
            raise ApiError(
                400,
                f"logprobs: a guide of model {ask.settings.preset!r} has another vocabulary; leave them out",
            )
        try:
            # Long prompts and slow templates hold up neither the event loop nor all of its threads.
            async with self._encoding:
                return await asyncio.to_thread(self._prepare, ask)
        except UserError as error:
            raise ApiError(400, str(error)) from error

    def _prepare(self, ask: Ask) -> Prepared:
        prompts = self._readers[ask.settings.preset](ask.prompts)
        tasks = [] if ask.max_tokens == 0 else [task for p in prompts for task in self._tasks(ask, p)]
        self._models.check(ask.settings, tasks)
        return Prepared(ask, prompts, tasks, build_stop_checker(self._base, ask.settings.sampling))

    def _tasks(self, ask: Ask, prompt: EncodedPrompt) -> list[Task]:
        wanted = ask.default_max_tokens if ask.max_tokens is None else ask.max_tokens
        room = room_for(
            self._readers[ask.settings.preset].infos,
            prompt.ids,
            wanted,
            "stop" if ask.max_tokens is None else "error",
            remedy="Please reduce the prompt or max_tokens",
        )
        return [
            Task(
                index=next(self._numbers),
                prompt_id=prompt.prompt_id,
                prompt_ids=prompt.ids,
                max_tokens=min(room, wanted),
                sample=sample,
                limited_by="length" if room >= wanted else "context",
                record=prompt.record,
                seed=ask.seed,
            )
            for sample in range(ask.n)
        ]

    async def answer(self, prepared: Prepared) -> list[Answer]:
        """Decode, and return `n` answers for each prompt; cancelling the wait frees all rows."""
        ask = prepared.ask
        finished: list[Finished | None] = [None] * (len(prepared.prompts) * ask.n)
        if prepared.tasks:
            decoding = [self._models.decode(ask.settings, task) for task in prepared.tasks]
            finished = list(await gather(decoding))
        prompts = [prompt for prompt in prepared.prompts for _ in range(ask.n)]
        return await gather(
            [self._finish(prepared, prompt, done) for prompt, done in zip(prompts, finished, strict=True)]
        )

    async def stream(self, prepared: Prepared) -> AsyncGenerator[tuple[int, str | Answer]]:
        """Yield (number of the response, its next piece of text), and each answer when it is complete."""
        queue: asyncio.Queue[tuple[int, str | Answer] | Exception] = asyncio.Queue()

        async def follow(number: int, task: Task) -> None:
            def put(piece: NewText) -> None:
                if piece.text:
                    queue.put_nowait((number, piece.text))

            prompt = prepared.prompts[number // prepared.ask.n]
            if prepared.ask.echo:
                queue.put_nowait((number, self._prompt_text(prompt)))
            watcher = AgreedText(prepared.stop_checker, prepared.ask.settings.sampling.stop, put)
            done = await self._models.decode(prepared.ask.settings, task, watcher)
            queue.put_nowait((number, await self._finish(prepared, prompt, done)))

        async def follow_all() -> None:
            try:
                await gather([follow(i, task) for i, task in enumerate(prepared.tasks)])
            except Exception as error:  # raised below, where somebody listens
                queue.put_nowait(error)

        work = asyncio.create_task(follow_all())
        try:
            num_open = len(prepared.tasks)
            while num_open:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                num_open -= isinstance(item[1], Answer)
                yield item
        finally:
            work.cancel()

    async def _finish(self, prepared: Prepared, prompt: EncodedPrompt, finished: Finished | None) -> Answer:
        ask, num_prompt = prepared.ask, len(prompt.ids[self._base.name])
        best = None if finished is None else finished.beams[0]
        ids = () if best is None else best.ids
        log_probs = None
        if ask.num_top is not None:
            log_probs = await self._log_probs(ask, prompt, ids)
        reason = "length" if best is None or best.finish_reason is None else best.finish_reason
        return Answer(
            text="" if best is None else prepared.stop_checker.text(best),
            prompt_text=self._prompt_text(prompt) if ask.echo else "",
            num_prompt_tokens=num_prompt,
            num_tokens=len(ids),
            finish_reason=reason,
            log_probs=log_probs,
        )

    async def _log_probs(
        self, ask: Ask, prompt: EncodedPrompt, response: Sequence[int]
    ) -> list[tuple[int, TokenLogProb | None]]:
        """Return the log-probs of the tokens that are shown; what opens a sequence has none."""
        sequences = {name: (*ids, *response) for name, ids in prompt.ids.items()}
        ids = sequences[self._base.name]
        shown = ids if ask.echo else ids[len(prompt.ids[self._base.name]) :]
        num_scored = min(len(shown), *(len(s) - 1 for s in sequences.values())) if shown else 0
        if any(s[len(s) - num_scored :] != ids[len(ids) - num_scored :] for s in sequences.values()):
            raise ApiError(400, "echo with logprobs: a guide reads this prompt in other ids than the base")
        num_top = ask.num_top or 0
        scored: Sequence[TokenLogProb] = ()
        if num_scored:
            scored = await self._models.score(ask.settings, sequences, num_scored, num_top)
        unscored = shown[: len(shown) - num_scored]
        return [*((i, None) for i in unscored), *((entry.id, entry) for entry in scored)]

    def _prompt_text(self, prompt: EncodedPrompt) -> str:
        return str(prompt.record.get("prompt", ""))
