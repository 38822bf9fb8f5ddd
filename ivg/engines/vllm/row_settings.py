"""Settings of single requests: betas, and whether a chunk score is wanted (vLLM's V1 model runner)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

EXTRA_ARG = "ivg"
# What clients of `vllm serve` may give under `vllm_xargs`, whose values are numbers, texts and lists of them.
BETA_ARG = "ivg_beta"
# Where the processor finds its guided model's settings: the one table of an engine that both see.
CONTEXT_NAME = "ivg"


@dataclasses.dataclass(frozen=True, slots=True)
class RowSettings:
    """What one request asks for.

    Attributes:
        betas: weight of each guide in token guidance.
        chunk_weights: where given, chunk scores are reported instead of log-probs, with these weights of the
            guides: under a sampled token what it adds, under the value id the value of the prefix before it.
        beta: in place of `betas`, one weight for every guide that guides tokens.
        is_for_prompts: these betas hold for a prompt's log-probs too. vLLM does not say whose prompt it asks
            for, so whoever sets this sees to it that at one time only prompts of equal betas are scored.
    """

    betas: tuple[float, ...] = ()
    chunk_weights: tuple[float, ...] | None = None
    beta: float | None = None
    is_for_prompts: bool = False

    def to_extra_args(self) -> dict[str, Any]:
        """Return them as `SamplingParams.extra_args`."""
        weights = {} if self.chunk_weights is None else {"chunk_weights": list(self.chunk_weights)}
        prompts = {"is_for_prompts": True} if self.is_for_prompts else {}
        return {EXTRA_ARG: {"betas": list(self.betas), **weights, **prompts}}

    @classmethod
    def from_params(cls, params: SamplingParams) -> RowSettings | None:
        """Read them from a request; None where it has none.

        Raises:
            ValueError: they are malformed.
        """
        extra_args = params.extra_args or {}
        given = extra_args.get(EXTRA_ARG)
        if BETA_ARG in extra_args:
            return cls(beta=_read_beta(extra_args))
        if given is None:
            return None
        valid = {"betas", "chunk_weights", "is_for_prompts"}
        if not isinstance(given, Mapping) or not {"betas"} <= given.keys() <= valid:
            raise ValueError(f"{EXTRA_ARG} is {given!r:.60}; give betas, and chunk_weights where wanted")
        for name in given.keys() & {"betas", "chunk_weights"}:
            numbers = given[name]
            is_list = isinstance(numbers, Sequence) and all(isinstance(n, int | float) for n in numbers)
            if not is_list or (name == "betas" and any(n < 0 for n in numbers)):
                raise ValueError(f"{EXTRA_ARG}.{name} is {numbers!r:.60}; give a number for each guide")
        weights = given.get("chunk_weights")
        is_for_prompts = given.get("is_for_prompts") is True
        return cls(
            tuple(given["betas"]),
            None if weights is None else tuple(weights),
            is_for_prompts=is_for_prompts,
        )

    @classmethod
    def check(cls, params: SamplingParams) -> None:
        """Refuse malformed settings before a request is taken; a server answers 400.

        Raises:
            ValueError: saying what to give.
        """
        settings = cls.from_params(params)
        if settings is None or settings.is_for_prompts or params.prompt_logprobs is None:
            return
        given = EXTRA_ARG if settings.beta is None else BETA_ARG
        raise ValueError(f"prompt_logprobs are given with the model's own betas only; leave out {given}")

    def for_guides(self, betas: Sequence[float]) -> RowSettings:
        """Return them with a weight for each guide; those guide tokens that have a weight of their own."""
        if self.beta is None:
            return self
        return RowSettings(tuple(self.beta if own else 0.0 for own in betas))


def _read_beta(extra_args: Mapping[str, Any]) -> float:
    beta = extra_args[BETA_ARG]
    is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not is_number or not math.isfinite(beta) or beta < 0 or EXTRA_ARG in extra_args:
        raise ValueError(f"{BETA_ARG} is {beta!r:.60}; give a number >= 0, the weight of token guidance")
    return float(beta)


class BatchSettings:
    """The settings of the rows that vLLM samples next, and the logits that their draws need.

    The model reads the settings when it is asked for logits; the processor below writes them before.

    Args:
        betas: the model's own, one for each guide.
    """

    def __init__(self, betas: Sequence[float]) -> None:
        self._default = RowSettings(tuple(betas))
        self._of_prompts = self._default
        self._next: Sequence[RowSettings | None] = ()
        self._scored: tuple[Tensor, Tensor] | None = None

    def put(self, rows: Sequence[RowSettings | None]) -> None:
        """Set the settings of the rows that are sampled next, in their order."""
        self._next = rows
        self._of_prompts = next((row for row in rows if row and row.is_for_prompts), self._default)

    def take(self, num_rows: int) -> list[RowSettings]:
        """Return the settings of each row; good for one call.

        vLLM asks for logits of other rows too (dummy runs, prompts' log-probs): those get the model's own, or
        what the rows of the batch say for prompts.
        """
        rows, self._next = self._next, ()
        if len(rows) != num_rows:
            return [self._of_prompts] * num_rows
        return [(row or self._default).for_guides(self._default.betas) for row in rows]

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
        """Refuse malformed settings."""
        RowSettings.check(sampling_params)

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
