"""The guides bound to their models: what they add to next tokens and how they score a chunk.

A new kind of guide model is one more class here, bound in `build.py`. To rank chunks by Python code, nothing
need change: see `engines/chunk_guidance.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ivg.decoding.log_ratio import chosen, log_ratio
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.value_head import chosen_values, scalar_values, vocabulary_values
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner

MAX_SCORES = 2**26  # vocabulary-sized scores held at once while a chunk is fed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How a guide takes part.

    Attributes:
        guides_tokens: whether it is asked at every token.
        beta: its weight on next tokens.
        chunk: weight in the chunk score; 0 if it does not rank.
        average: divide the chunk score by the response's length.
    """

    guides_tokens: bool = False
    beta: float = 0.0
    chunk: float = 0.0
    average: bool = False


class Guide(Protocol):
    """What the rows need of a guide.

    Attributes:
        runners: its models.
        weights: how it takes part.
        is_cumulative: whether a prefix's score is the sum of its tokens' scores, or the last one alone.
        scores_fed_tokens: whether a token's score needs the token itself fed (scalar heads).
        reads_base: whether the base's state stands behind its own in what `token_scores` is given.
    """

    runners: tuple[ModelRunner, ...]
    weights: Weights
    is_cumulative: bool
    scores_fed_tokens: bool
    reads_base: bool

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Score every next token: (R, V of the base)."""
        ...

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Feed a chunk (R, L) at once and score the token chosen at each position: (R, L)."""
        ...


class PairGuide:
    """Log-ratio of tuned to untuned: two runners, or one runner whose two branches are a LoRA on and off.

    Args:
        runners: of both halves; with `reads_base` of the tuned half alone.
        shared: which ids of the base the pair has.
        weights: how it takes part.
        reads_base: the base is the untuned half, and its scores are read where they are; only for pairs that
            guide tokens, which read them before every token.
    """

    is_cumulative = True
    scores_fed_tokens = False

    def __init__(
        self,
        runners: tuple[ModelRunner, ...],
        shared: SharedIds,
        weights: Weights,
        *,
        reads_base: bool = False,
    ) -> None:
        self.runners = runners
        self.shared = shared
        self.weights = weights
        self.reads_base = reads_base

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Return the (R, V) log-ratios of every next token."""
        return self._ratio([state.last for state in states])

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Return the (R, L) log-ratios of the tokens chosen."""
        scores = [chosen(self.token_scores(states), ids[:, 0])[:, None]]
        for fed, following in _pieces(ids, self.shared.num_base):
            outputs = [runner.feed(state, fed) for runner, state in zip(self.runners, states, strict=True)]
            scores.append(chosen(self._ratio(outputs), following))
        return torch.cat(scores, dim=1)

    def _ratio(self, outputs: Sequence[Tensor]) -> Tensor:
        if len(outputs) == 1:
            tuned, untuned = outputs[0][0::2], outputs[0][1::2]
        else:
            tuned, untuned = outputs
        n = self.shared.num_shared
        return self.shared.widen(log_ratio(tuned[..., :n], untuned[..., :n]))


class VocabularyValueGuide:
    """Q(x, y<t)[y_t] from a vocabulary head."""

    is_cumulative = False
    scores_fed_tokens = False
    reads_base = False

    def __init__(self, runner: ModelRunner, head: nn.Linear, shared: SharedIds, weights: Weights) -> None:
        self.runners: tuple[ModelRunner, ...] = (runner,)
        self.head = head
        self.shared = shared
        self.weights = weights

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Return Q (R, V) of every next token."""
        values = vocabulary_values(states[0].last, self.head)
        states[0].finite.logical_and_(values.amax(dim=-1).isfinite())
        return self.shared.widen(values[..., : self.shared.num_shared])

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Return Q (R, L) of the tokens chosen."""
        (state,) = states
        hidden = state.last[:, None]
        if ids.shape[1] > 1:
            hidden = torch.cat([hidden, self.runners[0].feed(state, ids[:, :-1])], dim=1)  # (R, L, H)
        values = chosen_values(hidden, self.head, ids.clamp(max=self.head.out_features - 1))
        return values.where(self.shared.has(ids), 0)


class ScalarValueGuide:
    """V(x, y<=t) from a scalar head."""

    is_cumulative = False
    scores_fed_tokens = True
    reads_base = False

    def __init__(self, runner: ModelRunner, head: nn.Linear, weights: Weights) -> None:
        self.runners: tuple[ModelRunner, ...] = (runner,)
        self.head = head
        self.weights = weights

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Refuse: one number per prefix says nothing of single next tokens."""
        raise TypeError("token guidance needs a vocabulary head")

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Return V (R, L) of the prefixes that end at each position."""
        return scalar_values(self.runners[0].feed(states[0], ids), self.head)


def _pieces(ids: Tensor, num_ids: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a chunk (R, L) into (tokens fed, tokens that follow them) whose scores fit in memory."""
    step = max(1, MAX_SCORES // (ids.shape[0] * num_ids))
    last = ids.shape[1] - 1
    for start in range(0, last, step):
        end = min(start + step, last)
        yield ids[:, start:end], ids[:, start + 1 : end + 1]
