"""A pair with another vocabulary beside the base: each base token is fed as the guide reads it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ivg.decoding.log_ratio import log_ratio
from ivg.engines.lockstep.guides import Weights
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner
from ivg.engines.lockstep.variable_length import feed_variable_length
from ivg.models.cross_vocab import Reading, TokenReadings

logger = logging.getLogger(__name__)


class _Pieces:
    """A reading as tensors: `ids` (V of the base, n), padded with 0, and `counts` (V of the base,)."""

    def __init__(self, reading: Reading, width: int, device: torch.device) -> None:
        self.ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in reading.pieces], device=device)
        self.counts = torch.tensor([len(p) for p in reading.pieces], device=device)


def is_at_opening(state: BatchState) -> Tensor:
    """Tell which rows (R,) have read nothing of their response yet."""
    return state.lengths == state.prompt_lengths


class CrossVocabRunner(ModelRunner):
    """A runner that is fed the base's ids and reads them in its own; its rows have their own lengths.

    Args:
        runner: the model, with at most one branch.
        readings: how the guide reads each base id.
    """

    rows_grow_alike = False

    def __init__(self, runner: ModelRunner, readings: TokenReadings) -> None:
        super().__init__(
            runner.module,
            name=runner.name,
            has_logits=runner.has_logits,
            num_ids=runner.num_ids,
            max_length=runner.max_length,
            branches=runner.branches,
        )
        width = readings.max_pieces
        self._inside = _Pieces(readings.inside, width, self.device)
        is_alike = readings.opening is readings.inside
        self._opening = self._inside if is_alike else _Pieces(readings.opening, width, self.device)
        self._max_pieces = width
        self._has_warned = False

    def feed(self, state: BatchState, ids: Tensor) -> Tensor:
        """Append base tokens (R, n); return the outputs after the last one (R, 1, V of the guide).

        The host asks at each of them how many tokens the rows read it as, so a GPU waits for it.
        """
        for column in ids.to(self.device).unbind(dim=1):
            pieces, counts = self._inside.ids[column], self._inside.counts[column]
            if self._opening is not self._inside:
                opens = is_at_opening(state)
                pieces = self._opening.ids[column].where(opens[:, None], pieces)
                counts = self._opening.counts[column].where(opens, counts)
            counts = counts.where(self.has_room(state), 0)
            width = int(counts.max())
            if bool((counts == 1).all()):
                super().feed(state, pieces[:, :1])
            elif width:
                for _ in feed_variable_length(self, state, pieces[:, :width], counts):
                    pass
        return state.last[:, None]

    def has_room(self, state: BatchState) -> Tensor:
        """Tell which rows (R,) can read any next token within the context; the others stay as they are."""
        if self.max_length is None:
            return torch.ones_like(state.lengths, dtype=torch.bool)
        has_room = state.lengths + self._max_pieces <= self.max_length
        if not self._has_warned and not bool(has_room.all()):
            self._has_warned = True
            logger.warning(
                "%s: a response needs more than its context of %d tokens in the guide's own vocabulary; "
                "from there on it is not guided",
                self.name,
                self.max_length,
            )
        return has_room


class _Counterparts:
    """Where each base token finds its score among the guide's, if it has one there."""

    def __init__(self, reading: Reading, num_ids: int, device: torch.device) -> None:
        own = [c if c is not None and c < num_ids else None for c in reading.counterparts]
        self._ids = torch.tensor([c or 0 for c in own], device=device)  # (V of the base,)
        self._exists = torch.tensor([c is not None for c in own], device=device)

    def widen(self, ratios: Tensor) -> Tensor:
        """Return (R, V of the base) from (R, V of the guide); 0 for tokens without a counterpart."""
        return ratios[:, self._ids].where(self._exists, 0)


class CrossVocabPairGuide:
    """Log-ratio of tuned to untuned, passed to the base tokens for whose bytes the guide has a token.

    Args:
        runners: tuned and untuned.
        readings: how both read the base's ids.
        num_ids: ids of the guide over which log-probabilities are normalised.
        weights: how the pair takes part; it ranks no chunks here (they are scored through text).
    """

    is_cumulative = True
    scores_fed_tokens = False
    reads_base = False

    def __init__(
        self, runners: tuple[CrossVocabRunner, ...], readings: TokenReadings, num_ids: int, weights: Weights
    ) -> None:
        self.runners: tuple[ModelRunner, ...] = runners
        self.weights = weights
        self._sides = runners
        self._num_ids = num_ids
        device = runners[0].device
        self._inside = _Counterparts(readings.inside, num_ids, device)
        is_alike = readings.opening is readings.inside
        self._opening = self._inside if is_alike else _Counterparts(readings.opening, num_ids, device)

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Return the (R, V of the base) log-ratios; 0 for tokens without a counterpart."""
        tuned, untuned = (state.last[..., : self._num_ids] for state in states)
        ratios = log_ratio(tuned, untuned.to(tuned.device))
        widened = self._inside.widen(ratios)  # (R, V)
        opens = is_at_opening(states[0])
        if self._opening is not self._inside and bool(opens.any()):
            widened = self._opening.widen(ratios).where(opens[:, None], widened)
        guided = [
            runner.has_room(state).to(tuned.device) for runner, state in zip(self._sides, states, strict=True)
        ]
        return widened.where((guided[0] & guided[1])[:, None], 0)

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Refuse: this guide is asked at every token, and never scores a chunk at once."""
        raise TypeError("a pair over shared strings guides tokens; its chunk scores go through text")
