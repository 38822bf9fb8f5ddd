"""All models side by side on the same rows: sample a chunk, score it, keep some rows, let others join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ivg.config import SamplingConfig
from ivg.decoding.log_ratio import as_float, chosen
from ivg.decoding.sampling import next_tokens
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from ivg.engines.lockstep.guides import Guide
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner, Part

T = TypeVar("T")
_TRIM_SHARE = 8  # columns that are padding in every row go once they are a 1/8 of the width


class Chunk(NamedTuple):
    """What the rows produced.

    Attributes:
        ids: (R, L) sampled tokens.
        values: (R, L) chunk score of the prefix that ends at each position.
        finite: (models, R) whether a model's outputs were numbers throughout.
        log_ratios: (R, L) what token guidance added to the sampled tokens' scores, weights included.
    """

    ids: Tensor
    values: Tensor
    finite: Tensor
    log_ratios: Tensor


class NewRequest(NamedTuple):
    """A prompt that joins: its ids by model name, and how many rows it owns."""

    prompt_ids: Mapping[str, tuple[int, ...]]
    num_rows: int


class LockstepBatch:
    """The base and its guides on the same rows.

    Everything that belongs to a row (caches, masks, lengths, running scores) is here, and `update_batch` is
    the only place where rows are reordered, for every model at once.

    Args:
        base: the frozen model.
        guides: pairs and values that take part.
        sampling: temperature, top-k, top-p.
    """

    def __init__(self, base: ModelRunner, guides: Sequence[Guide], sampling: SamplingConfig) -> None:
        self.base = base
        self.guides = tuple(guides)
        self._sampling = sampling
        self.clear()

    @property
    def runners(self) -> list[ModelRunner]:
        """Every model: the base, then the guides' in their order."""
        return [self.base, *(runner for guide in self.guides for runner in guide.runners)]

    @property
    def stepping_runners(self) -> list[ModelRunner]:
        """Those that are fed at every token: the base, then the runners of guides that guide tokens."""
        return self._of_stepping(self.runners)

    @property
    def runner_names(self) -> list[str]:
        """How messages call the models, in the order of `Chunk.finite`."""
        return [runner.name for runner in self.runners]

    @property
    def num_rows(self) -> int:
        """Rows in the batch."""
        return len(self._pending)

    def clear(self) -> None:
        """Drop all rows and their caches."""
        self._states: list[BatchState] = []
        self._totals: list[Tensor] = []  # per guide (R,): sum of its scores over the response so far
        self._pending = torch.zeros(0, dtype=torch.long, device=self.base.device)  # last tokens, not yet fed
        self._num_tokens = self._pending  # (R,) length of the response so far

    @torch.inference_mode()
    def sample_chunk(self, uniforms: Tensor) -> Chunk:
        """Sample L tokens for every row and score every prefix.

        Args:
            uniforms: (R, L) in [0, 1).
        """
        uniforms = uniforms.to(self.base.device)
        num_rows, length = uniforms.shape
        ids = torch.empty(num_rows, length, dtype=torch.long, device=self.base.device)
        scores: dict[int, list[Tensor]] = {i: [] for i in self._stepping}  # per guide, columns (R, ·)
        for t in range(length):
            if t > 0:
                self._feed(ids[:, t - 1])
            ids[:, t], of_guides = self._next(self._of_stepping(self._states), uniforms[:, t])
            for i, score in of_guides.items():
                scores[i].append(score[:, None])
        return self._score(ids, {i: torch.cat(columns, dim=1) for i, columns in scores.items()})

    @torch.inference_mode()
    def update_batch(
        self, keep: Sequence[int], repeats: Sequence[int], new_requests: Sequence[NewRequest]
    ) -> None:
        """Keep some rows, feed them their last token, repeat each, and put the rows of new requests below.

        Args:
            keep: row numbers, in their new order.
            repeats: how many rows each kept one becomes.
            new_requests: prompts that start.
        """
        if keep:
            self._select(keep)
            self._feed_pending()
        else:
            self.clear()
        if new_requests:
            self._join(new_requests)
        counts = [*repeats, *(new_request.num_rows for new_request in new_requests)]
        self._select([row for row, n in enumerate(counts) for _ in range(n)])

    def guided(self, states: Sequence[BatchState]) -> tuple[Tensor, dict[int, Tensor]]:
        """Combine the models' last outputs by the formula of token guidance.

        Args:
            states: of `stepping_runners`, R rows each.

        Returns:
            (R, V) unnormalised scores of every next token, and those of each guide that guides tokens (R, V).
        """
        base = as_float(states[0].last)  # (R, V)
        scores: dict[int, Tensor] = {}
        start = 1
        for i in self._stepping:
            guide = self.guides[i]
            end = start + len(guide.runners)
            own = [*states[start:end], states[0]] if guide.reads_base else states[start:end]
            scores[i] = guide.token_scores(own).to(base.device)
            start = end
        weighted = [WeightedScores(self.guides[i].weights.beta, score) for i, score in scores.items()]
        return guide_logits(base, weighted), scores

    def _next(self, states: Sequence[BatchState], uniforms: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Choose each row's next token from the models' last outputs.

        Args:
            states: of the stepping runners.
            uniforms: (R,).

        Returns:
            (R,) tokens, and per guide that guides tokens its (R,) score of them.
        """
        guided, bonuses = self.guided(states)
        s = self._sampling
        ids = next_tokens(guided, uniforms, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p)
        return ids, {i: chosen(bonus, ids) for i, bonus in bonuses.items()}

    def _score(self, ids: Tensor, scores: dict[int, Tensor]) -> Chunk:
        """Score the chunk with the guides that did not step, and add everything up.

        Args:
            ids: (R, L) sampled tokens.
            scores: per stepping guide, (R, L) scores of the sampled tokens.
        """
        num_rows, length = ids.shape
        values = log_ratios = as_float(self._states[0].last).new_zeros(num_rows, length)
        num_tokens = self._num_tokens[:, None] + torch.arange(1, length + 1, device=ids.device)  # (R, L)
        numbers: list[Tensor] = []  # per guide (R,)
        for i, guide in enumerate(self.guides):
            score = (
                scores[i]
                if i in scores
                else guide.chunk_scores(self._of(i, self._states), ids).to(ids.device)
            )
            numbers.append(score.isfinite().all(dim=1))
            if i in scores:
                log_ratios = log_ratios + guide.weights.beta * score
            if guide.is_cumulative:
                score = self._totals[i][:, None] + score.cumsum(dim=1)
                self._totals[i] = score[:, -1]
            if guide.weights.chunk:
                values = values + guide.weights.chunk * (
                    score / num_tokens if guide.weights.average else score
                )
        self._pending, self._num_tokens = ids[:, -1], self._num_tokens + length
        finite = torch.stack([self._row_is_finite(i).to(ids.device) for i in range(len(self.runners))])
        for i, is_number in enumerate(numbers):  # heads are no runners of their own
            finite[self._runners_of(i)] &= is_number.to(ids.device)
        return Chunk(ids, values, finite, log_ratios)

    def _select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order, repeats allowed."""
        if list(rows) == list(range(self.num_rows)):
            return
        kept = torch.tensor(rows, device=self.base.device)
        for runner, state in zip(self.runners, self._states, strict=True):
            padding = state.mask.shape[1] - int(state.lengths[runner.branch_rows(kept)].max())
            is_much = padding * _TRIM_SHARE > state.mask.shape[1]
            runner.select(state, kept, drop=padding if is_much else 0)
        self._totals = [total[kept] for total in self._totals]
        self._pending, self._num_tokens = self._pending[kept], self._num_tokens[kept]

    def _join(self, new_requests: Sequence[NewRequest]) -> None:
        """Prefill each new request once per model and put its row below the others."""
        fresh = torch.arange(len(new_requests), device=self.base.device)
        kept = torch.arange(self.num_rows, device=self.base.device)
        states = []
        for i, runner in enumerate(self.runners):
            part = Part(runner.prefill([n.prompt_ids[runner.name] for n in new_requests]), fresh)
            state = runner.rebuild([Part(self._states[i], kept), part] if len(kept) else [part])
            states.append(state)
        self._states = states
        empty = as_float(states[0].last).new_zeros(len(fresh))
        totals = self._totals or [empty[:0]] * len(self.guides)
        self._totals = [torch.cat([total, empty]) for total in totals]
        self._pending = torch.cat([self._pending, fresh])  # new_requests have nothing pending
        self._num_tokens = torch.cat([self._num_tokens, torch.zeros_like(fresh)])

    @property
    def _stepping(self) -> list[int]:
        return [i for i, guide in enumerate(self.guides) if guide.weights.guides_tokens]

    def _of(self, guide: int, per_runner: Sequence[T]) -> list[T]:
        """Return a guide's own among things that stand in the order of the runners."""
        return list(per_runner[self._runners_of(guide)])

    def _runners_of(self, guide: int) -> slice:
        start = 1 + sum(len(g.runners) for g in self.guides[:guide])
        return slice(start, start + len(self.guides[guide].runners))

    def _row_is_finite(self, runner: int) -> Tensor:
        return self._states[runner].finite.view(self.num_rows, -1).all(dim=1)

    def _of_stepping(self, per_runner: Sequence[T]) -> list[T]:
        """Return what belongs to the runners that are fed at every token: the base's, then the guides'."""
        return [per_runner[0], *(thing for i in self._stepping for thing in self._of(i, per_runner))]

    def _feed(self, ids: Tensor) -> None:
        for runner, state in zip(self.stepping_runners, self._of_stepping(self._states), strict=True):
            runner.feed(state, ids[:, None])

    def _feed_pending(self) -> None:
        """Feed each row's last token where scoring the chunk has not done so."""
        ids = self._pending[:, None]
        self.base.feed(self._states[0], ids)
        for i, guide in enumerate(self.guides):
            if i in self._stepping or not guide.scores_fed_tokens:
                for runner, state in zip(guide.runners, self._of(i, self._states), strict=True):
                    runner.feed(state, ids)
