"""A pair with another vocabulary beside the base: each base token is fed as the guide reads it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ivg.guidance.implicit import log_ratio
from ivg.lockstep.guides import Weights
from ivg.lockstep.lane import Lane, RowState
from ivg.lockstep.ragged import feed_ragged
from ivg.shared_strings import TokenReadings

logger = logging.getLogger(__name__)


class StringsLane(Lane):
    """A lane that is fed the base's ids and reads them in its own; its rows have their own lengths.

    Args:
        lane: the model, with at most one branch.
        readings: how the guide reads each base id.
    """

    def __init__(self, lane: Lane, readings: TokenReadings) -> None:
        super().__init__(
            lane.module,
            name=lane.name,
            has_logits=lane.has_logits,
            num_ids=lane.num_ids,
            max_length=lane.max_length,
            branches=lane.branches,
        )
        self.can_fork = False  # its rows grow by different numbers of tokens
        width = readings.max_pieces
        padded = [[*p, *[0] * (width - len(p))] for p in readings.pieces]
        self._pieces = torch.tensor(padded, device=self.device)  # (V of the base, n)
        self._counts = torch.tensor([len(p) for p in readings.pieces], device=self.device)
        self._has_warned = False

    def feed(self, state: RowState, ids: Tensor) -> Tensor:
        """Append base tokens (R, n); return the outputs after the last one (R, 1, V of the guide).

        The host asks at each of them how many tokens the rows read it as, so a GPU waits for it.
        """
        for column in ids.to(self.device).unbind(dim=1):
            counts = self._counts[column].where(self.has_room(state), 0)
            width = int(counts.max())
            if bool((counts == 1).all()):
                super().feed(state, self._pieces[column, :1])
            elif width:
                for _ in feed_ragged(self, state, self._pieces[column, :width], counts):
                    pass
        return state.last[:, None]

    def has_room(self, state: RowState) -> Tensor:
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


class StringsPairGuide:
    """Log-ratio of tuned to untuned, passed to the base tokens whose string the guide has.

    Args:
        lanes: tuned and untuned.
        readings: how both read the base's ids.
        num_ids: ids of the guide over which log-probabilities are normalised.
        weights: how the pair takes part; it ranks no chunks here (they are scored through text).
    """

    is_cumulative = True
    scores_fed_tokens = False

    def __init__(
        self, lanes: tuple[StringsLane, ...], readings: TokenReadings, num_ids: int, weights: Weights
    ) -> None:
        self.lanes: tuple[Lane, ...] = lanes
        self.weights = weights
        self._sides = lanes
        self._num_ids = num_ids
        device = lanes[0].device
        own = [c if c is not None and c < num_ids else None for c in readings.counterparts]
        self._counterparts = torch.tensor([c or 0 for c in own], device=device)  # (V of the base,)
        self._has_counterpart = torch.tensor([c is not None for c in own], device=device)

    def token_scores(self, states: Sequence[RowState]) -> Tensor:
        """Return the (R, V of the base) log-ratios; 0 for tokens without a counterpart."""
        tuned, untuned = (state.last[..., : self._num_ids] for state in states)
        ratios = log_ratio(tuned, untuned.to(tuned.device))[:, self._counterparts]  # (R, V)
        guided = [
            lane.has_room(state).to(tuned.device) for lane, state in zip(self._sides, states, strict=True)
        ]
        return ratios.where(self._has_counterpart & (guided[0] & guided[1])[:, None], 0)

    def chunk_scores(self, states: Sequence[RowState], ids: Tensor) -> Tensor:
        """Refuse: this guide is asked at every token, and never scores a chunk at once."""
        raise TypeError("a pair over shared strings guides tokens; its chunk scores go through text")
