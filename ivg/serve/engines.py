"""What the server asks of an engine: many settings over models that are loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import Watcher
from ivg.decoding.sequences import Finished, Task, TokenLogProb


@dataclasses.dataclass(frozen=True, slots=True)
class RequestSettings:
    """What requests must have in common to be decoded by one engine.

    Attributes:
        preset: name of the preset, which says who guides.
        search: the preset's, with what the request says otherwise.
        sampling: temperature, top-k, top-p and stop strings; length and seed are each task's own.
        beta: weight of every guide that guides tokens; None: each guide's own.
    """

    preset: str
    search: SearchConfig
    sampling: SamplingConfig
    beta: float | None = None


class ServedModels(Protocol):
    """Models in memory, which decode under any settings of their presets."""

    def check(self, settings: RequestSettings, tasks: Sequence[Task]) -> None:
        """Refuse what the engine cannot do.

        Raises:
            UserError: settings, or a prompt.
        """
        ...

    async def decode(self, settings: RequestSettings, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
            EngineError: the engine has ended.
        """
        ...

    async def score(
        self,
        settings: RequestSettings,
        sequences: Mapping[str, Sequence[int]],
        num_tokens: int,
        num_top: int,
    ) -> list[TokenLogProb]:
        """Return the guided distribution's log-probs of the last tokens of a sequence.

        Args:
            settings: without chunk guidance.
            sequences: by model name, at least one token and then those to be scored, the same for all.
            num_tokens: how many.
            num_top: most probable tokens to be told with each.
        """
        ...

    @property
    def num_rows(self) -> int:
        """Sequences that the models hold in memory now."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it can still decode."""
        ...

    async def close(self) -> None:
        """Stop, and give all memory back."""
        ...
