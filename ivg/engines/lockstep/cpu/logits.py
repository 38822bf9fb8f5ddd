"""Draws and log-ratios over whole vocabularies, a row at a time in the processor's own memory, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ivg.engines.lockstep.cpu.library import SUFFIXES, address, call, library


def can_draw(logits: Tensor) -> bool:
    """Tell whether `draw` takes these."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and library() is not None


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw one token per row from the softmax of logits / temperature, as `ivg.decoding.sampling.draw` says.

    Args:
        logits: (R, V).
        uniforms: (R,) in [0, 1).
        temperature: > 0.

    Returns:
        (R,) token ids; V - 1 where a row is not a number.
    """
    logits, uniforms = _by_row(logits), uniforms.double().contiguous()
    num_rows, num_ids = logits.shape
    ids = torch.empty(num_rows, dtype=torch.long)
    call(
        *("draw", torch.float32, address(logits), address(uniforms), address(ids)),
        *(num_rows, num_ids, logits.stride(0), 1 / temperature),
    )
    return ids


def can_compare(tuned: Tensor, untuned: Tensor) -> bool:
    """Tell whether `log_ratios` takes these; it has no gradient."""
    return (
        tuned.device.type == "cpu"
        and untuned.device.type == "cpu"
        and tuned.dtype == untuned.dtype
        and tuned.dtype in SUFFIXES
        and not (tuned.requires_grad or untuned.requires_grad)
        and library() is not None
    )


def log_ratios(tuned: Tensor, untuned: Tensor, certain: float) -> Tensor:
    """Return the log-softmax of one less that of the other, in float32.

    Args:
        tuned: (..., V) logits.
        untuned: (..., V) logits.
        certain: the largest size of a ratio; what is not a number becomes 0.

    Returns:
        (..., V).
    """
    shape = tuned.shape
    tuned, untuned = _by_row(tuned.flatten(0, -2)), _by_row(untuned.flatten(0, -2))
    num_rows, num_ids = tuned.shape
    ratios = torch.empty(num_rows, num_ids)
    call(
        *("log_ratios", tuned.dtype, address(tuned), address(untuned), address(ratios)),
        *(num_rows, num_ids, tuned.stride(0), untuned.stride(0), certain),
    )
    return ratios.view(shape)


def _by_row(numbers: Tensor) -> Tensor:
    """Return (R, V) with the numbers of each row side by side."""
    return numbers if numbers.stride(1) == 1 else numbers.contiguous()
