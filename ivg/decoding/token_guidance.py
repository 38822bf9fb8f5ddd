"""The formula of token guidance (emulated fine-tuning, EFT; also proxy tuning), in its one place.

For a prompt x and a response prefix y<t, in logs and up to a constant (arXiv 2409.17819, section 3):

    log p(y_t) = log pi_base(y_t | x, y<t) + sum_i beta_i * s_i(y_t | x, y<t)

A pair's score s is its log-ratio log pi_tuned - log pi_untuned (`log_ratio.py`), a vocabulary head's is
Q(x, y<t)[y_t] (`value_head.py`). Temperature, top-k and top-p act on the result (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class WeightedScores(NamedTuple):
    """What one guide says of every next token: its weight, and (..., V) scores in the base's ids.

    The weight is one number, or a (..., 1) number for each row.
    """

    beta: float | Tensor
    scores: Tensor


def guide_logits(base: Tensor, guides: Iterable[WeightedScores]) -> Tensor:
    """Return the unnormalised log-probabilities of the guided next token.

    Args:
        base: (..., V) logits or log-probabilities of the base, in float32 or float64.
        guides: none of them leaves the base as it is.

    Returns:
        (..., V), normalised only up to a constant per row.
    """
    for beta, scores in guides:
        if isinstance(beta, Tensor):
            base = torch.addcmul(base, scores, beta)
        else:
            base = torch.add(base, scores, alpha=beta)
    return base
