"""What is decoded and what comes out: tasks, hypotheses, boundaries, finished tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

FinishReason = Literal["eos", "stop", "length", "context"]


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One response to find.

    Attributes:
        index: its place in the output.
        prompt_id: identity of the prompt; decides the draws.
        prompt_ids: by model name, the prompt in that model's own ids.
        max_tokens: length limit of the response, EOS included.
        sample: which of the prompt's independent samples this is; its row in the draws.
        limited_by: why the limit stands: `length` (max_new_tokens) or `context` (a model's context ends).
        record: the prompt itself, for guides that read text.
        seed: of its draws; None: the engine's own.
    """

    index: int
    prompt_id: str
    prompt_ids: Mapping[str, tuple[int, ...]]
    max_tokens: int
    sample: int = 0
    limited_by: FinishReason = "length"
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    seed: int | None = None

    @property
    def width(self) -> int:
        """Columns that it may come to fill: its longest prompt and the whole response."""
        return max(map(len, self.prompt_ids.values())) + self.max_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Hypothesis:
    """A response, finished or not.

    Attributes:
        ids: its tokens, EOS included.
        value: score of the prefix.
        finish_reason: why it ended, or None.
        log_ratios: per token, what token guidance added.
    """

    ids: tuple[int, ...] = ()
    value: float = 0.0
    finish_reason: FinishReason | None = None
    log_ratios: tuple[float, ...] = ()


class Boundary(NamedTuple):
    """The candidates of one chunk boundary, their rows, and the rows kept, best first."""

    candidates: tuple[Hypothesis, ...]
    rows: tuple[int, ...]
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """A task's kept beams, best first, and its boundaries where a trace was asked for."""

    task: Task
    beams: tuple[Hypothesis, ...]
    trace: tuple[Boundary, ...] = ()


class TokenLogProb(NamedTuple):
    """What the guided distribution says of one given token, before temperature, top-k and top-p.

    Attributes:
        id: the token.
        log_prob: its log-probability.
        top: the most probable tokens with theirs, best first.
    """

    id: int
    log_prob: float
    top: tuple[tuple[int, float], ...]
