"""Lockstep as a server's engine: requests of equal settings share a batch, others take turns with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from ivg.decoding.engine import Watcher
from ivg.decoding.sequences import Finished, Task, TokenLogProb
from ivg.engines.lockstep.async_engine import AsyncLockstep
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.lockstep.given_tokens import score_given
from ivg.models.loading import Models
from ivg.models.plan import GuidePlan, weigh_guides
from ivg.serve.engines import RequestSettings

_MAX_IDLE = 16  # engines without work that are kept for the next request with their settings


class RowBudget:
    """The rows of all batches together; who comes first gets them first."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._free = num_rows
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def num_taken(self) -> int:
        """Rows in use."""
        return self._num_rows - self._free

    @contextlib.asynccontextmanager
    async def take(self, num_rows: int) -> AsyncIterator[None]:
        """Wait for rows, and give them back at the end."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_rows, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += num_rows
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            num_rows, turn = self._waiting[0]
            if not turn.cancelled():  # whoever waited is still there
                if num_rows > self._free:
                    return
                self._free -= num_rows
                turn.set_result(None)
            self._waiting.popleft()


class ServedLockstep:
    """Models in memory, and an engine over them for each of the settings in use (see `ServedModels`).

    Args:
        models: base and guides of all presets.
        plans: by preset, who guides and how.
        max_rows: rows of all batches together.
        max_tokens: rows times columns of each batch, at most; None: unbounded.
    """

    def __init__(
        self,
        models: Models,
        plans: Mapping[str, Sequence[GuidePlan]],
        *,
        max_rows: int,
        max_tokens: int | None = None,
    ) -> None:
        self._models = models
        self._plans = plans
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._budget = RowBudget(max_rows)
        self._turn = asyncio.Lock()  # models are fed by one thread at a time
        self._engines: dict[RequestSettings, tuple[LockstepEngine, AsyncLockstep]] = {}

    @property
    def num_rows(self) -> int:
        """Rows in the batches."""
        return sum(engine.lockstep.num_rows for engine, _ in self._engines.values())

    @property
    def num_rows_taken(self) -> int:
        """Rows that running requests may come to fill."""
        return self._budget.num_taken

    @property
    def is_alive(self) -> bool:
        """Always: an error ends the requests of one batch, and nothing else."""
        return True

    def check(self, settings: RequestSettings, tasks: Sequence[Task]) -> None:
        """Refuse nothing: lockstep decodes all that its models can."""

    async def decode(self, settings: RequestSettings, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows."""
        async with self._budget.take(settings.search.rows_per_prompt):
            _, running = await self._engine(settings)
            return await running.decode(task, watcher)

    async def score(
        self, settings: RequestSettings, sequences: Mapping[str, Sequence[int]], num_tokens: int, num_top: int
    ) -> list[TokenLogProb]:
        """Return the guided distribution's log-probs of the last tokens of a sequence."""
        async with self._budget.take(1):
            engine, _ = await self._engine(settings)
            async with self._turn:
                return await asyncio.to_thread(score_given, engine.lockstep, sequences, num_tokens, num_top)

    async def close(self) -> None:
        """Stop after the step that is running."""
        for _, running in self._engines.values():
            await running.close()
        self._engines.clear()

    async def _engine(self, settings: RequestSettings) -> tuple[LockstepEngine, AsyncLockstep]:
        """Return the engine of these settings, building it where it is new; weights are shared by all."""
        if settings not in self._engines:
            async with self._turn:  # building tries the models out
                if settings not in self._engines:
                    self._engines[settings] = await asyncio.to_thread(self._build, settings)
        found = self._engines[settings] = self._engines.pop(settings)  # at the end: used last
        idle = [key for key, (_, running) in self._engines.items() if not running.num_tasks]
        for key in idle[:-_MAX_IDLE]:
            del self._engines[key]
        return found

    def _build(self, settings: RequestSettings) -> tuple[LockstepEngine, AsyncLockstep]:
        engine = LockstepEngine(
            self._models,
            settings.search,
            settings.sampling,
            max_batch_rows=self._max_rows,
            max_batch_tokens=self._max_tokens,
            plans=weigh_guides(self._plans[settings.preset], settings.beta),
        )
        return engine, AsyncLockstep(engine.loop, self._turn, engine.close)
