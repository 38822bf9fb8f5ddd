"""What ends a response of a base: its EOS ids, and the stop strings and stop tokens of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ivg.config import SamplingConfig
from ivg.decoding.stopping import StopChecker
from ivg.models.inspection import ModelInfo
from ivg.models.vocab import stop_token_ids


def build_stop_checker(base: ModelInfo, sampling: SamplingConfig) -> StopChecker:
    """Return what finds the ends of a base's responses, and turns their ids into text."""
    tokenizer = base.tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    stop_ids = stop_token_ids(tokenizer, sampling.stop)
    return StopChecker(base.eos_ids, sampling.stop, decode, stop_ids=stop_ids)
