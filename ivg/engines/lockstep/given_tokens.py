"""Log-probabilities of given tokens under token guidance, which a server's clients ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ivg.decoding.engine import NumericalError
from ivg.decoding.log_ratio import chosen, log_probs
from ivg.decoding.sequences import TokenLogProb
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner

_MAX_SCORES = 2**24  # vocabulary-sized scores held at once


@torch.inference_mode()
def score_given(
    batch: LockstepBatch, sequences: Mapping[str, Sequence[int]], num_tokens: int, num_top: int
) -> list[TokenLogProb]:
    """Read a sequence once through base and guides; the batch's rows are not touched.

    Args:
        batch: whose guides all read the base's ids.
        sequences: by model name, what comes before the tokens (at least one token), and the tokens.
        num_tokens: how many of the last ones are to be scored; they are the same for all models.
        num_top: how many of the most probable tokens are reported at each place.

    Returns:
        One entry for each of the last tokens.

    Raises:
        NumericalError: a model returned NaN or infinite numbers.
    """
    runners = batch.stepping_runners
    states = [runner.prefill([sequences[runner.name][:-num_tokens]]) for runner in runners]
    tokens = torch.tensor(list(sequences[batch.base.name][-num_tokens:]), device=batch.base.device)
    found: list[TokenLogProb] = []
    step = max(1, _MAX_SCORES // states[0].last.shape[-1])
    for start in range(0, num_tokens, step):
        ids = tokens[start : start + step]
        before = [_feed(runner, state, ids) for runner, state in zip(runners, states, strict=True)]
        guided, _ = batch.guided(before)
        found += _entries(log_probs(guided), ids, num_top)
    for runner, state in zip(runners, states, strict=True):
        if not state.finite.all():
            raise NumericalError(f"{runner.name} returned NaN or infinite numbers on given tokens")
    return found


def _feed(runner: ModelRunner, state: BatchState, ids: Tensor) -> BatchState:
    """Feed (n,) tokens to a state of one row; return a state whose n rows are the places before them."""
    last = state.last[:, None]
    outputs = runner.feed(state, ids[None])  # (branches, n, .)
    before = torch.cat([last, outputs[:, :-1]], dim=1).transpose(0, 1).flatten(0, 1)  # (n x branches, .)
    return dataclasses.replace(state, last=before, finite=torch.ones_like(before[:, 0], dtype=torch.bool))


def _entries(logps: Tensor, ids: Tensor, num_top: int) -> list[TokenLogProb]:
    """Pick from (n, V) log-probs those of the tokens (n,) and the largest."""
    own = chosen(logps, ids).tolist()
    top = logps.topk(min(num_top, logps.shape[-1]), dim=-1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    tops = [tuple(zip(indices, values, strict=True)) for indices, values in pairs]
    return [TokenLogProb(*entry) for entry in zip(ids.tolist(), own, tops, strict=True)]
