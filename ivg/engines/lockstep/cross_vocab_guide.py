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
from ivg.models.cross_vocab import TokenReadings

logger = logging.getLogger(__name__)


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
        padded = [[*p, *[0] * (width - len(p))] for p in readings.pieces]
        self._pieces = torch.tensor(padded, device=self.device)  # (V of the base, n)
        self._counts = torch.tensor([len(p) for p in readings.pieces], device=self.device)
        self._has_warned = False

    def feed(self, state: BatchState, ids: Tensor) -> Tensor:
        """Append base tokens (R, n); return the outputs after the last one (R, 1, V of the guide).

        The host asks at each of them how many tokens the rows read it as, so a GPU waits for it.
        """
        for column in ids.to(self.device).unbind(dim=1):
            counts = self._counts[column].where(self.has_room(state), 0)
            width = int(counts.max())
            if bool((counts == 1).all()):
                super().feed(state, self._pieces[column, :1])
            elif width:
                for _ in feed_variable_length(self, state, self._pieces[column, :width], counts):
                    pass
        return state.last[:, None]

    def has_room(self, state: BatchState) -> Tensor:
        """Tell which rows (R,) can read any next token within the context; the others stay as they are."""
        if self.max_length is None:
            return torch.ones_like(state.lengths, dtype=torch.bool)
        has_room = state.lengths + self._pieces.shape[1] <= self.max_length
        if not self._has_warned and not bool(has_room.all()):
            self._has_warned = True
            logger.warning(
                "%s: a response needs more than its context of %d tokens in the guide's own vocabulary; "
                "from there on it is not guided",
                self.name,
                self.max_length,
            )
        return has_room


class CrossVocabPairGuide:
    """Log-ratio of tuned to untuned, passed to the base tokens whose string the guide has.

    Args:
        runners: tuned and untuned.
        readings: how both read the base's ids.
        num_ids: ids of the guide over which log-probabilities are normalised.
        weights: how the pair takes part; it ranks no chunks here (they are scored through text).
    """

    is_cumulative = True
    scores_fed_tokens = False

    def __init__(
        self, runners: tuple[CrossVocabRunner, ...], readings: TokenReadings, num_ids: int, weights: Weights
    ) -> None:
        self.runners: tuple[ModelRunner, ...] = runners
        self.weights = weights
        self._sides = runners
        self._num_ids = num_ids
        device = runners[0].device
        own = [c if c is not None and c < num_ids else None for c in readings.counterparts]
        self._counterparts = torch.tensor([c or 0 for c in own], device=device)  # (V of the base,)
        self._has_counterpart = torch.tensor([c is not None for c in own], device=device)

    def token_scores(self, states: Sequence[BatchState]) -> Tensor:
        """Return the (R, V of the base) log-ratios; 0 for tokens without a counterpart."""
        tuned, untuned = (state.last[..., : self._num_ids] for state in states)
        ratios = log_ratio(tuned, untuned.to(tuned.device))[:, self._counterparts]  # (R, V)
        guided = [
            runner.has_room(state).to(tuned.device) for runner, state in zip(self._sides, states, strict=True)
        ]
        return ratios.where(self._has_counterpart & (guided[0] & guided[1])[:, None], 0)

    def chunk_scores(self, states: Sequence[BatchState], ids: Tensor) -> Tensor:
        """Refuse: this guide is asked at every token, and never scores a chunk at once."""
        raise TypeError("a pair over shared strings guides tokens; its chunk scores go through text")
