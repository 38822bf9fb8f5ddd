"""Kullback-Leibler divergence from the base, where a method allows it to be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ivg.decoding.log_ratio import as_float, log_probs, log_ratio
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from ivg.errors import UserError
from ivg.evaluation.measures.distance import EncodedResponse, response_logits


def best_of_n_bound(n: int) -> float:
    """Return log N - (N - 1) / N, an upper bound in nats on the divergence of best-of-N from its sampler.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"best-of-{n} is not defined; give an integer >= 1")
    return math.log(n) - (n - 1) / n


def best_of_bounds(arguments: Sequence[str]) -> dict[str, float]:
    """Return the bound of each file that NAME=N arguments say best-of-N made.

    Raises:
        UserError: an argument of another form.
    """
    bounds = {}
    for argument in arguments:
        name, _, n = argument.partition("=")
        if not n.isdigit() or int(n) < 1:
            raise UserError(f"best_of: got {argument!r}; expected NAME=N, such as best_of_n=16")
        bounds[name] = best_of_n_bound(int(n))
    return bounds


@torch.inference_mode()
def sampled_kl(
    models: Sequence[Any],
    encoded: Sequence[Sequence[EncodedResponse]],
    *,
    beta: float,
    temperature: float,
    num_shared: int | None = None,
    unguided: Sequence[int] = (),
) -> list[float]:
    """Estimate KL(guided || base) in nats for responses that token guidance by a pair sampled.

    Along each sampled response the divergence of every next-token distribution is summed over the whole
    vocabulary, which has the same mean as the log-ratio of the sampled tokens and less noise:

        Σ_t Σ_v p_t(v) [log p_t(v) - log q_t(v)],
        p_t = softmax((base + β (log tuned - log untuned)) / τ),  q_t = softmax(base / τ)

    Args:
        models: base, tuned, untuned.
        encoded: for each of the three, prompts in its own template with the common response ids.
        beta: weight of the pair.
        temperature: τ, above 0; the responses were sampled at it without top-k or top-p.
        num_shared: ids below this are guided; default: those that all three have.
        unguided: ids below it that are not.

    Returns:
        One number per response.
    """
    found = []
    for rows in zip(*encoded, strict=True):
        base, tuned, untuned = (
            as_float(response_logits(model, [row])[0]).cpu() for model, row in zip(models, rows, strict=True)
        )  # each (T, V)
        size = num_shared or min(base.shape[1], tuned.shape[1], untuned.shape[1])
        ratio = pad(log_ratio(tuned[:, :size], untuned[:, :size]), (0, base.shape[1] - size))
        ratio[:, list(unguided)] = 0
        guided: Tensor = log_probs(guide_logits(base, [WeightedScores(beta, ratio)]) / temperature)  # (T, V)
        plain = log_probs(base / temperature)
        found.append(float((guided.exp() * (guided - plain)).sum()))
    return found
