"""The implicit value function: the log-ratio of a tuned model to its untuned twin (arXiv 2409.17819)."""

from __future__ import annotations

from torch import Tensor

from ivg.guidance.logps import log_probs


def log_ratio(tuned_logits: Tensor, untuned_logits: Tensor) -> Tensor:
    """Return log pi_tuned - log pi_untuned, each normalised over the ids given.

    Args:
        tuned_logits: (..., V).
        untuned_logits: (..., V).

    Returns:
        (..., V) log-ratios.
    """
    return log_probs(tuned_logits) - log_probs(untuned_logits)


def chosen(scores: Tensor, ids: Tensor) -> Tensor:
    """Return each position's score of the token chosen there.

    Args:
        scores: (..., V).
        ids: (...,) token ids.

    Returns:
        (...,) scores.
    """
    return scores.gather(-1, ids[..., None]).squeeze(-1)
