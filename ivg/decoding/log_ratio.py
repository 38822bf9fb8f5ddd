"""The implicit value function: the log-ratio of a tuned model to its untuned twin (arXiv 2409.17819)."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probs(logits: Tensor) -> Tensor:
    """Normalise logits over the last dimension, in float32 whatever the model's dtype (float64 stays).

    Args:
        logits: (..., V).

    Returns:
        (..., V) log-probabilities.
    """
    return as_float(logits).log_softmax(dim=-1)


def as_float(scores: Tensor) -> Tensor:
    """Return scores in float32, or in float64 where they came so."""
    return scores if scores.dtype == torch.float64 else scores.float()


_CERTAIN = 1e9  # stands for an infinite log-ratio: infinity times a beta of 0 would be NaN


def log_ratio(tuned_logits: Tensor, untuned_logits: Tensor) -> Tensor:
    """Return log pi_tuned - log pi_untuned, each normalised over the ids given.

    Where only one model rules a token out the ratio is finite but decides; where both do it is 0.

    Args:
        tuned_logits: (..., V).
        untuned_logits: (..., V).

    Returns:
        (..., V) log-ratios.
    """
    ratio = log_probs(tuned_logits).sub_(log_probs(untuned_logits))  # in place: whole vocabularies are large
    return ratio.nan_to_num_(nan=0.0, posinf=_CERTAIN, neginf=-_CERTAIN)


def chosen(scores: Tensor, ids: Tensor) -> Tensor:
    """Return each position's score of the token chosen there.

    Args:
        scores: (..., V).
        ids: (...,) token ids.

    Returns:
        (...,) scores.
    """
    return scores.gather(-1, ids[..., None]).squeeze(-1)
