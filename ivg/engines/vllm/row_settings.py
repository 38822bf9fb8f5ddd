"""Settings of single requests: betas, and whether a chunk score is wanted (vLLM's V1 model runner)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

EXTRA_ARG = "ivg"
# Where the processor finds its guided model's settings: the one table of an engine that both see.
CONTEXT_NAME = "ivg"


@dataclasses.dataclass(frozen=True, slots=True)
class RowSettings:
    """What one request asks for.

    Attributes:
        betas: one for each guide, or None for the model's own.
        with_scores: report chunk scores instead of log-probs: under each sampled token what it adds, under
            the value id the value of the prefix before it.
    """

    betas: tuple[float, ...] | None = None
    with_scores: bool = False

    def to_extra_args(self) -> dict[str, Any]:
        """Return them as `SamplingParams.extra_args`."""
        betas = None if self.betas is None else list(self.betas)
        return {EXTRA_ARG: {"betas": betas, "with_scores": self.with_scores}}

    @classmethod
    def from_params(cls, params: SamplingParams) -> RowSettings | None:
        """Read them from a request; None where it has none.

        Raises:
            ValueError: they are malformed.
        """
        given = (params.extra_args or {}).get(EXTRA_ARG)
        if given is None:
            return None
        if not isinstance(given, Mapping) or not given.keys() <= {"betas", "with_scores"}:
            raise ValueError(f"{EXTRA_ARG} is {given!r:.60}; give betas and with_scores")
        betas = given.get("betas")
        is_list = betas is None or (
            isinstance(betas, Sequence) and all(isinstance(b, int | float) and b >= 0 for b in betas)
        )
        if not is_list:
            raise ValueError(f"{EXTRA_ARG}.betas is {betas!r:.60}; give a list of numbers >= 0")
        return cls(None if betas is None else tuple(betas), bool(given.get("with_scores", False)))


class BatchSettings:
    """The settings of the rows that vLLM samples next, and the logits that their draws need.

    The model reads the settings when it is asked for logits; the processor below writes them before.

    Args:
        betas: the model's own, one for each guide.
    """

    def __init__(self, betas: Sequence[float]) -> None:
        self.default_betas = tuple(betas)
        self._next: Sequence[RowSettings | None] | None = None
        self._scored: tuple[Tensor, Tensor] | None = None

    def put(self, rows: Sequence[RowSettings | None]) -> None:
        """Set the settings of the rows that are sampled next, in their order."""
        self._next = rows

    def take(self, num_rows: int) -> tuple[Sequence[tuple[float, ...]], list[int]]:
        """Return each row's betas, and which rows want scores; good for one call.

        vLLM asks for logits of other rows too (dummy runs, prompts' log-probs): those get the model's own.
        """
        rows, self._next = self._next, None
        if rows is None or len(rows) != num_rows:
            return [self.default_betas] * num_rows, []
        betas = [self.default_betas if row is None or row.betas is None else row.betas for row in rows]
        return betas, [i for i, row in enumerate(rows) if row is not None and row.with_scores]

    def keep_for_sampling(self, rows: Tensor, logits: Tensor) -> None:
        """Keep what rows are to be sampled from, where scores are reported in its place."""
        self._scored = (rows, logits)

    def restore(self, logits: Tensor) -> Tensor:
        """Put back what `keep_for_sampling` kept."""
        if self._scored is not None:
            (rows, kept), self._scored = self._scored, None
            logits[rows] = kept
        return logits


class RowSettingsProcessor(LogitsProcessor):
    """Follows the rows of the batch for the guided model.

    vLLM copies what it reports before it calls processors. So the model returns chunk scores for rows that
    want them, and here the guided logits take their place before tokens are sampled.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse malformed settings; the server answers 400."""
        settings = RowSettings.from_params(sampling_params)
        if (
            settings is not None
            and settings.betas is not None
            and sampling_params.prompt_logprobs is not None
        ):
            raise ValueError("prompt_logprobs are given with the model's own betas only; leave out betas")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._context = vllm_config.compilation_config.static_forward_context
        self._by_row: dict[int, RowSettings] = {}
        self._num_rows = 0

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go and change places; called before every forward pass."""
        process_dict_updates(
            self._by_row, batch_update, lambda params, _, __: RowSettings.from_params(params)
        )
        if batch_update is not None:
            self._num_rows = batch_update.batch_size
        self._settings.put([self._by_row.get(row) for row in range(self._num_rows)])

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits to sample from."""
        return self._settings.restore(logits)

    def is_argmax_invariant(self) -> bool:
        """Scores are no logits: greedy rows need them replaced too."""
        return False

    @property
    def _settings(self) -> BatchSettings:
        settings: BatchSettings = self._context[CONTEXT_NAME]
        return settings
