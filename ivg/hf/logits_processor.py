"""Token guidance inside Hugging Face's own decoding loops (sampling, greedy, beam search)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ivg.decoding.log_ratio import log_probs
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from ivg.engines.lockstep.build import bind_guides
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner
from ivg.errors import UserError
from ivg.hf.guidance import Guidance
from ivg.models.prompts import Record


class GuidanceLogitsProcessor(LogitsProcessor):
    """Adds the guides' scores to the base's next-token log-probabilities.

    The one object here that remembers rows between calls: its caches are keyed by the ids that they hold.
    Where the ids of a call continue cached rows, in whatever order, those rows are selected; else all are
    run anew.
    One object serves one call of `generate`.

    Args:
        guidance: the guides; its search must ask for token guidance and none at chunk boundaries.
        input_ids: (P, T) the prompts that `generate` is given, padded on the left.
        attention_mask: (P, T), or None where nothing is padding.
        prompts: what was encoded, for guides with a template of their own.

    Raises:
        UserError: no token guidance, chunk guidance, or a vocabulary that differs from the base's.
    """

    def __init__(
        self,
        guidance: Guidance,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompts: Sequence[str | Record] | None = None,
    ) -> None:
        search = guidance.search
        if search.token_guidance == "none" or search.chunk_guidance != "none":
            raise UserError(
                f"a LogitsProcessor guides tokens only, but token_guidance is {search.token_guidance} and "
                f"chunk_guidance {search.chunk_guidance}; use custom_generate for a search"
            )
        if any(plan.fit.route != "ids" for plan in guidance.plans):
            raise UserError("a LogitsProcessor needs guides with the base's vocabulary; use custom_generate")
        self._guides = bind_guides(guidance.models, guidance.plans)
        self._prompts = guidance.prompt_ids(input_ids, attention_mask, prompts)
        self._width = input_ids.shape[1]
        self._states: list[BatchState] = []
        self._ids = input_ids[:0]  # (R, T) what the caches hold
        self._prompt_of = torch.zeros(0, dtype=torch.long)  # (R,)

    @property
    def _runners(self) -> list[ModelRunner]:
        return [runner for guide in self._guides for runner in guide.runners]

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guide the next token.

        Args:
            input_ids: (R, T), R a multiple of the number of prompts.
            scores: (R, V).

        Returns:
            (R, V) log-probabilities of the guided distribution.
        """
        ids = input_ids.cpu()
        prompt_of = torch.arange(len(ids)) // (len(ids) // len(self._prompts))
        self._advance(ids, prompt_of)
        self._ids, self._prompt_of = ids, prompt_of
        base = log_probs(scores)
        said: list[WeightedScores] = []
        start = 0
        for guide in self._guides:
            states = self._states[start : start + len(guide.runners)]
            start += len(guide.runners)
            said.append(WeightedScores(guide.weights.beta, guide.token_scores(states).to(base.device)))
        return log_probs(guide_logits(base, said)).to(scores.dtype)

    def _advance(self, ids: Tensor, prompt_of: Tensor) -> None:
        """Bring the caches from the rows they hold to those of this call."""
        source = self._source(ids[:, :-1], prompt_of)
        if source is None:
            self._prefill(ids, prompt_of)
            return
        for runner, state in zip(self._runners, self._states, strict=True):
            if source.tolist() != list(range(len(self._ids))):
                runner.select(state, source)
            runner.feed(state, ids[:, -1:])

    def _source(self, before: Tensor, prompt_of: Tensor) -> Tensor | None:
        """Return the cached row (R,) that each of this call's rows continues, or None if one has none."""
        if not self._states or before.shape[1] != self._ids.shape[1]:
            return None
        is_same = (before[:, None] == self._ids).all(dim=2) & (prompt_of[:, None] == self._prompt_of)
        return is_same.int().argmax(dim=1) if bool(is_same.any(dim=1).all()) else None

    def _prefill(self, ids: Tensor, prompt_of: Tensor) -> None:
        responses = ids[:, self._width :].tolist()
        self._states = [
            runner.prefill(
                [
                    (*self._prompts[p][runner.name], *response)
                    for p, response in zip(prompt_of, responses, strict=True)
                ]
            )
            for runner in self._runners
        ]
