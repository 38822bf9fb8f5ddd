"""The guides bound to their models: what they add to next tokens and how they score a chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ivg.guidance.explicit import chosen_values, scalar_values, vocabulary_values
from ivg.guidance.implicit import chosen, log_ratio
from ivg.lockstep.lane import Lane, RowState

_MAX_SCORES = 2**26  # vocabulary-sized scores held at once while a chunk is fed


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
        lanes: its models.
        weights: how it takes part.
        is_cumulative: whether a prefix's score is the sum of its tokens' scores, or the last one alone.
        scores_fed_tokens: whether a token's score needs the token itself fed (scalar heads).
    """

    lanes: tuple[Lane, ...]
    weights: Weights
    is_cumulative: bool
    scores_fed_tokens: bool

    def token_scores(self, states: Sequence[RowState]) -> Tensor:
        """Score every next token: (R, V of the base)."""
        ...

    def chunk_scores(self, states: Sequence[RowState], ids: Tensor) -> Tensor:
        """Feed a chunk (R, L) at once and score the token chosen at each position: (R, L)."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SharedIds:
    """The ids on which base and guide agree.

    Attributes:
        num_base: V, size of the base's output.
        num_shared: ids 0 ... num_shared-1 are scored; the guide's further ids are cut before normalising, the
            base's further ids get zero guidance.
        unguided: ids below num_shared that mean different special tokens; they get zero guidance too.
    """

    num_base: int
    num_shared: int
    unguided: tuple[int, ...] = ()

    def has(self, ids: Tensor) -> Tensor:
        """Tell which base ids the guide scores."""
        shared = ids < self.num_shared
        return shared & ~torch.isin(ids, ids.new_tensor(self.unguided)) if self.unguided else shared

    def widen(self, scores: Tensor) -> Tensor:
        """Turn (..., num_shared) scores into (..., V)."""
        scores = functional.pad(scores, (0, self.num_base - self.num_shared))
        if self.unguided:
            scores[..., list(self.unguided)] = 0
        return scores


class PairGuide:
    """Log-ratio of tuned to untuned: two lanes, or one lane whose two branches are a LoRA on and off."""

    is_cumulative = True
    scores_fed_tokens = False

    def __init__(self, lanes: tuple[Lane, ...], shared: SharedIds, weights: Weights) -> None:
        self.lanes = lanes
        self.shared = shared
        self.weights = weights

    def token_scores(self, states: Sequence[RowState]) -> Tensor:
        """Return the (R, V) log-ratios of every next token."""
        return self._ratio([state.last for state in states])

    def chunk_scores(self, states: Sequence[RowState], ids: Tensor) -> Tensor:
        """Return the (R, L) log-ratios of the tokens chosen."""
        scores = [chosen(self.token_scores(states), ids[:, 0])[:, None]]
        for fed, following in _pieces(ids, self.shared.num_base):
            outputs = [lane.feed(state, fed) for lane, state in zip(self.lanes, states, strict=True)]
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

    def __init__(self, lane: Lane, head: nn.Linear, shared: SharedIds, weights: Weights) -> None:
        self.lanes: tuple[Lane, ...] = (lane,)
        self.head = head
        self.shared = shared
        self.weights = weights

    def token_scores(self, states: Sequence[RowState]) -> Tensor:
        """Return Q (R, V) of every next token."""
        values = vocabulary_values(states[0].last, self.head)
        # In place: a captured step has no other way to report.
        states[0].finite.logical_and_(values.amax(dim=-1).isfinite())
        return self.shared.widen(values[..., : self.shared.num_shared])

    def chunk_scores(self, states: Sequence[RowState], ids: Tensor) -> Tensor:
        """Return Q (R, L) of the tokens chosen."""
        (state,) = states
        hidden = state.last[:, None]
        if ids.shape[1] > 1:
            hidden = torch.cat([hidden, self.lanes[0].feed(state, ids[:, :-1])], dim=1)  # (R, L, H)
        values = chosen_values(hidden, self.head, ids.clamp(max=self.head.out_features - 1))
        return values.where(self.shared.has(ids), 0)


class ScalarValueGuide:
    """V(x, y<=t) from a scalar head."""

    is_cumulative = False
    scores_fed_tokens = True

    def __init__(self, lane: Lane, head: nn.Linear, weights: Weights) -> None:
        self.lanes: tuple[Lane, ...] = (lane,)
        self.head = head
        self.weights = weights

    def token_scores(self, states: Sequence[RowState]) -> Tensor:
        """Refuse: one number per prefix says nothing of single next tokens."""
        raise TypeError("token guidance needs a vocabulary head")

    def chunk_scores(self, states: Sequence[RowState], ids: Tensor) -> Tensor:
        """Return V (R, L) of the prefixes that end at each position."""
        return scalar_values(self.lanes[0].feed(states[0], ids), self.head)


def _pieces(ids: Tensor, num_ids: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a chunk (R, L) into (tokens fed, tokens that follow them) whose scores fit in memory."""
    step = max(1, _MAX_SCORES // (ids.shape[0] * num_ids))
    last = ids.shape[1] - 1
    for start in range(0, last, step):
        end = min(start + step, last)
        yield ids[:, start:end], ids[:, start + 1 : end + 1]
