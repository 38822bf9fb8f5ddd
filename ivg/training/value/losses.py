"""Value objectives as pure functions of prefix values.

All take values laid out by position, `values` (R, T), and a mask (R, T) that is True on response tokens,
and return a *sum*; the caller divides by the number of positions over all processes. r is the final reward of
a row, V_t the value of the prefix that ends with token t, T the last response position of the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fudge_loss(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Regress the final reward from every prefix: Σ_t (V_t − r)².

    Args:
        values: (R, T).
        rewards: final rewards (R,).
        mask: response positions (R, T).

    Returns:
        The sum over response positions, a scalar.
    """
    errors = values - rewards.to(values.dtype).unsqueeze(1)  # (R, T)
    return errors.square().masked_fill(~mask, 0.0).sum()


def fudge_bce_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Predict a binary final reward from every prefix: −Σ_t [r log σ(V_t) + (1 − r) log(1 − σ(V_t))].

    Args:
        logits: (R, T).
        labels: 0 or 1 (R,).
        mask: response positions (R, T).

    Returns:
        The sum over response positions, a scalar.
    """
    targets = labels.to(logits.dtype).unsqueeze(1).expand_as(logits)  # (R, T)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.masked_fill(~mask, 0.0).sum()


def cd_q_loss(values: Tensor, rewards: Tensor, mask: Tensor, next_values: Tensor | None = None) -> Tensor:
    """Bootstrap each prefix from the next one: (V_T − r)² + Σ_{t<T} (V_t − sg[V_{t+1}])².

    Args:
        values: (R, T).
        rewards: final rewards (R,).
        mask: response positions (R, T); a row's positions are contiguous.
        next_values: targets of the positions before the last one (R, T): for a vocabulary head, the
            expectation of the next value under the base policy. Default: the sampled next token's value.

    Returns:
        The sum over response positions, a scalar.
    """
    if next_values is None:
        next_values = F.pad(values[:, 1:], (0, 1))
    is_last = mask & ~F.pad(mask[:, 1:], (0, 1), value=False)
    final = rewards.to(values.dtype).unsqueeze(1)  # (R, 1)
    targets = torch.where(is_last, final, next_values.detach())
    return (values - targets).square().masked_fill(~mask, 0.0).sum()


def expected_values(values: Tensor, logits: Tensor) -> Tensor:
    """Average the values of all next tokens under a policy: Σ_a π(a) Q[a].

    Ids that only one of the two has are left out, and π is normalised over the others.

    Args:
        values: Q for every next token (N, V).
        logits: the policy's (N, V'); V' may be another number, where one side's ids are padded.

    Returns:
        (N,) in float32.
    """
    shared = min(values.shape[1], logits.shape[1])
    probabilities = logits[:, :shared].float().softmax(dim=1)  # (N, shared)
    return (probabilities * values[:, :shared].float()).sum(dim=1)


def prefix_bt_loss(chosen: Tensor, rejected: Tensor, mask: Tensor) -> Tensor:
    """Prefer the chosen prefix at every length both have: −Σ_t log σ(V(chosen≤t) − V(rejected≤t)).

    Args:
        chosen: values (R, T).
        rejected: values (R, T), aligned so that equal columns are equal response positions.
        mask: positions both responses have (R, T).

    Returns:
        The sum over common positions, a scalar.
    """
    return -F.logsigmoid(chosen - rejected).masked_fill(~mask, 0.0).sum()
