"""From logits and uniforms to next tokens: temperature, top-k, top-p, inverse-CDF draws.

Pure functions: randomness comes in as uniforms (`draws.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Apply temperature, then top-k, then top-p, in the order transformers uses.

    Args:
        logits: (R, V) unnormalised scores of the combined distribution.
        temperature: > 0.
        top_k: tokens kept (ties with the last one stay too); 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.

    Returns:
        (R, V) scores, minus infinity where a token is ruled out.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]  # (R, 1)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        mass_before = probs.cumsum(dim=-1) - probs
        ruled_out = torch.zeros_like(logits, dtype=torch.bool)
        ruled_out.scatter_(1, order, mass_before >= top_p)
        logits = logits.masked_fill(ruled_out, -torch.inf)
    return logits


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    The uniform is scaled by the row's own total, since a float32 running sum misses 1 by up to 1e-5 at large
    vocabularies; a token of probability zero is never drawn.

    Args:
        logits: (R, V).
        uniforms: (R,) in [0, 1).
        temperature: > 0.

    Returns:
        (R,) token ids; some valid id where a row's logits are NaN, which the caller checks.
    """
    scaled = logits if temperature == 1 else logits / temperature
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)  # (R, V)
    total = cumulative[:, -1:]
    target = uniforms.to(cumulative.dtype)[:, None] * total  # (R, 1)
    # A uniform just below 1 may round up to 1: stay below the total, inside the last token's interval.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return ids.clamp(max=logits.shape[-1] - 1)


def next_tokens(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Choose the next token of every row: greedy at temperature 0, else a draw.

    Args:
        logits: (R, V) combined scores.
        uniforms: (R,) in [0, 1); unused at temperature 0.

    Returns:
        (R,) token ids.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if not 0 < top_k < logits.shape[-1] and top_p >= 1:
        return draw(logits, uniforms, temperature=temperature)
    return draw(filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p), uniforms)
