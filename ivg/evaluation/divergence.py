"""Kullback-Leibler divergence from the base, where a method allows it to be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivg.errors import UserError
from ivg.evaluation.distance import EncodedResponse, encode_response, response_logits
from ivg.guidance.logps import as_float, log_probs
from ivg.prompts import Row, encode_prompt


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
    models: Sequence[Any], encoded: Sequence[Sequence[EncodedResponse]], *, beta: float, temperature: float
) -> list[float]:
    """Estimate KL(guided || base) in nats for responses that token guidance by a pair sampled.

    Along each sampled response the divergence of every next-token distribution is summed over the whole
    vocabulary, which has the same mean as the log-ratio of the sampled tokens and less noise:

        Σ_t Σ_v p_t(v) [log p_t(v) - log q_t(v)],
        p_t = softmax((base + β (log tuned - log untuned)) / τ),  q_t = softmax(base / τ)

    Args:
        models: base, tuned, untuned; ids that one of the guides lacks get no guidance.
        encoded: for each of the three, prompts in its own template with the common response ids.
        beta: weight of the pair.
        temperature: τ, above 0; the responses were sampled at it without top-k or top-p.

    Returns:
        One number per response.
    """
    found = []
    for rows in zip(*encoded, strict=True):
        base, tuned, untuned = (
            as_float(response_logits(model, [row])[0]).cpu() for model, row in zip(models, rows, strict=True)
        )  # each (T, V)
        size = min(base.shape[1], tuned.shape[1], untuned.shape[1])
        ratio = pad(log_probs(tuned[:, :size]) - log_probs(untuned[:, :size]), (0, base.shape[1] - size))
        guided: Tensor = log_probs((base + beta * ratio) / temperature)  # (T, V)
        plain = log_probs(base / temperature)
        found.append(float((guided.exp() * (guided - plain)).sum()))
    return found


def token_guidance_kl(
    rows: Sequence[Row],
    base: str,
    pair: tuple[str, str],
    *,
    template: str | None,
    pair_template: str | None,
    beta: float,
    temperature: float,
) -> list[float]:
    """Load base and pair, and estimate the divergence of each output row (see `sampled_kl`).

    Args:
        rows: output rows of token guidance alone.
        base: folder or Hub name.
        pair: tuned and untuned.
        template: how the base sees a prompt.
        pair_template: how the pair sees it; None for each one's default.
        beta: weight of the pair.
        temperature: sampling temperature.
    """
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (base, *pair)]
    by_base = [encode_response(tokenizers[0], row, template=template) for row in rows]
    # The response is common: the guides see the base's ids after their own prompt.
    by_guides = [
        [
            EncodedResponse(encode_prompt(t, r, pair_template), e.response_ids)
            for r, e in zip(rows, by_base, strict=True)
        ]
        for t in tokenizers[1:]
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [AutoModelForCausalLM.from_pretrained(path).to(device).eval() for path in (base, *pair)]
    return sampled_kl(models, [by_base, *by_guides], beta=beta, temperature=temperature)
