"""GELU in one pass over memory, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ivg.engines.lockstep.cpu.library import SUFFIXES, address, call, library


def can_gelu(x: Tensor) -> bool:
    """Tell whether `gelu` takes this; it has no gradient."""
    return (
        x.device.type == "cpu"
        and x.dtype in SUFFIXES
        and x.is_contiguous()
        and not x.requires_grad
        and library() is not None
    )


def gelu(x: Tensor) -> Tensor:
    """Return x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed in float32 and rounded once."""
    output = torch.empty_like(x)
    call("gelu", x.dtype, address(x), address(output), x.numel())
    return output
