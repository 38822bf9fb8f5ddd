"""The one place where logits become log-probabilities."""

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
